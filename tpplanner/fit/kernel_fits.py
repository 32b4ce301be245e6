"""Kernels from measured operator tables: roofline first, then the surface of its residuals, then held-out errors."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tpplanner.domain.kernels import (
    DecodeAttentionKernel,
    GemmKernel,
    Kernel,
    MoeKernel,
    PrefillAttentionKernel,
    Surface,
)
from tpplanner.errors import ProfileError, reject
from tpplanner.fit.kernel_operators import (
    DECODE_SIZES,
    GEMM_SIZES,
    MOE_SIZES,
    PREFILL_SIZES,
    Columns,
    FloatArray,
    Operator,
    decode_operator,
    gemm_operator,
    moe_operator,
    prefill_operator,
)
from tpplanner.fit.roofline_fit import COEFFICIENTS, fit_roofline, lowest_quantity
from tpplanner.fit.surface_fit import fit_surface

BoolArray = NDArray[np.bool_]
K = TypeVar("K", bound=Kernel)

HELD_OUT_FRAC = 0.2
"""Share of the shapes, and of the values of the driving size, that a fit does not see when its error is measured."""
HOST_BOUND_S = 30e-6
"""A smallest GEMM slower than this was launched by the host call by call: a GPU launch takes 2 to 13 us."""
HOST_NOTE: Final = "timed the host's launches, not the kernel"
MAX_MOE_RANKS: Final = 16
"""Tables go to 256 expert-parallel ranks, where sorting foreign tokens dominates; replicas here have at most 16."""


def _columns(samples: pd.DataFrame, names: Sequence[str], source: str) -> dict[str, FloatArray]:
    """Return the columns as floats; they must be there, finite and positive."""
    missing = [n for n in (*names, "latency_s") if n not in samples]
    if missing:
        reject(ProfileError, "columns", f"include {', '.join(missing)}", list(samples.columns), source)
    if len(samples) < 2 * len(COEFFICIENTS):
        reject(ProfileError, "samples", f"number at least {2 * len(COEFFICIENTS)} for this kernel", len(samples), source)
    found = {n: samples[n].to_numpy(dtype=float) for n in (*names, "latency_s")}
    for name, values in found.items():
        if not (np.isfinite(values) & (values > 0)).all() and name != "window_tok":
            reject(ProfileError, name, "be finite and > 0 in every row", float(values.min()), source)
    return found


def _window(columns: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Return the columns with no window (0, NaN) as infinity."""
    window = columns["window_tok"]
    return {**columns, "window_tok": np.where(np.nan_to_num(window) > 0, window, np.inf)}


def held_out(columns: Columns, *, shape: Sequence[str], driver: str, seed: int) -> BoolArray:
    """Mark the rows of a seeded fifth of the shapes (one at least, of several) and of the driver's inner values."""
    rng = np.random.default_rng(seed)

    def chosen(values: FloatArray) -> FloatArray:
        count = max(int(HELD_OUT_FRAC * values.size), 1) if values.size > 1 else 0
        return np.asarray(rng.choice(values, count, replace=False))

    _, shapes = np.unique(np.column_stack([columns[n] for n in shape]), axis=0, return_inverse=True)
    shape_of_row = shapes.ravel().astype(float)
    out = np.isin(shape_of_row, chosen(np.unique(shape_of_row)))
    return np.asarray(out | np.isin(columns[driver], chosen(np.unique(columns[driver])[1:-1])))


def _rows(columns: Columns, which: NDArray[Any]) -> dict[str, FloatArray]:
    return {n: v[which] for n, v in columns.items()}


def _fit_once(blank: K, operator: Operator[K], columns: Columns, *, seed: int) -> K:
    """Fit the roofline and then the surface to all rows."""
    bare, notes = fit_roofline(
        blank, lambda kernel, chosen: operator.predict(kernel, _rows(columns, chosen)), columns["latency_s"], seed=seed)
    surface = fit_surface(
        operator.coordinates(columns), np.log(columns["latency_s"] / operator.predict(bare, columns)),
        knots=operator.knots, monotone=operator.monotone,
        roofline_s=lambda mesh: operator.predict(bare, operator.sizes(mesh)),
    )
    return replace(bare, surface=surface, notes=blank.notes + notes)


def _floor_s(blank: K, operator: Operator[K], columns: Columns) -> FloatArray:
    """Times at the machine's peak rates [s]: what a kernel takes whose correction goes to nothing.

    Of experts it counts the least that any routing reads, as the skew is not known yet.
    """
    axis = next(iter(operator.knots))
    vanishing = replace(blank, surface=Surface(axes=(axis,), knots=((1.0,),), log_ratio=(-100.0,)))
    return np.asarray(operator.predict(vanishing, columns), dtype=float)


def _fit(blank: K, operator: Operator[K], columns: Columns, *, seed: int) -> K:
    """Fit a kernel, measure its error on held-out rows by a refit, and note what was left out."""
    kept = columns["latency_s"] >= _floor_s(blank, operator, columns)
    columns = _rows(columns, kept)
    if not kept.all():
        share = 1.0 - float(kept.mean())
        blank = replace(blank, notes=(*blank.notes, f"{share:.2%} of the samples beat the machine's peak and were left out"))
    kernel = replace(_fit_once(blank, operator, columns, seed=seed), num_samples=int(kept.sum()),
                     ranges=tuple((n, float(c.min()), float(c.max())) for n, c in operator.coordinates(columns).items()))
    out = held_out(columns, shape=operator.shape, driver=operator.driver, seed=seed)
    if not out.any() or int((~out).sum()) < 2 * len(COEFFICIENTS):
        return kernel
    part = _fit_once(blank, operator, _rows(columns, ~out), seed=seed)
    unseen = _rows(columns, out)
    error = np.abs(operator.predict(part, unseen) / unseen["latency_s"] - 1.0)
    return replace(kernel, held_out_median_frac=float(np.median(error)), held_out_p90_frac=float(np.quantile(error, 0.9)))


def _coefficients(source: str) -> dict[str, Any]:
    """Arguments of a kernel that is not fitted yet."""
    return {"surface": None, "held_out_median_frac": None, "held_out_p90_frac": None, "num_samples": 0, "source": source,
            **{n: lowest_quantity(n, source=source) for n in COEFFICIENTS}}


def fit_gemm(
    samples: pd.DataFrame, *, dtype: str, weight_bytes_per_param: float, peak_flop_s: float, hbm_bytes_s: float,
    source: str, seed: int = 0, host_bound_s: float = HOST_BOUND_S,
) -> GemmKernel:
    """Fit the matrix multiplications of one operand format.

    Parameters
    ----------
    samples
        Columns dtype, num_tok, out_features, in_features, latency_s; rows of other formats are ignored.
    dtype, weight_bytes_per_param
        The format, and the storage of one weight in it [bytes].
    peak_flop_s, hbm_bytes_s
        Peak rates of the machine [flop/s, bytes/s].
    source
        Names the table.
    seed
        Of the held-out split.
    host_bound_s
        A smallest product slower than this is noted as one that timed the host [s].

    Raises
    ------
    ProfileError
        If a column is missing, holds nonsense, or too few rows are of this format.
    """
    columns = _columns(samples[samples["dtype"] == dtype], GEMM_SIZES, source)
    smallest_s = float(np.quantile(columns["latency_s"], 0.01))
    notes = () if smallest_s < host_bound_s else (
        f"the smallest takes {smallest_s * 1e6:.0f} us: the table {HOST_NOTE}",)
    operator = gemm_operator(weight_bytes_per_param=weight_bytes_per_param, flop_s=peak_flop_s, hbm_bytes_s=hbm_bytes_s)
    return _fit(GemmKernel(dtype=dtype, notes=notes, **_coefficients(source)), operator, columns, seed=seed)


def fit_decode_attention(
    samples: pd.DataFrame, *, kv_dtype: str, kv_element_bytes: float, peak_flop_s: float, hbm_bytes_s: float,
    source: str, seed: int = 0,
) -> DecodeAttentionKernel:
    """Fit decode attention for one format of the KV cache.

    Columns kv_dtype, num_seqs, context_tok, num_heads, num_kv_heads, head_dim, window_tok (0: none),
    latency_s; the other parameters as in ``fit_gemm``.
    """
    columns = _window(_columns(samples[samples["kv_dtype"] == kv_dtype], DECODE_SIZES, source))
    operator = decode_operator(kv_element_bytes=kv_element_bytes, flop_s=peak_flop_s, hbm_bytes_s=hbm_bytes_s)
    return _fit(DecodeAttentionKernel(dtype=kv_dtype, **_coefficients(source)), operator, columns, seed=seed)


def fit_prefill_attention(
    samples: pd.DataFrame, *, kv_dtype: str, kv_element_bytes: float, peak_flop_s: float, hbm_bytes_s: float,
    source: str, seed: int = 0,
) -> PrefillAttentionKernel:
    """Fit prefill attention for one format of the KV cache.

    Columns kv_dtype, num_seqs, isl_tok, num_heads, num_kv_heads, head_dim, window_tok (0: none),
    latency_s; the other parameters as in ``fit_gemm``. The arithmetic must be of one format.
    """
    columns = _window(_columns(samples[samples["kv_dtype"] == kv_dtype], PREFILL_SIZES, source))
    operator = prefill_operator(kv_element_bytes=kv_element_bytes, flop_s=peak_flop_s, hbm_bytes_s=hbm_bytes_s)
    return _fit(PrefillAttentionKernel(dtype=kv_dtype, **_coefficients(source)), operator, columns, seed=seed)


def fit_moe(
    samples: pd.DataFrame, *, dtype: str, distribution: str, weight_bytes_per_param: float, peak_flop_s: float,
    hbm_bytes_s: float, source: str, seed: int = 0,
) -> MoeKernel:
    """Fit the routed experts of one operand format under one distribution of the routing.

    Columns dtype, distribution, num_tok, hidden_size, expert_intermediate_size, num_experts_per_tok,
    num_experts, moe_tp, moe_ep, latency_s; the other parameters as in ``fit_gemm``. Rows of more than
    ``MAX_MOE_RANKS`` ranks are ignored.
    """
    chosen = samples[(samples["dtype"] == dtype) & (samples["distribution"] == distribution)
                     & (samples["moe_tp"] * samples["moe_ep"] <= MAX_MOE_RANKS)]
    columns = _columns(chosen, MOE_SIZES, source)
    operator = moe_operator(weight_bytes_per_param=weight_bytes_per_param, flop_s=peak_flop_s, hbm_bytes_s=hbm_bytes_s)
    experts = lowest_quantity("effective_experts_frac", source=source)
    return _fit(MoeKernel(dtype=dtype, distribution=distribution, effective_experts_frac=experts, **_coefficients(source)),
                operator, columns, seed=seed)
