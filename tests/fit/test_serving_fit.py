"""Round trip of the serving fit: known coefficients, the planner's own closed loop, and the fit of its runs."""

from dataclasses import replace

import numpy as np
import pytest
from builders import ALL_SWITCHES, kernel
from served import (
    BENCHMARK,
    ENGINES,
    MACHINES,
    MODELS,
    MOE,
    SMALL,
    blank_runs,
    predicted,
    split_of,
    truth,
    with_latencies,
)

from tpplanner.cost.outside import coordinates_of
from tpplanner.cost.residual import mean_log
from tpplanner.domain.kernels import Kernels, MoeKernel
from tpplanner.domain.run_prediction import OUT_OF_MEMORY
from tpplanner.domain.serving_fit import SERVING_TERMS, LoadGenerator
from tpplanner.fit.serving_groups import groups_of, latencies, levels_of, prepare
from tpplanner.fit.serving_residuals import TPOT_PRIOR, fit_residuals, prior
from tpplanner.fit.serving_spec import SPECS
from tpplanner.fit.serving_splits import predict_all
from tpplanner.fit.serving_terms import fit_serving, terms_of


def columns(served, names=("tpot_s", "ttft_s")):
    return np.array([[getattr(one.run, name) for name in names] for one in served])


def refit(served):
    groups, use = split_of(served)
    model = fit_serving(groups, use)
    residuals = fit_residuals(groups, model, use)
    return groups, model, residuals


def predictions(served, fit):
    """TPOT and TTFT of every run, corrections included."""
    groups, model, residuals = fit
    found = predict_all(served, groups, model, residuals, np.ones(len(served), dtype=bool))
    return [found[i] for i in range(len(served))]


def log_errors(found, served):
    """Of predictions against the latencies of ``served``; shape (runs, 2)."""
    return np.log(np.array([[p.tpot_s, p.ttft_s] for p in found]) / columns(served))


@pytest.fixture(scope="module")
def exact():
    """128 runs: 2 machines x 2 engines x 2 models x 4 degrees x 2 loads x 2 shapes."""
    return with_latencies(blank_runs())


@pytest.fixture(scope="module")
def exact_fit(exact):
    return refit(exact)


def test_the_runs_are_of_many_kinds(exact):
    assert len(exact) == 128
    tpot, ttft = columns(exact).T
    assert tpot.max() > 10 * tpot.min()
    assert ttft.max() > 10 * ttft.min()


def test_predictions_come_back_within_one_percent(exact, exact_fit):
    groups, model, _ = exact_fit
    # By the terms alone: the priors pull by a percent or so; the residuals then take most of it.
    for group in groups:
        found = np.stack(predicted(group, model.terms("dense", group.levels)), -1)
        assert abs(np.log(found / columns(exact)[group.where])).max() < 0.015
    found = predictions(exact, exact_fit)
    assert [p.run_id for p in found] == [one.run.run_id for one in exact]
    errors = log_errors(found, exact)
    assert abs(errors).max() < 0.01
    assert np.sqrt((errors**2).mean()) < 0.003
    for one, p in zip(exact, found, strict=True):
        assert p.tpot_low_s < one.run.tpot_s < p.tpot_high_s
        assert p.ttft_low_s < one.run.ttft_s < p.ttft_high_s


def test_coefficients_come_back_within_three_standard_errors(exact_fit):
    groups, model, _ = exact_fit
    for group in groups:
        found, expected = model.terms("dense", group.levels), truth("dense", group.grid.engine.name)
        for name in SERVING_TERMS:
            term, known = getattr(found, name), getattr(expected, name).value
            assert abs(term.value - known) <= 3.0 * term.std_error, name
        # Those that the runs tell apart, more closely: without noise the priors alone are in the way.
        for name in ("gemm_factor", "decode_attention_factor", "collective_factor", "step_s", "prefill_interference",
                     "request_s"):
            assert getattr(found, name).value == pytest.approx(getattr(expected, name).value, rel=0.03), name


def test_the_engines_differ_and_the_fit_says_so(exact_fit):
    _, model, _ = exact_fit
    levels = {"machine": "slow", "engine": "plain", "cell": "slow/plain", "build": "plain/bench", "family": "bench",
              "cell_family": "slow/plain/bench", "attention": "dense"}
    plain = model.terms("dense", levels)
    overlap = model.terms("dense", {**levels, "engine": "overlap", "cell": "slow/overlap", "build": "overlap/bench",
                                    "cell_family": "slow/overlap/bench"})
    # 0.9 and 0.82 of the kernel; 2 and 0.8 ms a step. An engine that nobody measured lies between them.
    assert plain.gemm_factor.value / overlap.gemm_factor.value == pytest.approx(0.9 / 0.82, rel=0.04)
    unknown = model.terms("dense", {**levels, "engine": "z", "cell": "slow/z", "build": "z/bench", "cell_family": "slow/z/bench"})
    assert overlap.gemm_factor.value < unknown.gemm_factor.value < plain.gemm_factor.value
    assert overlap.step_s.value < unknown.step_s.value < plain.step_s.value
    # And is known less well: its own deviations are anybody's guess, 0.15, 0.07 and 0.04 of engine, cell and build.
    assert unknown.gemm_factor.std_error / unknown.gemm_factor.value > np.sqrt(0.15**2 + 0.07**2 + 0.04**2)
    assert plain.gemm_factor.std_error / plain.gemm_factor.value < 0.1


def test_noise_is_not_learnt(exact):
    noisy = with_latencies(blank_runs(), noise=0.03)
    fit = groups, model, _ = refit(noisy)
    found = predictions(noisy, fit)
    # Nearer the truth than the runs themselves are, and not through every run.
    tpot, ttft = np.sqrt((log_errors(found, exact)**2).mean(axis=0)) / 0.03
    assert tpot < 0.7
    assert ttft < 1.0
    assert (np.sqrt((log_errors(found, noisy)**2).mean(axis=0)) > 0.4 * 0.03).all()
    for group in groups:
        terms, expected = model.terms("dense", group.levels), truth("dense", group.grid.engine.name)
        for name in SERVING_TERMS:
            assert abs(getattr(terms, name).value - getattr(expected, name).value) <= 3.0 * getattr(terms, name).std_error, name


def test_runs_of_mixtures_of_experts_have_a_fit_of_their_own(exact):
    experts = with_latencies(blank_runs(machines=("fast",), models=(MOE,), degrees=(1, 4), loads=(4, 64)))
    together = [*exact[:32], *experts]
    groups, use = split_of(together)
    both = fit_serving(groups, use)
    assert set(both.fits) == {"dense", "moe"}
    alone = fit_serving(*split_of(exact[:32]))
    levels = levels_of(exact[0])
    assert both.terms("dense", levels).gemm_factor.value == alone.terms("dense", levels).gemm_factor.value
    of_moe = both.terms("moe", levels_of(experts[0]))
    assert of_moe.expert_factor.value == pytest.approx(0.8, rel=0.06)
    assert both.terms("dense", levels).expert_factor.value == 1.0


# --- the batches of a fit are those of the planner ---


@pytest.mark.parametrize("switches", ALL_SWITCHES)
@pytest.mark.parametrize("spec", [SMALL, MOE])
def test_latencies_are_those_of_the_closed_loop(switches, spec):
    engine = replace(ENGINES["plain"], switches=switches)
    measured = replace(MACHINES["fast"], kernels=Kernels(moe={"bf16": kernel(MoeKernel)}))
    runs = [replace(one, engine=engine, hardware=measured)
            for one in blank_runs(machines=("fast",), engines=("plain",), models=(spec,))]
    if spec is MOE:
        runs = [replace(one, run=replace(one.run, ep=one.run.tp if one.run.isl_tok == 512 else 1)) for one in runs]
    kind = "moe" if spec is MOE else "dense"
    terms = truth(kind, "plain")
    (group,) = groups_of(runs)
    ready = prepare(group, terms)
    assert not ready.queued.any()
    for found, expected in zip(latencies(ready, terms), predicted(group, terms), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_latencies_of_queued_runs_leave_out_the_wait_for_a_place():
    runs = [replace(one, run=replace(one.run, max_num_seqs=16)) for one in blank_runs(
        machines=("fast",), engines=("plain",), models=(SMALL,), degrees=(2,))]
    terms = truth("dense", "plain")
    (group,) = groups_of(runs)
    ready = prepare(group, terms)
    assert ready.queued.tolist() == [one.run.concurrency == 64 for one in runs]
    assert ready.in_batch.tolist() == [min(one.run.concurrency, 16) for one in runs]
    (tpot, ttft), (loop_tpot, loop_ttft) = latencies(ready, terms), predicted(group, terms)
    np.testing.assert_allclose(tpot, loop_tpot, rtol=1e-9)
    assert (ttft[ready.queued] < 0.5 * loop_ttft[ready.queued]).all()
    np.testing.assert_allclose(ttft[~ready.queued], loop_ttft[~ready.queued], rtol=1e-9)


def test_the_wait_for_a_place_teaches_nothing():
    runs = with_latencies([replace(one, run=replace(one.run, max_num_seqs=16)) for one in blank_runs(
        machines=("fast",), engines=("plain",), models=(SMALL,))])
    crowded = [replace(one, run=replace(one.run, ttft_s=3.0 * one.run.ttft_s)) if one.run.concurrency == 64 else one
               for one in runs]
    (_, model, residuals), (_, same, also) = refit(runs), refit(crowded)
    assert model.fits["dense"].unknowns.tolist() == same.fits["dense"].unknowns.tolist()
    assert residuals.ttft["fast/plain", "dense"].weights == also.ttft["fast/plain", "dense"].weights
    assert residuals.ttft["fast/plain", "dense"].num_runs == 8
    assert residuals.tpot["fast/plain", "dense"].num_runs == 16


def test_groups_share_all_but_degree_load_and_lengths():
    runs = blank_runs()
    other = [replace(one, run=replace(one.run, family="else")) for one in runs[:8]]
    steady = [replace(one, run=replace(one.run, load=LoadGenerator(length_frac=0.9))) for one in runs[:8]]
    whole = [replace(one, run=replace(one.run, load=LoadGenerator(prompts_per_client=10.0))) for one in runs[:8]]
    waits = [replace(one, run=replace(one.run, load=replace(BENCHMARK, batch_wait_steps=20.0))) for one in runs[:8]]
    groups = groups_of([*runs, *other, *steady, *whole, *waits])
    assert len(groups) == 8 + 3
    assert sorted(i for g in groups for i in g.where) == list(range(128 + 32))
    # Lengths as drawn, and the wait that each run has.
    first = groups[0]
    assert first.grid.isl_tok[:2].tolist() == [1024 * 0.9, 512 * 0.9]
    assert np.unique(first.grid.load.batch_wait_steps).tolist() == [0.0, 20.0]


def test_a_limit_of_one_run_is_its_own():
    # Benchmarks raise the limit of sequences to the clients that they start, unless it is stated.
    runs = blank_runs(machines=("fast",), engines=("plain",), models=(SMALL,), degrees=(8,), loads=(4, 512),
                      lengths=((512, 512),))
    stated = [replace(runs[0], run=replace(runs[0].run, max_num_seqs=2)), runs[1]]
    assert groups_of(runs)[0].grid.max_num_seqs.tolist() == [64.0, 512.0]
    assert groups_of(stated)[0].grid.max_num_seqs.tolist() == [2.0, 512.0]


def test_what_does_not_fit_is_said_and_not_fitted():
    runs = blank_runs(machines=("fast",), engines=("plain",), models=tuple(MODELS.values()), degrees=(1, 8))
    tight = replace(MACHINES["fast"], hbm_bytes=replace(MACHINES["fast"].hbm_bytes, value=12e9))
    runs = [replace(one, hardware=tight) for one in with_latencies(runs)]
    big = [i for i, one in enumerate(runs) if one.model is not SMALL and one.run.tp == 1]
    groups, model, residuals = refit(runs)
    found = predict_all(runs, groups, model, residuals, np.ones(len(runs), dtype=bool))
    assert {i for i, p in found.items() if p.status == OUT_OF_MEMORY} == set(big)
    spoilt = [replace(one, run=replace(one.run, tpot_s=9.0)) if i in big else one for i, one in enumerate(runs)]
    _, again, _ = refit(spoilt)
    assert again.fits["dense"].unknowns.tolist() == model.fits["dense"].unknowns.tolist()


def test_one_output_token_has_a_ttft_and_no_tpot():
    runs = with_latencies(blank_runs(machines=("fast",), engines=("plain",), models=(SMALL,)))
    prefill_only = [replace(one, run=replace(one.run, run_id=f"{one.run.run_id}-1", osl_tok=1, tpot_s=0.01)) for one in runs[:4]]
    groups, model, residuals = refit([*runs, *prefill_only])
    found = predict_all([*runs, *prefill_only], groups, model, residuals, np.ones(len(runs) + 4, dtype=bool))
    assert [found[i].tpot_s for i in range(len(runs), len(runs) + 4)] == [None] * 4
    assert all(found[i].ttft_s > 0 for i in found)
    assert residuals.of("fast/plain", "dense")[0].num_runs == len(runs)
    assert residuals.of("fast/plain", "dense")[1].num_runs == len(runs) + 4


# --- residuals ---


def test_a_model_that_is_slower_than_its_kernels_is_corrected_and_others_are_not(exact):
    slow = [replace(one, run=replace(one.run, tpot_s=1.3 * one.run.tpot_s)) if one.model is SMALL else one for one in exact]
    groups, _, residuals = refit(slow)
    factors = {}
    for group in groups:
        known = residuals.of(group.levels["cell"], "dense")[0]
        at = coordinates_of(group.grid, group.concurrency)
        factors.setdefault(group.grid.model.name, []).append(np.exp(mean_log(known, at)).mean())
    small, large = (np.mean(factors[name]) for name in MODELS)
    # Part of the 30 % goes to the coefficients, which the models share; the rest to the one and from the other.
    assert small > 1.03
    assert large < 0.97
    errors = log_errors(predictions(slow, (groups, _, residuals)), slow)
    assert np.sqrt((errors**2).mean()) < 0.03


def test_a_first_token_is_not_corrected_twice():
    """Steps of 1.5 times their length lengthen the first token too: what is left for its own correction is the rest."""
    runs = blank_runs(machines=("fast",), engines=("plain",), models=(SMALL,), loads=(4, 16, 64))
    groups, use = split_of(with_latencies(runs))
    model = fit_serving(groups, use)
    slow = [replace(one, run=replace(one.run, tpot_s=1.5 * one.run.tpot_s, ttft_s=1.5 * one.run.ttft_s))
            for one in with_latencies(runs)]
    groups, use = split_of(slow)  # the same coefficients: all of it is left to the residuals
    errors = log_errors(predictions(slow, (groups, model, fit_residuals(groups, model, use))), slow)
    assert abs(errors).max() < 0.06
    assert abs(errors.mean(axis=0)).max() < 0.03


def test_a_cell_without_runs_has_the_prior(exact, exact_fit):
    residuals = exact_fit[2]
    tpot, ttft = residuals.of("slow/z", "dense")
    assert (tpot.num_runs, ttft.num_runs) == (0, 0)
    assert tpot.terms == prior(TPOT_PRIOR, "dense").terms
    assert residuals.of("slow/plain", "dense")[0].num_runs == 32


def test_records_of_terms_have_every_coefficient():
    for kind, spec in SPECS.items():
        record = terms_of(kind, np.array([c.start for c in spec]), num_samples=7, source="here")
        for c in spec:
            assert getattr(record, c.name).value == c.start
            assert (getattr(record, c.name).num_samples, getattr(record, c.name).source) == (7, "here")
        assert {c.name for c in spec} | ({"expert_factor"} if kind == "dense" else set()) == set(SERVING_TERMS)
