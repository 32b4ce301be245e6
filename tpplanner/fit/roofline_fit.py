"""Latency, efficiencies and knee of a kernel from measured times, with standard errors and notes at the bounds."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.kernels import Kernel, MoeKernel
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.quantity import Provenance, Quantity

FloatArray = NDArray[np.float64]
K = TypeVar("K", bound=Kernel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded:
    """A coefficient: its unit, where the search starts, and the values that make sense."""

    unit: str
    start: float
    lower: float
    upper: float


COEFFICIENTS: Final[dict[str, Bounded]] = {
    "latency_s": Bounded(unit="s", start=5e-6, lower=1e-7, upper=1e-3),
    "compute_frac": Bounded(unit="1", start=0.6, lower=0.01, upper=1.0),
    "memory_frac": Bounded(unit="1", start=0.7, lower=0.01, upper=1.0),
    # At p = 16 the knee is 4 % above the hard maximum: beyond it nothing can be told apart.
    "sharpness": Bounded(unit="1", start=3.0, lower=1.0, upper=16.0),
}
EXPERTS: Final[dict[str, Bounded]] = {
    "effective_experts_frac": Bounded(unit="1", start=0.9, lower=0.05, upper=1.0),
}
MAX_SAMPLES = 6000
"""Enough for five coefficients; more only takes longer."""
_OUTLIER = 0.1
_NEAR = 1e-3


def coefficients_of(kernel: Kernel) -> dict[str, Bounded]:
    """Coefficients that a kernel of this kind has."""
    return {**COEFFICIENTS, **EXPERTS} if isinstance(kernel, MoeKernel) else dict(COEFFICIENTS)


def lowest_quantity(name: str, *, source: str) -> Quantity:
    """The least value of a coefficient, as a placeholder before the fit."""
    c = {**COEFFICIENTS, **EXPERTS}[name]
    return Quantity(value=c.lower, unit=c.unit, provenance=Provenance.EXTRAPOLATED, source=source)


def _with_values(kernel: K, values: dict[str, float], errors: dict[str, float], num_samples: int) -> K:
    """Return the kernel with fitted coefficients."""
    table = coefficients_of(kernel)
    fitted: dict[str, Any] = {
        name: Quantity(value=value, unit=table[name].unit, provenance=Provenance.FITTED, source=kernel.source,
                       std_error=errors[name], num_samples=num_samples)
        for name, value in values.items()
    }
    return replace(kernel, **fitted)


def fit_roofline(
    kernel: K, predict: Callable[[K, NDArray[np.intp]], FloatOrArray], measured_s: FloatArray, *, seed: int
) -> tuple[K, tuple[str, ...]]:
    """Fit the coefficients of ``kernel`` so that the log of predicted over measured is small.

    Parameters
    ----------
    kernel
        Gives its kind, dtype and source; its surface must be ``None``.
    predict
        Times of a kernel at the samples of the given indices [s].
    measured_s
        Measured times [s].
    seed
        Of the choice of samples where there are more than ``MAX_SAMPLES``.

    Returns
    -------
    The kernel with its coefficients, and a note for each that sits at a bound.

    Notes
    -----
    Soft-L1 loss: residuals beyond 10 % count linearly. The standard errors are those of the
    linearised problem at the residual variance of the fit; what the surface will explain is in them.
    """
    from scipy.optimize import least_squares

    table = coefficients_of(kernel)
    chosen = np.random.default_rng(seed).permutation(measured_s.size)[:MAX_SAMPLES]
    log_measured = np.log(measured_s[chosen])
    lower = np.log([c.lower for c in table.values()])
    upper = np.log([c.upper for c in table.values()])

    def at(x: FloatArray) -> K:
        values = dict(zip(table, (float(v) for v in np.exp(x)), strict=True))
        return _with_values(kernel, values, dict.fromkeys(table, 0.0), chosen.size)

    def residual(x: FloatArray) -> FloatArray:
        return np.asarray(np.log(predict(at(x), chosen)) - log_measured)

    start = np.log([c.start for c in table.values()])
    result = least_squares(residual, start, bounds=(lower, upper), loss="soft_l1", f_scale=_OUTLIER)
    x = np.clip(result.x, lower, upper)
    unweighted = residual(x)
    variance = float(np.sum(unweighted**2)) / max(chosen.size - len(table), 1)
    jacobian = np.asarray(result.jac)
    log_errors = np.sqrt(np.diag(np.linalg.pinv(jacobian.T @ jacobian)) * variance)
    # exp(log upper) may exceed the upper bound by a rounding.
    values = {n: min(float(np.exp(v)), c.upper) for (n, c), v in zip(table.items(), x, strict=True)}
    errors = {n: values[n] * float(e) for n, e in zip(table, log_errors, strict=True)}
    notes = tuple(
        f"{n} is at its bound {c.lower if v - lo < _NEAR else c.upper:g}: not identified"
        for (n, c), v, lo, up in zip(table.items(), x, lower, upper, strict=True) if v - lo < _NEAR or up - v < _NEAR
    )
    return _with_values(kernel, values, errors, chosen.size), notes
