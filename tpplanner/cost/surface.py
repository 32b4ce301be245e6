"""Multilinear interpolation of a surface in the logarithms of its coordinates."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.kernels import Surface
from tpplanner.domain.matrix import FloatOrArray

IntArray = NDArray[np.intp]
FloatArray = NDArray[np.float64]


def _bracket(knots: tuple[float, ...], position: FloatArray) -> tuple[IntArray, FloatArray]:
    """Index of the knot at or below each position, and the way to the next one (0..1), in logarithms."""
    logs = np.log(np.asarray(knots))
    log_position = np.log(np.clip(position, knots[0], knots[-1]))
    below = np.clip(np.searchsorted(logs, log_position, side="right") - 1, 0, len(knots) - 2)
    way = (log_position - logs[below]) / (logs[below + 1] - logs[below])
    return below, np.clip(way, 0.0, 1.0)


def _cells(
    knots: Sequence[tuple[float, ...]], coordinates: Sequence[FloatOrArray], base: IntArray
) -> tuple[IntArray, list[tuple[int, FloatArray]]]:
    """Flat index of the lower corner of each position's cell; (stride, way) of each axis that has another side."""
    moving: list[tuple[int, FloatArray]] = []
    stride = 1
    for axis_knots, coordinate in zip(reversed(knots), reversed(coordinates), strict=True):
        if len(axis_knots) > 1:
            position = np.asarray(coordinate, dtype=float)
            if position.size > 1 and np.all(position == position.flat[0]):
                position = position.flat[:1].reshape(())
            below, way = _bracket(axis_knots, position)
            base = base + stride * below
            if not (way.ndim == 0 and way == 0.0):  # a constant on a knot: the other side of the cell has no weight
                moving.append((stride, way))
        stride *= len(axis_knots)
    return base, moving


def grid_corners(
    knots: Sequence[tuple[float, ...]], coordinates: Sequence[FloatOrArray]
) -> list[tuple[IntArray, FloatArray]]:
    """Grid points around each position and their weights, which add up to 1.

    Parameters
    ----------
    knots
        Ascending positions per axis, natural units.
    coordinates
        One scalar or array per axis; they broadcast.

    Returns
    -------
    One (flat index in C order, weight) per corner of a cell: 2**d for the d axes on which a position lies between knots.

    Examples
    --------
    200 is halfway between 100 and 400 in logarithms.

    >>> [(int(i), round(float(w), 9)) for i, w in grid_corners([(100.0, 400.0)], [200.0])]
    [(0, 0.5), (1, 0.5)]
    """
    shape = np.broadcast_shapes(*(np.shape(c) for c in coordinates))
    base, moving = _cells(knots, coordinates, np.zeros(shape, dtype=np.intp))
    corners = []
    for upper in product((False, True), repeat=len(moving)):
        index = base + sum(step for (step, _), up in zip(moving, upper, strict=True) if up)
        weight = np.ones(shape)
        for (_, way), up in zip(moving, upper, strict=True):
            weight = weight * (way if up else 1.0 - way)
        corners.append((index, weight))
    return corners


def surface_log_ratio(surface: Surface, coordinates: Mapping[str, FloatOrArray]) -> FloatOrArray:
    """Interpolate a surface: the natural log of the correction factor [1].

    Parameters
    ----------
    surface
        Its ``axes`` must be among the names of ``coordinates``.
    coordinates
        Values > 0 in natural units, scalars or arrays that broadcast; outside the grid the value of
        the nearest edge holds.

    Examples
    --------
    Halfway between knots in the logarithm, and held beyond the last one:

    >>> surface = Surface(axes=("num_tok",), knots=((1.0, 100.0),), log_ratio=(0.0, 0.5))
    >>> [round(float(v), 9) for v in surface_log_ratio(surface, {"num_tok": np.array([1.0, 10.0, 1e6])})]
    [0.0, 0.25, 0.5]
    """
    values = np.asarray(surface.log_ratio)
    total: FloatOrArray = 0.0
    for index, weight in grid_corners(surface.knots, [coordinates[name] for name in surface.axes]):
        total = total + weight * values[index]
    return total
