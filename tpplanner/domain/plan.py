"""What the planner answers: one plan per degree, and the recommendation over them."""

from dataclasses import dataclass
from enum import StrEnum

from tpplanner.domain.checks import check_count, check_real
from tpplanner.domain.engine import EngineProfile, SamplingPolicy
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.model import ModelSpec
from tpplanner.domain.workload import Load, Targets, Workload
from tpplanner.errors import WorkloadError, reject

MAX_GPUS = 10**6
"""A cluster larger than this is a typing error."""

TIE_PROB_FRAC = 0.2
"""A degree ties with the best where it is the better of the two with at least this probability: four to one is a lead."""

COMMON_STD_FRAC = 0.15
"""Error of TPOT that all degrees share where no run was measured: an assumption, of the order of the errors of peers on
measured runs (mean 17 %). It decides whether targets are met and nothing of the ranking."""

TTFT_OVER_TPOT = 2.0
"""Error of TTFT over that of TPOT where no run was measured; measured runs of peers: 47 against 17 %."""


class Reason(StrEnum):
    """Why a degree is out."""

    WEIGHTS = "weights"
    KV_CACHE = "kv_cache"
    HEADS = "heads"
    GPUS = "gpus"
    TTFT = "ttft"
    TPOT = "tpot"
    LOAD = "load"


class Binding(StrEnum):
    """What keeps a replica's batch, and with it throughput, from growing."""

    OFFERED_LOAD = "offered load"
    KV_CACHE = "KV cache"
    MAX_NUM_SEQS = "max_num_seqs"
    PREFILL = "prefill budget"
    TTFT = "TTFT target"
    TPOT = "TPOT target"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """Memory of one GPU of a replica [bytes], and the KV cache that is left."""

    hbm_bytes: float
    usable_bytes: float
    weight_bytes: float
    activation_bytes: float
    runtime_bytes: float
    kv_bytes: float
    kv_bytes_per_tok: float
    kv_capacity_tok: int
    num_kv_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSplit:
    """Mean step of one plan in scalars [s]; the fields are those of ``StepTime``, with its sums."""

    scalable_s: float
    comm_s: float
    sampling_s: float
    host_s: float
    hidden_s: float
    total_s: float
    linear_s: float
    attention_s: float
    elementwise_s: float
    launch_s: float
    schedule_s: float
    prepare_input_s: float
    process_output_s: float
    overlap_overhead_s: float

    @property
    def non_scalable_frac(self) -> float:
        """Share of the step that t does not divide: communication, sampling and exposed host time."""
        return (self.comm_s + self.sampling_s + self.host_s - self.hidden_s) / self.total_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Steady state of a plan. Rates are of the cluster, counts of sequences of one replica.

    ``ttft_s`` is ``None`` where everything is queued at once, ``tpot_s`` where one token is asked for.
    ``binding`` is what limits the batch; ``num_queued_seqs`` wait outside the running batch.
    ``capacity_req_s`` is the rate at which the replicas saturate. ``mixed_frac`` of the steps carry
    ``mixed_prefill_tok`` prompt tokens each; ``swap_stall_s`` comes on top of the mean step where KV is swapped.
    """

    throughput_tok_s: float
    throughput_per_gpu_tok_s: float
    request_rate_req_s: float
    capacity_req_s: float
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    concurrency_total: float
    concurrency_per_replica: float
    num_running_seqs: float
    num_decode_seqs: float
    num_queued_seqs: float | None
    preemptions_per_req: float
    recompute_tok_per_req: float
    swap_bytes_per_req: float
    kv_used_frac: float
    busy_frac: float
    mixed_frac: float
    mixed_prefill_tok: float
    swap_stall_s: float
    step: StepSplit
    power_w: float
    energy_j_per_tok: float
    cost_usd_per_mtok: float | None
    binding: Binding
    saturated: bool
    extrapolated: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """How sure the outcome of a degree is, beside the other degrees of its question.

    Attributes
    ----------
    best_prob_frac
        Probability that the degree is the best of all that can answer the question; over the degrees the sum is 1.
    meets_targets_prob_frac
        Probability that it meets the targets and carries an offered rate; 1 where there is neither.
    tpot_low_s, tpot_high_s, ttft_low_s, ttft_high_s, throughput_low_tok_s, throughput_high_tok_s
        Ends of the intervals that hold 80 % of single measured runs; ``None`` where the outcome has no figure.
    """

    best_prob_frac: float
    meets_targets_prob_frac: float
    tpot_low_s: float | None
    tpot_high_s: float | None
    ttft_low_s: float | None
    ttft_high_s: float | None
    throughput_low_tok_s: float | None
    throughput_high_tok_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DegreePlan:
    """One degree: N/t replicas, its memory, and its outcome or the reason why there is none.

    A degree that runs but misses a target keeps its outcome, with ``feasible`` false. ``uncertainty`` is ``None``
    where there is no outcome, and where the degree was planned alone.
    """

    tp: int
    num_replicas: int
    num_gpus_idle: int
    feasible: bool
    reason: Reason | None
    reason_detail: str
    memory: MemoryBudget | None
    outcome: Outcome | None
    uncertainty: Uncertainty | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipPoint:
    """The best degree changes from ``tp_before`` to ``tp_after`` where ``variable`` passes ``value``.

    ``value`` is the first grid point with the new best; ``previous`` the last with the old one.
    Both are strings for a variable that is not a number (the KV dtype).
    """

    variable: str
    unit: str
    tp_before: int
    tp_after: int
    previous: float | str
    value: float | str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """Everything that a recommendation was computed from."""

    model: ModelSpec
    hardware: HardwareProfile
    engine: EngineProfile
    num_gpus: int
    workload: Workload
    load: Load
    targets: Targets
    sampling: SamplingPolicy
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    non_kv_overhead_bytes: float | None = None
    num_gpu_blocks: int | None = None
    ep: int = 1
    max_tp: int | None = None
    price_usd_h: float | None = None
    num_gpus_given: bool = True

    def __post_init__(self) -> None:
        check_count(WorkloadError, "question", num_gpus=self.num_gpus, max_num_seqs=self.max_num_seqs,
                    max_num_batched_tokens=self.max_num_batched_tokens, max_tp=self.max_tp)
        if self.num_gpus > MAX_GPUS:
            reject(WorkloadError, "num_gpus", f"be at most {MAX_GPUS}", self.num_gpus, "--gpus")
        if self.max_num_batched_tokens < self.max_num_seqs:
            reject(WorkloadError, "max_num_batched_tokens", f"be >= max_num_seqs {self.max_num_seqs}",
                   self.max_num_batched_tokens, "question")
        check_real(WorkloadError, "question", minimum=0.01, maximum=1.0,
                   gpu_memory_utilization=self.gpu_memory_utilization)
        check_real(WorkloadError, "question", maximum=1e15, non_kv_overhead_bytes=self.non_kv_overhead_bytes)
        check_count(WorkloadError, "question", num_gpu_blocks=self.num_gpu_blocks, ep=self.ep)
        check_real(WorkloadError, "question", maximum=1e6, price_usd_h=self.price_usd_h)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recommendation:
    """The answer: a plan per degree, the best one, and what would change it.

    ``best_tp`` is ``None`` where no degree is feasible; ``best_prob_frac`` is the probability that it is the best one,
    ``margin_frac`` its lead over the runner-up. ``tied_tps`` are the feasible degrees that are the better of themselves
    and the best with a probability of at least :data:`TIE_PROB_FRAC`, the best among them.
    """

    question: Question
    plans: tuple[DegreePlan, ...]
    best_tp: int | None
    best_prob_frac: float | None
    runner_up_tp: int | None
    margin_frac: float | None
    tied_tps: tuple[int, ...]
    best_energy_tp: int | None
    best_cost_tp: int | None
    rule_of_thumb_tp: int
    flip_points: tuple[FlipPoint, ...]
    ranked_by: str
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    def plan(self, tp: int) -> DegreePlan:
        """Return the plan of degree ``tp``."""
        for plan in self.plans:
            if plan.tp == tp:
                return plan
        raise KeyError(tp)

    @property
    def best(self) -> DegreePlan | None:
        """The recommended plan, or ``None`` where none is feasible."""
        return None if self.best_tp is None else self.plan(self.best_tp)
