"""What serving runs taught about an engine on a machine: factors on kernel times, host terms, and what is left over."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from tpplanner.domain.checks import check_count, check_real
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.model import LatentAttention, LinearAttention, ModelSpec
from tpplanner.domain.quantity import Quantity
from tpplanner.errors import ProfileError, reject


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingTerms:
    """Coefficients of the serving model of one engine on one machine, for one class of models.

    Attributes
    ----------
    gemm_factor, expert_factor, decode_attention_factor, prefill_attention_factor, collective_factor
        Time inside the engine over the time of the kernel measured alone [1]: captured graphs hide launches, fused
        kernels save traffic.
    layer_s
        What a layer takes beside its kernels: gaps and small kernels [s].
    step_s, seq_s
        Exposed host time per step, and per sequence that gets a token [s].
    prefill_interference
        Factor on what prompt tokens add to the step that carries them [1].
    first_token_steps
        Steps between the last prompt token and the client's first token, and before the first one is taken up [1].
    prefill_delay
        Factor on the time of a prompt's own prefill, where the engine holds it up or cuts it up further [1].
    request_s, client_s
        Fixed wait of a request, and what each sequence in the batch adds to it [s].
    burst_share
        Share of the other clients' prompts that a first token waits for in the mean of a benchmark that starts all
        clients at once and sends ten prompts from each [1].
    """

    gemm_factor: Quantity
    expert_factor: Quantity
    decode_attention_factor: Quantity
    prefill_attention_factor: Quantity
    collective_factor: Quantity
    layer_s: Quantity
    step_s: Quantity
    seq_s: Quantity
    prefill_interference: Quantity
    first_token_steps: Quantity
    prefill_delay: Quantity
    request_s: Quantity
    client_s: Quantity
    burst_share: Quantity

    def __post_init__(self) -> None:
        for name in SERVING_TERMS:
            quantity: Quantity = getattr(self, name)
            if quantity.value < 0:
                reject(ProfileError, name, "be >= 0", quantity.value, quantity.source)


SERVING_TERMS: tuple[str, ...] = tuple(f.name for f in fields(ServingTerms))


@dataclass(frozen=True, slots=True, kw_only=True)
class CovarianceTerm:
    """One term of the covariance of log residuals between two runs.

    std_frac**2 * exp(-sum((difference in log2 / length)**2) / 2) where the runs share what ``within`` names, else 0.

    Attributes
    ----------
    std_frac
        Standard deviation [natural log].
    within
        ``cell``: the same machine and engine; ``model``: also the same model and formats; ``shape``: also the same
        prompt and output length and way of sharding experts.
    num_seqs_len, tp_len, isl_len, osl_len
        Correlation lengths in doublings; infinity where the coordinate does not matter.
    """

    std_frac: float
    within: str
    num_seqs_len: float = math.inf
    tp_len: float = math.inf
    isl_len: float = math.inf
    osl_len: float = math.inf

    def __post_init__(self) -> None:
        if self.within not in WITHIN:
            reject(ProfileError, "within", f"be one of {', '.join(WITHIN)}", self.within)
        check_real(ProfileError, "covariance", std_frac=self.std_frac)
        for name in ("num_seqs_len", "tp_len", "isl_len", "osl_len"):
            if not getattr(self, name) > 0:
                reject(ProfileError, name, "be > 0", getattr(self, name), "covariance")


WITHIN = ("cell", "model", "shape")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResidualModel:
    """Gaussian process of the log residual of one latency over measured runs of one engine on one machine.

    Attributes
    ----------
    terms
        Of the covariance; they add up.
    noise_std_frac
        Scatter of a single run that no coordinate explains.
    model_keys, num_seqs, tp, isl_tok, osl_tok
        Coordinates of the runs, one entry each; the key names model, formats and sharding of experts.
    weights
        (K + noise**2 I)^-1 r, r being the runs' log residuals: the mean at x is k(x) . weights.
    """

    terms: tuple[CovarianceTerm, ...]
    noise_std_frac: float
    model_keys: tuple[str, ...] = ()
    num_seqs: tuple[float, ...] = ()
    tp: tuple[float, ...] = ()
    isl_tok: tuple[float, ...] = ()
    osl_tok: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_real(ProfileError, "residual", noise_std_frac=self.noise_std_frac)
        columns = (self.model_keys, self.num_seqs, self.tp, self.isl_tok, self.osl_tok, self.weights)
        if len({len(c) for c in columns}) != 1:
            reject(ProfileError, "residual", "have one entry per run in every column", [len(c) for c in columns])
        for name in ("num_seqs", "tp", "isl_tok", "osl_tok"):
            if any(not (math.isfinite(v) and v > 0) for v in getattr(self, name)):
                reject(ProfileError, f"residual.{name}", "be finite and > 0", getattr(self, name))
        if self.num_runs and not self.noise_std_frac > 0:
            reject(ProfileError, "residual.noise_std_frac", "be > 0 where there are runs", self.noise_std_frac)
        if not all(math.isfinite(w) for w in self.weights):
            reject(ProfileError, "residual.weights", "be finite", self.weights)

    @property
    def num_runs(self) -> int:
        """Runs behind it."""
        return len(self.weights)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingFit:
    """The serving model of one engine on one machine.

    Attributes
    ----------
    terms
        Per class of models, see :func:`model_class`; ``class@family`` holds those of one family of benchmarks.
    tpot, ttft
        Log residuals of TPOT and TTFT against the terms, for ``dense`` and ``moe`` models.
    num_runs
        Measured runs of this machine and engine behind it; 0 where the terms come from other machines alone.
    source
        The runs.
    """

    machine: str
    engine: str
    terms: Mapping[str, ServingTerms]
    tpot: Mapping[str, ResidualModel]
    ttft: Mapping[str, ResidualModel]
    num_runs: int
    source: str

    def __post_init__(self) -> None:
        place = f"{self.machine}/{self.engine}"
        check_count(ProfileError, place, minimum=0, num_runs=self.num_runs)
        unknown = sorted(name for name in self.terms if name.partition("@")[0] not in MODEL_CLASSES)
        if unknown or not self.terms:
            reject(ProfileError, "terms", f"be given for classes among {', '.join(MODEL_CLASSES)}", unknown, place)
        for kind in {*self.tpot, *self.ttft} - {"dense", "moe"}:
            reject(ProfileError, "tpot and ttft", "be of dense and moe models", kind, place)

    def terms_for(self, model: ModelSpec, *, family: str | None = None) -> ServingTerms:
        """Coefficients of the model's class, or of the nearest one that was measured."""
        asked = model_class(model)
        for name in (asked, *_NEAREST[asked]):
            for key in (f"{name}@{family}", name):
                if key in self.terms:
                    return self.terms[key]
        return next(iter(self.terms.values()))


MODEL_CLASSES = ("dense", "moe", "moe-mla", "moe-hybrid")

_NEAREST = {"dense": ("moe",), "moe": ("dense",), "moe-mla": ("moe", "dense"), "moe-hybrid": ("moe", "dense")}


def model_class(model: ModelSpec) -> str:
    """Class of models that share coefficients: dense, or experts with plain, latent or recurrent attention."""
    if not model.is_moe:
        return "dense"
    kinds = {type(group.attention) for group in model.layer_groups}
    if LatentAttention in kinds:
        return "moe-mla"
    return "moe-hybrid" if LinearAttention in kinds else "moe"


def model_key(model: ModelSpec, *, ep: int = 1) -> str:
    """Name under which runs of one model are known: its shape and formats, whatever its checkpoint is called."""
    p = model.precision
    formats = "-".join(dict.fromkeys((p.linear.name, p.expert.name))) if model.is_moe else p.linear.name
    size = f"{model.num_params / 1e9:.4g}B-{model.num_active_params / 1e9:.4g}B"
    return f"{model.hidden_size}x{model.num_layers}v{model.vocab_size}-{size}/{formats}/kv-{p.kv.name}/ep{ep}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadGenerator:
    """How a benchmark loads a server, where that differs from the steady state that users have.

    Attributes
    ----------
    prompts_per_client
        Prompts that each client sends, one after the other; all clients start at once. Infinity is the steady state.
    length_frac
        Mean length of prompts and outputs over the nominal one.
    batch_wait_steps
        Steps for which the engine waits to collect prompts.
    """

    prompts_per_client: float = math.inf
    length_frac: float = 1.0
    batch_wait_steps: FloatOrArray = 0.0

    def __post_init__(self) -> None:
        if not self.prompts_per_client >= 1:
            reject(ProfileError, "prompts_per_client", "be >= 1", self.prompts_per_client, "load generator")
        if not 0 < self.length_frac <= 1:
            reject(ProfileError, "length_frac", "be in (0, 1]", self.length_frac, "load generator")


STEADY = LoadGenerator()
