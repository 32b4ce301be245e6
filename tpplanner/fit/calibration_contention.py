"""What devices that share a memory keep of their rates, from the same kernels timed alone and with neighbours at work."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from tpplanner.domain.hardware import Contention
from tpplanner.domain.kernels import Kernel
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.fit.kernel_operators import FloatArray, Operator

_LEAST_SHARE: Final = 0.05
_MIN_CASES: Final = 6
_NEAR: Final = 1e-4
_NAMES: Final = ("compute_frac", "memory_frac")

AtShares = Callable[[float, float], Operator[Any]]
"""An operator on a machine that keeps such shares of its arithmetic and of its bandwidth."""


def slowdowns(rows: pd.DataFrame) -> pd.DataFrame:
    """Cases that were timed alone and with neighbours: their sizes, ``num_busy``, and ``slowdown``, the ratio of both times."""
    if "num_busy" not in rows:
        return pd.DataFrame()
    sizes = [name for name in rows.columns if name not in ("num_busy", "latency_s", "timer")]
    alone = rows.loc[rows["num_busy"].isna(), [*sizes, "latency_s"]]
    both = rows[rows["num_busy"].notna()].merge(alone, on=sizes, suffixes=("", "_alone"))
    return both.assign(slowdown=both["latency_s"] / both["latency_s_alone"])


def alone(rows: pd.DataFrame) -> pd.DataFrame:
    """Cases that were timed while the other devices rested."""
    return rows[rows["num_busy"].isna()].drop(columns="num_busy") if "num_busy" in rows else rows


def fit_contention(
    measured: Mapping[str, pd.DataFrame], kernels: Mapping[str, tuple[Kernel, AtShares]], *, source: str
) -> tuple[Contention, ...]:
    """Fit the shares that each of several working devices keeps; none where too few cases were timed so.

    The shares are those with which the fitted kernels slow down as they were measured to: the ratio of two times of one case
    counts, so that an error of the kernel's fit does not.

    Parameters
    ----------
    measured
        Kind of kernel -> its `slowdowns`.
    kernels
        Kind of kernel -> its fit, and how it is predicted at given shares.
    source
        Names the samples.
    """
    numbers = sorted({int(n) for rows in measured.values() if not rows.empty for n in rows["num_busy"]})
    found = []
    for num_busy in numbers:
        chosen = {kind: rows[rows["num_busy"] == num_busy] for kind, rows in measured.items() if not rows.empty}
        if sum(len(rows) for rows in chosen.values()) >= _MIN_CASES:
            found.append(_shares(chosen, kernels, num_busy=num_busy, source=source))
    return tuple(found)


def _shares(
    measured: Mapping[str, pd.DataFrame], kernels: Mapping[str, tuple[Kernel, AtShares]], *, num_busy: int, source: str
) -> Contention:
    from scipy.optimize import least_squares

    columns = {kind: {str(n): rows[n].to_numpy(dtype=float) for n in rows.select_dtypes("number")}
               for kind, rows in measured.items()}
    seen = np.concatenate([np.log(c["slowdown"]) for c in columns.values()])

    def log_times(kept: FloatArray) -> FloatArray:
        times = [kernels[kind][1](kept[0], kept[1]).predict(kernels[kind][0], c) for kind, c in columns.items()]
        logs: FloatArray = np.log(np.concatenate([np.asarray(t, dtype=float) for t in times]))
        return logs

    at_rest = log_times(np.ones(2))

    def residuals(kept: FloatArray) -> FloatArray:
        left: FloatArray = log_times(kept) - at_rest - seen
        return left

    # Single cases are off by half where another tenant came between: they count by their distance only.
    fit = least_squares(residuals, x0=(0.95, 0.8), bounds=(_LEAST_SHARE, 1.0), loss="soft_l1",
                        f_scale=0.1)
    jacobian: FloatArray = np.asarray(fit.jac)
    variance = float(np.mean(np.minimum(fit.fun**2, 0.25))) * seen.size / max(seen.size - 2, 1)
    errors = np.sqrt(np.maximum(np.diag(np.linalg.pinv(jacobian.T @ jacobian)), 0.0) * variance)
    return Contention(num_busy=num_busy, **{
        # The search ends a hair inside its bound.
        name: Quantity(value=1.0 if value > 1.0 - _NEAR else float(value), unit="1", provenance=Provenance.FITTED, source=source,
                       std_error=min(float(error), 1.0), num_samples=seen.size)
        for name, value, error in zip(_NAMES, fit.x, errors, strict=True)})
