"""Probabilities and intervals of a recommendation: what is common to all degrees cancels, what is not decides."""

import math
from dataclasses import fields, replace
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
from builders import make_engine, make_model, make_question, q
from hypothesis import given, settings
from hypothesis import strategies as st

from tpplanner.cost.serving import bind_terms
from tpplanner.domain.plan import Question, Reason, Uncertainty
from tpplanner.domain.serving_fit import SERVING_TERMS, CovarianceTerm, ResidualModel, ServingTerms, model_key
from tpplanner.domain.workload import Load, LoadMode, Targets, Workload
from tpplanner.errors import ProfileError
from tpplanner.planner.capacity_draws import capacity_curves, log_capacity
from tpplanner.planner.log_errors import NUM_DRAWS, LogErrors, cholesky_factor, log_errors, prior
from tpplanner.planner.plans import evaluate_question
from tpplanner.planner.recommend import recommend
from tpplanner.planner.uncertainty import Spread, best_frac_of

TPS = [2, 4, 8]
MODES = [
    (LoadMode.BATCH_PER_GPU, 32.0), (LoadMode.CONCURRENCY, 64.0), (LoadMode.CONCURRENCY, 5000.0),
    (LoadMode.CONCURRENCY_PER_REPLICA, 16.0), (LoadMode.REQUEST_RATE, 2.0), (LoadMode.OFFLINE, None),
    (LoadMode.SLO_CAPACITY, None),
]


def asked(mode: LoadMode = LoadMode.BATCH_PER_GPU, value: float | None = 32.0, **changes: object) -> Question:
    targets = Targets(tpot_s=0.04) if mode is LoadMode.SLO_CAPACITY else Targets()
    return make_question(**{"load": Load(mode=mode, value=value), "targets": targets, **changes})


def with_errors(question: Question, common: float, own: float, noise: float = 0.0) -> Question:
    """The question on an engine whose errors are ``common`` to all degrees and each degree's ``own``."""
    terms = (CovarianceTerm(std_frac=common, within="cell"), CovarianceTerm(std_frac=own, within="cell", tp_len=0.1))
    residual = ResidualModel(terms=terms, noise_std_frac=noise)
    return replace(question, engine=replace(question.engine, tpot_residual=residual, ttft_residual=residual))


def drawn_scores(scores: list[float], common: float, own: float) -> np.ndarray:
    covariance = common**2 * np.ones((len(scores),) * 2) + own**2 * np.eye(len(scores))
    errors = LogErrors(tpot_cov=covariance, ttft_cov=covariance, tpot_noise_std_frac=0.0, ttft_noise_std_frac=0.0)
    return np.log(scores) - errors.draw(np.random.default_rng(0))[0]


@settings(max_examples=50)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 0.3))
def test_probabilities_sum_to_one(scores, common, own):
    found = best_frac_of(drawn_scores(scores, common, own))
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
    assert (found >= 0).all()


@pytest.mark.parametrize(("mode", "value"), MODES)
def test_probabilities_of_a_question(mode, value):
    rec = recommend(asked(mode, value), with_flip_points=False)
    doubts = {p.tp: p.uncertainty for p in rec.plans if p.uncertainty}
    assert set(doubts) == {p.tp for p in rec.plans if p.outcome}
    assert sum(d.best_prob_frac for d in doubts.values()) == pytest.approx(1.0, abs=1e-12)
    assert rec.best_prob_frac == doubts[rec.best_tp].best_prob_frac
    assert rec.best_tp in rec.tied_tps
    assert all(0 <= d.meets_targets_prob_frac <= 1 for d in doubts.values())


@pytest.mark.parametrize(("mode", "value"), MODES)
@pytest.mark.parametrize("targets", [Targets(), Targets(tpot_s=0.03, ttft_s=0.4)])
def test_intervals_contain_the_figures(mode, value, targets):
    for plan in recommend(asked(mode, value, targets=targets), with_flip_points=False).plans:
        if plan.outcome is None:
            continue
        o, u = plan.outcome, plan.uncertainty
        for point, low, high in ((o.tpot_s, u.tpot_low_s, u.tpot_high_s), (o.ttft_s, u.ttft_low_s, u.ttft_high_s),
                                 (o.throughput_tok_s, u.throughput_low_tok_s, u.throughput_high_tok_s)):
            if point is None:
                assert (low, high) == (None, None)
            else:
                assert 0 <= low <= point <= high < math.inf


def test_a_degree_three_times_better_is_best():
    assert best_frac_of(drawn_scores([1.0, 3.0, 0.9], common=0.5, own=0.1))[1] > 0.999


def test_equal_degrees_share_it():
    assert best_frac_of(drawn_scores([2.0, 2.0], common=0.3, own=0.1)) == pytest.approx([0.5, 0.5], abs=0.03)
    # Without an error of their own they are one: no draw can part them.
    assert best_frac_of(drawn_scores([2.0, 2.0, 1.0], common=0.3, own=0.0)).tolist() == [0.5, 0.5, 0.0]


def test_of_two_degrees_by_hand():
    # The log ratio of the two has the standard deviation 0.1 sqrt(2): P = Phi(log(1.1) / 0.1414) = Phi(0.674) = 0.750.
    expected = NormalDist().cdf(math.log(1.1) / (0.1 * math.sqrt(2)))
    assert expected == pytest.approx(0.750, abs=1e-3)
    assert best_frac_of(drawn_scores([1.1, 1.0], common=0.7, own=0.1))[0] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("mode", "value"), MODES)
def test_only_a_common_error_leaves_the_ranking_certain(mode, value):
    # Of the same relative error in both latencies; the share of TTFT differs between degrees, so that is left out.
    question = with_errors(asked(mode, value), common=0.1, own=0.0)
    ttft = ResidualModel(terms=(), noise_std_frac=0.0)
    question = replace(question, engine=replace(question.engine, ttft_residual=ttft))
    rec = recommend(question, with_flip_points=False)
    if mode is not LoadMode.SLO_CAPACITY:  # There the load moves with the error, and another may be best at it.
        assert rec.best_prob_frac == 1.0
        assert rec.tied_tps == (rec.best_tp,)


@pytest.mark.parametrize(("mode", "value"), MODES)
def test_without_errors_nothing_is_open(mode, value):
    rec = recommend(with_errors(asked(mode, value), common=0.0, own=0.0), with_flip_points=False)
    assert rec.best_prob_frac == 1.0
    doubt, outcome = rec.best.uncertainty, rec.best.outcome
    # A capacity is interpolated.
    ends = (doubt.throughput_low_tok_s, doubt.throughput_high_tok_s)
    assert ends == pytest.approx((outcome.throughput_tok_s,) * 2, rel=5e-3 if mode is LoadMode.SLO_CAPACITY else 1e-12)
    assert doubt.meets_targets_prob_frac == 1.0


def test_the_same_question_has_the_same_answer():
    for mode, value in MODES:
        first, second = (recommend(asked(mode, value), with_flip_points=False) for _ in range(2))
        assert [p.uncertainty for p in first.plans] == [p.uncertainty for p in second.plans]


def test_targets_are_met_or_not_in_each_draw_by_hand():
    # TPOT 5 % above the limit with an error of 10 % to one standard deviation: Phi(-log(1.05) / 0.1) = Phi(-0.488) = 0.313.
    plain = with_errors(asked(), common=0.1, own=0.0)
    tpot_s = recommend(plain, with_flip_points=False).plan(4).outcome.tpot_s
    rec = recommend(replace(plain, targets=Targets(tpot_s=tpot_s / 1.05)), with_flip_points=False)
    assert rec.plan(4).reason is Reason.TPOT
    assert rec.plan(4).uncertainty.meets_targets_prob_frac == pytest.approx(0.313, abs=0.02)
    # It is out, and the best of all where it meets the target.
    better = [p.tp for p in rec.plans if p.feasible and p.outcome.throughput_tok_s > rec.plan(4).outcome.throughput_tok_s]
    assert rec.plan(4).uncertainty.best_prob_frac == pytest.approx(0.0 if better else 0.313, abs=0.03)
    assert 4 not in rec.tied_tps


def test_no_plan_still_has_its_chances():
    rec = recommend(asked(targets=Targets(tpot_s=1e-4)), with_flip_points=False)
    assert (rec.best_tp, rec.best_prob_frac) == (None, None)
    doubts = [p.uncertainty for p in rec.plans if p.uncertainty]
    assert doubts
    assert all(d.best_prob_frac == d.meets_targets_prob_frac == 0.0 for d in doubts)


def test_one_output_token_and_a_saturated_rate_have_no_interval_where_there_is_no_figure():
    one = recommend(asked(workload=Workload(isl_tok=1024, osl_tok=1)), with_flip_points=False).best
    assert (one.outcome.tpot_s, one.uncertainty.tpot_low_s) == (None, None)
    assert one.uncertainty.throughput_low_tok_s < one.outcome.throughput_tok_s
    full = recommend(asked(LoadMode.REQUEST_RATE, 1e4), with_flip_points=False).plan(8)
    assert (full.outcome.ttft_s, full.uncertainty.ttft_low_s) == (None, None)
    assert full.uncertainty.throughput_high_tok_s > full.outcome.throughput_tok_s


def test_a_carried_rate_bounds_the_throughput():
    plan = recommend(asked(LoadMode.REQUEST_RATE, 2.0), with_flip_points=False).best
    assert plan.uncertainty.throughput_high_tok_s == pytest.approx(2048, rel=1e-6)


def test_the_prior_of_two_degrees_is_the_stated_error_of_their_ratio():
    engine = replace(make_engine(), ratio_error_frac=q(0.06))
    question = asked(engine=engine)
    errors = log_errors(question, TPS, np.ones(3))
    # var(e2 - e4) = 2 (0.06 / sqrt(2))^2 (1 - exp(-8)) = 0.06^2 (1 - 3.4e-4), whatever is common.
    for cov, by in ((errors.tpot_cov, 1.0), (errors.ttft_cov, 2.0)):
        ratio = cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]
        assert math.sqrt(ratio) == pytest.approx(by * 0.06, rel=1e-3)
        assert math.sqrt(cov[0, 1]) == pytest.approx(by * 0.15, rel=1e-3)
    assert [r.num_runs for r in prior(engine)] == [0, 0]


def runs_of(question: Question, num_seqs: float) -> ResidualModel:
    tps = (2.0, 4.0, 8.0)
    return ResidualModel(
        terms=(CovarianceTerm(std_frac=0.1, within="model", tp_len=1.0),), noise_std_frac=0.02,
        model_keys=(model_key(question.model),) * 3, num_seqs=(num_seqs,) * 3, tp=tps, isl_tok=(1024.0,) * 3,
        osl_tok=(1024.0,) * 3, weights=(0.0,) * 3)


def test_runs_of_the_model_narrow_the_intervals():
    terms = ServingTerms(**{name: q(1.0) if name.endswith("factor") else q(1e-6) for name in SERVING_TERMS})
    question = asked(LoadMode.CONCURRENCY_PER_REPLICA, 16.0)
    known = replace(bind_terms(question.engine, terms), tpot_residual=runs_of(question, 16.0),
                    ttft_residual=runs_of(question, 16.0))
    seen = recommend(replace(question, engine=known), with_flip_points=False).plan(4)
    other = recommend(replace(question, engine=known, model=make_model(weights="fp8")), with_flip_points=False).plan(4)

    def width(doubt: Uncertainty) -> float:
        return math.log(doubt.tpot_high_s / doubt.tpot_low_s)

    assert width(seen.uncertainty) < 0.5 * width(other.uncertainty)
    # Far from every run: the prior of 0.1 and the noise of 0.02, 2 x 1.2816 standard deviations wide.
    assert width(other.uncertainty) == pytest.approx(2 * 1.2816 * math.hypot(0.1, 0.02), rel=1e-9)


def test_runs_without_scatter_are_refused():
    with pytest.raises(ProfileError, match=r"residual.noise_std_frac must be > 0 where there are runs, got 0"):
        replace(runs_of(asked(), 16.0), noise_std_frac=0.0)


@pytest.mark.parametrize("targets", [Targets(tpot_s=0.04), Targets(ttft_s=0.15), Targets(tpot_s=0.04, ttft_s=0.15)])
@pytest.mark.parametrize("error", [-0.2, 0.0, 0.1, 0.3])
def test_capacity_in_error_is_the_planners_own_at_tighter_targets(targets, error):
    # All latencies exp(e) times longer meet a target where the predicted ones meet exp(-e) times it; the rate is then
    # exp(-e) times the predicted one. Whole requests and the knots cost a few percent.
    question = asked(LoadMode.SLO_CAPACITY, None, targets=targets)
    shifted = Targets(**{name: None if (limit := getattr(targets, name)) is None else limit * math.exp(-error)
                         for name in ("tpot_s", "ttft_s")})
    state = evaluate_question(replace(question, targets=shifted), TPS)
    expected = state.rate_req_s / state.num_replicas * math.exp(-error)
    errors = np.full((1, 3), error)
    found = np.exp(log_capacity(capacity_curves(question, TPS), targets, errors, errors))[0]
    assert state.feasible.any()
    assert found[state.feasible] == pytest.approx(expected[state.feasible], rel=0.04)
    assert (found[~state.feasible] == 0).all()


def test_a_capacity_has_its_interval_and_about_even_odds_at_its_limit():
    plan = recommend(asked(LoadMode.SLO_CAPACITY, None), with_flip_points=False).best
    assert plan.uncertainty.meets_targets_prob_frac == pytest.approx(0.5, abs=0.05)
    # More than the latencies' own: where TPOT is held, the load has to give.
    throughput = math.log(plan.uncertainty.throughput_high_tok_s / plan.uncertainty.throughput_low_tok_s)
    assert throughput > math.log(plan.uncertainty.tpot_high_s / plan.uncertainty.tpot_low_s)


@given(st.integers(1, 8), st.integers(0, 8), st.integers(0, 2**31))
def test_the_factor_of_any_covariance(size, rank, seed):
    root = np.random.default_rng(seed).normal(size=(size, rank))
    covariance = root @ root.T
    factor = cholesky_factor(covariance)
    assert np.allclose(factor @ factor.T, covariance, atol=1e-5)
    assert np.allclose(factor, np.tril(factor))


def test_draws_have_the_covariance_and_no_bias():
    covariance = 0.01 * np.ones((3, 3)) + 0.0025 * np.eye(3)
    errors = LogErrors(tpot_cov=covariance, ttft_cov=covariance, tpot_noise_std_frac=0.1, ttft_noise_std_frac=0.2)
    rng = np.random.default_rng(1)
    drawn = errors.draw(rng)
    assert drawn[0].shape == (NUM_DRAWS, 3)
    assert np.abs(drawn[0].mean(axis=0)).max() < 1e-12
    assert np.allclose(np.cov(drawn[0].T), covariance, atol=1.5e-3)
    noisy = errors.with_noise(drawn, rng)
    assert np.allclose(noisy[1].var(axis=0), 0.0125 + 0.04, rtol=0.1)
    assert errors.ttft_var.tolist() == pytest.approx([0.0525] * 3)


def test_ties_follow_from_the_lead_as_stated():
    # Without a common load effect: a lead of 0.84 standard deviations of the ratio is the border of 20 %.
    scores = drawn_scores([1.0, math.exp(-0.84 * 0.06), math.exp(-1.2 * 0.06)], common=0.15, own=0.06 / math.sqrt(2))
    found = Spread(log_scores=scores, best_frac=best_frac_of(scores), meets_frac=np.ones(3),
                   **dict.fromkeys([f.name for f in fields(Spread)][3:]))
    better = found.better_than(0)
    assert better == pytest.approx([0.5, 0.2, NormalDist().cdf(-1.2)], abs=0.02)
    assert all(a > b for a, b in pairwise(better))
