"""tpplanner.simulate: loads, capacities, ways out, and one error for each wrong argument."""

import json
from dataclasses import replace

import numpy as np
import pytest

import tpplanner
from tpplanner.api.question import question
from tpplanner.api.simulation_load import clients_of
from tpplanner.domain.plan import Reason
from tpplanner.domain.simulation import Router
from tpplanner.domain.traffic import Traffic
from tpplanner.domain.workload import LoadMode
from tpplanner.errors import WorkloadError
from tpplanner.planner.recommend import recommend as recommend_question
from tpplanner.report.simulation_json import parse_simulation_json

SMALL = {"model": "Qwen/Qwen2.5-7B-Instruct", "gpus": "4xh100-sxm"}
SHORT = {**SMALL, "isl": 256, "osl": 32, "num_requests": 60}
TRACE = Traffic(name="mine", isl_tok=np.full(80, 300), osl_tok=np.full(80, 20), arrival_s=np.arange(80) * 0.05)


def simulate(**asked):
    return tpplanner.simulate(**{**SHORT, **asked})


def traced(trace=TRACE, **asked):
    return tpplanner.simulate(**SMALL, trace=trace, **asked)


@pytest.fixture(scope="module")
def answer():
    return simulate(request_rate=20, ttft_ms=500, tpot_ms=50, num_timeline_steps=100)


# The answer and its ways out


def test_one_entry_per_degree_and_the_best_of_them(answer):
    assert [degree.tp for degree in answer.degrees] == [1, 2, 4]
    assert [degree.num_replicas for degree in answer.degrees] == [4, 2, 1]
    assert all(degree.meets_targets and degree.outcome.num_completed == 60 for degree in answer.degrees)
    shortest = min(answer.degrees, key=lambda degree: degree.outcome.e2e.mean_s)
    assert answer.best_tp == shortest.tp == answer.best_plan.tp
    assert answer.degree(2) is answer.degrees[1]
    assert answer.simulation.best is answer.degree(answer.best_tp)
    assert [plan.tp for plan in answer.recommendation.plans] == [1, 2, 4]


def test_ways_out(answer):
    assert answer.to_text().startswith("Serve Qwen/Qwen2.5-7B-Instruct at TP ")
    document = parse_simulation_json(answer.to_json())
    assert document.best.tp == answer.best_tp
    assert json.loads(answer.to_json())["traffic"]["num_requests"] == 60
    frame = answer.to_frame()
    assert frame.tp.tolist() == [1, 2, 4]
    assert frame.best.tolist() == [tp == answer.best_tp for tp in (1, 2, 4)]
    assert len(answer.requests()) == len(answer.requests(2)) == 60
    for kind in ("latency_cdf", "degrees", "load"):
        assert answer.plot(kind).axes


def test_what_was_not_simulated_is_one_error(answer):
    for call in (lambda: answer.degree(3), lambda: answer.requests(3), lambda: answer.plot("load", 8),
                 lambda: answer.degree("2")):
        with pytest.raises(WorkloadError, match="tp must be among 1, 2, 4"):
            call()
    with pytest.raises(WorkloadError, match="kind must be latency_cdf, degrees or load"):
        answer.plot("pie")


def test_degrees_by_name():
    assert [d.tp for d in simulate(request_rate=20, tp=2).degrees] == [2]
    assert [d.tp for d in simulate(request_rate=20, tp=(4, 1, 4)).degrees] == [1, 4]
    assert [d.tp for d in simulate(request_rate=20, tp=iter([2])).degrees] == [2]
    odd = simulate(request_rate=20, tp=[3, 64])
    assert [d.reason for d in odd.degrees] == [Reason.HEADS, Reason.HEADS]
    assert odd.best_tp is odd.best_plan is None


def test_a_degree_beyond_the_table_has_launch_lines_too():
    wide = tpplanner.simulate(model="meta-llama/Llama-3.1-70B-Instruct", gpus="16xh100-sxm", isl=256, osl=16, request_rate=2,
                              num_requests=20, tp=16)
    assert [plan.tp for plan in wide.recommendation.plans] == [1, 2, 4, 8]
    assert wide.best_tp == wide.best_plan.tp == 16


def test_a_run_repeats_itself_and_another_seed_is_another_run():
    asked = {"isl": "lognormal:256:1", "osl": "gamma:32:1", "request_rate": 50, "tp": 1, "router": "least-outstanding"}
    one, same, other = (simulate(**asked, seed=seed) for seed in (1, 1, 2))
    assert one.degree(1).outcome == same.degree(1).outcome
    for name in one.degree(1).detail.requests.__slots__:
        np.testing.assert_array_equal(getattr(one.degree(1).detail.requests, name), getattr(same.degree(1).detail.requests, name))
    assert one.degree(1).outcome != other.degree(1).outcome
    assert one.simulation.options.router is Router.LEAST_OUTSTANDING


def test_step_by_step_is_the_same():
    fast, slow = (simulate(request_rate=50, tp=2, num_requests=30, step_by_step=slowly).degree(2).outcome
                  for slowly in (False, True))
    assert fast.num_steps == slow.num_steps
    assert fast.e2e.p99_s == pytest.approx(slow.e2e.p99_s, rel=1e-9)


def test_progress_names_the_degree_and_its_requests():
    told = []
    simulate(request_rate=500, num_requests=2500, osl=2, tp=[1, 4], progress=lambda *args: told.append(args))
    assert told == [(1, 1000, 2500), (1, 2000, 2500), (4, 1000, 2500), (4, 2000, 2500)]


# Loads


def test_a_closed_loop_shares_its_clients_out():
    shared = simulate(concurrency=6, ramp_s=0.0)
    each, per_gpu = simulate(concurrency_per_replica=3, ramp_s=0.0), simulate(batch_per_gpu=3, ramp_s=0.0)
    for found, at_first in ((shared, ([2, 2, 1, 1], [3, 3], [6])), (each, ([3] * 4, [3, 3], [3])),
                            (per_gpu, ([3] * 4, [6, 6], [12]))):
        for degree, per_replica in zip(found.degrees, at_first, strict=True):
            log = degree.detail.requests
            assert np.bincount(log.replica[log.arrival_s == 0.0]).tolist() == per_replica


@pytest.mark.parametrize(("load", "clients"), [
    ({"concurrency": 3}, {1: [1, 1, 1, 0], 2: [2, 1], 4: [3]}), ({"concurrency": 0.2}, {1: [1, 0, 0, 0], 4: [1]}),
    ({"concurrency_per_replica": 2.6}, {1: [3] * 4, 4: [3]}), ({"batch_per_gpu": 0.1}, {1: [1, 0, 0, 0], 2: [1, 0], 4: [1]}),
    ({"batch_per_gpu": 1.5}, {1: [2, 2, 1, 1], 2: [3, 3], 4: [6]})])
def test_clients_of_each_replica(load, clients):
    asked = question(**SMALL, isl=256, osl=32, **load)
    for plan in recommend_question(asked, with_flip_points=False).plans:
        if plan.tp in clients:
            assert clients_of(asked, plan) == clients[plan.tp]


def test_clients_of_a_closed_loop_start_within_the_time_of_one_request_by_default():
    spread, at_once = (simulate(concurrency=8, tp=4, ramp_s=ramp_s).degree(4) for ramp_s in (None, 0.0))
    first = np.sort(spread.detail.requests.arrival_s)[:8]
    assert np.all(np.diff(first) > 0.0)
    assert first[-1] < 2.0 * spread.outcome.e2e.mean_s
    assert at_once.outcome.window_s == at_once.outcome.duration_s


def test_offline_is_the_default_and_ranks_by_throughput():
    queued = simulate()
    assert queued.simulation.question.load.mode is LoadMode.OFFLINE
    assert np.all(queued.degree(1).detail.requests.arrival_s == 0.0)
    assert queued.best_tp == max(queued.degrees, key=lambda d: d.outcome.throughput_tok_s).tp
    assert all(d.meets_targets for d in queued.degrees)


def test_a_rate_that_no_degree_serves_has_no_answer():
    swamped = simulate(request_rate=2000, osl=400, num_requests=300, max_num_seqs=8)
    assert swamped.best_tp is None
    assert all(d.outcome.saturated and not d.meets_targets for d in swamped.degrees)
    assert "saturated" in swamped.to_text()
    with pytest.raises(WorkloadError, match="tp must be given where no degree is feasible"):
        swamped.requests()
    assert swamped.plot("load").axes


def test_outputs_of_one_token_meet_any_tpot():
    ones = simulate(osl=1, request_rate=20, tpot_ms=1e-3)
    assert all(d.meets_targets and d.outcome.goodput_frac == 1.0 and d.outcome.tpot is None for d in ones.degrees)


@pytest.mark.parametrize("load", [{}, {"request_rate": 5}, {"concurrency": 4}, {"ttft_ms": 500}])
def test_where_nothing_fits_there_is_no_answer(load):
    none = simulate(isl=600_000, osl=10, tp=1, num_requests=25, num_gpu_blocks=1000, **load)
    [degree] = none.degrees
    assert none.best_tp is None
    if degree.outcome is not None:
        assert (degree.outcome.num_completed, degree.outcome.num_unservable) == (0, 25)
    assert "kv_cache" in none.to_text()


def test_what_does_not_fit_is_left_out_and_told():
    isl = np.full(40, 200)
    isl[::10] = 50_000
    some = traced(Traffic(name="some", isl_tok=isl, osl_tok=np.full(40, 20), arrival_s=np.arange(40) * 0.1), num_gpu_blocks=1000,
                  tp=1)
    outcome = some.degree(1).outcome
    assert (outcome.num_unservable, outcome.num_completed) == (4, 36)
    assert "4 of 40 requests never fit into the KV cache" in some.to_text()


# Traces


def test_a_trace_is_replayed_at_its_own_rate():
    own = traced()
    assert own.simulation.question.load.mode is LoadMode.REQUEST_RATE
    assert own.simulation.question.load.value == pytest.approx(TRACE.rate_req_s)
    assert own.simulation.question.workload.isl_tok == 300
    np.testing.assert_array_equal(own.degree(1).detail.requests.arrival_s, TRACE.arrival_s)
    stretched = traced(request_rate=5, tp=1)
    np.testing.assert_allclose(stretched.degree(1).detail.requests.arrival_s, TRACE.arrival_s * TRACE.rate_req_s / 5)
    closed = traced(concurrency=4, tp=1)
    assert closed.simulation.traffic.arrival_s is None


def test_a_trace_with_targets_is_replayed_and_with_arrivals_of_its_own_searched():
    held = traced(ttft_ms=500, tp=1)
    assert held.simulation.question.load.mode is LoadMode.REQUEST_RATE
    searched = traced(ttft_ms=500, tp=1, arrivals="poisson")
    assert searched.simulation.question.load.mode is LoadMode.SLO_CAPACITY
    assert searched.degree(1).outcome.offered_rate_req_s > TRACE.rate_req_s


def test_the_fewest_gpus_for_a_trace():
    # Its own rate is the load that the GPUs are counted for.
    fast = replace(TRACE, arrival_s=TRACE.arrival_s / 40)
    needed = tpplanner.simulate(model="Qwen/Qwen2.5-7B-Instruct", gpus="l40s", trace=fast, ttft_ms=2000)
    assert needed.simulation.question.num_gpus > 1
    assert needed.simulation.question.load.value == pytest.approx(fast.rate_req_s)


def test_a_named_workload_brings_its_concurrency_and_sampling():
    named = tpplanner.simulate(model="Qwen/Qwen2.5-7B-Instruct", gpus="1xh100-sxm", workload="albireo", num_requests=40)
    asked = named.simulation.question
    assert (asked.load.mode, asked.load.value, asked.sampling.value) == (LoadMode.CONCURRENCY_PER_REPLICA, 256.0, "full")


def test_prefix_caching_needs_prefixes():
    shared = replace(TRACE, isl_tok=np.full(80, 2048), prefix_ids=tuple((7, 8, 9, 1000 + i) for i in range(80)),
                     prefix_block_tok=512)
    off, on = (traced(shared, tp=1, prefix_caching=cached) for cached in (False, True))
    assert off.degree(1).outcome.prefix_hit_frac == 0.0
    # Each of four replicas computes the shared three quarters once.
    assert on.degree(1).outcome.prefix_hit_frac == pytest.approx(0.75 * 76 / 80)
    assert on.degree(1).outcome.ttft.mean_s < 0.9 * off.degree(1).outcome.ttft.mean_s
    assert on.simulation.warnings == off.simulation.warnings
    unknown = traced(prefix_caching=True, tp=1)
    assert any("prefix caching finds nothing" in line for line in unknown.simulation.warnings)
