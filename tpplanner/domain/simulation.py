"""What a simulation of single requests answers: figures per degree, and the logs they were computed from."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.checks import check_count, check_real
from tpplanner.domain.plan import MemoryBudget, Question, Reason
from tpplanner.domain.traffic import Traffic
from tpplanner.errors import WorkloadError, reject

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Router(StrEnum):
    """Which replica a request goes to: each in turn, or the one with the fewest requests in flight."""

    ROUND_ROBIN = "round-robin"
    LEAST_OUTSTANDING = "least-outstanding"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """How to simulate.

    Attributes
    ----------
    router
        Of the replicas.
    prefix_caching
        Whether blocks of prompts are found again by the ids of the traffic.
    watermark_frac
        Share of the KV blocks that admissions leave free (0 in vLLM v1, 0.01 in v0).
    step_by_step
        Every step on its own by ``cost.step_time``: slow, the same result.
    slo_quantile
        Quantile of TTFT and TPOT that the targets are compared with; ``None`` for the mean.
    num_timeline_steps
        Steps that the timeline keeps, from the start; 0 keeps none.
    """

    router: Router = Router.ROUND_ROBIN
    prefix_caching: bool = False
    watermark_frac: float = 0.0
    step_by_step: bool = False
    slo_quantile: float | None = None
    num_timeline_steps: int = 0

    def __post_init__(self) -> None:
        check_real(WorkloadError, "simulation", maximum=0.5, watermark_frac=self.watermark_frac)
        check_count(WorkloadError, "simulation", minimum=0, num_timeline_steps=self.num_timeline_steps)
        check_real(WorkloadError, "simulation", maximum=1.0, slo_quantile=self.slo_quantile)
        if self.slo_quantile in (0.0, 1.0):
            reject(WorkloadError, "slo_quantile", "lie between 0 and 1", self.slo_quantile, "simulation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Mean and quantiles of a latency [s] (numpy's linear method over requests; over gaps for ITL)."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedOutcome:
    """Figures of one degree. Rates and counts are of the cluster.

    Attributes
    ----------
    num_requests, num_completed, num_unservable
        Asked, finished, and those that no KV cache of this degree can hold (counted, never started).
    duration_s
        First arrival to last token.
    ttft, tpot, itl, e2e, queue
        Over completed requests; ``tpot`` leaves out outputs of one token, ``queue`` is the wait from arrival to the
        first step that carries the request, what it spends outside the engine left out. ``None`` where there is none.
    window_s
        Time over which rates are taken: that under full load, without filling and draining, where the run has enough of it.
    throughput_tok_s, request_rate_req_s
        Output tokens and completed requests per second.
    goodput_req_s, goodput_frac
        Completed requests that meet every target, per second and as a share of the servable; ``None`` without targets.
    offered_rate_req_s
        Arrivals per second; ``None`` in a closed loop.
    saturated
        Requests arrive faster than they are served: the queue grows to the end.
    num_preemptions, recomputed_tok, swap_bytes
        Evictions, tokens computed again, and bytes moved over the host links.
    prefix_hit_frac
        Share of prompt tokens found in the prefix cache.
    mean_running_seqs, mean_waiting_seqs
        Per replica, over time.
    kv_used_frac, kv_peak_frac
        Mean and peak share of the KV tokens in use.
    num_unused_rows
        Rows of steps that went to sequences which had stopped (asynchronous scheduling).
    """

    num_requests: int
    num_completed: int
    num_unservable: int
    duration_s: float
    num_steps: int
    ttft: Quantiles | None
    tpot: Quantiles | None
    itl: Quantiles | None
    e2e: Quantiles | None
    queue: Quantiles | None
    window_s: float
    throughput_tok_s: float
    throughput_per_gpu_tok_s: float
    request_rate_req_s: float
    goodput_req_s: float | None
    goodput_frac: float | None
    offered_rate_req_s: float | None
    saturated: bool
    num_preemptions: int
    recomputed_tok: int
    swap_bytes: float
    prefix_hit_frac: float
    mean_running_seqs: float
    mean_waiting_seqs: float
    kv_used_frac: float
    kv_peak_frac: float
    num_unused_rows: int
    busy_frac: float
    power_w: float
    energy_j_per_tok: float | None
    cost_usd_per_mtok: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestLog:
    """One entry per request, in order of arrival; times in seconds from the start, NaN where it never happened.

    ``start_s`` is the start of the first step that carries the request; ``replica`` is -1 for an unservable one.
    """

    arrival_s: FloatArray
    start_s: FloatArray
    first_token_s: FloatArray
    finish_s: FloatArray
    isl_tok: IntArray
    osl_tok: IntArray
    replica: IntArray
    num_preemptions: IntArray
    outside_s: FloatArray

    @property
    def completed(self) -> NDArray[np.bool_]:
        """Which requests finished."""
        done: NDArray[np.bool_] = np.isfinite(self.finish_s)
        return done

    @property
    def queue_s(self) -> FloatArray:
        """Wait from arrival to the first step, without what is spent outside the engine [s]."""
        # The sum of arrival and what lies outside is rounded where it meets the start of a step.
        return np.maximum(self.start_s - self.arrival_s - self.outside_s, 0.0)

    @property
    def ttft_s(self) -> FloatArray:
        """First token - arrival [s]."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> FloatArray:
        """(Last - first token) / (osl - 1) [s]; NaN for outputs of one token."""
        gaps = np.where(self.osl_tok > 1, self.osl_tok - 1, np.nan)
        return (self.finish_s - self.first_token_s) / gaps

    @property
    def e2e_s(self) -> FloatArray:
        """Last token - arrival [s]."""
        return self.finish_s - self.arrival_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadSeries:
    """State of one replica over time, a few thousand points at most: at each time the mean from then to the next."""

    replica: int
    time_s: FloatArray
    num_running_seqs: FloatArray
    num_waiting_seqs: FloatArray
    kv_used_frac: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepLog:
    """Steps of all replicas, as many as were asked for; ``num_steps`` equal decode steps may share one entry."""

    replica: IntArray
    start_s: FloatArray
    duration_s: FloatArray
    num_steps: IntArray
    num_decode_seqs: IntArray
    num_prefill_tok: IntArray
    num_waiting_seqs: IntArray
    num_preempted: IntArray
    kv_used_frac: FloatArray
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunDetail:
    """Logs of one simulated run."""

    requests: RequestLog
    series: tuple[LoadSeries, ...]
    steps: StepLog


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulatedDegree:
    """One degree: its outcome, or why there is none.

    ``meets_targets`` compares the statistic asked for with the targets and refuses a saturated run. A degree with an
    outcome has no ``reason``: what it misses is in its figures.
    """

    tp: int
    num_replicas: int
    num_gpus_idle: int
    reason: Reason | None
    reason_detail: str
    memory: MemoryBudget | None
    outcome: SimulatedOutcome | None
    meets_targets: bool
    detail: RunDetail | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulation:
    """A simulated answer.

    ``question`` holds model, machine, engine, load and targets; ``traffic`` the requests (those of the run with the
    highest rate, where the rate was searched). ``best_tp`` is ``None`` where no degree runs and meets the targets.
    """

    question: Question
    traffic: Traffic
    options: SimulationOptions
    degrees: tuple[SimulatedDegree, ...]
    best_tp: int | None
    ranked_by: str
    seed: int
    warnings: tuple[str, ...]

    @property
    def best(self) -> SimulatedDegree | None:
        """The best degree, or ``None``."""
        return next((d for d in self.degrees if d.tp == self.best_tp), None)
