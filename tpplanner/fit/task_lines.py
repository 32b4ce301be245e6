"""Host tasks, sampling and small kernels as sums of parts that are never negative: relative least squares."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.quantity import Provenance, Quantity

FloatArray = NDArray[np.float64]


def fit_parts(
    parts: Mapping[str, FloatArray], measured_s: FloatArray, *, source: str, scale_s: FloatArray | None = None
) -> dict[str, Quantity]:
    """Fit measured = sum of coefficient * part, coefficients >= 0, so that relative errors are small.

    Parameters
    ----------
    parts
        Name of each coefficient -> its factor at each sample.
    measured_s
        Measured times [s].
    source
        Names the samples.
    scale_s
        What errors are relative to [s]; the measured times where ``None``.

    Returns
    -------
    Coefficients with standard errors, those of the linearised problem at the residual variance of the fit; a
    coefficient that ends at 0 has the error that it would have if it were free.

    Examples
    --------
    3 us and 2 us per sequence are found again.

    >>> n = np.array([1.0, 4.0, 16.0])
    >>> fit = fit_parts({"fixed_s": np.ones(3), "per_seq_s": n}, 3e-6 + 2e-6 * n, source="by hand")
    >>> [round(q.value * 1e6, 6) for q in fit.values()]
    [3.0, 2.0]
    """
    from scipy.optimize import nnls

    unit_s = measured_s if scale_s is None else scale_s
    design, target = np.column_stack(list(parts.values())) / unit_s[:, None], measured_s / unit_s
    # Parts of very different size: columns of one length keep the solver exact.
    scale = np.maximum(np.linalg.norm(design, axis=0), 1e-300)
    values, _ = nnls(design / scale, target)
    residual = design / scale @ values - target
    variance = float(residual @ residual) / max(measured_s.size - len(parts), 1)
    errors = np.sqrt(np.maximum(np.diag(np.linalg.pinv(design.T @ design / np.outer(scale, scale))), 0.0) * variance)
    return {name: Quantity(value=float(value / unit), unit="s", provenance=Provenance.FITTED, source=source,
                           std_error=float(error / unit), num_samples=measured_s.size)
            for name, value, error, unit in zip(parts, values, errors, scale, strict=True)}
