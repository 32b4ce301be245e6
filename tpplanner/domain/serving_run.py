"""A measured serving run: what ran on what, under which load, and how fast it was."""

from dataclasses import dataclass
from typing import Final

from tpplanner.domain.checks import check_count, check_real
from tpplanner.domain.serving_fit import STEADY, LoadGenerator
from tpplanner.errors import WorkloadError, reject

KINDS: Final = ("dense", "moe")

_SATURATED_TTFT_S: Final = 5.0
_SATURATED_FRAC: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRun:
    """One measured point: a replica of ``tp`` GPUs in a closed loop of ``concurrency`` requests.

    Attributes
    ----------
    run_id, copies
        Its id, and those of other rows that report the same measurement.
    model
        Hugging Face id of the model.
    checkpoint, dtype, kv_cache_dtype
        What `load_model` needs for the weights that were served. ``dtype`` of ``None`` is the checkpoint's own
        format, ``kv_cache_dtype`` of ``None`` what the engine takes by itself.
    machine, engine, engine_version
        Names that `load_hardware` and `load_engine` know; the version is ``None`` where none was recorded.
    precision
        The format in the source's own words, ``""`` where it has none.
    isl_tok, osl_tok
        Nominal prompt and output length [tok].
    tp, ep
        Degree of the attention and, within it, of expert parallelism; 1 cuts every expert.
    ttft_s, tpot_s
        Measured time to the first token and per output token [s]: means over the run.
    family
        Who measured: runs of one family share the load generator.
    source
        Where the figures come from, in the source's own words.
    kind
        ``dense`` or ``moe``; ``None`` where nobody has looked at the model.
    is_repaired
        Whether the source stated tp * ep in place of tp.
    reported_throughput_tok_s
        Measured output tokens per second of the replica, where the source has it [tok/s].
    num_gpus
        GPUs of all equal replicas that ran side by side; ``None`` for one replica.
    max_num_seqs, max_num_batched_tokens, gpu_memory_utilization
        Settings of the engine; ``None`` for its defaults.
    load
        The benchmark that loaded it, where it differs from a steady state.
    doubt
        Why the run cannot be what it says, where there is a reason: such runs are predicted and judged, not fitted.
    """

    run_id: str
    model: str
    checkpoint: str
    machine: str
    engine: str
    isl_tok: int
    osl_tok: int
    tp: int
    concurrency: int
    ttft_s: float
    tpot_s: float
    family: str
    source: str
    copies: tuple[str, ...] = ()
    engine_version: str | None = None
    precision: str = ""
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    ep: int = 1
    kind: str | None = None
    is_repaired: bool = False
    reported_throughput_tok_s: float | None = None
    num_gpus: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    load: LoadGenerator = STEADY
    doubt: str | None = None

    def __post_init__(self) -> None:
        place = "run"
        check_count(
            WorkloadError, place, isl_tok=self.isl_tok, osl_tok=self.osl_tok, tp=self.tp, ep=self.ep,
            concurrency=self.concurrency, num_gpus=self.num_gpus, max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
        )
        check_real(WorkloadError, place, maximum=1e6, ttft_s=self.ttft_s, tpot_s=self.tpot_s)
        check_real(WorkloadError, place, maximum=1e12, reported_throughput_tok_s=self.reported_throughput_tok_s)
        check_real(WorkloadError, place, maximum=1.0, gpu_memory_utilization=self.gpu_memory_utilization)
        for field in ("ttft_s", "tpot_s", "reported_throughput_tok_s", "gpu_memory_utilization"):
            if getattr(self, field) == 0:
                reject(WorkloadError, field, "be > 0", 0, place)
        if self.tp % self.ep:
            reject(WorkloadError, "ep", f"divide tp {self.tp}", self.ep, place)
        if self.num_gpus is not None and self.num_gpus % self.tp:
            reject(WorkloadError, "num_gpus", f"be a multiple of tp {self.tp}", self.num_gpus, place)
        if self.kind is not None and self.kind not in KINDS:
            reject(WorkloadError, "kind", f"be one of {', '.join(KINDS)}", self.kind, place)

    @property
    def ids(self) -> tuple[str, ...]:
        """Every id under which the source reports this measurement, its own first."""
        return (self.run_id, *self.copies)

    @property
    def parallel(self) -> str:
        """``tp``: every expert is cut; ``tep``: experts are shared out whole; ``tp_ep4``: both, over 4 groups."""
        if self.ep == 1:
            return "tp"
        return "tep" if self.ep == self.tp else f"tp_ep{self.ep}"

    @property
    def e2e_s(self) -> float:
        """Last token - arrival [s], of a request with the nominal output."""
        return self.ttft_s + self.tpot_s * (self.osl_tok - 1)

    @property
    def throughput_tok_s(self) -> float:
        """Output tokens of the replica per second [tok/s].

        The reported figure where there is one, else that of a closed loop in which each of ``concurrency`` clients
        gets ``osl_tok`` tokens per request: concurrency * osl / (ttft + tpot * (osl - 1)).

        Examples
        --------
        8 clients, 101 tokens in 0.5 s + 100 * 20 ms = 2.5 s each.

        >>> ServingRun(run_id="a", model="m", checkpoint="m", machine="h200", engine="vllm", isl_tok=1024,
        ...            osl_tok=101, tp=2, concurrency=8, ttft_s=0.5, tpot_s=0.02, family="own",
        ...            source="").throughput_tok_s
        323.2
        """
        if self.reported_throughput_tok_s is not None:
            return self.reported_throughput_tok_s
        return self.concurrency * self.osl_tok / self.e2e_s

    @property
    def is_saturated(self) -> bool:
        """Whether requests queued for memory: a TTFT of over 5 s and over a quarter of the whole time."""
        return self.ttft_s > _SATURATED_TTFT_S and self.ttft_s > _SATURATED_FRAC * self.e2e_s
