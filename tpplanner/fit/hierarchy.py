"""Least squares of coefficients that groups share in part: a shared value and shrunken deviations per level."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpplanner.fit.serving_spec import Coefficient

FloatArray = NDArray[np.float64]

_STEP = 1e-4
"""Of the difference quotients, in the logarithm of a coefficient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One unknown: the shared value (``level`` None) or the deviation of ``member`` of ``level``, scaled by ``std``."""

    coefficient: int
    level: str | None
    member: str | None
    std: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hierarchy:
    """Fitted unknowns, in units of their prior, and their posterior covariance."""

    spec: tuple[Coefficient, ...]
    columns: tuple[Column, ...]
    unknowns: FloatArray
    covariance: FloatArray

    def value(self, levels: Mapping[str, str]) -> tuple[FloatArray, FloatArray]:
        """Coefficients of a group and their standard errors, in the spec's order.

        Members that no group had deviate by nothing, give or take the width of their prior.
        """
        design = design_of(self.spec, self.columns, levels)
        logs = np.log([c.start for c in self.spec]) + design @ self.unknowns
        values = np.clip(np.exp(logs), [c.low for c in self.spec], [c.high for c in self.spec])
        variance = np.einsum("ij,jk,ik->i", design, self.covariance, design) + self._unknown_variance(levels)
        return values, values * np.sqrt(np.maximum(variance, 0.0))

    def _unknown_variance(self, levels: Mapping[str, str]) -> FloatArray:
        known = {(column.level, column.member) for column in self.columns}
        return np.asarray([
            sum(std**2 for level, std in c.level_std.items() if level in levels and (level, levels[level]) not in known)
            for c in self.spec
        ], dtype=float)


def columns_of(spec: Sequence[Coefficient], groups: Sequence[Mapping[str, str]]) -> tuple[Column, ...]:
    """One column per coefficient and per deviation that the groups can tell apart."""
    found = []
    for i, coefficient in enumerate(spec):
        found.append(Column(coefficient=i, level=None, member=None, std=coefficient.shared_std))
        for level, std in coefficient.level_std.items():
            members = sorted({levels[level] for levels in groups})
            found.extend(Column(coefficient=i, level=level, member=member, std=std) for member in members)
    return tuple(found)


def design_of(spec: Sequence[Coefficient], columns: Sequence[Column], levels: Mapping[str, str]) -> FloatArray:
    """Weights of the unknowns in the logarithms of a group's coefficients; shape (coefficients, columns)."""
    design = np.zeros((len(spec), len(columns)))
    for j, column in enumerate(columns):
        if column.level is None or levels.get(column.level) == column.member:
            design[column.coefficient, j] = column.std
    return design


def _robust(residual: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Residual whose square is the soft-L1 loss 2 (sqrt(1 + r^2) - 1), and its derivative."""
    root = np.sqrt(1.0 + residual**2)
    value = np.sign(residual) * np.sqrt(2.0 * (root - 1.0))
    slope = np.where(np.abs(residual) < 1e-8, 1.0, residual / (root * np.where(value == 0.0, 1.0, value)))
    return value, slope


def fit_hierarchy(
    spec: Sequence[Coefficient], groups: Sequence[Mapping[str, str]],
    residual: Callable[[int, FloatArray], FloatArray], *, start: Hierarchy | None = None, max_steps: int = 30,
) -> Hierarchy:
    """Fit coefficients so that the groups' residuals are small and the deviations no larger than they must be.

    Parameters
    ----------
    spec
        The coefficients, with the widths of their priors.
    groups
        Members of each level, one mapping per group.
    residual
        Maps (group, coefficients in the spec's order) to scaled residuals of the group's runs, any number.
    start
        An earlier fit with the same spec to start from.

    Notes
    -----
    scipy's least squares on soft-L1 residuals with one row per prior; the covariance is that of the linearised problem,
    the residuals counting as many independent observations.
    """
    from scipy.optimize import least_squares

    columns = columns_of(spec, groups)
    designs = [design_of(spec, columns, levels) for levels in groups]
    logs0 = np.log([c.start for c in spec])
    low, high = np.log([c.low for c in spec]), np.log([c.high for c in spec])

    def coefficients(x: FloatArray, g: int) -> FloatArray:
        return np.clip(logs0 + designs[g] @ x, low, high)

    def values(x: FloatArray) -> FloatArray:
        rows = [_robust(residual(g, np.exp(coefficients(x, g))))[0] for g in range(len(groups))]
        return np.concatenate([*rows, x])

    def jacobian(x: FloatArray) -> FloatArray:
        rows = []
        for g in range(len(groups)):
            logs = coefficients(x, g)
            base = residual(g, np.exp(logs))
            slopes = np.empty((base.size, len(spec)))
            for i in range(len(spec)):
                moved = logs.copy()
                moved[i] += _STEP
                slopes[:, i] = (residual(g, np.exp(moved)) - base) / _STEP
            rows.append(_robust(base)[1][:, None] * (slopes @ designs[g]))
        return np.concatenate([*rows, np.eye(x.size)])

    x0 = np.zeros(len(columns)) if start is None else _carried(start, columns)
    result = least_squares(values, x0, jac=jacobian, method="trf", max_nfev=max_steps, ftol=1e-5, xtol=1e-5, gtol=1e-6)
    at = jacobian(result.x)
    covariance = np.asarray(np.linalg.inv(at.T @ at), dtype=float)
    return Hierarchy(spec=tuple(spec), columns=columns, unknowns=result.x, covariance=covariance)


def _carried(start: Hierarchy, columns: Sequence[Column]) -> FloatArray:
    """Unknowns of an earlier fit, 0 for columns that it did not have."""
    known = dict(zip(start.columns, start.unknowns, strict=True))
    return np.asarray([known.get(column, 0.0) for column in columns])
