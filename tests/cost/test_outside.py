"""What a first token waits for: the terms by hand, the burst of a benchmark's start, Little's law with terms bound."""

import math
from dataclasses import replace

import numpy as np
import pytest
from builders import make_grid, q, round_engine, round_hardware, serving_terms, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from tpplanner.cost.latency import latency_of
from tpplanner.cost.outside import burst_s, coordinates_of, corrections_at, latency_std, outside_s
from tpplanner.cost.replica import kv_room
from tpplanner.cost.serving import bind_terms
from tpplanner.cost.steady_state import closed_loop, outside_of
from tpplanner.domain.serving_fit import CovarianceTerm, LoadGenerator, ResidualModel, model_key
from tpplanner.errors import ProfileError
from tpplanner.fit.serving_residuals import conditioned

EXACT = 1e-12
TERMS = {"layer_s": 5e-5, "step_s": 2e-3, "seq_s": 20e-6, "first_token_steps": 2.0, "prefill_delay": 1.5, "request_s": 0.03,
         "client_s": 1e-3, "prefill_interference": 1.2}


def grid_of(terms=TERMS, load=None, **changes):
    engine = round_engine()
    bound = engine if terms is None else bind_terms(engine, serving_terms(**terms))
    more = {} if load is None else {"load": load}
    return make_grid(tiny_model(), round_hardware(), bound, isl_tok=400.0, osl_tok=200.0, **more, **changes)


def factor(log, *, within="model", noise=1e-5):
    """A residual model that knows one run of the tiny model far away in load and shape: its factor holds at every load."""
    at = coordinates_of(grid_of(None), np.array([8.0]))
    return conditioned(ResidualModel(terms=(CovarianceTerm(std_frac=0.3, within=within),), noise_std_frac=noise), at,
                       np.array([log]))


BURST = {**TERMS, "burst_share": 0.06}
TIMES = {"decode_s": 0.010, "step_s": 0.012, "prefill_s": 0.040}


def test_without_runs_half_a_step_of_the_others_and_the_request_by_hand():
    grid = grid_of(None)
    # 8 sequences: 7/8 of the time another's step is on, half of it remains.
    assert outside_s(grid, num_seqs=8.0, **TIMES) == pytest.approx(0.5 * 7 / 8 * 0.012, rel=EXACT)
    own = replace(grid, engine=round_engine(request_overhead_s=q(0.03, "s")))
    assert outside_s(own, num_seqs=8.0, **TIMES) == pytest.approx(0.03 + 0.5 * 7 / 8 * 0.012, rel=EXACT)
    assert outside_s(own, num_seqs=0.5, **TIMES) == pytest.approx(0.03, rel=EXACT)  # nobody else is there


def test_the_terms_by_hand():
    # 30 ms + 8 * 1 ms + 2 steps of 10 ms + half a prefill of 40 ms.
    assert outside_s(grid_of(), num_seqs=8.0, **TIMES) == pytest.approx(0.030 + 0.008 + 0.020 + 0.020, rel=EXACT)
    # A server that waits 20 steps for more prompts.
    waiting = grid_of(load=LoadGenerator(batch_wait_steps=20.0))
    assert outside_s(waiting, num_seqs=8.0, **TIMES) == pytest.approx(0.078 + 0.200, rel=EXACT)
    # A prefill that is shorter than the batch makes it cannot end before it began.
    fast = grid_of({"prefill_delay": 0.25})
    assert outside_s(fast, num_seqs=8.0, **TIMES) == 0.0


def test_ttft_by_hand():
    grid = grid_of()
    state = closed_loop(grid, kv_room(grid), 20.0)
    latency = latency_of(grid, state)
    n, step, prefill = float(state.num_running_seqs), float(state.decode_step.total_s), float(state.prefill_s)
    expected = 0.030 + n * 1e-3 + 2 * step + 1.5 * prefill
    assert state.num_queued_seqs == 0
    assert latency.ttft_s == pytest.approx(expected, rel=1e-12)
    assert latency.tpot_s == pytest.approx((n / float(state.rate_req_s) - prefill) / 199, rel=1e-12)
    assert latency.e2e_s == pytest.approx(float(latency.ttft_s + 199 * latency.tpot_s), rel=1e-12)


def test_runs_of_the_model_multiply_the_whole_first_token():
    plain = grid_of()
    grid = replace(plain, engine=replace(plain.engine, ttft_residual=factor(math.log(2.0))))
    found = corrections_at(grid, 8.0)
    assert (found.ttft, found.step) == (pytest.approx(2.0, rel=1e-6), 1.0)
    # Terms and prefill twice, of which the prefill itself is not outside: 2 (78 + 40) - 40 ms.
    assert outside_s(grid, num_seqs=8.0, ttft_factor=2.0, **TIMES) == pytest.approx(0.196, rel=EXACT)
    # Queueing is the wait for others; the burst and all the rest are the first token's own.
    burst = replace(grid, engine=replace(grid.engine, terms=serving_terms(**BURST)), load=LoadGenerator(prompts_per_client=10.0))
    room = kv_room(burst)
    state = closed_loop(burst, room, 30.0)
    once = latency_of(burst, replace(state, ttft_factor=1.0))
    assert latency_of(burst, state).ttft_s == pytest.approx(2.0 * float(once.ttft_s), rel=1e-5)
    # Another model has nothing to do with it.
    assert corrections_at(replace(grid, model=tiny_model(num_layers=3)), 8.0).ttft == 1.0


def test_runs_of_the_model_multiply_every_step():
    plain = grid_of()
    slow = replace(plain, engine=replace(plain.engine, tpot_residual=factor(math.log(1.5))))
    assert corrections_at(slow, np.array([2.0, 64.0])).step == pytest.approx([1.5, 1.5], rel=1e-6)
    room = kv_room(plain)
    a, b = closed_loop(plain, room, 1.0), closed_loop(slow, room, 1.0)
    assert b.measured_factor == pytest.approx(1.5, rel=1e-6)
    assert [b.decode_s / a.decode_s, b.prefill_s / a.prefill_s] == pytest.approx([1.5, 1.5], rel=1e-6)
    assert latency_of(slow, b).tpot_s / latency_of(plain, a).tpot_s == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize(("prompts", "share"), [
    (10.0, 0.06), (5.0, 0.12), (20.0, 0.03), (1.0, 0.6), (math.inf, 0.0),
])
def test_a_burst_by_hand(prompts, share):
    grid = grid_of(BURST, LoadGenerator(prompts_per_client=prompts))
    # 64 clients: 63 others, whose prompts add 5 ms each.
    assert burst_s(grid, num_seqs=64.0, prompt_s=0.005) == pytest.approx(63 * 0.005 * share, rel=EXACT)
    assert burst_s(grid, num_seqs=0.5, prompt_s=0.005) == 0.0


def test_nobody_waits_for_more_than_all_the_others():
    grid = grid_of({**TERMS, "burst_share": 0.3}, LoadGenerator(prompts_per_client=1.0))
    assert burst_s(grid, num_seqs=11.0, prompt_s=0.005) == pytest.approx(10 * 0.005, rel=EXACT)


def test_the_steady_state_has_no_burst_nor_has_a_profile_without_runs():
    assert burst_s(grid_of(BURST), num_seqs=64.0, prompt_s=0.005) == 0.0
    assert burst_s(grid_of(None, LoadGenerator(prompts_per_client=10.0)), num_seqs=64.0, prompt_s=0.005) == 0.0


@pytest.mark.parametrize("concurrency", [2.0, 8.0, 32.0, 60.0])
def test_a_burst_moves_time_from_decode_to_the_first_token_and_adds_none(concurrency):
    calm, burst = grid_of(BURST), grid_of(BURST, LoadGenerator(prompts_per_client=10.0))
    room = kv_room(calm)
    a, b = closed_loop(calm, room, concurrency), closed_loop(burst, room, concurrency)
    before, after = latency_of(calm, a), latency_of(burst, b)
    # Per prompt the mixed steps' excess, 6 % of the other prompts.
    prompts = float(b.mixed_batch.num_prefill_tok) / 400
    wait = 0.06 * (float(b.num_running_seqs) - 1) * float(b.mixed_step.total_s - b.decode_step.total_s) / prompts
    assert wait > 1e-5
    assert after.ttft_s - before.ttft_s == pytest.approx(wait, rel=1e-9)
    assert after.tpot_s > b.decode_step.total_s  # not at its floor, where no time is left to move
    assert (before.tpot_s - after.tpot_s) * 199 == pytest.approx(wait, rel=1e-9)
    assert after.e2e_s == pytest.approx(float(before.e2e_s), rel=1e-12)


@settings(max_examples=80)
@given(concurrency=st.floats(1.0, 400.0), tp=st.sampled_from([1.0, 2.0, 8.0]), client=st.floats(0.0, 5e-3),
       request=st.floats(0.0, 0.3), steps=st.floats(0.0, 3.0), delay=st.floats(1.0, 3.0), interference=st.floats(1.0, 2.0),
       prompts=st.sampled_from([1.0, 10.0, math.inf]), share=st.floats(0.0, 0.05))
def test_littles_law_with_terms_bound(concurrency, tp, client, request, steps, delay, interference, prompts, share):
    terms = {**TERMS, "client_s": client, "request_s": request, "first_token_steps": steps, "prefill_delay": delay,
             "prefill_interference": interference, "burst_share": share}
    grid = grid_of(terms, LoadGenerator(prompts_per_client=prompts), tp=tp)
    state = closed_loop(grid, kv_room(grid), concurrency)
    latency = latency_of(grid, state)
    # In flight: in the batch, queued for it, and outside both. The rounds of the search leave 1 %.
    outside = float(state.rate_req_s * outside_of(grid, state))
    inside = float(state.num_running_seqs + state.num_queued_seqs)
    assert inside + outside == pytest.approx(concurrency, rel=0.01)
    # The same in seconds, where TPOT is not at its floor: concurrency = rate * time of a request.
    if latency.tpot_s > state.decode_s * (1 + 1e-9):
        assert float(state.rate_req_s * latency.e2e_s) == pytest.approx(concurrency, rel=0.01)
    else:
        assert float(state.rate_req_s * latency.e2e_s) > 0.99 * concurrency


def test_coordinates_are_nominal_lengths_and_keys_tell_experts_apart():
    grid = replace(grid_of(), tp=np.array([2.0, 4.0]), ep=np.array([1.0, 4.0]), isl_tok=360.0, osl_tok=180.0,
                   load=LoadGenerator(length_frac=0.9))
    found = coordinates_of(grid, np.array([8.0, 16.0]))
    assert found.model_keys.tolist() == [model_key(grid.model, ep=1), model_key(grid.model, ep=4)]
    assert np.exp2(found.log2) == pytest.approx(np.array([[8.0, 2.0, 400.0, 200.0], [16.0, 4.0, 400.0, 200.0]]), rel=1e-12)


def test_standard_deviations_are_those_of_a_single_run():
    plain = grid_of()
    assert latency_std(plain, np.array([8.0])) is None
    one, two = factor(0.1, noise=0.04), factor(0.1, noise=0.2)
    grid = replace(plain, engine=replace(plain.engine, tpot_residual=one, ttft_residual=two))
    tpot, ttft = latency_std(grid, np.array([8.0, 9.0]))
    # A variance of 0.09 after one run with noise s^2: 0.09 s^2 / (0.09 + s^2), and s^2 again for the run asked for.
    for found, noise in ((tpot, 0.04**2), (ttft, 0.2**2)):
        assert found == pytest.approx([math.sqrt(0.09 * noise / (0.09 + noise) + noise)] * 2, rel=1e-9)


@pytest.mark.parametrize(("changes", "message"), [
    ({"prompts_per_client": 0.5}, "prompts_per_client must be >= 1"), ({"prompts_per_client": math.nan}, "prompts_per_client"),
    ({"length_frac": 0.0}, "length_frac must be in"), ({"length_frac": 1.1}, "length_frac must be in"),
])
def test_a_load_generator_refuses_nonsense(changes, message):
    with pytest.raises(ProfileError, match=message):
        LoadGenerator(**changes)
