"""The JSON form of a simulation: schema version 1, as documented in ``docs/json_schema.md``."""

from tpplanner.report.plan_document import MemoryRecord, QuestionRecord, Record

SIMULATION_SCHEMA_VERSION = 1


class TrafficRecord(Record, frozen=True, kw_only=True):
    """The requests, summed up."""

    name: str
    num_requests: int
    isl_mean_tok: float
    isl_max_tok: int
    osl_mean_tok: float
    osl_max_tok: int
    timed: bool
    rate_req_s: float | None
    prefix_block_tok: int | None


class OptionsRecord(Record, frozen=True, kw_only=True):
    """How it was simulated."""

    router: str
    prefix_caching: bool
    watermark_frac: float
    step_by_step: bool
    slo_quantile: float | None
    num_timeline_steps: int


class QuantilesRecord(Record, frozen=True, kw_only=True):
    """Mean and quantiles of a latency [s]."""

    mean_s: float | None
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None


class SimulatedBestRecord(Record, frozen=True, kw_only=True):
    """The best degree and its main figures."""

    tp: int
    num_replicas: int
    num_gpus_idle: int
    throughput_tok_s: float | None
    throughput_per_gpu_tok_s: float | None
    goodput_req_s: float | None
    ttft_p99_s: float | None
    tpot_p99_s: float | None


class SimulatedDegreeRecord(Record, frozen=True, kw_only=True):
    """One degree; what does not exist for it is ``null``."""

    tp: int
    num_replicas: int
    num_gpus_idle: int
    meets_targets: bool
    saturated: bool | None
    reason: str | None
    reason_detail: str
    num_requests: int | None
    num_completed: int | None
    num_unservable: int | None
    duration_s: float | None
    num_steps: int | None
    ttft: QuantilesRecord | None
    tpot: QuantilesRecord | None
    itl: QuantilesRecord | None
    e2e: QuantilesRecord | None
    queue: QuantilesRecord | None
    window_s: float | None
    throughput_tok_s: float | None
    throughput_per_gpu_tok_s: float | None
    offered_rate_req_s: float | None
    request_rate_req_s: float | None
    goodput_req_s: float | None
    goodput_frac: float | None
    mean_running_seqs: float | None
    mean_waiting_seqs: float | None
    num_preemptions: int | None
    recomputed_tok: int | None
    swap_bytes: float | None
    prefix_hit_frac: float | None
    kv_used_frac: float | None
    kv_peak_frac: float | None
    num_unused_rows: int | None
    busy_frac: float | None
    power_w: float | None
    energy_j_per_tok: float | None
    cost_usd_per_mtok: float | None
    kv_capacity_tok: int | None
    num_kv_blocks: int | None
    memory: MemoryRecord | None


class SimulationDocument(Record, frozen=True, kw_only=True):
    """A simulation as written by ``simulate --format json``."""

    schema_version: int
    tpplanner_version: str
    question: QuestionRecord
    traffic: TrafficRecord
    options: OptionsRecord
    seed: int
    best: SimulatedBestRecord | None
    ranked_by: str
    degrees: tuple[SimulatedDegreeRecord, ...]
    warnings: tuple[str, ...]
