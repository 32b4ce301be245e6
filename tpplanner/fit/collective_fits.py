"""Curves of collectives from measured tables: as few sizes as keep the interpolation close, and its held-out error."""

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tpplanner.cost.communication import curve_s
from tpplanner.domain.hardware import CollectiveCurve, CollectiveOp
from tpplanner.errors import ProfileError, reject

FloatArray = NDArray[np.float64]

TOLERANCE_FRAC: Final = 0.03
"""A size is left out where its neighbours interpolate it this well: about what a repeated measurement differs by."""


def _sorted_samples(
    samples: pd.DataFrame, op: CollectiveOp, tp: int, source: str
) -> tuple[FloatArray, FloatArray]:
    """Sizes [bytes], ascending, and the median latency of each [s]."""
    missing = [n for n in ("op", "tp", "size_bytes", "latency_s") if n not in samples]
    if missing:
        reject(ProfileError, "columns", f"include {', '.join(missing)}", list(samples.columns), source)
    rows = samples[(samples["op"] == op.value) & (samples["tp"] == tp)]
    medians = rows.groupby("size_bytes")["latency_s"].median().sort_index()
    if len(medians) < 2:
        reject(ProfileError, "samples", f"give at least 2 sizes of {op.value} over {tp}", len(medians), source)
    return medians.index.to_numpy(dtype=float), medians.to_numpy(dtype=float)


def _curve(op: CollectiveOp, tp: int, sizes: FloatArray, times_s: FloatArray, source: str) -> CollectiveCurve:
    return CollectiveCurve(op=op, tp=tp, size_bytes=tuple(float(s) for s in sizes),
                           latency_s=tuple(float(f"{t:.4g}") for t in times_s), source=source)


def fit_collective(samples: pd.DataFrame, *, op: CollectiveOp, tp: int, source: str) -> CollectiveCurve:
    """Thin the measured sizes of one collective at one degree.

    Starts from the smallest and the largest size and adds the worst interpolated one until all are
    within ``TOLERANCE_FRAC``.

    Parameters
    ----------
    samples
        Columns op, tp, size_bytes, latency_s, all of one mode (captured in a graph, or eager); repeated
        sizes count with their median.
    op, tp
        The collective and its ranks.
    source
        Names the table.

    Raises
    ------
    ProfileError
        If a column is missing or there are fewer than two sizes.
    """
    sizes, times_s = _sorted_samples(samples, op, tp, source)
    kept = np.zeros(sizes.size, dtype=bool)
    kept[[0, -1]] = True
    while True:
        curve = _curve(op, tp, sizes[kept], times_s[kept], source)
        error = np.where(kept, 0.0, np.abs(curve_s(curve, sizes) / times_s - 1.0))
        if error.max() <= TOLERANCE_FRAC:
            return curve
        kept[int(error.argmax())] = True


def collective_held_out(samples: pd.DataFrame, *, op: CollectiveOp, tp: int, source: str) -> tuple[float, float]:
    """Median and 90 % quantile of the relative error when every second size is interpolated from the others.

    Examples
    --------
    A line through the origin is interpolated exactly in logarithms.

    >>> rows = pd.DataFrame({"op": "all_reduce", "tp": 2, "size_bytes": [1e3, 1e4, 1e5], "latency_s": [1e-6, 1e-5, 1e-4]})
    >>> [round(e, 9) for e in collective_held_out(rows, op=CollectiveOp.ALL_REDUCE, tp=2, source="by hand")]
    [0.0, 0.0]
    """
    sizes, times_s = _sorted_samples(samples, op, tp, source)
    out = np.arange(sizes.size) % 2 == 1
    out[-1] = False
    if not out.any():
        reject(ProfileError, "samples", "give at least 3 sizes", sizes.size, source)
    curve = _curve(op, tp, sizes[~out], times_s[~out], source)
    error = np.abs(curve_s(curve, sizes[out]) / times_s[out] - 1.0)
    return float(np.median(error)), float(np.quantile(error, 0.9))
