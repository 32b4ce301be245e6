"""The roofline: an operator takes the longer of its arithmetic and its memory traffic."""

import numpy as np

from tpplanner.domain.matrix import FloatOrArray


def roofline_s(*, compute_s: FloatOrArray, memory_s: FloatOrArray, sharpness: float) -> FloatOrArray:
    """Time of an operator that computes and moves memory at once [s].

    (compute_s**p + memory_s**p)**(1/p) with p = ``sharpness``: p = infinity is the hard maximum of
    the roofline; a finite p rounds its knee, where real kernels overlap the two imperfectly.

    Parameters
    ----------
    compute_s, memory_s
        Time of the arithmetic alone and of the traffic alone [s].
    sharpness
        p >= 1. Always max(a, b) <= result <= a + b.

    Examples
    --------
    3 ms and 4 ms at p = 2 make 5 ms.

    >>> round(float(roofline_s(compute_s=3e-3, memory_s=4e-3, sharpness=2.0)), 9)
    0.005
    """
    longer = np.maximum(compute_s, memory_s)
    shorter = np.minimum(compute_s, memory_s)
    if np.isinf(sharpness):
        return longer
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(longer > 0, shorter / np.where(longer > 0, longer, 1.0), 0.0)
    return longer * (1.0 + ratio**sharpness) ** (1.0 / sharpness)
