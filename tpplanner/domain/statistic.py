"""The statistic of a latency that targets are compared with."""

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.simulation import Quantiles

FloatArray = NDArray[np.float64]


def statistic(quantile: float | None) -> str:
    """Name the statistic that targets are compared with.

    Examples
    --------
    >>> statistic(None), statistic(0.99), statistic(0.999)
    ('mean', 'p99', 'p99.9')
    """
    return "mean" if quantile is None else f"p{100 * quantile:g}"


def compared_s(quantiles: Quantiles | None, times_s: FloatArray | None, quantile: float | None) -> float | None:
    """Return the statistic of a latency that a target is compared with [s].

    Parameters
    ----------
    quantiles
        Mean and the usual quantiles; ``None`` where no request has the latency.
    times_s
        The latency of each request, for other quantiles; ``None`` where no log was kept.
    quantile
        Which one; ``None`` for the mean.

    Returns
    -------
    float or None
        ``None`` where it cannot be known.

    Examples
    --------
    >>> usual = Quantiles(mean_s=0.2, p50_s=0.1, p90_s=0.4, p99_s=0.9)
    >>> compared_s(usual, None, None), compared_s(usual, None, 0.9), compared_s(usual, np.array([0.1, 0.3]), 0.75)
    (0.2, 0.4, 0.25)
    """
    if quantiles is None:
        return None
    known = {None: quantiles.mean_s, 0.5: quantiles.p50_s, 0.9: quantiles.p90_s, 0.99: quantiles.p99_s}
    if quantile in known:
        return known[quantile]
    if times_s is None or quantile is None:
        return None
    there = times_s[np.isfinite(times_s)]
    return float(np.quantile(there, quantile)) if there.size else None
