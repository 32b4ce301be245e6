import math

import numpy as np
import pytest

from tpplanner.cost.roofline import roofline_s

EXACT = 1e-12


def test_knee_by_hand():
    # 5 and 12 at p = 2: sqrt(25 + 144) = 13; at p = 1 the sum, 17; at p = infinity the larger, 12.
    for p, expected in ((2.0, 13.0), (1.0, 17.0), (math.inf, 12.0)):
        assert roofline_s(compute_s=5.0, memory_s=12.0, sharpness=p) == pytest.approx(expected, rel=EXACT)
        assert roofline_s(compute_s=12.0, memory_s=5.0, sharpness=p) == pytest.approx(expected, rel=EXACT)


def test_nothing_to_do_takes_no_time():
    assert roofline_s(compute_s=0.0, memory_s=0.0, sharpness=3.0) == 0.0
    # 0 beside 7 is 7, whatever the knee.
    assert roofline_s(compute_s=0.0, memory_s=7.0, sharpness=3.0) == 7.0


def test_extreme_ratios_neither_overflow_nor_warn():
    # (1e-200)**4 underflows to 0: the longer of the two remains.
    assert roofline_s(compute_s=1e-200, memory_s=1.0, sharpness=4.0) == 1.0
    np.testing.assert_array_equal(roofline_s(compute_s=np.array([0.0, 3.0]), memory_s=np.array([0.0, 4.0]),
                                             sharpness=2.0), [0.0, 5.0])
