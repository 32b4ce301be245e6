"""Kernels and collectives from raw samples of one machine, and the peak rates of a machine that has no datasheet."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from tpplanner.domain.dtypes import DTYPES
from tpplanner.domain.fit_evidence import CollectiveError, FitEvidence, KernelResiduals
from tpplanner.domain.hardware import CollectiveOp, Contention
from tpplanner.domain.kernels import Kernel, Kernels
from tpplanner.errors import ProfileError, reject
from tpplanner.fit.calibration_contention import alone, fit_contention, slowdowns
from tpplanner.fit.collective_fits import collective_held_out, fit_collective
from tpplanner.fit.kernel_fits import fit_decode_attention, fit_gemm, fit_prefill_attention
from tpplanner.fit.kernel_operators import (
    DECODE_SIZES,
    GEMM_SIZES,
    PREFILL_SIZES,
    Operator,
    decode_operator,
    gemm_operator,
    prefill_operator,
)
from tpplanner.fit.operator_profile import residuals_of
from tpplanner.fit.operator_rows import FORMATS
from tpplanner.fit.roofline_fit import COEFFICIENTS

_MIN_SIZES: Final = 3
_MODES: Final = ("graph", "between")
_WEIGHT_ONLY: Final = {"int8_wo": ("int8", "bf16"), "int4_wo": ("bf16",)}
"""Kernels that widen their weights, and the formats whose peak the planner bounds them by, the first that a machine has."""
_CACHE_FACTOR: Final = 4.0
"""Arrays so many times larger than the last cache show the memory's bandwidth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """The best rates that were seen: arithmetic per format [flop/s], and bandwidth [bytes/s]."""

    flop_s: dict[str, float]
    bytes_s: float


def measured_peaks(*, gemm: pd.DataFrame, memory: pd.DataFrame, decode: pd.DataFrame, cache_bytes: float) -> Peaks:
    """Return the best rates among all samples: of products, and of whatever streams from memory.

    The bandwidth is the best of STREAM's kernels far beyond the caches, of weights and of keys and values that rotate.
    """
    flop = 2.0 * gemm["num_tok"] * gemm["out_features"] * gemm["in_features"] / gemm["latency_s"]
    weights = gemm["out_features"] * gemm["in_features"] * gemm["dtype"].map(_num_bytes) / gemm["latency_s"]
    kv = (2.0 * decode["num_seqs"] * decode["context_tok"] * decode["num_kv_heads"] * decode["head_dim"]
          * decode["kv_dtype"].map(_num_bytes) / decode["latency_s"])
    far = memory[memory["size_bytes"] >= _CACHE_FACTOR * cache_bytes]
    if far.empty:
        reject(ProfileError, "memory", f"have arrays over {_CACHE_FACTOR:g} times the cache", len(memory), "samples")
    return Peaks(flop_s={str(dtype): float(rates.max()) for dtype, rates in flop.groupby(gemm["dtype"])
                         if dtype not in _WEIGHT_ONLY},
                 bytes_s=float(max((far["moved_bytes"] / far["latency_s"]).max(), weights.max(), kv.max())))


def _num_bytes(dtype: str) -> float:
    """Storage of one weight or cached value, scales included [bytes]."""
    return FORMATS[dtype].bytes_per_param if dtype in FORMATS else DTYPES[dtype].num_bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibratedKernels:
    """Kernels with their residuals, the curves of collectives with their held-out errors, and what neighbours take away."""

    kernels: Kernels
    evidence: FitEvidence
    contention: tuple[Contention, ...] = ()


def fit_kernels(
    *, gemm: pd.DataFrame, decode: pd.DataFrame, prefill: pd.DataFrame, collective: pd.DataFrame, peaks: Peaks, source: str
) -> CalibratedKernels:
    """Fit every kernel and curve to raw samples.

    Parameters
    ----------
    gemm, decode, prefill, collective
        Medians per case, columns as the benchmarks name them, ``latency_s`` [s].
    peaks
        The rates that efficiencies are shares of: a datasheet's, or `measured_peaks`.
    source
        Names the samples.

    Raises
    ------
    ProfileError
        If samples are missing or hold nonsense.
    """
    few = _few(alone(gemm))
    gemms = [_gemm(rows, str(dtype), peaks, source) for dtype, rows in alone(gemm).groupby("dtype")
             if dtype not in few]
    decodes = [_attention("decode_attention", rows, peaks, source, fit=fit_decode_attention, operator=decode_operator,
                          sizes=DECODE_SIZES) for _, rows in alone(decode).assign(window_tok=0.0).groupby("kv_dtype")]
    whole = prefill[prefill["prefix_tok"] == 0].assign(window_tok=0.0, num_seqs=1.0)
    prefills = [_attention("prefill_attention", rows, peaks, source, fit=fit_prefill_attention, operator=prefill_operator,
                           sizes=PREFILL_SIZES) for _, rows in whole.groupby("kv_dtype")]
    kernels: dict[str, Any] = {name: {r.kernel.dtype: r.kernel for r in found} for name, found in (
        ("gemm", gemms), ("decode_attention", decodes), ("prefill_attention", prefills))}
    return CalibratedKernels(
        kernels=Kernels(**kernels), contention=_contention(gemm, decode, Kernels(**kernels), peaks, source),
        evidence=FitEvidence(residuals=(*gemms, *decodes, *prefills), collective_errors=_curves(collective, source),
                             warnings=tuple(f"gemm {dtype}: {count} samples are too few for a fit: left out"
                                            for dtype, count in few.items())))


def _contention(
    gemm: pd.DataFrame, decode: pd.DataFrame, kernels: Kernels, peaks: Peaks, source: str
) -> tuple[Contention, ...]:
    """What neighbours at work take away, from products and decode attention in the format that both were timed in."""
    dtype = next((name for name in kernels.gemm if name in kernels.decode_attention), None)
    if dtype is None:
        return ()
    num_bytes, bytes_s = _num_bytes(dtype), peaks.bytes_s
    products, attention = _peak(peaks, dtype), _peak(peaks, "bf16")
    measured = {"gemm": slowdowns(gemm[gemm["dtype"] == dtype]), "decode": slowdowns(decode[decode["kv_dtype"] == dtype])}
    return fit_contention(measured, {
        "gemm": (kernels.gemm[dtype], lambda c, m: gemm_operator(
            weight_bytes_per_param=num_bytes, flop_s=c * products, hbm_bytes_s=m * bytes_s)),
        "decode": (kernels.decode_attention[dtype], lambda c, m: decode_operator(
            kv_element_bytes=num_bytes, flop_s=c * attention, hbm_bytes_s=m * bytes_s))}, source=source)


def _few(gemm: pd.DataFrame) -> dict[str, int]:
    """Weight-only formats that were hardly measured, and their number of samples: other formats do without them."""
    counts = gemm["dtype"].value_counts()
    return {name: int(counts[name]) for name in _WEIGHT_ONLY if 0 < counts.get(name, 0) < 2 * len(COEFFICIENTS)}


def _gemm(rows: pd.DataFrame, dtype: str, peaks: Peaks, source: str) -> KernelResiduals:
    peak, num_bytes = _peak(peaks, dtype), _num_bytes(dtype)
    kernel = fit_gemm(rows, dtype=dtype, weight_bytes_per_param=num_bytes, peak_flop_s=peak, hbm_bytes_s=peaks.bytes_s,
                      source=source, host_bound_s=math.inf)  # the samples say how they were timed
    operator = gemm_operator(weight_bytes_per_param=num_bytes, flop_s=peak, hbm_bytes_s=peaks.bytes_s)
    return residuals_of("gemm", kernel, operator, rows, GEMM_SIZES)


def _attention(
    name: str, rows: pd.DataFrame, peaks: Peaks, source: str, *, fit: Callable[..., Kernel],
    operator: Callable[..., Operator[Any]], sizes: Sequence[str],
) -> KernelResiduals:
    """Fit one format of the cache; the arithmetic is bounded by the peak that the planner takes for attention."""
    dtype, peak = str(rows["kv_dtype"].iloc[0]), _peak(peaks, "bf16")
    num_bytes = _num_bytes(dtype)
    kernel = fit(rows, kv_dtype=dtype, kv_element_bytes=num_bytes, peak_flop_s=peak, hbm_bytes_s=peaks.bytes_s, source=source)
    return residuals_of(name, kernel, operator(kv_element_bytes=num_bytes, flop_s=peak, hbm_bytes_s=peaks.bytes_s), rows, sizes)


def _peak(peaks: Peaks, dtype: str) -> float:
    """Of the format, or of the fastest that was measured."""
    names = _WEIGHT_ONLY.get(dtype, (dtype,))
    return next((peaks.flop_s[name] for name in names if name in peaks.flop_s), max(peaks.flop_s.values()))


def _curves(collective: pd.DataFrame, source: str) -> tuple[CollectiveError, ...]:
    """One curve per operation and degree, of the mode that is nearest to an engine's step among those measured."""
    if collective.empty:
        return ()
    found = []
    # Ranks of one node first: those that torchrun spread say over how many nodes.
    nodes = collective["num_nodes"].fillna(0.0) if "num_nodes" in collective else 0.0
    for (op, tp), every in collective.assign(tp=collective["tp"].astype(int), num_nodes=nodes).groupby(["op", "tp"]):
        degree, rows = int(str(tp)), every[every["num_nodes"] == every["num_nodes"].min()]
        modes = [mode for mode in _MODES if (rows["mode"] == mode).any()]
        chosen = rows[rows["mode"] == modes[0]] if modes else rows
        if chosen["size_bytes"].nunique() < _MIN_SIZES:
            continue
        kind = CollectiveOp(str(op))
        median, p90 = collective_held_out(chosen, op=kind, tp=degree, source=source)
        found.append(CollectiveError(curve=fit_collective(chosen, op=kind, tp=degree, source=source), num_samples=len(chosen),
                                     held_out_median_frac=median, held_out_p90_frac=p90))
    return tuple(found)
