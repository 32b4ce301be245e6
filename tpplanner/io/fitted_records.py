"""The layout of ``fitted-<engine>.json``: what may stand where, of which type and size.

Numbers are in SI units: the ``_s`` of a name is its unit. Surfaces hold the natural log of measured over roofline time in
whole thousandths.
"""

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

SCHEMA_VERSION: Final = 1
MAX_TEXT: Final = 4000
MAX_POINTS: Final = 100_000

Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\Z")]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=10**12)]
Number: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=1e3)]
Error: TypeAlias = Annotated[float, Meta(ge=0, le=1e12)]
Size: TypeAlias = Annotated[float, Meta(gt=0, le=1e15)]
Frac: TypeAlias = Annotated[float, Meta(ge=0, le=1e3)]
Thousandths: TypeAlias = Annotated[int, Meta(ge=-50_000, le=50_000)]
Length: TypeAlias = Annotated[float, Meta(gt=0, le=1e6)]
Weight: TypeAlias = Annotated[float, Meta(ge=-1e12, le=1e12)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the records: a key that is not listed is an error."""


class QuantityRecord(Record, frozen=True, kw_only=True):
    """One coefficient; its unit follows from its name, its source from the record around it."""

    value: Number
    std_error: Error | None = None
    num_samples: Count | None = None
    provenance: Text = "fitted"
    source: Text | None = None


class SurfaceRecord(Record, frozen=True, kw_only=True):
    """A correction on a grid; ``log_ratio`` in thousandths, the last axis fastest."""

    axes: Annotated[tuple[Text, ...], Meta(max_length=8)]
    knots: Annotated[tuple[Annotated[tuple[Size, ...], Meta(max_length=200)], ...], Meta(max_length=8)]
    log_ratio: Annotated[tuple[Thousandths, ...], Meta(max_length=MAX_POINTS)]


class KernelRecord(Record, frozen=True, kw_only=True):
    """One kernel; ``num_fitted`` are the samples of the coefficients that do not say how many they have."""

    dtype: Text
    num_samples: Count
    num_fitted: Count | None = None
    held_out_median_frac: Frac | None = None
    held_out_p90_frac: Frac | None = None
    latency_s: QuantityRecord
    compute_frac: QuantityRecord
    memory_frac: QuantityRecord
    sharpness: QuantityRecord
    ranges: dict[Text, tuple[Size, Size]] = {}
    source: Text
    notes: Annotated[tuple[Text, ...], Meta(max_length=50)] = ()
    surface: SurfaceRecord | None = None


class MoeRecord(KernelRecord, frozen=True, kw_only=True):
    """The kernel of routed experts."""

    distribution: Text
    effective_experts_frac: QuantityRecord


class KernelsRecord(Record, frozen=True, kw_only=True):
    """All kernels."""

    gemm: Annotated[tuple[KernelRecord, ...], Meta(max_length=50)] = ()
    decode_attention: Annotated[tuple[KernelRecord, ...], Meta(max_length=50)] = ()
    prefill_attention: Annotated[tuple[KernelRecord, ...], Meta(max_length=50)] = ()
    moe: Annotated[tuple[MoeRecord, ...], Meta(max_length=50)] = ()


class CurveRecord(Record, frozen=True, kw_only=True):
    """One collective at one degree."""

    op: Text
    tp: Count
    source: Text
    size_bytes: Annotated[tuple[Size, ...], Meta(max_length=1000)]
    latency_s: Annotated[tuple[Seconds, ...], Meta(max_length=1000)]


class CovarianceRecord(Record, frozen=True, kw_only=True):
    """One term of a covariance; a length that is not given is infinite."""

    std_frac: Number
    within: Text
    num_seqs_len: Length | None = None
    tp_len: Length | None = None
    isl_len: Length | None = None
    osl_len: Length | None = None


class ResidualRecord(Record, frozen=True, kw_only=True):
    """Residuals of serving runs, in columns; ``model`` counts in ``model_keys`` from 0."""

    noise_std_frac: Number
    terms: Annotated[tuple[CovarianceRecord, ...], Meta(max_length=50)]
    model_keys: Annotated[tuple[Text, ...], Meta(max_length=MAX_POINTS)] = ()
    model: Annotated[tuple[Count, ...], Meta(max_length=MAX_POINTS)] = ()
    num_seqs: Annotated[tuple[Size, ...], Meta(max_length=MAX_POINTS)] = ()
    tp: Annotated[tuple[Size, ...], Meta(max_length=MAX_POINTS)] = ()
    isl_tok: Annotated[tuple[Size, ...], Meta(max_length=MAX_POINTS)] = ()
    osl_tok: Annotated[tuple[Size, ...], Meta(max_length=MAX_POINTS)] = ()
    weights: Annotated[tuple[Weight, ...], Meta(max_length=MAX_POINTS)] = ()


class ServingRecord(Record, frozen=True, kw_only=True):
    """What serving runs taught; terms by class of models and name, residuals by kind of model."""

    source: Text
    num_runs: Count
    terms: dict[Text, dict[Text, QuantityRecord]]
    tpot: dict[Text, ResidualRecord]
    ttft: dict[Text, ResidualRecord]


class TaskRecord(Record, frozen=True, kw_only=True):
    """One host task, or sampling with one policy."""

    fixed_s: QuantityRecord
    per_seq_s: QuantityRecord
    per_log2_tp_s: QuantityRecord | None = None
    per_seq_per_log2_tp_s: QuantityRecord | None = None
    per_seq_per_vocab_tok_s: QuantityRecord | None = None


class HostRecord(Record, frozen=True, kw_only=True):
    """What microbenchmarks said of the engine itself."""

    source: Text
    schedule: TaskRecord
    prepare_input: TaskRecord
    process_output: TaskRecord
    exposed: TaskRecord
    step_overhead: TaskRecord
    restart: TaskRecord
    sampling: dict[Text, TaskRecord]
    layer_overhead_s: QuantityRecord
    elementwise_memory: QuantityRecord


class RateRecord(QuantityRecord, frozen=True, kw_only=True):
    """A coefficient that may be a bandwidth in bytes/s."""

    value: Size


class CopyRecord(Record, frozen=True, kw_only=True):
    """Copies in one direction."""

    alpha_s: QuantityRecord
    bandwidth_bytes_s: RateRecord


class HostLinkRecord(Record, frozen=True, kw_only=True):
    """Copies between host and device."""

    to_device: CopyRecord
    to_host: CopyRecord


class PowerRecord(Record, frozen=True, kw_only=True):
    """Power in watts, and its shares."""

    idle_w: QuantityRecord
    board_w: QuantityRecord
    busy_frac: QuantityRecord
    memory_frac: QuantityRecord
    compute_frac: QuantityRecord


class ContentionRecord(Record, frozen=True, kw_only=True):
    """Shares that working devices keep."""

    num_busy: int
    compute_frac: QuantityRecord
    memory_frac: QuantityRecord


class MachineFitRecord(Record, frozen=True, kw_only=True):
    """What microbenchmarks said of the machine itself."""

    source: Text
    power: PowerRecord | None = None
    host_link: HostLinkRecord | None = None
    contention: tuple[ContentionRecord, ...] = ()


class TableRecord(Record, frozen=True, kw_only=True):
    """One measured table."""

    path: Text
    framework_version: Text
    num_rows: Count


class MadeFromRecord(Record, frozen=True, kw_only=True):
    """Where the coefficients come from."""

    package: Text
    version: Text
    notice: Text
    tables: Annotated[tuple[TableRecord, ...], Meta(max_length=200)]


class FittedRecord(Record, frozen=True, kw_only=True):
    """The file."""

    schema_version: Annotated[int, Meta(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
    machine: Text
    engine: Text
    made_from: MadeFromRecord
    kernels: KernelsRecord
    collectives: Annotated[tuple[CurveRecord, ...], Meta(max_length=200)]
    serving: ServingRecord | None = None
    host: HostRecord | None = None
    machine_fit: MachineFitRecord | None = None
