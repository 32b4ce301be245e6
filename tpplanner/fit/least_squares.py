"""Non-negative coefficients from log residuals, with standard errors and a warning at the bound."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedCoefficient:
    """One coefficient: value and standard error in its own unit, and whether it sits at its bound of 0."""

    name: str
    value: float
    std_error: float
    at_bound: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """Coefficients and what they leave unexplained (log of predicted over measured)."""

    coefficients: tuple[FittedCoefficient, ...]
    residuals: FloatArray
    num_samples: int

    def __getitem__(self, name: str) -> FittedCoefficient:
        return next(c for c in self.coefficients if c.name == name)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line per coefficient at its bound: it is not identified by these samples."""
        return tuple(f"{c.name} is at its bound 0: not identified" for c in self.coefficients if c.at_bound)


def fit_log(
    predict: Callable[[FloatArray], FloatArray], measured: FloatArray, *, names: Sequence[str],
    start: Sequence[float],
) -> Fit:
    """Fit non-negative coefficients so that log(predict / measured) is least in squares.

    Parameters
    ----------
    predict
        Maps coefficients (same unit as ``start``) to predictions, shape of ``measured``.
    measured
        Positive measurements.
    names, start
        Of the coefficients; each is scaled by its start value, which must be > 0.

    Notes
    -----
    The standard errors are those of the linearised problem, with the residual variance estimated
    from the fit; they do not carry the error of the terms that are held fixed.

    Examples
    --------
    >>> x = np.array([1.0, 2.0, 4.0, 8.0])
    >>> fit = fit_log(lambda c: c[0] + c[1] * x, 3.0 + 2.0 * x, names=["a", "b"], start=[1.0, 1.0])
    >>> [round(c.value, 6) for c in fit.coefficients]
    [3.0, 2.0]
    """
    from scipy.optimize import least_squares

    scale = np.asarray(start, dtype=float)

    def residual(x: FloatArray) -> FloatArray:
        return np.log(predict(x * scale) / measured)

    result = least_squares(residual, np.ones_like(scale), bounds=(0.0, np.inf), x_scale=1.0, xtol=1e-12, ftol=1e-12)
    freedom = max(measured.size - scale.size, 1)
    variance = float(np.sum(result.fun**2)) / freedom
    jacobian = np.asarray(result.jac)
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * variance
    errors = np.sqrt(np.diag(covariance)) * scale
    return Fit(
        coefficients=tuple(
            FittedCoefficient(name=n, value=float(v), std_error=float(e), at_bound=bool(v <= 1e-6 * s))
            for n, v, e, s in zip(names, result.x * scale, errors, scale, strict=True)
        ),
        residuals=result.fun, num_samples=int(measured.size),
    )
