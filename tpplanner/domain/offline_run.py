"""A measured run with everything queued at once: its throughput, and no latency that would mean anything."""

from dataclasses import dataclass

from tpplanner.domain.checks import check_count, check_real
from tpplanner.domain.serving_run import KINDS, ServingRun
from tpplanner.errors import WorkloadError, reject


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineRun:
    """One measured maximum: a replica of ``tp`` GPUs in front of which requests always wait.

    Attributes
    ----------
    run_id, model, checkpoint, dtype, kv_cache_dtype, machine, engine, engine_version, precision, family, source, kind
        As in `ServingRun`.
    isl_tok, osl_tok
        Prompt and output length [tok].
    tp, ep
        Degree of the attention and, within it, of expert parallelism.
    throughput_tok_s
        Measured output tokens per second of the replica [tok/s].
    max_num_seqs, max_num_batched_tokens, gpu_memory_utilization
        Settings of the engine; ``None`` for its defaults.
    """

    run_id: str
    model: str
    checkpoint: str
    machine: str
    engine: str
    isl_tok: int
    osl_tok: int
    tp: int
    throughput_tok_s: float
    family: str
    source: str
    engine_version: str | None = None
    precision: str = ""
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    ep: int = 1
    kind: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None

    def __post_init__(self) -> None:
        place = "run"
        check_count(
            WorkloadError, place, isl_tok=self.isl_tok, osl_tok=self.osl_tok, tp=self.tp, ep=self.ep,
            max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.max_num_batched_tokens,
        )
        check_real(WorkloadError, place, maximum=1e12, throughput_tok_s=self.throughput_tok_s)
        check_real(WorkloadError, place, maximum=1.0, gpu_memory_utilization=self.gpu_memory_utilization)
        for field in ("throughput_tok_s", "gpu_memory_utilization"):
            if getattr(self, field) == 0:
                reject(WorkloadError, field, "be > 0", 0, place)
        if self.tp % self.ep:
            reject(WorkloadError, "ep", f"divide tp {self.tp}", self.ep, place)
        if self.kind is not None and self.kind not in KINDS:
            reject(WorkloadError, "kind", f"be one of {', '.join(KINDS)}", self.kind, place)

    @property
    def ids(self) -> tuple[str, ...]:
        """Every id under which the source reports this measurement: one."""
        return (self.run_id,)

    @property
    def parallel(self) -> str:
        """``tp``, ``tep`` or ``tp_ep4``, as in `ServingRun`."""
        if self.ep == 1:
            return "tp"
        return "tep" if self.ep == self.tp else f"tp_ep{self.ep}"


MeasuredRun = ServingRun | OfflineRun
"""Anything that predictions are judged by."""
