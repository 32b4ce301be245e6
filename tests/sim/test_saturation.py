"""Which runs are called saturated, and which are too short to tell."""

from dataclasses import replace

import numpy as np
import pytest
from request_logs import log_of, served_in_turn
from simulations import run, small_grid, traffic

from tpplanner.domain.simulation import SimulationOptions
from tpplanner.sim.metrics import has_settled, is_saturated

QUIET = SimulationOptions()


@pytest.mark.parametrize("num_requests", [20, 100, 1000, 5000])
def test_a_server_that_is_too_slow_is_saturated(num_requests):
    # One a second, each takes 1.25 s: the queue takes a fifth of what arrives.
    log = served_in_turn(np.ones(num_requests), 1.25)
    assert is_saturated(log) == (num_requests >= 100)  # 20 arrivals queue for two seconds: chance


@pytest.mark.parametrize("num_requests", [20, 100, 1000, 5000])
def test_a_server_that_keeps_up_is_not(num_requests):
    assert not is_saturated(served_in_turn(np.ones(num_requests), 0.99))


@pytest.mark.parametrize("burstiness_cv", [1.0, 3.0])
def test_bursts_are_no_saturation(burstiness_cv):
    rng = np.random.default_rng(0)
    told = {load: sum(is_saturated(served_in_turn(rng.gamma(burstiness_cv**-2, burstiness_cv**2, 2000) / load, 1.0))
                      for _ in range(50)) for load in (0.5, 0.7, 0.8, 1.5)}
    assert told[0.5] == told[0.7] == 0
    assert told[0.8] <= 2
    assert told[1.5] == 50


def test_a_queue_that_drains_again_is_no_saturation():
    # A burst in the middle of a quiet run: some 90 wait, and the queue is empty again after 450 s of the 500 that follow.
    gaps = np.ones(1000)
    gaps[400:500] = 0.1
    assert not is_saturated(served_in_turn(gaps, 0.8))


def test_a_queue_that_shrinks_and_does_not_drain_is_saturation():
    # Three times as many: over the whole run 1.37 arrive and 1.25 are served per second, and 200 wait at the end.
    gaps = np.ones(1000)
    gaps[400:700] = 0.1
    assert is_saturated(served_in_turn(gaps, 0.8))


def test_too_few_requests_or_all_at_once_tell_nothing():
    slow = served_in_turn(np.ones(19), 50.0)
    assert not is_saturated(slow)
    assert is_saturated(served_in_turn(np.ones(200), 50.0))
    assert not is_saturated(log_of(np.zeros(100), start_s=np.arange(100.0), finish_s=np.arange(100.0) + 1.0))


def test_requests_that_never_fit_are_none_that_wait():
    log = served_in_turn(np.ones(200), 0.9)
    unservable = np.arange(200) >= 150
    never = replace(log, replica=np.where(unservable, -1, 0), start_s=np.where(unservable, np.nan, log.start_s),
                    finish_s=np.where(unservable, np.nan, log.finish_s))
    assert not is_saturated(never)
    assert not is_saturated(replace(never, replica=np.full(200, -1)))


def test_a_batch_that_takes_in_more_than_it_serves_is_saturated_without_a_queue():
    # Everyone starts at once and 1.2 arrive for each that leaves: 1,000 arrivals in 833 s, the last of them leaves at 1,000 s.
    arrival = np.arange(1000) / 1.2
    growing = log_of(arrival, finish_s=np.arange(1000) + 1.0)
    assert has_settled(growing)
    assert is_saturated(growing)
    assert not is_saturated(replace(growing, finish_s=arrival + 50.0))


def test_a_run_in_which_the_batch_fills_all_the_while_tells_nothing():
    # Each takes 80 s and the last one arrives after 99: what is in flight grows until 80 s, though nobody holds anyone up.
    filling = log_of(np.arange(1000) * 0.1, finish_s=np.arange(1000) * 0.1 + 80.0)
    assert not has_settled(filling)
    assert not is_saturated(filling)
    assert has_settled(replace(filling, finish_s=filling.arrival_s + 49.9))
    assert not has_settled(replace(filling, finish_s=np.full(1000, np.nan)))


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_saturation_of_real_runs(factor):
    # The service rate: what a batch of 16 does when everything is queued.
    grid = small_grid(max_num_seqs=16.0)
    offline, _ = run(grid, traffic(200, 60, np.zeros(320), count=320), options=QUIET)
    rate = factor * offline.request_rate_req_s
    gaps = np.random.default_rng(1).exponential(1 / rate, 1000)
    outcome, _ = run(grid, traffic(200, 60, np.cumsum(gaps), count=1000), options=QUIET)
    assert outcome.saturated == (factor > 1)
    assert outcome.offered_rate_req_s == pytest.approx(rate, rel=0.1)
    if outcome.saturated:
        assert outcome.request_rate_req_s == pytest.approx(offline.request_rate_req_s, rel=0.05)
