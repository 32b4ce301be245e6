"""The simulator against the closed form, queueing theory and itself."""

from dataclasses import replace

import numpy as np
import pytest
from builders import round_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from simulations import OVERLAPPED, run, small_grid, traffic

from tpplanner.api.question import question
from tpplanner.cost.latency import latency_of
from tpplanner.cost.outside import entry_s
from tpplanner.cost.replica import kv_room
from tpplanner.cost.steady_state import closed_loop
from tpplanner.domain.engine import Switches
from tpplanner.domain.simulation import SimulationOptions
from tpplanner.domain.step import Batch
from tpplanner.planner.plans import grid_of


@pytest.mark.parametrize("switches", [Switches(), OVERLAPPED])
@pytest.mark.parametrize(("isl", "osl"), [(100, 2), (256, 129), (17, 1000), (5000, 40)])
def test_one_request_takes_the_mean_step_of_its_contexts(switches, isl, osl):
    grid = small_grid(switches=switches, max_num_batched_tokens=8192.0, max_num_seqs=8.0)
    outcome, detail = run(grid, traffic([isl], [osl], [0.0]))
    # Token j + 1 comes of a step that attends to isl + j tokens, j = 1 ... osl - 1.
    steps = [float(grid.step(Batch(num_decode_seqs=1.0, decode_context_tok=float(isl + j))).total_s) for j in range(1, osl)]
    assert outcome.tpot.mean_s == pytest.approx(np.mean(steps), rel=1e-9)
    prompt = Batch(num_decode_seqs=0.0, decode_context_tok=0.0, num_prefill_tok=float(isl), prefill_context_tok=isl / 2.0,
                   num_prefill_seqs=1.0, num_prefill_ends=1.0)
    before_s = float(entry_s(grid, num_seqs=1.0, decode_s=0.0, prefill_s=0.0))
    assert outcome.ttft.mean_s == pytest.approx(before_s + float(grid.step(prompt).total_s), rel=1e-9)
    assert detail.requests.num_preemptions.sum() == 0


@pytest.mark.parametrize("engine", ["vllm-0.11", "albireo", "sglang-0.5"])
@pytest.mark.parametrize(("isl", "osl", "clients"), [(1024, 256, 16), (128, 512, 64), (1024, 1024, 32)])
def test_constant_lengths_with_ample_cache_give_the_throughput_of_the_closed_form(engine, isl, osl, clients):
    asked = question(model="Qwen/Qwen2.5-32B-Instruct", gpus="8xh100-sxm", isl=isl, osl=osl, concurrency_per_replica=clients,
                     engine=engine)
    grid = replace(grid_of(asked, [4]), tp=4.0)
    state = closed_loop(grid, kv_room(grid), float(clients))
    requests = traffic(isl, osl, count=20 * clients)
    outcome, _ = run(grid, requests, clients=[clients], ramp_s=float(latency_of(grid, state).e2e_s))
    assert outcome.throughput_tok_s == pytest.approx(osl * float(state.rate_req_s), rel=0.02)
    assert outcome.tpot.mean_s == pytest.approx(float(latency_of(grid, state).tpot_s), rel=0.02)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_waits_as_queueing_theory_says(load):
    # One sequence at a time, all alike: M/D/1, whose mean wait is load / (2 (1 - load)) of the service time.
    grid = small_grid(max_num_seqs=1.0)
    service_s = run(grid, traffic([64], [20], [0.0]))[0].e2e.mean_s
    service_s -= float(entry_s(grid, num_seqs=1.0, decode_s=0.0, prefill_s=0.0))
    count = 20_000
    gaps = np.random.default_rng(7).exponential(service_s / load, count)
    outcome, _ = run(grid, traffic(64, 20, np.cumsum(gaps), count=count), options=SimulationOptions())
    assert outcome.queue.mean_s == pytest.approx(load / (2.0 * (1.0 - load)) * service_s, rel=0.05)
    assert not outcome.saturated




@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), rate=st.floats(0.5, 200.0), num_replicas=st.integers(1, 3), blocks=st.integers(60, 400))
def test_littles_law_holds(seed, rate, num_replicas, blocks):
    rng = np.random.default_rng(seed)
    requests = traffic(rng.integers(1, 500, 60), rng.integers(1, 200, 60), np.cumsum(rng.exponential(1 / rate, 60)))
    outcome, detail = run(small_grid(num_gpu_blocks=float(blocks), max_num_seqs=8.0), requests, num_replicas=num_replicas)
    log = detail.requests
    done = log.completed
    # The mean number in the system, from the times at which it changes, against rate x time in the system.
    times = np.concatenate([log.arrival_s[done], log.finish_s[done]])
    order = np.argsort(times, kind="stable")
    change = np.concatenate([np.ones(done.sum()), -np.ones(done.sum())])[order]
    present, times = np.cumsum(change)[:-1], times[order]
    mean_present = float((present * np.diff(times)).sum()) / outcome.duration_s
    assert mean_present == pytest.approx(outcome.num_completed / outcome.duration_s * outcome.e2e.mean_s, rel=1e-9)
    assert np.all(log.arrival_s <= log.start_s)
    assert np.all(log.start_s[done] < log.first_token_s[done])
    assert np.all(log.first_token_s[done] <= log.finish_s[done])


def test_a_few_steps_by_hand():
    # A budget of 8 tokens and two requests, both there at the start.
    engine = replace(round_engine(), request_overhead_s=None)
    grid = small_grid(max_num_seqs=2.0, max_num_batched_tokens=8.0)
    grid = replace(grid, engine=engine)
    outcome, detail = run(grid, traffic([12, 4], [3, 2], [0.0, 0.0]))
    steps = detail.steps
    # Step 1: 8 tokens of the first prompt. Step 2: its last 4, and the second prompt in the rest of the budget: two first
    # tokens. Step 3: both decode, the second one ends. Step 4: the first one decodes and ends.
    assert steps.num_prefill_tok.tolist() == [8, 8, 0, 0]
    assert steps.num_decode_seqs.tolist() == [0, 0, 2, 1]
    ends = np.cumsum(steps.duration_s)
    assert detail.requests.first_token_s == pytest.approx([ends[1], ends[1]])
    assert detail.requests.finish_s == pytest.approx([ends[3], ends[2]])
    assert outcome.num_steps == 4


def test_overlap_pays_one_row_per_request_that_stops():
    requests = traffic([100, 100, 100], [10, 20, 30], [0.0, 0.0, 0.0])
    plain, overlapped = (run(small_grid(switches=s), requests)[0] for s in (Switches(), OVERLAPPED))
    assert plain.num_unused_rows == 0
    assert overlapped.num_unused_rows == 3
    assert overlapped.num_steps == plain.num_steps + 1
