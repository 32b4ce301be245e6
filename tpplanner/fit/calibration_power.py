"""Power from raw samples: what the board draws idle, and what work, memory traffic and arithmetic add."""

from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tpplanner.domain.hardware import Power
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.errors import ProfileError, reject

FloatArray = NDArray[np.float64]
POWER_COLUMNS: Final = ("state", "mean_w")
IDLE: Final = "idle"
_SHARES: Final = ("busy_frac", "memory_frac", "compute_frac")


def fit_power(
    rows: pd.DataFrame, *, board_w: float | None, flop_s: float, hbm_bytes_s: float, source: str
) -> Power | None:
    """Fit P = idle + (board - idle) (busy + memory mbu + compute mfu) to states in which the device always works.

    Parameters
    ----------
    rows
        Columns state (``idle`` and others), mean_w [w]; optional: std_error_w [w], moved_bytes_per_s [bytes/s],
        work_flop_per_s [flop/s]. What is missing or not a number counts as 0.
    board_w
        Limit of power in force [w]; ``None`` where it is not known.
    flop_s, hbm_bytes_s
        The peak rates that mfu and mbu are shares of [flop/s, bytes/s].
    source
        Names the samples.

    Returns
    -------
    The model of ``domain.hardware.Power``, or ``None`` where the machine has no counter (no sample), the limit is not known,
    or the states do not tell the three shares apart. Standard errors add the spread of each state's power over its time,
    carried through the fit, and what the fit leaves over.

    Raises
    ------
    ProfileError
        If a power is no number > 0, or the idle power is not below the limit.
    """
    if rows.empty or board_w is None:
        return None
    watts = rows["mean_w"].to_numpy(dtype=float)
    if not (np.isfinite(watts) & (watts > 0)).all():
        reject(ProfileError, "power: mean_w", "be finite and > 0", float(watts.min()), source)
    is_idle = (rows["state"] == IDLE).to_numpy()
    errors = _column(rows, "std_error_w")
    design = np.column_stack([np.ones(len(rows)), _column(rows, "moved_bytes_per_s") / hbm_bytes_s,
                              _column(rows, "work_flop_per_s") / flop_s])[~is_idle]
    if not is_idle.any() or np.linalg.matrix_rank(design) < len(_SHARES):
        return None
    idle_w, idle_error_w = float(watts[is_idle].mean()), float(np.hypot.reduce(errors[is_idle]) / is_idle.sum())
    if not idle_w < board_w:
        reject(ProfileError, "power: idle", f"be below the limit of {board_w:g} W", idle_w, source)
    shares = _shares(design, watts[~is_idle] - idle_w, np.hypot(errors[~is_idle], idle_error_w), board_w - idle_w)
    return Power(
        idle_w=Quantity(value=idle_w, unit="w", provenance=Provenance.MEASURED, source=source, std_error=idle_error_w,
                        num_samples=int(is_idle.sum())),
        board_w=Quantity(value=board_w, unit="w", provenance=Provenance.MEASURED,
                         source=f"the limit that NVML enforced: {source}"),
        **{name: Quantity(value=value, unit="1", provenance=Provenance.FITTED, source=source, std_error=error,
                          num_samples=len(design)) for name, (value, error) in zip(_SHARES, shares, strict=True)})


def _column(rows: pd.DataFrame, name: str) -> FloatArray:
    return rows[name].fillna(0.0).to_numpy(dtype=float) if name in rows else np.zeros(len(rows))


def _shares(design: FloatArray, above_w: FloatArray, errors_w: FloatArray, span_w: float) -> list[tuple[float, float]]:
    """Shares in [0, 1] by least squares, each with its standard error; one at a bound has the error it would have if free."""
    from scipy.optimize import lsq_linear

    target = above_w / span_w
    values = lsq_linear(design, target, bounds=(0.0, 1.0), method="bvls").x
    residual = target - design @ values
    inverse = np.linalg.pinv(design)
    covariance = inverse @ np.diag((errors_w / span_w) ** 2) @ inverse.T
    free = len(target) - len(values)
    if free > 0:
        covariance += float(residual @ residual) / free * inverse @ inverse.T
    return [(float(v), float(e)) for v, e in zip(values, np.sqrt(np.diag(covariance)), strict=True)]
