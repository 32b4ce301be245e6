"""Kernels and collectives of a fitted profile, to and from their records."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from tpplanner.domain.hardware import CollectiveCurve, CollectiveOp
from tpplanner.domain.kernels import (
    DecodeAttentionKernel,
    GemmKernel,
    Kernel,
    Kernels,
    MoeKernel,
    PrefillAttentionKernel,
    Surface,
)
from tpplanner.errors import ProfileError, reject
from tpplanner.io.fitted_numbers import column, quantity_of, quantity_record, rounded
from tpplanner.io.fitted_records import CurveRecord, KernelRecord, KernelsRecord, MoeRecord, SurfaceRecord

_COEFFICIENTS: Final = ("latency_s", "compute_frac", "memory_frac", "sharpness")
_THOUSAND: Final = 1000
K = TypeVar("K", bound=Kernel)


def _surface_record(surface: Surface | None) -> SurfaceRecord | None:
    if surface is None:
        return None
    return SurfaceRecord(axes=surface.axes, knots=tuple(column(k, 9) for k in surface.knots),
                         log_ratio=tuple(round(v * _THOUSAND) for v in surface.log_ratio))


def _surface(record: SurfaceRecord | None) -> Surface | None:
    if record is None:
        return None
    return Surface(axes=record.axes, knots=tuple(tuple(map(float, k)) for k in record.knots),
                   log_ratio=tuple(v / _THOUSAND for v in record.log_ratio))


def _kernel_record(kernel: Kernel) -> KernelRecord:
    num_fitted = kernel.latency_s.num_samples
    fields: dict[str, Any] = {
        "dtype": kernel.dtype,
        "num_samples": kernel.num_samples,
        "num_fitted": num_fitted,
        "held_out_median_frac": None if kernel.held_out_median_frac is None else rounded(kernel.held_out_median_frac, 4),
        "held_out_p90_frac": None if kernel.held_out_p90_frac is None else rounded(kernel.held_out_p90_frac, 4),
        "source": kernel.source,
        "notes": kernel.notes,
        "ranges": {name: column((low, high)) for name, low, high in kernel.ranges},
        "surface": _surface_record(kernel.surface),
        **{name: quantity_record(getattr(kernel, name), source=kernel.source, num_samples=num_fitted)
           for name in _COEFFICIENTS},
    }
    if isinstance(kernel, MoeKernel):
        experts = quantity_record(kernel.effective_experts_frac, source=kernel.source, num_samples=num_fitted)
        return MoeRecord(distribution=kernel.distribution, effective_experts_frac=experts, **fields)
    return KernelRecord(**fields)


def _kernel(kind: type[K], record: KernelRecord) -> K:
    fields: dict[str, Any] = {
        "dtype": record.dtype,
        "num_samples": record.num_samples,
        "held_out_median_frac": record.held_out_median_frac,
        "held_out_p90_frac": record.held_out_p90_frac,
        "source": record.source,
        "notes": record.notes,
        "ranges": tuple((name, float(low), float(high)) for name, (low, high) in record.ranges.items()),
        "surface": _surface(record.surface),
        **{name: quantity_of(getattr(record, name), name, source=record.source, num_samples=record.num_fitted)
           for name in _COEFFICIENTS},
    }
    if isinstance(record, MoeRecord):
        fields["distribution"] = record.distribution
        fields["effective_experts_frac"] = quantity_of(
            record.effective_experts_frac, "effective_experts_frac", source=record.source, num_samples=record.num_fitted)
    return kind(**fields)


def _by_dtype(kind: type[K], records: Sequence[KernelRecord], dotted: str) -> dict[str, K]:
    kernels: dict[str, K] = {}
    for i, record in enumerate(records):
        if record.dtype in kernels:
            reject(ProfileError, f"{dotted}[{i}].dtype", "occur once", record.dtype)
        try:
            kernels[record.dtype] = _kernel(kind, record)
        except ProfileError as error:
            raise ProfileError(f"{dotted}[{i}]: {str(error).removeprefix(record.source + ': ')}") from None
    return kernels


def kernels_record(kernels: Kernels) -> KernelsRecord:
    """Return the record of all kernels."""
    def records(table: Mapping[str, Kernel]) -> tuple[Any, ...]:
        return tuple(_kernel_record(table[name]) for name in sorted(table))

    return KernelsRecord(gemm=records(kernels.gemm), decode_attention=records(kernels.decode_attention),
                         prefill_attention=records(kernels.prefill_attention), moe=records(kernels.moe))


def kernels_of(record: KernelsRecord) -> Kernels:
    """Return the kernels of a record.

    Raises
    ------
    ProfileError
        A kernel makes no sense, or a dtype occurs twice.
    """
    return Kernels(
        gemm=_by_dtype(GemmKernel, record.gemm, "kernels.gemm"),
        decode_attention=_by_dtype(DecodeAttentionKernel, record.decode_attention, "kernels.decode_attention"),
        prefill_attention=_by_dtype(PrefillAttentionKernel, record.prefill_attention, "kernels.prefill_attention"),
        moe=_by_dtype(MoeKernel, record.moe, "kernels.moe"),
    )


def curve_record(curve: CollectiveCurve) -> CurveRecord:
    """Return the record of a curve; latencies with 4 digits, as they were measured."""
    return CurveRecord(op=curve.op.value, tp=curve.tp, source=curve.source, size_bytes=column(curve.size_bytes, 15),
                       latency_s=column(curve.latency_s))


def curve_of(record: CurveRecord, dotted: str) -> CollectiveCurve:
    """Return the curve of a record.

    Raises
    ------
    ProfileError
        The operation is unknown, or the curve is none.
    """
    ops = [op.value for op in CollectiveOp]
    if record.op not in ops:
        reject(ProfileError, f"{dotted}.op", f"be one of {', '.join(ops)}", record.op)
    try:
        return CollectiveCurve(
            op=CollectiveOp(record.op), tp=record.tp, source=record.source,
            size_bytes=tuple(map(float, record.size_bytes)), latency_s=tuple(map(float, record.latency_s)),
        )
    except ProfileError as error:
        raise ProfileError(f"{dotted}: {str(error).removeprefix(record.source + ': ')}") from None
