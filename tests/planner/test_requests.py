"""What one request sees: alone on a replica, and Little's law over many."""

from dataclasses import replace

import numpy as np
import pytest
from builders import make_grid, q, round_engine, round_hardware, tiny_model, tiny_moe

from tpplanner.cost.latency import latency_of
from tpplanner.cost.replica import ReplicaGrid, kv_room
from tpplanner.cost.steady_state import closed_loop
from tpplanner.domain.step import Batch
from tpplanner.planner.open_loop import open_loop


def one_by_one_s(grid: ReplicaGrid) -> tuple[float, float]:
    """Prefill and mean decode step of a lone request, summed step by step [s]."""
    num_chunks = int(np.ceil(grid.isl_tok / grid.max_num_batched_tokens))
    chunk = grid.isl_tok / num_chunks
    prefill = sum(
        float(grid.step(Batch(num_decode_seqs=0.0, decode_context_tok=0.0, num_prefill_tok=chunk,
                              prefill_context_tok=chunk * (i + 0.5), num_prefill_seqs=1.0,
                              num_prefill_ends=float(i == num_chunks - 1))).total_s)
        for i in range(num_chunks)
    )
    context = grid.isl_tok + np.arange(1.0, grid.osl_tok)
    return prefill, float(np.mean(grid.step(Batch(num_decode_seqs=1.0, decode_context_tok=context)).total_s))


@pytest.mark.parametrize(("isl", "osl", "within"), [
    # The closed form takes one mean context and lets a step carry a Poisson number of prompts; the
    # shorter the output, the more that matters.
    (256, 1024, 1e-3), (1024, 256, 2e-3), (2048, 32, 0.02), (8000, 16, 0.03),
])
def test_a_lone_request_takes_the_sum_of_its_steps(isl, osl, within):
    grid = make_grid(tiny_model(), round_hardware(), round_engine(), isl_tok=float(isl), osl_tok=float(osl))
    prefill, decode = one_by_one_s(grid)
    rate = closed_loop(grid, kv_room(grid), 1.0).rate_req_s
    assert rate == pytest.approx(1.0 / (prefill + (osl - 1) * decode), rel=within)


def test_tpot_of_a_lone_request_is_its_mean_decode_step():
    grid = make_grid(tiny_model(), round_hardware(), round_engine(), isl_tok=8000.0, osl_tok=16.0)
    tpot = latency_of(grid, closed_loop(grid, kv_room(grid), 1.0)).tpot_s
    assert tpot == pytest.approx(one_by_one_s(grid)[1], rel=0.05)


def test_a_nearly_idle_replica_is_no_faster_than_one_request():
    grid = make_grid(tiny_model(mlp=tiny_moe(), num_layers=32), round_hardware(), round_engine())
    room = kv_room(grid)
    alone = latency_of(grid, closed_loop(grid, room, 1.0)).tpot_s
    idle = latency_of(grid, open_loop(grid, room, 1e-3).state).tpot_s
    assert idle >= alone * 0.99


def test_prefill_only_replica_has_no_empty_steps():
    grid = make_grid(tiny_model(), round_hardware(), round_engine(), isl_tok=1024.0, osl_tok=1.0)
    prefill, _ = one_by_one_s(replace(grid, osl_tok=2.0))
    assert closed_loop(grid, kv_room(grid), 1.0).rate_req_s == pytest.approx(1.0 / prefill, rel=0.02)


@pytest.mark.parametrize("overhead_s", [0.0, 0.03, 0.5])
@pytest.mark.parametrize(("isl", "osl"), [(512.0, 64.0), (128.0, 8.0), (256.0, 512.0)])
def test_littles_law_of_the_closed_loop(overhead_s, isl, osl):
    # Every request in flight is somewhere: rate * e2e is the concurrency, whatever the batch, queue or overhead.
    engine = round_engine(request_overhead_s=q(overhead_s, "s"))
    grid = make_grid(tiny_model(), round_hardware(), engine, isl_tok=isl, osl_tok=osl)
    concurrency = np.array([1.0, 2.0, 7.0, 40.0, 64.0, 200.0])
    state = closed_loop(grid, kv_room(grid), concurrency)
    np.testing.assert_allclose(state.rate_req_s * latency_of(grid, state).e2e_s, concurrency, rtol=0.02)
