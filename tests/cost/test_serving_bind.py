"""An engine profile bound to what serving runs gave: where the exposed host time goes, and what stays as it was."""

from dataclasses import replace

import numpy as np
import pytest
from builders import (
    MLA,
    make_grid,
    q,
    round_engine,
    round_hardware,
    serving_terms,
    task,
    tiny_model,
    tiny_moe,
)

from tpplanner.cost.serving import bind, bind_terms
from tpplanner.cost.steady_state import batch_state
from tpplanner.cost.step_time import step_time
from tpplanner.domain.engine import EngineProfile, Switches
from tpplanner.domain.serving_fit import ResidualModel, ServingFit
from tpplanner.domain.step import Batch, StepTime

EXACT = 1e-12
ASYNC = Switches(async_sched=True)
FEEDBACK = Switches(async_sched=True, early_feedback=True)
BATCH = Batch(num_decode_seqs=30, decode_context_tok=1000, num_prefill_tok=400, prefill_context_tok=200, num_prefill_seqs=2,
              num_prefill_ends=2)


def step(engine: EngineProfile, tp: int = 2, batch: Batch = BATCH, model=None) -> StepTime:
    return step_time(model or tiny_model(), round_hardware(), engine, tp=tp, batch=batch)


def test_without_overlap_all_exposed_host_time_is_shared_by_the_profile_s_own_proportions():
    bound = bind_terms(round_engine(), serving_terms(step_s=6e-3, seq_s=70e-6))
    # Fixed 1 : 2 : 0 ms of T1, T2 and T5; per sequence 10 : 0 : 20 us. The broadcast of T2 is in what was measured.
    tasks = (bound.schedule, bound.prepare_input, bound.process_output)
    assert [t.fixed_s.value for t in tasks] == pytest.approx([2e-3, 4e-3, 0.0], rel=EXACT)
    assert [t.per_seq_s.value for t in tasks] == pytest.approx([70e-6 / 3, 0.0, 140e-6 / 3], rel=EXACT)
    assert [t.per_log2_tp_s for t in tasks] == [None] * 3
    for tp in (1, 8):
        # 6 ms and 70 us for each of 32 sequences, at every degree.
        assert step(bound, tp).host_s == pytest.approx(6e-3 + 32 * 70e-6, rel=EXACT)
        assert step(bound, tp).hidden_s == 0.0


def test_a_profile_without_host_time_shares_it_evenly():
    idle = round_engine(schedule=task(), prepare_input=task(), process_output=task())
    bound = bind_terms(idle, serving_terms(step_s=6e-3, seq_s=30e-6))
    for one in (bound.schedule, bound.prepare_input, bound.process_output):
        assert (one.fixed_s.value, one.per_seq_s.value) == pytest.approx((2e-3, 10e-6), rel=EXACT)


@pytest.mark.parametrize("switches", [ASYNC, FEEDBACK])
def test_with_overlap_what_was_measured_stays_exposed_whatever_is_hidden(switches):
    plain = round_engine(switches)
    bound = bind_terms(plain, serving_terms(step_s=6e-3, seq_s=70e-6))
    assert (bound.exposed.fixed_s.value, bound.exposed.per_seq_s.value) == (6e-3, 70e-6)
    # It holds the price of overlapping and what of T2 is seen; T1 and T5 are the profile's.
    assert (bound.overlap_overhead_s.value, bound.prepare_input.fixed_s.value, bound.prepare_input.per_seq_s.value) == (0, 0, 0)
    assert (bound.schedule, bound.process_output) == (plain.schedule, plain.process_output)
    # T1 and T5 (1 ms + 32 * 10 us + 32 * 20 us) hide behind the device where it works longer; 6 ms and 70 us each do not.
    own = 1e-3 + 32 * 30e-6
    for tp in (1, 2, 8):
        found = step(bound, tp=tp)
        device = float(found.device_s)
        assert found.hidden_s == pytest.approx(min(own, device), rel=EXACT)
        assert found.total_s == pytest.approx(device + 6e-3 + 32 * 70e-6 + max(own - device, 0.0), rel=EXACT)


def test_factors_of_1_and_the_same_constants_change_nothing():
    plain = round_engine(prepare_input=task(2e-3, 0.0), request_overhead_s=q(0.02, "s"))
    terms = serving_terms(layer_s=50e-6, step_s=3e-3, seq_s=30e-6, request_s=0.02)
    for model in (tiny_model(), tiny_model(MLA, mlp=tiny_moe())):
        before, after = step(plain, model=model), step(bind_terms(plain, terms), model=model)
        for name in StepTime.__slots__:
            assert float(getattr(after, name)) == pytest.approx(float(getattr(before, name)), rel=EXACT), name
    # The whole state too: the interference of prefill is 1.
    grid = make_grid(tiny_model(), round_hardware(), plain)
    states = [batch_state(replace(grid, engine=e), num_seqs=40.0) for e in (plain, bind_terms(plain, terms))]
    assert states[1].step_s == pytest.approx(float(states[0].step_s), rel=EXACT)
    assert states[1].rate_req_s == pytest.approx(float(states[0].rate_req_s), rel=EXACT)


@pytest.mark.parametrize(("factor", "term"), [
    ("expert_factor", "linear_s"), ("decode_attention_factor", "attention_s"),
    ("prefill_attention_factor", "attention_s"), ("collective_factor", "comm_s"),
])
def test_each_factor_scales_its_operators_and_no_other(factor, term):
    model = tiny_model(mlp=tiny_moe())
    at = {value: step(bind_terms(round_engine(), serving_terms(**{factor: value})), model=model) for value in (0.0, 1.0, 3.0)}
    share = float(getattr(at[1.0], term) - getattr(at[0.0], term))
    assert share > 0
    assert float(getattr(at[3.0], term)) == pytest.approx(float(getattr(at[0.0], term)) + 3 * share, rel=EXACT)
    for name in StepTime.__slots__:
        if name != term:
            assert float(getattr(at[3.0], name)) == float(getattr(at[1.0], name)), name


def test_the_gemm_factor_scales_down_to_the_reading_of_the_weights():
    model = tiny_model()
    at = {value: float(step(bind_terms(round_engine(), serving_terms(gemm_factor=value)), model=model).linear_s)
          for value in (0.0, 1.0, 3.0)}
    assert at[3.0] == pytest.approx(3 * at[1.0], rel=EXACT)
    # No fusion reads the weights faster than the peak bandwidth: 0 is cut there.
    assert 0 < at[0.0] < at[1.0]


def test_prefill_interference_scales_what_prompts_add_to_the_mean_step():
    grid = make_grid(tiny_model(), round_hardware(), round_engine())
    plain, twice = (
        batch_state(replace(grid, engine=bind_terms(grid.engine, serving_terms(prefill_interference=i))), num_seqs=40.0)
        for i in (1.0, 2.0))
    added = float(plain.mixed_frac * (plain.mixed_step.total_s - plain.decode_step.total_s))
    assert twice.step_s - plain.step_s == pytest.approx(added, rel=1e-9)
    assert twice.decode_s == plain.decode_s
    # The parts still add up to the whole.
    parts = sum(float(twice.mean_of(name)) for name in ("scalable_s", "comm_s", "sampling_s", "host_s")) - float(
        twice.mean_of("hidden_s"))
    assert parts == pytest.approx(float(twice.step_s), rel=EXACT)


def test_a_switch_turned_on_after_binding_hides_what_it_should():
    terms = serving_terms(step_s=3e-3, seq_s=30e-6)
    batch = replace(BATCH, num_prefill_tok=60_000.0, prefill_context_tok=1000.0)  # the device works for 8 ms and more
    bound = bind_terms(round_engine(), terms)
    off, overlap, feedback = (step(e, batch=batch) for e in (
        bound, bound.with_switch("async_sched", True),
        bound.with_switch("async_sched", True).with_switch("early_feedback", True)))
    assert off.device_s == overlap.device_s == feedback.device_s > 8e-3
    # T1 a third of 3 ms and T5 nothing of it, T1 and T5 all of 30 us by 32 sequences; the price of overlapping is the profile's.
    assert off.total_s - overlap.total_s == pytest.approx(1e-3 + 32 * 30e-6 - 80e-6, rel=1e-9)
    assert overlap.total_s - feedback.total_s == pytest.approx(2e-3, rel=1e-9)


def test_a_switch_turned_off_after_binding_shows_what_was_hidden():
    bound = bind_terms(round_engine(ASYNC), serving_terms(step_s=0.5e-3, seq_s=1e-6))
    off = step(bound.with_switch("async_sched", False))
    # T1 and T5 of the profile in full, and what was exposed before.
    assert off.host_s == pytest.approx(1e-3 + 32 * 30e-6 + 0.5e-3 + 32 * 1e-6, rel=EXACT)
    assert off.hidden_s == 0.0


def test_early_feedback_turned_on_after_binding_finds_nothing_more_to_hide():
    bound = bind_terms(round_engine(ASYNC), serving_terms(step_s=0.5e-3, seq_s=1e-6))
    assert step(bound.with_switch("early_feedback", True)).total_s == step(bound).total_s


def test_errors_are_shared_with_the_values():
    measured = replace(serving_terms(), step_s=replace(q(6e-3, "s"), std_error=6e-4))
    bound = bind_terms(round_engine(), measured)
    assert bound.schedule.fixed_s.std_error == pytest.approx(2e-4, rel=EXACT)
    assert bound.schedule.per_seq_s.std_error is None


def fit(**terms):
    dense, moe = ResidualModel(terms=(), noise_std_frac=0.1), ResidualModel(terms=(), noise_std_frac=0.2)
    return ServingFit(machine="m", engine="e", terms=terms, tpot={"dense": dense, "moe": moe}, ttft={"dense": moe}, num_runs=1,
                      source="runs")


def test_a_model_gets_the_terms_of_its_class_and_of_the_benchmark_that_was_asked_for():
    found = {name: serving_terms(layer_s=i * 1e-6) for i, name in enumerate(("dense", "dense@b", "moe", "moe-mla@b"))}
    known = fit(**found)
    dense, moe, mla = tiny_model(), tiny_model(mlp=tiny_moe()), tiny_model(MLA, mlp=tiny_moe())
    for model, family, name in ((dense, None, "dense"), (dense, "b", "dense@b"), (dense, "other", "dense"), (moe, "b", "moe"),
                                (mla, "b", "moe-mla@b"), (mla, None, "moe")):
        bound = bind(round_engine(), known, model, family=family)
        assert bound.terms is found[name], (name, family)
        assert bound.layer_overhead_s == found[name].layer_s
    assert bind(round_engine(), fit(moe=found["moe"]), dense).terms is found["moe"]


def test_residuals_are_those_of_the_kind_of_model():
    known = fit(dense=serving_terms())
    dense, moe = bind(round_engine(), known, tiny_model()), bind(round_engine(), known, tiny_model(mlp=tiny_moe()))
    assert (dense.tpot_residual, dense.ttft_residual) == (known.tpot["dense"], known.ttft["dense"])
    assert (moe.tpot_residual, moe.ttft_residual) == (known.tpot["moe"], None)


def test_arrays_of_degrees():
    bound = bind_terms(round_engine(FEEDBACK), serving_terms(step_s=1e-3, seq_s=1e-5, collective_factor=2.0))
    tp = np.array([1.0, 2.0, 8.0])
    together = step_time(tiny_model(), round_hardware(), bound, tp=tp, batch=BATCH).total_s
    assert together == pytest.approx([float(step(bound, t).total_s) for t in (1, 2, 8)], rel=EXACT)
