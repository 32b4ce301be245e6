"""Traffic, targets, and the load modes in which a best degree is asked for."""

from dataclasses import dataclass
from enum import StrEnum

from tpplanner.domain.checks import check_count, check_real
from tpplanner.errors import WorkloadError, reject


class LoadMode(StrEnum):
    """What is held fixed while t varies.

    request_rate
        Requests per second over the whole cluster (open loop).
    concurrency
        Requests in flight over the whole cluster (closed loop).
    batch_per_gpu
        Requests in flight per GPU: a replica of degree t has t times as many (the paper's mode).
    concurrency_per_replica
        Requests in flight per replica, whatever its degree.
    slo_capacity
        The highest load at which the targets hold.
    offline
        Everything is queued at once: as many tokens per second as possible.
    """

    REQUEST_RATE = "request_rate"
    CONCURRENCY = "concurrency"
    BATCH_PER_GPU = "batch_per_gpu"
    CONCURRENCY_PER_REPLICA = "concurrency_per_replica"
    SLO_CAPACITY = "slo_capacity"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load mode and its value: requests per second, or requests; ``None`` where the mode has none."""

    mode: LoadMode
    value: float | None = None

    def __post_init__(self) -> None:
        needs_value = self.mode not in (LoadMode.SLO_CAPACITY, LoadMode.OFFLINE)
        if needs_value and self.value is None:
            reject(WorkloadError, self.mode.value, "have a value", self.value)
        if not needs_value and self.value is not None:
            reject(WorkloadError, self.mode.value, "have no value", self.value)
        check_real(WorkloadError, "load", minimum=0.0, maximum=1e9, **{self.mode.value: self.value})
        if self.value == 0:
            reject(WorkloadError, self.mode.value, "be > 0", self.value, "load")


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Latency targets on the mean TTFT and the mean TPOT; ``None`` is no target."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        check_real(WorkloadError, "targets", maximum=1e6, ttft_s=self.ttft_s, tpot_s=self.tpot_s)
        for name in ("ttft_s", "tpot_s"):
            if getattr(self, name) == 0:
                reject(WorkloadError, name, "be > 0", 0, "targets")

    @property
    def any_set(self) -> bool:
        """Whether there is a target at all."""
        return self.ttft_s is not None or self.tpot_s is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Mean prompt and output length of a request, in tokens."""

    isl_tok: int
    osl_tok: int

    def __post_init__(self) -> None:
        check_count(WorkloadError, "workload", isl_tok=self.isl_tok, osl_tok=self.osl_tok)
        if max(self.isl_tok, self.osl_tok) > 10**8:
            reject(WorkloadError, "isl_tok and osl_tok", "be at most 1e8", max(self.isl_tok, self.osl_tok),
                   "workload")
