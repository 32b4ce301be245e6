"""How well fitted kernels and curves hold: the samples beside the fit, and what was left out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.hardware import CollectiveCurve
from tpplanner.domain.kernels import Kernel

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelResiduals:
    """A fitted kernel beside its samples.

    Attributes
    ----------
    operator
        ``gemm``, ``decode_attention``, ``prefill_attention`` or ``moe``.
    kernel
        The fit.
    driver
        Name of the size that is read against the error.
    sizes
        One array per size of the samples.
    measured_s, predicted_s
        Of every sample [s].
    """

    operator: str
    kernel: Kernel
    driver: str
    sizes: Mapping[str, FloatArray]
    measured_s: FloatArray
    predicted_s: FloatArray

    @property
    def error_frac(self) -> FloatArray:
        """Predicted over measured, less one."""
        return np.asarray(self.predicted_s / self.measured_s - 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveError:
    """Held-out error of one curve: every second size interpolated from the others."""

    curve: CollectiveCurve
    num_samples: int
    held_out_median_frac: float
    held_out_p90_frac: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitEvidence:
    """What a report of a fit shows.

    Attributes
    ----------
    residuals
        Of every kernel.
    collective_errors
        Of every curve.
    warnings
        What was left out or taken from elsewhere, and why.
    """

    residuals: tuple[KernelResiduals, ...]
    collective_errors: tuple[CollectiveError, ...]
    warnings: tuple[str, ...]
