"""One replica: equations (1) and (2), the token budget, and the searches over the batch."""

from dataclasses import replace

import numpy as np
import pytest
from builders import ALL_SWITCHES, GQA, LINEAR, WINDOWED, make_grid, q, round_engine, round_hardware, tiny_model, tiny_moe
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tpplanner.cost.latency import latency_of
from tpplanner.cost.replica import KvRoom, ReplicaGrid, kv_room
from tpplanner.cost.steady_state import batch_state, closed_loop, outside_of, running_limit
from tpplanner.domain.engine import Preemption, Switches
from tpplanner.domain.workload import Targets
from tpplanner.planner.open_loop import open_loop, slo_capacity

MODELS = (tiny_model(), tiny_model(GQA, WINDOWED), tiny_model(mlp=tiny_moe()), tiny_model(GQA, LINEAR))
SMALL_GPU = replace(round_hardware(), hbm_bytes=replace(round_hardware().hbm_bytes, value=1.3e9))
MACHINES = (round_hardware(), SMALL_GPU)
ENGINES = tuple(round_engine(s, preemption=p) for s in ALL_SWITCHES for p in Preemption)

grids = st.builds(
    make_grid, st.sampled_from(MODELS), st.sampled_from(MACHINES), st.sampled_from(ENGINES),
    tp=st.sampled_from([1.0, 2.0, 4.0, 8.0]), isl_tok=st.integers(1, 6000).map(float),
    osl_tok=st.integers(1, 3000).map(float), max_num_batched_tokens=st.sampled_from([256.0, 2048.0]),
)


def fitting(grid: ReplicaGrid) -> KvRoom:
    room = kv_room(grid)
    assume(bool(room.fits_one) and bool(room.fits_weights))
    return room


@settings(max_examples=100)
@given(grid=grids, share=st.floats(0.001, 1.0))
def test_littles_law_counted_in_steps(grid, share):
    room = fitting(grid)
    state = batch_state(grid, num_seqs=share * running_limit(grid, room))
    # Equation (1): S = x (O - 1 + n_p), and n_p is at least one step per chunk of the prompt.
    # Below one sequence the replica works for that share of the time, on one sequence.
    working, held = min(float(state.num_running_seqs), 1.0), max(float(state.num_running_seqs), 1.0)
    finish = state.rate_req_s * state.step_s / working
    prefill_steps = state.prefill_s / state.mixed_step.total_s
    assert finish * (grid.osl_tok - 1 + prefill_steps) == pytest.approx(held, rel=1e-6)
    assert prefill_steps >= max(1.0, grid.isl_tok / grid.max_num_batched_tokens) * (1 - 1e-6)
    # Equation (2), and the prompts that finish are the prompts that are processed.
    assert state.step_s == pytest.approx(float(state.mean_of("total_s")), rel=1e-12)
    assert state.mixed_frac * state.mixed_batch.num_prefill_tok == pytest.approx(float(finish * grid.isl_tok), rel=1e-9)
    assert state.mixed_frac * state.mixed_batch.num_prefill_ends == pytest.approx(float(finish), rel=1e-9)


@settings(max_examples=100)
@given(grid=grids, share=st.floats(0.001, 1.0), evicting=st.booleans())
def test_no_step_exceeds_the_token_budget(grid, share, evicting):
    room = fitting(grid)
    state = batch_state(grid, num_seqs=share * running_limit(grid, room), num_waiting=10.0, kv_full=evicting)
    assert state.mixed_batch.num_tok <= grid.max_num_batched_tokens * (1 + 1e-9)
    assert state.decode_batch.num_tok <= grid.max_num_batched_tokens * (1 + 1e-9)
    assert state.num_decode_seqs <= state.num_running_seqs * (1 + 1e-9)
    assert 0 < state.mixed_frac <= 1
    assert 0 <= state.prefill_util_frac <= 1


@settings(max_examples=100)
@given(grid=grids)
def test_more_requests_in_flight_never_serve_fewer(grid):
    room = fitting(grid)
    limit = max(float(running_limit(grid, room)), 1.0)
    state = closed_loop(grid, room, np.geomspace(1.0, limit, 40))
    latency = latency_of(grid, state)
    assert (np.diff(state.rate_req_s) >= -1e-7 * state.rate_req_s[1:]).all()
    # Nor is any request served sooner.
    assert (np.diff(latency.ttft_s) >= -1e-6 * latency.ttft_s[1:]).all()
    if grid.osl_tok > 1:
        assert (np.diff(latency.tpot_s) >= -1e-7 * latency.tpot_s[1:]).all()


def test_dense_grid_of_concurrencies_has_no_jumps():
    # 8,192 tokens in, 16 out, a budget of 2,048: the prefill queue makes up most of the batch.
    grid = make_grid(tiny_model(), round_hardware(), round_engine(), isl_tok=8192.0, osl_tok=16.0)
    concurrency = np.arange(1.0, 65.0)
    state = closed_loop(grid, kv_room(grid), concurrency)
    assert (np.diff(state.rate_req_s) >= -1e-7 * state.rate_req_s[1:]).all()
    ttft = latency_of(grid, state).ttft_s
    assert (np.diff(ttft) > 0).all()
    assert (np.diff(ttft) < 0.5 * ttft[1:]).all()


@settings(max_examples=60)
@given(grid=grids, share=st.floats(0.01, 0.99))
def test_a_carried_rate_is_returned(grid, share):
    room = fitting(grid)
    limit = running_limit(grid, room)
    capacity = float(batch_state(grid, num_seqs=limit).rate_req_s)
    opened = open_loop(grid, room, share * capacity)
    assert not opened.saturated
    assert opened.capacity_req_s == pytest.approx(capacity, rel=1e-12)
    assert opened.state.rate_req_s == pytest.approx(share * capacity, rel=1e-6)
    assert opened.state.num_running_seqs <= limit
    assert opened.state.num_queued_seqs == pytest.approx(
        float(opened.state.rate_req_s * opened.state.admission_s), rel=1e-12, abs=1e-300)


@settings(max_examples=60)
@given(grid=grids, factor=st.sampled_from([0.5, 0.999999, 1.0, 1.000001, 3.0]))
def test_saturated_where_the_rate_reaches_the_capacity(grid, factor):
    room = fitting(grid)
    capacity = batch_state(grid, num_seqs=running_limit(grid, room)).rate_req_s
    opened = open_loop(grid, room, factor * capacity)
    assert bool(opened.saturated) is (factor >= 1.0)
    assert np.isinf(opened.state.admission_s) == (factor >= 1.0)
    assert opened.state.rate_req_s <= capacity * (1 + 1e-12)


def test_waiting_grows_with_the_rate():
    grid = make_grid(tiny_model(), round_hardware(), round_engine())
    room = kv_room(grid)
    capacity = batch_state(grid, num_seqs=running_limit(grid, room)).rate_req_s
    opened = open_loop(grid, room, capacity * np.linspace(0.1, 0.99, 12))
    assert (np.diff(opened.state.admission_s) > 0).all()
    assert (np.diff(latency_of(grid, opened.state).e2e_s) > 0).all()


def test_littles_law_of_requests():
    # rate * (time in the batch) against the sequences in it. The time adds a wait of half a step that
    # no place in the batch is held for, and charges a request's own prefill at the mixed step.
    grid = make_grid(tiny_model(), round_hardware(), round_engine(), isl_tok=256.0, osl_tok=512.0)
    room = kv_room(grid)
    capacity = batch_state(grid, num_seqs=running_limit(grid, room)).rate_req_s
    opened = open_loop(grid, room, capacity * np.linspace(0.1, 0.9, 9))
    inside = latency_of(grid, opened.state).e2e_s - opened.state.admission_s
    np.testing.assert_allclose(opened.state.rate_req_s * inside, opened.state.num_running_seqs, rtol=0.01)


@settings(max_examples=60)
@given(grid=grids, ttft=st.one_of(st.none(), st.floats(0.01, 20.0)), tpot=st.one_of(st.none(), st.floats(0.004, 0.1)))
def test_the_capacity_meets_the_targets_and_one_more_does_not(grid, ttft, tpot):
    room = fitting(grid)
    targets = Targets(ttft_s=ttft, tpot_s=tpot)
    best = slo_capacity(grid, room, targets)
    limit = max(np.floor(float(running_limit(grid, room))), 1.0)

    def meets(concurrency: float) -> bool:
        latency = latency_of(grid, closed_loop(grid, room, concurrency))
        return not ((ttft is not None and latency.ttft_s > ttft) or (tpot is not None and latency.tpot_s > tpot))

    assert bool(best.meets) is meets(1.0)
    assert 1.0 <= best.concurrency <= limit
    assert best.concurrency == int(best.concurrency)
    if best.meets:
        assert meets(float(best.concurrency))
        assert best.concurrency == limit or not meets(float(best.concurrency) + 1)


def test_preemption_by_recompute_and_by_swap():
    lengths = {"isl_tok": 100.0, "osl_tok": 250.0}
    recompute = make_grid(tiny_model(), SMALL_GPU, round_engine(), **lengths)
    swap = make_grid(tiny_model(), SMALL_GPU, round_engine(preemption=Preemption.SWAP), **lengths)
    calm = batch_state(recompute, num_seqs=20.0)
    again = batch_state(recompute, num_seqs=20.0, num_waiting=50.0, kv_full=True)
    moved = batch_state(swap, num_seqs=20.0, num_waiting=50.0, kv_full=True)
    # floor(250 / 100) = 2 evictions; each recomputes 100 tokens, or moves them out and in again:
    # 2 * 2 * (100 + 7.5) tokens * 1,024 bytes.
    assert (again.preemptions_per_req, again.recompute_tok_per_req, again.swap_bytes_per_req) == (2, 200, 0)
    assert (moved.preemptions_per_req, moved.recompute_tok_per_req) == (2, 0)
    assert moved.swap_bytes_per_req == pytest.approx(4 * 107.5 * 1024, rel=1e-12)
    # The link of 20 GB/s stands still for nothing else: x * bytes / rate on top of the steps.
    stall = moved.rate_req_s * moved.step_s * moved.swap_bytes_per_req / 20e9
    assert moved.step_s == pytest.approx(float(moved.mean_of("total_s") + stall), rel=1e-12)
    assert max(again.rate_req_s, moved.rate_req_s) < calm.rate_req_s
    assert calm.preemptions_per_req == 0


def test_batches_of_the_mean_step_by_hand():
    grid = make_grid(tiny_model(), round_hardware(), round_engine(), isl_tok=100.0, osl_tok=250.0)
    calm = batch_state(grid, num_seqs=20.0)
    finish = float(calm.rate_req_s * calm.step_s)
    # Each of 20 sequences is in prefill in n_p of its 249 + n_p steps; a mixed step needs one of them there.
    prefill_steps = float(calm.prefill_s / calm.mixed_step.total_s)
    assert calm.mixed_frac == pytest.approx(1 - (249 / (249 + prefill_steps)) ** 20, rel=1e-9)
    assert calm.num_decode_seqs == pytest.approx(249 * finish, rel=1e-12)
    assert calm.decode_batch.decode_context_tok == 225  # the prompt and half the output
    assert calm.mixed_batch.prefill_context_tok == 50  # half the prompt
    # Two evictions: three prefills of 100 tokens per request, one first token.
    again = batch_state(grid, num_seqs=20.0, num_waiting=50.0, kv_full=True)
    finish = float(again.rate_req_s * again.step_s)
    assert again.mixed_frac * again.mixed_batch.num_prefill_tok == pytest.approx(300 * finish, rel=1e-9)
    assert again.mixed_frac * again.mixed_batch.num_prefill_ends == pytest.approx(finish, rel=1e-9)


def test_latency_by_hand():
    overhead = q(0.03, "s")
    grid = make_grid(tiny_model(), round_hardware(), round_engine(request_overhead_s=overhead), isl_tok=100.0,
                     osl_tok=250.0)
    state = closed_loop(grid, kv_room(grid), 100.0)
    latency = latency_of(grid, state)
    # The wait for a place, half a step of the 63 others, the prefill and 30 ms; then 249 gaps in the time
    # in the batch (64 / X by Little's law) that the prefill leaves.
    ttft = float(state.admission_s + 0.5 * 63 / 64 * state.step_s + state.prefill_s) + 0.03
    tpot = float(64 / state.rate_req_s - state.prefill_s) / 249
    assert latency.ttft_s == pytest.approx(ttft, rel=1e-12)
    assert latency.tpot_s == pytest.approx(tpot, rel=1e-12)
    assert latency.tpot_s == pytest.approx(float(state.step_s), rel=0.01)
    assert latency.e2e_s == pytest.approx(ttft + 249 * tpot, rel=1e-12)
    assert np.isnan(latency_of(replace(grid, osl_tok=1.0), state).tpot_s)


def test_one_request_must_fit_at_its_full_length():
    grid = make_grid(tiny_model(), SMALL_GPU, round_engine())
    # 1,024 bytes per token: a prompt of one and an output of the whole cache fits in the mean, not in full.
    tokens = float(grid.memory().kv_bytes) / 1024
    for osl, fits in ((0.99 * tokens, True), (1.01 * tokens, False)):
        room = kv_room(replace(grid, isl_tok=1.0, osl_tok=osl))
        assert room.num_seqs > 1
        assert bool(room.fits_one) is fits


def test_reserving_the_full_length_runs_fewer_and_preempts_none():
    lengths = {"isl_tok": 100.0, "osl_tok": 1000.0, "max_num_seqs": 512.0}
    evict = make_grid(tiny_model(), SMALL_GPU, round_engine(), **lengths)
    reserve = replace(evict, engine=round_engine(preemption=Preemption.RESERVE))
    # (100 + 500 + 7.5) tokens in the mean against (100 + 1000 + 7.5).
    assert kv_room(evict).num_seqs / kv_room(reserve).num_seqs == pytest.approx(1107.5 / 607.5, rel=1e-12)
    assert closed_loop(evict, kv_room(evict), 1000.0).preemptions_per_req == 9.5
    assert closed_loop(reserve, kv_room(reserve), 1000.0).preemptions_per_req == 0


def test_requests_beyond_the_batch_queue():
    grid = make_grid(tiny_model(), round_hardware(), round_engine())
    state = closed_loop(grid, kv_room(grid), 100.0)
    # max_num_seqs 64: of the other 36 those wait that are not outside for the rest of a step; each waits for as
    # many finishes as are ahead of it.
    outside = float(state.rate_req_s * outside_of(grid, state))
    assert state.num_running_seqs == 64
    assert state.num_queued_seqs == pytest.approx(36 - outside, rel=1e-9)
    assert state.admission_s == pytest.approx(float(state.num_queued_seqs / state.rate_req_s), rel=1e-12)
    assert state.preemptions_per_req == 0  # not for want of memory


def test_only_the_stated_mechanism_changes_with_a_switch():
    plain = make_grid(tiny_model(), round_hardware(), round_engine(), tp=2.0)
    fast = replace(plain, engine=round_engine(Switches(async_sched=True, early_feedback=True)))
    room = kv_room(plain)
    slow_state, fast_state = closed_loop(plain, room, 32.0), closed_loop(fast, room, 32.0)
    assert kv_room(fast).num_seqs == room.num_seqs
    assert fast_state.num_decode_seqs == slow_state.num_decode_seqs
    assert fast_state.rate_req_s > slow_state.rate_req_s
