"""The surface of a kernel: exact at its knots, multilinear in logarithms between them, constant outside."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpplanner.cost.surface import grid_corners, surface_log_ratio
from tpplanner.domain.kernels import Surface
from tpplanner.errors import ProfileError

KNOTS = ((1.0, 16.0, 4096.0), (64.0, 8192.0), (128.0,))
AXES = ("num_tok", "out_features", "in_features")


def surface(seed=0):
    values = np.random.default_rng(seed).normal(size=6)
    return Surface(axes=AXES, knots=KNOTS, log_ratio=tuple(values))


def test_by_hand_in_two_axes():
    # x = 10 is halfway from 1 to 100, y = 2 is a quarter of the way from 1 to 16:
    # y = 1: (0 + 1) / 2 = 0.5; y = 16: (2 + 5) / 2 = 3.5; 0.75 * 0.5 + 0.25 * 3.5 = 1.25.
    s = Surface(axes=("x", "y"), knots=((1.0, 100.0), (1.0, 16.0)), log_ratio=(0.0, 2.0, 1.0, 5.0))
    assert surface_log_ratio(s, {"x": 10.0, "y": 2.0}) == pytest.approx(1.25, abs=1e-12)


def test_exact_at_the_knots():
    s = surface()
    mesh = np.meshgrid(*KNOTS, indexing="ij")
    found = surface_log_ratio(s, dict(zip(AXES, mesh, strict=True)))
    assert found.ravel() == pytest.approx(np.asarray(s.log_ratio), abs=1e-12)


@given(st.floats(1e-3, 1e7), st.floats(1e-3, 1e7), st.floats(1e-3, 1e7))
def test_stays_within_the_knot_values_and_an_array_equals_the_scalars(x, y, z):
    s = surface(1)
    scalar = surface_log_ratio(s, {"num_tok": x, "out_features": y, "in_features": z})
    assert min(s.log_ratio) - 1e-12 <= scalar <= max(s.log_ratio) + 1e-12
    array = surface_log_ratio(s, {"num_tok": np.full((2, 1), x), "out_features": np.full(3, y), "in_features": z})
    assert array.shape == (2, 3)
    assert array == pytest.approx(float(scalar), abs=1e-12)


@given(st.floats(1.0, 1e3))
def test_constant_outside_the_grid(factor):
    s = surface(2)
    edge = surface_log_ratio(s, {"num_tok": 4096.0, "out_features": 500.0, "in_features": 128.0})
    outside = {"num_tok": 4096.0 * factor, "out_features": 500.0, "in_features": 128.0 / factor}
    assert surface_log_ratio(s, outside) == pytest.approx(float(edge), abs=1e-12)


def test_weights_add_up_to_one():
    x = np.geomspace(0.1, 1e6, 50)
    corners = grid_corners(KNOTS, [x, x, x])
    assert len(corners) == 4  # an axis of one knot does not split the cell
    assert sum(w for _, w in corners) == pytest.approx(np.ones(50), abs=1e-12)


@pytest.mark.parametrize(("change", "message"), [
    ({"log_ratio": (0.0,)}, "log_ratio must have 6 values"),
    ({"log_ratio": (0.0,) * 5 + (float("nan"),)}, "log_ratio must be finite"),
    ({"axes": ("a", "a", "b")}, "axes must be distinct"),
    ({"axes": ("a", "b")}, "axes must be distinct"),
    ({"knots": ((16.0, 1.0, 4096.0), (64.0, 8192.0), (128.0,))}, "knots of num_tok must ascend"),
    ({"knots": ((0.0, 1.0, 2.0), (64.0, 8192.0), (128.0,))}, "knots of num_tok must be at least one finite number > 0"),
])
def test_refuses_nonsense(change, message):
    fields = {"axes": AXES, "knots": KNOTS, "log_ratio": (0.0,) * 6} | change
    with pytest.raises(ProfileError, match=message):
        Surface(**fields)
