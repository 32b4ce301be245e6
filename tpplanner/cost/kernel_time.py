"""Times of a model's operators from fitted kernels, where the machine has them.

All multiplications of a step see the same number of rows, so that their sum is one curve over the
rows for each degree: it is computed once on a grid of an eighth of an octave and at the knots of the
kernels' surfaces, where a tile more is begun, and read off by interpolation in logarithms, within 0.5 % of
the sum itself (tested).
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tpplanner.cost.gemms import ExpertLayers, Gemm, by_degree, experts_of, gemms_of, lm_head_of
from tpplanner.cost.kernels import decode_attention_kernel_s, gemm_kernel_s, moe_kernel_s, prefill_attention_kernel_s
from tpplanner.domain.attention import GroupedQueryAttention
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.kernels import GemmKernel, Kernel, MoeKernel
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.model import ModelSpec

FloatArray = NDArray[np.float64]
K = TypeVar("K", bound=Kernel)

_WIDENED, _QUANTISED = "w4a16_mxfp4", "w4a8_mxfp4_mxfp8"
"""Kernels of experts in mxfp4, by what meets the weights: activations in 16 bits, or quantised to 8."""

_ROWS: FloatArray = 2.0 ** np.arange(0.0, 21.01, 0.125)


class _Curve(NamedTuple):
    """Logarithms of the rows and of the time at each [s]."""

    log_rows: FloatArray
    log_s: FloatArray


def _rows_of(kernels: Iterable[Kernel | None]) -> FloatArray:
    """Rows at which a curve over these kernels is computed."""
    surfaces = (k.surface for k in kernels if k is not None and k.surface is not None)
    knots = [s.knots[s.axes.index("num_tok")] for s in surfaces if "num_tok" in s.axes]
    within = [k for axis in knots for k in axis if _ROWS[0] <= k <= _ROWS[-1]]
    return np.unique(np.concatenate([_ROWS, within]))


def _curve(rows: FloatArray, time_s: FloatOrArray) -> _Curve:
    """Curve of the longest time up to each number of rows: more rows never take less."""
    return _Curve(np.log(rows), np.log(np.maximum.accumulate(np.broadcast_to(time_s, rows.shape))))


def gemm_kernel_for(hardware: HardwareProfile, gemm: Gemm) -> GemmKernel | None:
    """Return the kernel that runs ``gemm`` on the machine, if one was measured."""
    if hardware.kernels is None:
        return None
    return next((hardware.kernels.gemm[name] for name in gemm.kernels if name in hardware.kernels.gemm), None)


def moe_kernel_for(hardware: HardwareProfile, experts: ExpertLayers) -> MoeKernel | None:
    """Return the kernel that runs the experts on the machine, if one was measured."""
    if hardware.kernels is None:
        return None
    names = experts.kernels
    if {_WIDENED, _QUANTISED} <= set(names) and {"mxfp4", "nvfp4"} & set(hardware.peak_flop_s):
        # Where the machine multiplies 4-bit floats, engines quantise the activations too; elsewhere they widen the weights.
        names = (_QUANTISED, *names)
    return next((hardware.kernels.moe[name] for name in names if name in hardware.kernels.moe), None)


def has_gemm_kernels(model: ModelSpec, hardware: HardwareProfile) -> bool:
    """Whether every multiplication outside the experts has a measured kernel."""
    return all(gemm_kernel_for(hardware, g) is not None for g in (*gemms_of(model), lm_head_of(model)))


def has_moe_kernels(model: ModelSpec, hardware: HardwareProfile) -> bool:
    """Whether every layer of experts has a measured kernel."""
    return all(moe_kernel_for(hardware, e) is not None for e in experts_of(model))


def gemm_time_s(gemm: Gemm, hardware: HardwareProfile, *, tp: FloatOrArray, num_tok: FloatOrArray) -> FloatOrArray:
    """Time of one multiplication in all its layers on one rank, by its kernel [s]."""
    kernel = gemm_kernel_for(hardware, gemm)
    assert kernel is not None, gemm.kernels  # callers ask has_gemm_kernels first
    return gemm.num_layers * gemm_kernel_s(
        kernel, num_tok=num_tok, out_features=gemm.out_features_on(tp), in_features=gemm.in_features_on(tp),
        weight_bytes_per_param=gemm.bytes_per_param, flop_s=hardware.peak_for(gemm.runs_as).value,
        hbm_bytes_s=hardware.hbm_bytes_s.value,
    )


@lru_cache(maxsize=1024)
def _gemms_curve(gemms: tuple[Gemm, ...], hardware: HardwareProfile, tp: float) -> _Curve:
    rows = _rows_of(gemm_kernel_for(hardware, g) for g in gemms)
    return _curve(rows, sum((gemm_time_s(g, hardware, tp=tp, num_tok=rows) for g in gemms), start=0.0))


@lru_cache(maxsize=1024)
def _experts_curve(model: ModelSpec, hardware: HardwareProfile, tp: float, ep: float) -> _Curve:
    rows = _rows_of(moe_kernel_for(hardware, layers) for layers in experts_of(model))
    total: FloatOrArray = 0.0
    for layers in experts_of(model):
        kernel = moe_kernel_for(hardware, layers)
        assert kernel is not None, layers.kernels  # callers ask has_moe_kernels first
        total = total + layers.num_layers * moe_kernel_s(
            kernel, num_tok=rows, hidden_size=layers.hidden_size,
            expert_intermediate_size=layers.mlp.expert_intermediate_size,
            num_experts_per_tok=layers.mlp.num_experts_per_tok, num_experts=layers.mlp.num_experts,
            weight_bytes_per_param=layers.bytes_per_param, flop_s=hardware.peak_for(layers.runs_as).value,
            hbm_bytes_s=hardware.hbm_bytes_s.value, moe_tp=tp / ep, moe_ep=ep,
        )
    return _curve(rows, total)


def _read_off(curve: _Curve, rows: FloatOrArray) -> FloatArray:
    """Interpolate in logarithms; below one row as at one, beyond the grid in proportion to the rows."""
    logs = np.log(np.maximum(rows, 1.0))
    beyond = np.maximum(logs - curve.log_rows[-1], 0.0)
    read: FloatArray = np.exp(np.interp(logs, curve.log_rows, curve.log_s) + beyond)
    return read


def layers_kernel_s(
    model: ModelSpec, hardware: HardwareProfile, *, tp: FloatOrArray, num_tok: FloatOrArray, num_sampled: FloatOrArray
) -> FloatOrArray:
    """Time of all multiplications outside the experts on one rank, the LM head on the sampled rows only [s]."""
    shape, degrees = by_degree(tp, num_tok, num_sampled)
    rows, sampled = np.broadcast_to(num_tok, shape), np.broadcast_to(num_sampled, shape)
    total = np.zeros(shape)
    for degree, where in degrees:
        total[where] = (_read_off(_gemms_curve(gemms_of(model), hardware, degree), rows[where])
                        + _read_off(_gemms_curve((lm_head_of(model),), hardware, degree), sampled[where]))
    return total


def experts_kernel_s(
    model: ModelSpec, hardware: HardwareProfile, *, tp: FloatOrArray, ep: FloatOrArray, num_tok: FloatOrArray
) -> FloatOrArray:
    """Time of the routed experts on one rank, ``ep`` of ``tp`` ranks holding them whole [s]."""
    shape, degrees = by_degree(tp, ep, num_tok)
    rows, groups = np.broadcast_to(num_tok, shape), np.broadcast_to(np.asarray(ep, dtype=float), shape)
    total = np.zeros(shape)
    for degree, where in degrees:
        for ranks in np.unique(groups[where]):
            both = where & (groups == ranks)
            total[both] = _read_off(_experts_curve(model, hardware, degree, float(ranks)), rows[both])
    return total


def decode_kernel_s(
    attention: GroupedQueryAttention, hardware: HardwareProfile, *, tp: FloatOrArray, num_seqs: FloatOrArray,
    context_tok: FloatOrArray, kv_element_bytes: float,
) -> FloatOrArray | None:
    """Time of decode attention of one layer by its kernel [s]; ``None`` where none was measured."""
    kernel = None if hardware.kernels is None else _kv_kernel(hardware.kernels.decode_attention, kv_element_bytes)
    if kernel is None:
        return None
    num_kv_heads = np.maximum(attention.num_kv_heads / np.asarray(tp, dtype=float), 1.0)
    return decode_attention_kernel_s(
        kernel, num_seqs=np.maximum(num_seqs, 1e-9), context_tok=np.maximum(context_tok, 1.0),
        num_heads=attention.num_heads / np.asarray(tp, dtype=float), num_kv_heads=num_kv_heads,
        head_dim=attention.head_dim, kv_element_bytes=kv_element_bytes, flop_s=hardware.peak_for("bf16").value,
        hbm_bytes_s=hardware.hbm_bytes_s.value,
        window_tok=np.inf if attention.window_tok is None else float(attention.window_tok),
    )


def prefill_kernel_s(
    attention: GroupedQueryAttention, hardware: HardwareProfile, *, tp: FloatOrArray, isl_tok: FloatOrArray,
    kv_element_bytes: float,
) -> FloatOrArray | None:
    """Time of causal attention of one whole prompt in one layer by its kernel [s]; ``None`` where none was measured."""
    kernel = None if hardware.kernels is None else _kv_kernel(hardware.kernels.prefill_attention, kv_element_bytes)
    if kernel is None:
        return None
    return prefill_attention_kernel_s(
        kernel, num_seqs=1.0, isl_tok=np.maximum(isl_tok, 1.0), num_heads=attention.num_heads / np.asarray(tp, dtype=float),
        num_kv_heads=np.maximum(attention.num_kv_heads / np.asarray(tp, dtype=float), 1.0),
        head_dim=attention.head_dim, kv_element_bytes=kv_element_bytes, flop_s=hardware.peak_for("bf16").value,
        hbm_bytes_s=hardware.hbm_bytes_s.value,
        window_tok=np.inf if attention.window_tok is None else float(attention.window_tok),
    )


def _kv_kernel(kernels: Mapping[str, K], kv_element_bytes: float) -> K | None:
    """The kernel of a cache whose elements take so many bytes; 32 bits run in 16 where only these were measured."""
    if kv_element_bytes <= 1.0:
        return kernels.get("fp8")
    wide = kernels.get("fp32") if kv_element_bytes > 2.0 else None
    return wide or kernels.get("bf16")


def kernels_outside(model: ModelSpec, hardware: HardwareProfile, *, num_tok: float) -> tuple[str, ...]:
    """Name the kernels that ``num_tok`` rows take beyond the rows they were measured at."""
    gemms = ((f"{g.dtype} GEMM", g) for one in gemms_of(model) if (g := gemm_kernel_for(hardware, one)) is not None)
    experts = ((f"{e.dtype} experts", e) for one in experts_of(model) if (e := moe_kernel_for(hardware, one)) is not None)
    used: dict[str, Kernel] = {**dict(gemms), **dict(experts)}
    return tuple(name for name, kernel in used.items()
                 for axis, _, most in kernel.ranges if axis == "num_tok" and num_tok > most)
