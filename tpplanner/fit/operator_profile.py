"""Kernels and collectives of one engine on one machine from measured operator tables."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from tpplanner.domain.fit_evidence import CollectiveError, FitEvidence, KernelResiduals
from tpplanner.domain.fitted_profile import SourceTable
from tpplanner.domain.hardware import CollectiveCurve, CollectiveOp, HardwareProfile
from tpplanner.domain.kernels import (
    DecodeAttentionKernel,
    GemmKernel,
    Kernel,
    Kernels,
    MoeKernel,
    PrefillAttentionKernel,
)
from tpplanner.fit.collective_fits import collective_held_out, fit_collective
from tpplanner.fit.kernel_fits import (
    HOST_NOTE,
    fit_decode_attention,
    fit_gemm,
    fit_moe,
    fit_prefill_attention,
)
from tpplanner.fit.kernel_operators import (
    DECODE_SIZES,
    GEMM_SIZES,
    MOE_SIZES,
    PREFILL_SIZES,
    FloatArray,
    Operator,
    decode_operator,
    gemm_operator,
    moe_operator,
    prefill_operator,
)
from tpplanner.fit.operator_rows import (
    FORMATS,
    KV_BYTES,
    MIN_SAMPLES,
    OperatorFrames,
    asked_for,
    collective_rows,
    decode_rows,
    gemm_rows,
    moe_rows,
    prefill_rows,
)

Report = Callable[[str], None]
GemmTables = Mapping[str, Callable[[], pd.DataFrame]]
"""Engine -> its measured GEMMs on the same machine, read when they are needed."""

_MIN_HELD_OUT_SIZES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperatorFit:
    """What the tables of one engine on one machine gave.

    Attributes
    ----------
    kernels, collectives
        The fits.
    tables
        The files whose rows were used, with their number.
    evidence
        How well the fits hold, and what was left out.
    """

    kernels: Kernels
    collectives: tuple[CollectiveCurve, ...]
    tables: tuple[SourceTable, ...]
    evidence: FitEvidence


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fitted:
    """One kernel, its residuals and the rows it was fitted to."""

    residuals: KernelResiduals
    rows: pd.DataFrame

    @property
    def kernel(self) -> Kernel:
        return self.residuals.kernel


def _source(rows: pd.DataFrame) -> str:
    """Files, and the kernels that were measured."""
    files = ", ".join(sorted(map(str, rows["source"].unique())))
    kernels = ", ".join(map(str, rows["kernel_source"].value_counts().index))
    return f"{files} ({kernels})"


def residuals_of(
    name: str, kernel: Kernel, operator: Operator[Any], rows: pd.DataFrame, sizes: Iterable[str]
) -> KernelResiduals:
    """Return the kernel beside the rows that it was fitted to."""
    columns: dict[str, FloatArray] = {n: rows[n].to_numpy(dtype=float) for n in sizes}
    if "window_tok" in columns:
        window = columns["window_tok"]
        columns["window_tok"] = np.where(np.nan_to_num(window) > 0, window, np.inf)
    return KernelResiduals(
        operator=name, kernel=kernel, driver=operator.driver, sizes=columns,
        measured_s=rows["latency_s"].to_numpy(dtype=float),
        predicted_s=np.asarray(operator.predict(kernel, columns), dtype=float),
    )


def _beside(name: str, kernel: Kernel, operator: Operator[Any], rows: pd.DataFrame, sizes: Iterable[str]) -> _Fitted:
    return _Fitted(residuals=residuals_of(name, kernel, operator, rows, sizes), rows=rows)


def _gemm(rows: pd.DataFrame, dtype: str, hardware: HardwareProfile) -> _Fitted:
    stored, bytes_s = FORMATS[dtype], hardware.hbm_bytes_s.value
    per_param, peak = stored.bytes_per_param, hardware.peak_for(stored.runs_as).value
    kernel = fit_gemm(rows, dtype=dtype, weight_bytes_per_param=per_param, peak_flop_s=peak, hbm_bytes_s=bytes_s,
                      source=_source(rows))
    operator = gemm_operator(weight_bytes_per_param=per_param, flop_s=peak, hbm_bytes_s=bytes_s)
    return _beside("gemm", kernel, operator, rows, GEMM_SIZES)


def _decode(rows: pd.DataFrame, dtype: str, hardware: HardwareProfile) -> _Fitted:
    element, bytes_s, peak = KV_BYTES[dtype], hardware.hbm_bytes_s.value, hardware.peak_for("bf16").value
    kernel = fit_decode_attention(rows, kv_dtype=dtype, kv_element_bytes=element, peak_flop_s=peak, hbm_bytes_s=bytes_s,
                                  source=_source(rows))
    operator = decode_operator(kv_element_bytes=element, flop_s=peak, hbm_bytes_s=bytes_s)
    return _beside("decode_attention", kernel, operator, rows, DECODE_SIZES)


def _prefill(rows: pd.DataFrame, dtype: str, hardware: HardwareProfile) -> _Fitted:
    """Fit at the bf16 peak, which the planner uses whatever the arithmetic."""
    element, bytes_s, peak = KV_BYTES[dtype], hardware.hbm_bytes_s.value, hardware.peak_for("bf16").value
    kernel = fit_prefill_attention(rows, kv_dtype=dtype, kv_element_bytes=element, peak_flop_s=peak, hbm_bytes_s=bytes_s,
                                   source=_source(rows))
    arithmetic = str(rows["dtype"].iloc[0])
    if arithmetic != "bf16":
        kernel = replace(kernel, notes=(*kernel.notes, f"computes in {arithmetic}; compute_frac is of the bf16 peak"))
    operator = prefill_operator(kv_element_bytes=element, flop_s=peak, hbm_bytes_s=bytes_s)
    return _beside("prefill_attention", kernel, operator, rows, PREFILL_SIZES)


def _moe(rows: pd.DataFrame, dtype: str, hardware: HardwareProfile) -> _Fitted:
    stored, bytes_s = FORMATS[dtype], hardware.hbm_bytes_s.value
    per_param, peak = stored.bytes_per_param, hardware.peak_for(stored.runs_as).value
    kernel = fit_moe(rows, dtype=dtype, distribution=str(rows["distribution"].iloc[0]), weight_bytes_per_param=per_param,
                     peak_flop_s=peak, hbm_bytes_s=bytes_s, source=_source(rows))
    operator = moe_operator(weight_bytes_per_param=per_param, flop_s=peak, hbm_bytes_s=bytes_s)
    return _beside("moe", kernel, operator, rows, MOE_SIZES)


_Choice = Callable[[pd.DataFrame, str], pd.DataFrame]
_Fit = Callable[[pd.DataFrame, str, HardwareProfile], _Fitted]
_OPERATORS: Final[tuple[tuple[str, str, _Choice, _Fit], ...]] = (
    ("gemm", "dtype", gemm_rows, _gemm),
    ("decode_attention", "kv_dtype", decode_rows, _decode),
    ("prefill_attention", "kv_dtype", prefill_rows, _prefill),
    ("moe", "dtype", moe_rows, _moe),
)


def _is_host_bound(kernel: Kernel) -> bool:
    return any(HOST_NOTE in note for note in kernel.notes)


def _replaced_host_bound(
    fitted: _Fitted, hardware: HardwareProfile, engine: str, others: GemmTables
) -> tuple[_Fitted | None, str]:
    """Return the same format from another engine's tables, and what was done; none where no engine has it."""
    dtype = fitted.kernel.dtype
    for other, read in others.items():
        rows = gemm_rows(read(), dtype)
        if len(rows) < MIN_SAMPLES:
            continue
        found = _gemm(rows, dtype, hardware)
        if _is_host_bound(found.kernel):
            continue
        note = f"from the tables of {other}: those of {engine} {HOST_NOTE}"
        kernel = replace(found.kernel, notes=(note, *found.kernel.notes))
        return replace(found, residuals=replace(found.residuals, kernel=kernel)), f"gemm {dtype}: {note}"
    return None, f"gemm {dtype}: left out, the table {HOST_NOTE}, and no other engine has it"


def _fit_operators(
    frames: OperatorFrames, hardware: HardwareProfile, engine: str, others: GemmTables, report: Report
) -> Iterator[_Fitted | str]:
    """Yield fitted kernels and warnings."""
    for name, column, choose, fit in _OPERATORS:
        frame = getattr(frames, name)
        measured = sorted(map(str, frame[column].unique()))
        used = frozenset(KV_BYTES) if column == "kv_dtype" else asked_for(measured, experts_only=name == "moe")
        for dtype in measured:
            if dtype not in used:
                yield f"{name} {dtype}: left out, no model is planned with it"
                continue
            rows = choose(frame, dtype)
            if len(rows) < MIN_SAMPLES:
                yield f"{name} {dtype}: left out, {len(rows)} samples are under {MIN_SAMPLES}"
                continue
            report(f"{name} {dtype}: {len(rows):,} samples")
            fitted: _Fitted | None = fit(rows, dtype, hardware)
            if fitted is not None and _is_host_bound(fitted.kernel):
                fitted, warning = _replaced_host_bound(fitted, hardware, engine, others)
                yield warning
            if fitted is not None:
                yield fitted


def _fit_collectives(frame: pd.DataFrame) -> Iterator[tuple[CollectiveError, pd.DataFrame]]:
    """Yield the curve of every collective and degree, with its held-out error and its rows."""
    for op in CollectiveOp:
        chosen = collective_rows(frame, op)
        for tp in sorted(chosen["tp"].unique()):
            rows = chosen[chosen["tp"] == tp]
            if rows["size_bytes"].nunique() < _MIN_HELD_OUT_SIZES:
                continue
            source = ", ".join(sorted(map(str, rows["source"].unique())))
            median, p90 = collective_held_out(rows, op=op, tp=int(tp), source=source)
            curve = fit_collective(rows, op=op, tp=int(tp), source=source)
            yield CollectiveError(curve=curve, num_samples=len(rows), held_out_median_frac=median,
                                  held_out_p90_frac=p90), rows


def _tables(used: Iterable[pd.DataFrame]) -> tuple[SourceTable, ...]:
    """Count the rows of every file and version."""
    every = pd.concat([rows[["source", "framework_version"]] for rows in used])
    counts = Counter(zip(map(str, every["source"]), map(str, every["framework_version"]), strict=True))
    return tuple(SourceTable(path=path, framework_version=version, num_rows=count)
                 for (path, version), count in sorted(counts.items()))


def fit_operator_tables(
    frames: OperatorFrames, *, hardware: HardwareProfile, engine: str, other_gemms: GemmTables | None = None,
    report: Report = lambda line: None,
) -> OperatorFit:
    """Fit every kernel and collective of one engine on one machine.

    Parameters
    ----------
    frames
        Its measured tables.
    hardware
        Gives the peak rates [flop/s, bytes/s] that the efficiencies are shares of: the planner must use the same.
    engine
        Its name, for notes.
    other_gemms
        Where formats come from whose table timed the host; without any they are left out.
    report
        Is told what is being fitted.

    Raises
    ------
    ProfileError
        A frame holds nonsense: see ``fit.kernel_fits``.
    """
    found = list(_fit_operators(frames, hardware, engine, other_gemms or {}, report))
    fits = [one for one in found if isinstance(one, _Fitted)]
    collectives = list(_fit_collectives(frames.collective))
    by_type = {kind: {f.kernel.dtype: f.kernel for f in fits if isinstance(f.kernel, kind)}
               for kind in (GemmKernel, DecodeAttentionKernel, PrefillAttentionKernel, MoeKernel)}
    kernels: dict[str, Any] = dict(zip((o[0] for o in _OPERATORS), by_type.values(), strict=True))
    used = [*(f.rows for f in fits), *(rows for _, rows in collectives)]
    return OperatorFit(
        kernels=Kernels(**kernels), collectives=tuple(error.curve for error, _ in collectives),
        tables=_tables(used) if used else (),
        evidence=FitEvidence(
            residuals=tuple(f.residuals for f in fits), collective_errors=tuple(error for error, _ in collectives),
            warnings=tuple(one for one in found if isinstance(one, str))),
    )
