"""Gaussian process of log residuals: mean and variance by hand, its limits, and covariances that are ones."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpplanner.cost.residual import Coordinates, covariance, covariance_log, mean_log, residual_weights
from tpplanner.domain.serving_fit import CovarianceTerm, ResidualModel
from tpplanner.errors import ProfileError
from tpplanner.fit.serving_residuals import TPOT_PRIOR, TTFT_PRIOR, conditioned, prior

EXACT = 1e-12
BY_LOAD = CovarianceTerm(std_frac=0.1, within="model", num_seqs_len=1.0)
CELL = CovarianceTerm(std_frac=0.05, within="cell")


def at(*num_seqs, model="m", tp=2.0, isl=1024.0, osl=128.0):
    return Coordinates.of(model_keys=model, num_seqs=list(num_seqs), tp=tp, isl_tok=isl, osl_tok=osl)


def known(runs, residuals, *terms, noise=0.05):
    empty = ResidualModel(terms=terms or (BY_LOAD,), noise_std_frac=noise)
    return conditioned(empty, runs, np.asarray(residuals, dtype=float))


def variance(model, where, *, with_noise=False):
    return np.diag(covariance_log(model, where, with_noise=with_noise))


def test_terms_add_up_and_reach_as_far_as_they_say():
    terms = (BY_LOAD, CELL, CovarianceTerm(std_frac=0.2, within="shape", tp_len=2.0))
    here = at(8)
    # The same point: 0.01 + 0.0025 + 0.04. Two octaves of load: 0.01 e^-2. Twice the degree: 0.04 e^(-1/8).
    assert covariance(terms, here, here)[0, 0] == pytest.approx(0.0525, rel=EXACT)
    assert covariance(terms, here, at(32))[0, 0] == pytest.approx(0.01 * math.exp(-2) + 0.0425, rel=EXACT)
    assert covariance(terms, here, at(8, tp=4.0))[0, 0] == pytest.approx(0.0125 + 0.04 * math.exp(-1 / 8), rel=EXACT)
    # Another output length is another shape, another model shares but the cell.
    assert covariance(terms, here, at(8, osl=256.0))[0, 0] == pytest.approx(0.0125, rel=EXACT)
    assert covariance(terms, here, at(8, model="other"))[0, 0] == pytest.approx(0.0025, rel=EXACT)


def test_one_run_by_hand():
    # k = 0.01, noise 0.0025: weight 0.2 / 0.0125 = 16. At the run 0.01 * 16 = 0.16, an octave away e^(-1/2) of it.
    model = known(at(8), [0.2])
    assert model.weights == pytest.approx([16.0], rel=EXACT)
    assert mean_log(model, at(8, 16, 4)) == pytest.approx([0.16, 0.16 * math.exp(-0.5), 0.16 * math.exp(-0.5)], rel=EXACT)
    # 0.01 - 0.01^2 / 0.0125 = 0.002; an octave away 0.01 (1 - 0.8 / e).
    assert variance(model, at(8, 16)) == pytest.approx([0.002, 0.01 * (1 - 0.8 / math.e)], rel=1e-9)
    assert variance(model, at(8), with_noise=True) == pytest.approx([0.0045], rel=1e-9)
    # Between the two: k(8, 16) - k(8, 8) k(8, 16) / 0.0125.
    assert covariance_log(model, at(8, 16), with_noise=False)[0, 1] == pytest.approx(0.002 * math.exp(-0.5), rel=1e-9)


def test_two_runs_by_hand():
    # Loads 4 and 16, half-way at 8. K = [[a, b], [b, a]], a = 0.0125, b = 0.01 e^-2; equal residuals of 0.1 weigh
    # 0.1 / (a + b) each, opposite ones +-0.1 / (a - b) and cancel half-way.
    a, b, k = 0.0125, 0.01 * math.exp(-2), 0.01 * math.exp(-0.5)
    same, opposite = known(at(4, 16), [0.1, 0.1]), known(at(4, 16), [0.1, -0.1])
    assert same.weights == pytest.approx([0.1 / (a + b)] * 2, rel=1e-9)
    assert opposite.weights == pytest.approx([0.1 / (a - b), -0.1 / (a - b)], rel=1e-9)
    assert mean_log(same, at(8)) == pytest.approx([2 * k * 0.1 / (a + b)], rel=1e-9)
    assert mean_log(opposite, at(8)) == pytest.approx([0.0], abs=1e-15)
    # k^2 times the sum of the inverse's entries, 2 / (a + b).
    for model in (same, opposite):
        assert variance(model, at(8)) == pytest.approx([0.01 - 2 * k * k / (a + b)], rel=1e-9)


def test_far_from_every_run_the_prior_holds():
    model = known(at(2, 4), [0.3, 0.2])
    assert mean_log(model, at(4096)) == pytest.approx([0.0], abs=1e-9)
    assert variance(model, at(4096)) == pytest.approx([0.01], rel=1e-9)
    # Another model shares nothing here; nor does anything where there are no runs.
    assert mean_log(model, at(4, model="other")) == [0.0]
    empty = ResidualModel(terms=(BY_LOAD,), noise_std_frac=0.05)
    assert mean_log(empty, at(4, 8)).tolist() == [0.0, 0.0]
    assert covariance_log(empty, at(4), with_noise=True)[0, 0] == pytest.approx(0.0125, rel=EXACT)


def test_without_noise_the_run_is_believed():
    model = known(at(4, 16, 256), [0.3, -0.2, 0.1], noise=1e-6)
    assert mean_log(model, at(4, 16, 256)) == pytest.approx([0.3, -0.2, 0.1], abs=1e-8)
    assert variance(model, at(4, 16, 256)) == pytest.approx([0.0] * 3, abs=1e-9)


def test_with_more_noise_it_is_believed_less():
    found = [float(mean_log(known(at(4), [0.2], noise=noise), at(4))[0]) for noise in (0.01, 0.1, 1.0)]
    # 0.2 * 0.01 / (0.01 + noise^2).
    assert found == pytest.approx([0.2 * 0.01 / 0.0101, 0.1, 0.002 / 1.01], rel=1e-9)


def test_repeated_runs_count_as_many():
    # n equal runs have the noise of their mean: 0.0025 / 4.
    model = known(at(8, 8, 8, 8), [0.2] * 4)
    assert mean_log(model, at(8)) == pytest.approx([0.2 * 0.01 / (0.01 + 0.0025 / 4)], rel=1e-9)


def test_what_is_another_regime_is_cut():
    assert mean_log(known(at(8), [5.0]), at(8)) == pytest.approx([0.8 * 0.7], rel=EXACT)


def test_a_shape_is_known_again_after_rounding():
    # Five digits of the coordinates are kept: 131,072 tokens come back as 131,070, and 0.9 * 12,345 as 11,110 or 11,111.
    shape = CovarianceTerm(std_frac=0.1, within="shape")
    for isl in (131_072.0, 0.9 * 12_345, 1024.0):
        asked = at(8, isl=isl, osl=isl)
        assert mean_log(known(asked, [0.2], shape), asked) == pytest.approx([0.16], rel=1e-9), isl
    # One token more of a thousand is another shape.
    assert mean_log(known(at(8), [0.2], shape), at(8, isl=1025.0)) == [0.0]


LENGTH = st.one_of(st.just(math.inf), st.floats(0.3, 6.0))
terms_drawn = st.lists(
    st.builds(CovarianceTerm, std_frac=st.floats(0.0, 1.0), within=st.sampled_from(["cell", "model", "shape"]),
              num_seqs_len=LENGTH, tp_len=LENGTH, isl_len=LENGTH, osl_len=LENGTH), min_size=1, max_size=4).map(tuple)
points = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 1000.0), st.sampled_from([1.0, 2.0, 8.0]),
                            st.sampled_from([1024.0, 8192.0, 921.6]), st.sampled_from([1024.0, 64.0])), min_size=1, max_size=12)


def coordinates(rows):
    keys, seqs, tp, isl, osl = zip(*rows, strict=True)
    return Coordinates.of(model_keys=keys, num_seqs=seqs, tp=tp, isl_tok=isl, osl_tok=osl)


@settings(max_examples=150)
@given(terms=terms_drawn, rows=points)
def test_a_covariance_is_symmetric_and_positive_semi_definite(terms, rows):
    where = coordinates(rows)
    found = covariance(terms, where, where)
    assert (found == found.T).all()
    # Sums of exponentials of squares are; rounding may leave an eigenvalue a little below 0.
    assert np.linalg.eigvalsh(found).min() >= -1e-10
    assert np.diag(found) == pytest.approx([sum(t.std_frac**2 for t in terms)] * len(rows), rel=1e-9)


@settings(max_examples=150)
@given(terms=terms_drawn, rows=points, asked=points, noise=st.floats(0.02, 0.5), seed=st.integers(0, 99))
def test_runs_only_narrow_and_leave_a_covariance(terms, rows, asked, noise, seed):
    runs, where = coordinates(rows), coordinates(asked)
    model = known(runs, np.random.default_rng(seed).normal(0, 0.2, len(rows)), *terms, noise=noise)
    left = covariance_log(model, where, with_noise=False)
    assert left == pytest.approx(left.T, abs=1e-10)
    assert np.linalg.eigvalsh(left).min() >= -1e-9
    assert (np.diag(left) <= np.diag(covariance(terms, where, where)) + 1e-9).all()
    noisy = covariance_log(model, where)
    assert noisy - left == pytest.approx(noise**2 * np.eye(len(asked)), abs=1e-12)


@settings(max_examples=150)
@given(terms=terms_drawn, rows=points, asked=points, seed=st.integers(0, 99))
def test_the_mean_is_the_covariance_with_the_runs_times_their_weights(terms, rows, asked, seed):
    # Computed term by term, and for each model apart.
    where = coordinates(asked)
    model = known(coordinates(rows), np.random.default_rng(seed).normal(0, 0.2, len(rows)), *terms, noise=0.1)
    runs = Coordinates.of(model_keys=model.model_keys, num_seqs=model.num_seqs, tp=model.tp, isl_tok=model.isl_tok,
                          osl_tok=model.osl_tok)
    expected = covariance(terms, where, runs) @ np.asarray(model.weights)
    assert mean_log(model, where) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=60)
@given(rows=points, seed=st.integers(0, 99))
def test_the_order_of_the_runs_does_not_matter_and_weights_solve_the_system(rows, seed):
    residuals = np.random.default_rng(seed).normal(0, 0.2, len(rows))
    terms, noise = TPOT_PRIOR["dense"]
    runs, where = coordinates(rows), coordinates([("a", 30.0, 4.0, 1024.0, 64.0)])
    model = known(runs, residuals, *terms, noise=noise)
    back = known(coordinates(rows[::-1]), residuals[::-1], *terms, noise=noise)
    assert mean_log(model, where) == pytest.approx(mean_log(back, where), abs=1e-9)
    rounded = Coordinates.of(model_keys=model.model_keys, num_seqs=model.num_seqs, tp=model.tp, isl_tok=model.isl_tok,
                             osl_tok=model.osl_tok)
    noisy = covariance(terms, rounded, rounded) + noise**2 * np.eye(len(rows))
    assert noisy @ np.asarray(model.weights) == pytest.approx(np.clip(residuals, -0.7, 0.7), abs=1e-9)
    assert residual_weights(model, np.zeros(len(rows))) == pytest.approx(np.zeros(len(rows)))


@pytest.mark.parametrize("of", [TPOT_PRIOR, TTFT_PRIOR])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_priors_know_no_run(of, kind):
    model = prior(of, kind)
    assert model.num_runs == 0
    std = math.sqrt(covariance_log(model, at(8))[0, 0])
    # What an unmeasured model is off by: more than a run scatters, less than a factor of two.
    assert model.noise_std_frac < std < math.log(2)


@pytest.mark.parametrize(("changes", "message"), [
    ({"weights": (1.0,)}, "have one entry per run"), ({"noise_std_frac": -0.1}, "noise_std_frac"),
    ({"model_keys": ("m",), "num_seqs": (0.0,), "tp": (1.0,), "isl_tok": (1.0,), "osl_tok": (1.0,), "weights": (0.0,)},
     "residual.num_seqs must be finite and > 0"),
    ({"model_keys": ("m",), "num_seqs": (1.0,), "tp": (1.0,), "isl_tok": (1.0,), "osl_tok": (1.0,), "weights": (math.nan,)},
     "residual.weights must be finite"),
    ({"model_keys": ("m",), "num_seqs": (1.0,), "tp": (1.0,), "isl_tok": (1.0,), "osl_tok": (1.0,), "weights": (0.0,),
      "noise_std_frac": 0.0}, "noise_std_frac must be > 0 where there are runs"),
])
def test_refuses_nonsense(changes, message):
    with pytest.raises(ProfileError, match=message):
        replace(ResidualModel(terms=(BY_LOAD,), noise_std_frac=0.1), **changes)
