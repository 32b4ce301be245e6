"""Who serves which request, and when: routers, clients of closed loops, requests that never fit."""

from dataclasses import replace

import numpy as np
import pytest
from builders import round_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from simulations import OVERLAPPED, run, small_grid, traffic

from tpplanner.domain.engine import Preemption, Switches
from tpplanner.domain.simulation import RequestLog, Router, SimulationOptions

LEAST = SimulationOptions(router=Router.LEAST_OUTSTANDING)
TINY_CACHE = {"num_gpu_blocks": 8.0}
"""Eight blocks of 16 tokens."""


def in_flight(log: RequestLog, replica: int) -> np.ndarray:
    """Requests of a replica between arrival and last token, after each of the times at which that changes."""
    own = log.replica == replica
    times = np.unique(np.concatenate([log.arrival_s[own], log.finish_s[own]]))
    return np.searchsorted(np.sort(log.arrival_s[own]), times, side="right") - np.searchsorted(
        np.sort(log.finish_s[own]), times, side="right")


# Routers


def test_round_robin_deals_in_turn():
    _, detail = run(small_grid(), traffic(50, 5, np.arange(9) * 0.001, count=9), num_replicas=3)
    assert detail.requests.replica.tolist() == [0, 1, 2] * 3


def test_round_robin_takes_no_turn_for_a_request_that_never_fits():
    isl = np.full(7, 20)
    isl[2] = 10_000
    outcome, detail = run(small_grid(**TINY_CACHE), traffic(isl, 5, np.arange(7.0)), num_replicas=2)
    assert detail.requests.replica.tolist() == [0, 1, -1, 0, 1, 0, 1]
    assert outcome.num_unservable == 1


def test_least_outstanding_sends_to_the_idle_replica():
    # Request 0 keeps replica 0 busy for long. All later ones come one after the other and find replica 1 idle.
    osl = np.full(6, 2)
    osl[0] = 2000
    requests = traffic(50, osl, [0.0, 0.001, 1.0, 2.0, 3.0, 4.0], count=6)
    _, turns = run(small_grid(), requests, num_replicas=2)
    _, least = run(small_grid(), requests, num_replicas=2, options=LEAST)
    assert turns.requests.replica.tolist() == [0, 1, 0, 1, 0, 1]
    assert least.requests.replica.tolist() == [0, 1, 1, 1, 1, 1]
    assert least.requests.finish_s[0] > 4.0


def test_least_outstanding_counts_what_is_in_flight_and_prefers_the_first():
    # Six at once on three replicas: two each, the first replica first.
    _, detail = run(small_grid(), traffic(50, 50, np.zeros(6), count=6), num_replicas=3, options=LEAST)
    assert detail.requests.replica.tolist() == [0, 1, 2, 0, 1, 2]


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), switches=st.sampled_from([Switches(), OVERLAPPED]))
def test_least_outstanding_never_picks_a_replica_with_more_in_flight(seed, switches):
    rng = np.random.default_rng(seed)
    requests = traffic(rng.integers(1, 300, 40), rng.integers(1, 60, 40), np.cumsum(rng.exponential(0.05, 40)))
    log = run(small_grid(switches=switches, max_num_seqs=4.0), requests, num_replicas=3, options=LEAST)[1].requests
    for i, at_s in enumerate(log.arrival_s):
        before = np.arange(40) < i
        outstanding = [int(np.sum(before & (log.replica == r) & (log.finish_s > at_s))) for r in range(3)]
        assert outstanding[log.replica[i]] == min(outstanding)


def test_least_outstanding_shortens_the_wait_where_lengths_vary():
    rng = np.random.default_rng(3)
    requests = traffic(rng.integers(1, 400, 200), rng.integers(1, 400, 200), np.cumsum(rng.exponential(0.09, 200)))
    grid = small_grid(max_num_seqs=2.0)
    turns, least = (run(grid, requests, num_replicas=4, options=o)[0] for o in (SimulationOptions(), LEAST))
    assert least.queue.mean_s < 0.7 * turns.queue.mean_s


# Requests that never fit


@pytest.mark.parametrize("preemption", list(Preemption))
@pytest.mark.parametrize("closed", [False, True])
def test_what_never_fits_is_counted_and_never_started_and_the_rest_is_served(preemption, closed):
    grid = small_grid(**TINY_CACHE)
    grid = replace(grid, engine=replace(grid.engine, preemption=preemption))
    # 8 blocks of 16 hold 128 tokens: 120 + 8 fit, 121 + 8 do not.
    isl, osl = np.array([120, 121, 10, 5000, 60, 10]), np.array([8, 8, 118, 1, 60, 5000])
    fits = isl + osl <= 128
    changes = {"clients": [2]} if closed else {}
    outcome, detail = run(grid, traffic(isl, osl, None if closed else np.arange(6.0)), **changes)
    log = detail.requests
    assert (outcome.num_requests, outcome.num_completed, outcome.num_unservable) == (6, 3, 3)
    assert log.completed.tolist() == fits.tolist() == [True, False, True, False, True, False]
    assert np.all(log.replica[~fits] == -1)
    assert np.all(np.isnan(log.start_s[~fits]))
    assert np.all(np.isnan(log.first_token_s[~fits]))


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("step_by_step", [False, True])
def test_where_nothing_fits_nothing_runs(closed, step_by_step):
    changes = {"clients": [2, 1]} if closed else {}
    requests = traffic(500, 10, None if closed else np.arange(5.0), count=5)
    outcome, detail = run(small_grid(**TINY_CACHE), requests, num_replicas=2, step_by_step=step_by_step, **changes)
    assert (outcome.num_completed, outcome.num_unservable, outcome.num_steps) == (0, 5, 0)
    assert outcome.ttft is outcome.tpot is outcome.itl is outcome.e2e is outcome.queue is outcome.energy_j_per_tok is None
    assert (outcome.throughput_tok_s, outcome.duration_s, outcome.busy_frac, outcome.kv_peak_frac) == (0.0, 0.0, 0.0, 0.0)
    assert not outcome.saturated
    assert [series.num_running_seqs.max() for series in detail.series] == [0.0, 0.0]


def test_a_watermark_leaves_less_room():
    # Half of eight blocks are kept free: 64 tokens fit, 65 do not.
    half = SimulationOptions(watermark_frac=0.5)
    outcome, detail = run(small_grid(**TINY_CACHE), traffic([60, 61], [4, 4], [0.0, 0.0]), options=half)
    assert detail.requests.completed.tolist() == [True, False]
    assert outcome.num_unservable == 1


# Short and single


def test_one_request():
    outcome, detail = run(small_grid(), traffic([100], [10], [3.0]))
    log = detail.requests
    assert (outcome.num_completed, outcome.offered_rate_req_s, outcome.saturated) == (1, None, False)
    assert outcome.ttft.mean_s == outcome.ttft.p50_s == outcome.ttft.p99_s == log.ttft_s[0]
    assert outcome.duration_s == pytest.approx(log.finish_s[0] - 3.0)
    assert outcome.throughput_tok_s == pytest.approx(10 / outcome.duration_s)
    assert outcome.queue.mean_s == pytest.approx(0.0, abs=1e-9)


def test_an_output_of_one_token_has_a_first_token_and_no_gaps():
    outcome, detail = run(small_grid(), traffic(100, [1, 1, 5], [0.0, 0.1, 0.2], count=3))
    log = detail.requests
    np.testing.assert_array_equal(log.first_token_s[:2], log.finish_s[:2])
    assert np.isnan(log.tpot_s).tolist() == [True, True, False]
    assert outcome.tpot.mean_s == outcome.tpot.p99_s == log.tpot_s[2]
    only_ones, _ = run(small_grid(), traffic(100, 1, np.arange(3.0), count=3))
    assert only_ones.tpot is only_ones.itl is None
    assert only_ones.ttft == only_ones.e2e


# Closed loops


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), clients=st.lists(st.integers(0, 5), min_size=1, max_size=3),
       switches=st.sampled_from([Switches(), OVERLAPPED]))
def test_a_closed_loop_keeps_its_clients_in_flight(seed, clients, switches):
    clients = [max(clients[0], 1), *clients[1:]]
    rng = np.random.default_rng(seed)
    requests = traffic(rng.integers(1, 300, 60), rng.integers(1, 80, 60))
    _, detail = run(small_grid(switches=switches, max_num_seqs=3.0), requests, num_replicas=len(clients), clients=clients)
    log = detail.requests
    assert log.completed.all()
    last_s = log.arrival_s.max()
    for replica, count in enumerate(clients):
        assert np.all(in_flight(log, replica) <= count)
        own = log.replica == replica
        # A client asks when it has been answered, at that very time, until there is nothing left to ask.
        asked, answered = np.sort(log.arrival_s[own]), np.sort(log.finish_s[own])
        assert np.all(asked[:count] == 0.0)
        np.testing.assert_array_equal(asked[count:], answered[: max(asked.size - count, 0)])
        assert np.sum(answered < last_s) <= max(asked.size - count, 0)


def test_a_closed_loop_with_fewer_clients_than_replicas_uses_as_many_replicas():
    outcome, detail = run(small_grid(), traffic(50, 10, count=30), num_replicas=3, clients=[1, 1, 0])
    assert sorted(set(detail.requests.replica.tolist())) == [0, 1]
    assert outcome.num_completed == 30
    assert outcome.mean_running_seqs == pytest.approx(2 / 3)
    assert detail.series[2].num_running_seqs.max() == 0.0


def test_more_clients_than_requests_end_with_the_requests():
    # A billion clients on two replicas: what is there is dealt, one client each.
    outcome, detail = run(small_grid(), traffic(50, 10, count=7), num_replicas=2, clients=[10**9, 10**9], ramp_s=5.0)
    assert detail.requests.replica.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert outcome.num_completed == 7


def test_the_clients_of_a_ramp_start_evenly():
    _, detail = run(small_grid(), traffic(50, 400, count=8), num_replicas=2, clients=[4, 2], ramp_s=1.0)
    log = detail.requests
    assert np.sort(log.arrival_s[log.replica == 0])[:4].tolist() == [0.0, 0.25, 0.5, 0.75]
    assert np.sort(log.arrival_s[log.replica == 1])[:2].tolist() == [0.0, 0.5]


def test_requests_of_a_closed_loop_are_drawn_in_the_order_of_time():
    rng = np.random.default_rng(5)
    requests = traffic(rng.integers(1, 300, 80), rng.integers(1, 80, 80))
    log = run(small_grid(), requests, num_replicas=3, clients=[3, 3, 3])[1].requests
    assert np.all(np.diff(log.arrival_s) >= 0.0)


# Everything at once


def test_offline_everything_arrives_at_the_start_and_the_batch_is_filled_in_order():
    grid = small_grid(max_num_seqs=4.0)
    outcome, detail = run(grid, traffic(50, 20, np.zeros(20), count=20))
    log = detail.requests
    assert outcome.offered_rate_req_s is None
    assert not outcome.saturated
    assert outcome.num_completed == 20
    assert np.all(np.diff(log.start_s) >= 0.0)
    assert max(series.num_running_seqs.max() for series in detail.series) == 4.0
    assert outcome.throughput_tok_s == pytest.approx(20 * 20 / outcome.duration_s)


def test_longer_tokens_per_step_never_lower_the_throughput_offline():
    grid, requests = small_grid(max_num_seqs=8.0), traffic(500, 20, np.zeros(40), count=40)
    small, large = (run(replace(grid, max_num_batched_tokens=tok), requests)[0] for tok in (128.0, 2048.0))
    assert large.throughput_tok_s > small.throughput_tok_s


# The same again


@pytest.mark.parametrize("router", list(Router))
def test_a_run_repeats_itself(router):
    rng = np.random.default_rng(0)
    requests = traffic(rng.integers(1, 300, 80), rng.integers(1, 80, 80), np.cumsum(rng.exponential(0.02, 80)))
    options = SimulationOptions(router=router, num_timeline_steps=1000)
    (one, a), (two, b) = (run(small_grid(num_gpu_blocks=60.0), requests, num_replicas=2, options=options) for _ in range(2))
    assert one == two
    for log in ("requests", "steps"):
        for name in getattr(a, log).__slots__:
            np.testing.assert_array_equal(getattr(getattr(a, log), name), getattr(getattr(b, log), name))
    for mine, theirs in zip(a.series, b.series, strict=True):
        for name in mine.__slots__:
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_progress_tells_every_thousandth_request():
    told: list[int] = []
    run(small_grid(), traffic(10, 2, np.arange(2500) * 0.01, count=2500), options=SimulationOptions(), progress=told.append)
    assert told == [1000, 2000]


# Prefixes


@pytest.mark.parametrize("router", list(Router))
def test_prefix_caching_shortens_the_first_token_of_shared_prompts(router):
    # Prompts of 8,192 tokens, four steps long: three blocks of 2,048 shared by all, and one of their own.
    ids = tuple((1, 2, 3, 100 + i) for i in range(60))
    requests = replace(traffic(8192, 20, np.arange(60) * 0.2, count=60), prefix_ids=ids, prefix_block_tok=2048)
    off, on = (run(small_grid(), requests, options=SimulationOptions(router=router, prefix_caching=cached))[0]
               for cached in (False, True))
    assert off.prefix_hit_frac == 0.0
    # All but the first request find 6,144 of 8,192 tokens.
    assert on.prefix_hit_frac == pytest.approx(0.75 * 59 / 60)
    assert on.ttft.mean_s < 0.5 * off.ttft.mean_s
    assert on.num_completed == off.num_completed == 60


def test_prefix_caching_finds_nothing_where_nothing_is_shared():
    plain = traffic(512, 20, np.arange(20) * 0.05, count=20)
    own = replace(plain, prefix_ids=tuple((i,) for i in range(20)), prefix_block_tok=512)
    cached = SimulationOptions(prefix_caching=True)
    for requests in (plain, own):
        outcome, _ = run(small_grid(), requests, options=cached)
        assert outcome.prefix_hit_frac == 0.0
        assert outcome == run(small_grid(), requests, options=SimulationOptions())[0]


def test_an_engine_that_takes_no_time_outside_starts_at_the_arrival():
    grid = replace(small_grid(), engine=replace(round_engine(), request_overhead_s=None))
    log = run(grid, traffic(50, 5, [0.0, 1.0, 2.0], count=3))[1].requests
    np.testing.assert_array_equal(log.start_s, [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(log.outside_s, np.zeros(3))
