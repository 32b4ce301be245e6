"""The JSON form of a recommendation: schema version 2, as documented in ``docs/json_schema.md``."""

import msgspec

SCHEMA_VERSION = 2


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the records: immutable, compared by value, strict about names."""


class SwitchesRecord(Record, frozen=True, kw_only=True):
    """The three mechanisms of overlap."""

    async_sched: bool
    early_feedback: bool
    seq_parallel_sampling: bool


class LoadRecord(Record, frozen=True, kw_only=True):
    """A load mode and its value (requests per second, or requests)."""

    mode: str
    value: float | None


class TargetsRecord(Record, frozen=True, kw_only=True):
    """Latency targets on the means [s]."""

    ttft_s: float | None
    tpot_s: float | None


class QuestionRecord(Record, frozen=True, kw_only=True):
    """What was asked."""

    model: str
    architecture: str
    num_params: int
    num_active_params: int
    hardware: str
    engine: str
    switches: SwitchesRecord
    preemption: str
    sampling: str
    num_gpus: int
    num_gpus_given: bool
    isl_tok: int
    osl_tok: int
    load: LoadRecord
    targets: TargetsRecord
    precision: str
    kv_dtype: str
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    kv_block_size_tok: int
    non_kv_overhead_bytes: float | None
    num_gpu_blocks: int | None
    max_tp: int | None
    price_usd_h: float | None


class BestRecord(Record, frozen=True, kw_only=True):
    """The recommended degree, its lead, and the degrees best by other measures."""

    tp: int
    num_replicas: int
    num_gpus_idle: int
    throughput_tok_s: float | None
    throughput_per_gpu_tok_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    best_prob_frac: float | None
    runner_up_tp: int | None
    margin_frac: float | None
    tied_tps: tuple[int, ...]
    energy_tp: int | None
    cost_tp: int | None


class MemoryRecord(Record, frozen=True, kw_only=True):
    """Memory of one GPU [bytes]."""

    hbm_bytes: float | None
    usable_bytes: float | None
    weight_bytes: float | None
    activation_bytes: float | None
    runtime_bytes: float | None
    kv_bytes: float | None
    kv_bytes_per_tok: float | None


class StepRecord(Record, frozen=True, kw_only=True):
    """The mean step and its terms [s]."""

    scalable_s: float | None
    comm_s: float | None
    sampling_s: float | None
    host_s: float | None
    hidden_s: float | None
    total_s: float | None
    linear_s: float | None
    attention_s: float | None
    elementwise_s: float | None
    launch_s: float | None
    schedule_s: float | None
    prepare_input_s: float | None
    process_output_s: float | None
    overlap_overhead_s: float | None


class PlanRecord(Record, frozen=True, kw_only=True):
    """One degree; what does not exist for it is ``null``."""

    tp: int
    num_replicas: int
    num_gpus_idle: int
    feasible: bool
    reason: str | None
    reason_detail: str
    throughput_tok_s: float | None
    throughput_per_gpu_tok_s: float | None
    throughput_per_user_tok_s: float | None
    request_rate_req_s: float | None
    capacity_req_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    best_prob_frac: float | None
    meets_targets_prob_frac: float | None
    throughput_low_tok_s: float | None
    throughput_high_tok_s: float | None
    ttft_low_s: float | None
    ttft_high_s: float | None
    tpot_low_s: float | None
    tpot_high_s: float | None
    kv_capacity_tok: int | None
    num_kv_blocks: int | None
    kv_used_frac: float | None
    concurrency_total: float | None
    concurrency_per_replica: float | None
    num_running_seqs: float | None
    num_decode_seqs: float | None
    num_queued_seqs: float | None
    preemptions_per_req: float | None
    recompute_tok_per_req: float | None
    swap_bytes_per_req: float | None
    energy_j_per_tok: float | None
    power_w: float | None
    cost_usd_per_mtok: float | None
    busy_frac: float | None
    mixed_frac: float | None
    mixed_prefill_tok: float | None
    swap_stall_s: float | None
    binding: str | None
    saturated: bool | None
    extrapolated: tuple[str, ...]
    memory: MemoryRecord | None
    step: StepRecord | None


class FlipRecord(Record, frozen=True, kw_only=True):
    """Where the best degree changes."""

    variable: str
    unit: str
    tp_before: int
    tp_after: int
    previous: float | str
    value: float | str


class PlanDocument(Record, frozen=True, kw_only=True):
    """A recommendation as written by ``--format json``."""

    schema_version: int
    tpplanner_version: str
    question: QuestionRecord
    best: BestRecord | None
    rule_of_thumb_tp: int
    ranked_by: str
    plans: tuple[PlanRecord, ...]
    flip_points: tuple[FlipRecord, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
