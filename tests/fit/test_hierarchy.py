"""The hierarchical least squares: shared values and deviations come back, priors shrink what nothing tells."""

import math

import numpy as np
import pytest

from tpplanner.fit.hierarchy import columns_of, design_of, fit_hierarchy
from tpplanner.fit.serving_spec import LEVELS, SPECS, Coefficient

RATE = Coefficient(name="rate", start=1.0, low=1e-3, high=1e3, shared_std=1.0, level_std={"machine": 0.3, "engine": 0.3})
WAIT = Coefficient(name="wait", start=2.0, low=1e-3, high=1e3, shared_std=1.0, level_std={"engine": 0.5})
SPEC = (RATE, WAIT)
MACHINES, ENGINES = ("a", "b", "c"), ("x", "y")
GROUPS = [{"machine": m, "engine": e} for m in MACHINES for e in ENGINES]
X = np.linspace(0.5, 20.0, 40)


def truth(seed):
    """Coefficients of each group: shared value, and deviations drawn from the prior."""
    rng = np.random.default_rng(seed)
    rate = {name: rng.normal(0, 0.3) for name in (*MACHINES, *ENGINES)}
    wait = {name: rng.normal(0, 0.5) for name in ENGINES}
    return [np.array([1.5 * math.exp(rate[g["machine"]] + rate[g["engine"]]), 3.0 * math.exp(wait[g["engine"]])])
            for g in GROUPS]


def fitted(seed, *, noise, scale=None, groups=GROUPS, spec=SPEC, x=X):
    """Fit y = rate x + wait, known with a relative error of ``noise``."""
    rng = np.random.default_rng(100 + seed)
    measured = [(c[0] * x + c[1]) * np.exp(noise * rng.standard_normal(x.size)) for c in truth(seed)]

    def residual(i, values):
        return np.log((values[0] * x + values[1]) / measured[i]) / (scale or noise)

    return fit_hierarchy(spec, groups, residual)


@pytest.mark.parametrize("seed", range(5))
def test_values_of_every_group_come_back_within_three_standard_errors(seed):
    fit = fitted(seed, noise=0.02)
    for levels, expected in zip(GROUPS, truth(seed), strict=True):
        values, errors = fit.value(levels)
        assert (abs(values - expected) < 3.0 * errors).all()
        # And they are told well: 40 samples of 2 %.
        assert (errors < 0.05 * values).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_shared_value_comes_back_within_three_standard_errors(seed):
    # Of a member that was not seen: its own deviation is unknown, and so are those of the members in it.
    values, errors = fitted(seed, noise=0.02).value({})
    assert (abs(np.log(values / [1.5, 3.0])) < 3.0 * errors / values).all()


def test_deviations_come_back():
    fit = fitted(0, noise=0.002)
    found = {(fit.spec[c.coefficient].name, c.member): u * c.std for c, u in zip(fit.columns, fit.unknowns, strict=True)}
    # Only differences are told apart: machine a against b, engine x against y.
    values = {tuple(g.values()): v for g, v in zip(GROUPS, truth(0), strict=True)}
    assert found["rate", "a"] - found["rate", "b"] == pytest.approx(
        math.log(values["a", "x"][0] / values["b", "x"][0]), abs=0.01)
    assert found["wait", "x"] - found["wait", "y"] == pytest.approx(
        math.log(values["a", "x"][1] / values["a", "y"][1]), abs=0.02)


def test_an_unseen_member_has_the_shared_value():
    fit = fitted(1, noise=0.02)
    shared, known = fit.value({}), fit.value({"machine": "a", "engine": "x"})
    new = fit.value({"machine": "d", "engine": "z"})
    assert new[0].tolist() == shared[0].tolist()
    assert known[0].tolist() != shared[0].tolist()
    # It deviates nobody knows how: by the prior's 0.3 of machine and engine, 0.5 of the engine.
    assert (new[1] / new[0])**2 == pytest.approx((shared[1] / shared[0])**2 + [0.09 + 0.09, 0.25], rel=1e-9)
    # A known engine on an unknown machine keeps the engine's deviation.
    half = fit.value({"machine": "d", "engine": "x"})
    assert half[0][1] == known[0][1]
    assert half[0][0] != known[0][0]
    shared_column = [c.level is None and c.coefficient == 0 for c in fit.columns].index(True)
    assert shared[0][0] == pytest.approx(math.exp(fit.unknowns[shared_column]), rel=1e-12)


def test_a_prior_shrinks():
    # One group and one sample y = e at x = 1, of a rate alone: residual (log rate - 1) / s with prior std 1 shared, 0.3 and
    # 0.3. Small residuals are squared: log rate = v / (v + s^2), v = 1.18, shared by variance.
    spec = (RATE,)
    group = [{"machine": "a", "engine": "x"}]
    for scale in (0.01, 30.0, 100.0):
        fit = fit_hierarchy(spec, group, lambda _, values, s=scale: (np.log(values) - 1.0) / s)
        expected = 1.18 / (1.18 + scale**2)
        assert math.log(fit.value(group[0])[0][0]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert math.log(fit.value({})[0][0]) == pytest.approx(expected / 1.18, rel=1e-3, abs=1e-6)


def test_standard_errors_without_information_are_the_prior_s():
    fit = fit_hierarchy((RATE,), [{"machine": "a", "engine": "x"}], lambda _, values: 0.0 * values)
    values, errors = fit.value({"machine": "a", "engine": "x"})
    assert values.tolist() == [1.0]
    assert errors == pytest.approx([math.sqrt(1.0 + 0.09 + 0.09)], rel=1e-9)


def test_an_outlier_pulls_as_one_sample_among_many_not_by_its_size():
    def rate(outlier):
        y = np.append(np.full(20, 2.0), outlier)
        return fit_hierarchy((RATE,), GROUPS[:1], lambda _, v: np.log(v[0] / y) / 0.05).value(GROUPS[0])[0][0]

    # Least squares would go to 2 * 10^(1/21) = 2.23 and 2 * 1000^(1/21) = 2.78.
    assert rate(20.0) == pytest.approx(2.0, rel=0.03)
    assert rate(2000.0) / rate(20.0) == pytest.approx(1.0, rel=0.01)


def test_bounds_hold():
    spec = (Coefficient(name="rate", start=1.0, low=0.5, high=1.5, shared_std=5.0, level_std={}),)
    for target, bound in ((100.0, 1.5), (0.01, 0.5)):
        fit = fit_hierarchy(spec, [{}], lambda _, v, y=target: np.log(v / y) / 0.1)
        assert fit.value({})[0].tolist() == [bound]


def test_an_earlier_fit_is_a_start_also_for_other_groups():
    whole = fitted(2, noise=0.02)

    def residual(i, values):
        measured = truth(2)[i]
        return np.log((values[0] * X + values[1]) / (measured[0] * X + measured[1])) / 0.02

    again = fit_hierarchy(SPEC, GROUPS[:4], residual, start=whole)
    assert {c.member for c in again.columns} == {None, "a", "b", "x", "y"}
    cold = fit_hierarchy(SPEC, GROUPS[:4], residual)
    for levels in GROUPS[:4]:
        assert again.value(levels)[0] == pytest.approx(cold.value(levels)[0], rel=1e-3)


def test_columns_and_design_by_hand():
    columns = columns_of(SPEC, GROUPS)
    assert [(c.coefficient, c.level, c.member) for c in columns] == [
        (0, None, None), (0, "machine", "a"), (0, "machine", "b"), (0, "machine", "c"), (0, "engine", "x"), (0, "engine", "y"),
        (1, None, None), (1, "engine", "x"), (1, "engine", "y")]
    assert design_of(SPEC, columns, {"machine": "b", "engine": "y"}).tolist() == [
        [1.0, 0.0, 0.3, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.5]]


def test_the_specification_starts_within_its_bounds_and_names_known_levels():
    for spec in SPECS.values():
        assert len({c.name for c in spec}) == len(spec)
        for c in spec:
            assert c.low < c.start < c.high
            assert set(c.level_std) <= set(LEVELS)
            assert min(c.shared_std, *c.level_std.values()) > 0
