"""A coarse surface from scattered log residuals: ridge regression on the knots, smoothed, made monotone."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tpplanner.cost.surface import grid_corners
from tpplanner.domain.kernels import Surface
from tpplanner.domain.matrix import FloatOrArray

FloatArray = NDArray[np.float64]

RIDGE = 0.1
"""Weight of 'the correction is 0' at a knot, in samples; halving or doubling it moves held-out medians by 0.1 %."""
SMOOTHNESS = 0.3
"""Weight of 'neighbouring knots agree', in samples per pair; it fills knots that no sample touches."""
DECIMALS = 3
"""Of a stored log ratio: 0.05 % of a time, far under the noise of a measurement."""
_REWEIGHTINGS = 2
_OUTLIER_SCALES = 1.5


def supported_knots(knots: Sequence[float], values: FloatArray) -> tuple[float, ...]:
    """Knots that lie in the range of the samples, with the nearest one outside on either side.

    Examples
    --------
    >>> supported_knots([1, 10, 100, 1000], np.array([20.0, 90.0]))
    (10.0, 100.0)
    """
    grid = np.asarray(knots, dtype=float)
    first = max(int(np.searchsorted(grid, values.min(), side="right")) - 1, 0)
    last = min(int(np.searchsorted(grid, values.max(), side="left")), grid.size - 1)
    return tuple(float(k) for k in grid[min(first, last):last + 1])


def _smoothness_penalty(shape: tuple[int, ...]) -> FloatArray:
    """Matrix of the squared differences between neighbouring knots, summed over the axes."""
    total = np.zeros((int(np.prod(shape)),) * 2)
    for axis, length in enumerate(shape):
        difference = np.diff(np.eye(length), axis=0)
        before, after = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1:]))
        total += np.kron(np.kron(np.eye(before), difference.T @ difference), np.eye(after))
    return total


def _robust_solve(
    knots: Sequence[tuple[float, ...]], coordinates: Sequence[FloatArray], log_ratio: FloatArray
) -> FloatArray:
    """Knot values that fit the samples, outliers weighted down and knots without samples smoothed over."""
    from scipy.sparse import csr_matrix, diags

    corners = grid_corners(knots, coordinates)
    shape = tuple(len(k) for k in knots)
    rows = np.tile(np.arange(log_ratio.size), len(corners))
    design = csr_matrix(
        (np.concatenate([w for _, w in corners]), (rows, np.concatenate([i for i, _ in corners]))),
        shape=(log_ratio.size, int(np.prod(shape))),
    )
    penalty = SMOOTHNESS * _smoothness_penalty(shape) + RIDGE * np.eye(int(np.prod(shape)))
    weight = np.ones_like(log_ratio)
    values = np.zeros(int(np.prod(shape)))
    for _ in range(_REWEIGHTINGS):
        normal = np.asarray((design.T @ diags(weight) @ design).toarray()) + penalty
        values = np.linalg.solve(normal, design.T @ (weight * log_ratio))
        residual = log_ratio - design @ values
        spread = 1.4826 * float(np.median(np.abs(residual))) + 1e-9
        weight = 1.0 / np.sqrt(1.0 + (residual / (_OUTLIER_SCALES * spread)) ** 2)
    return values.reshape(shape)


def monotone_along(values: FloatArray, log_roofline: FloatArray, *, axis: int) -> FloatArray:
    """Change the knot values so that roofline times surface does not fall from knot to knot of one axis.

    Parameters
    ----------
    values, log_roofline
        Log ratio and log of the roofline time [s] on the grid.
    axis
        Its number.

    Notes
    -----
    What is kept is the mean of the running maximum and of the running minimum from the other end.
    Between knots a time may still dip, where the roofline bends up inside a cell over which the
    correction falls.

    Examples
    --------
    On a flat roofline a correction that falls from 0.2 to 0 becomes flat.

    >>> values, flat = np.array([0.0, 0.2, 0.0]), np.zeros(3)
    >>> [round(float(v), 9) for v in monotone_along(values, flat, axis=0)]
    [0.0, 0.1, 0.1]
    """
    log_s = values + log_roofline
    low = np.maximum.accumulate(log_s, axis=axis)
    high = np.flip(np.minimum.accumulate(np.flip(log_s, axis), axis=axis), axis)
    return np.asarray((low + high) / 2.0 - log_roofline)


def fit_surface(
    coordinates: Mapping[str, FloatArray], log_ratio: FloatArray, *, knots: Mapping[str, Sequence[float]],
    monotone: Sequence[str] = (), roofline_s: Callable[[Mapping[str, FloatArray]], FloatOrArray] | None = None,
) -> Surface:
    """Fit a surface to the log of measured over roofline time.

    Parameters
    ----------
    coordinates, log_ratio
        One value per sample; coordinates in natural units.
    knots
        Candidates per axis, in the order of the axes; those beyond the samples are dropped.
    monotone
        Axes along which the time must not fall.
    roofline_s
        The roofline [s] at given coordinates; needed where ``monotone`` names an axis.
    """
    names = tuple(knots)
    grid = [supported_knots(knots[n], coordinates[n]) for n in names]
    values = _robust_solve(grid, [coordinates[n] for n in names], log_ratio)
    if roofline_s is not None and monotone:
        mesh = dict(zip(names, np.meshgrid(*grid, indexing="ij"), strict=True))
        log_roofline = np.log(np.asarray(roofline_s(mesh), dtype=float))
        for name in monotone:
            values = monotone_along(values, log_roofline, axis=names.index(name))
    return Surface(axes=names, knots=tuple(grid), log_ratio=tuple(round(float(v), DECIMALS) for v in values.ravel()))
