"""Figures of a run from logs made by hand, and what holds on every run."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from request_logs import log_of
from simulations import run, small_grid, traffic

from tpplanner.domain.simulation import SimulationOptions
from tpplanner.domain.workload import Targets
from tpplanner.sim.metrics import meets, quantiles_of, rates_of
from tpplanner.sim.run import Deployment, simulate

QUIET = SimulationOptions()


# Quantiles


def test_quantiles_by_hand():
    # 0 ... 100: every percentile is its own value. Two values: a straight line between them.
    of_101 = quantiles_of(np.arange(101.0))
    assert (of_101.mean_s, of_101.p50_s, of_101.p90_s, of_101.p99_s) == (50.0, 50.0, 90.0, 99.0)
    of_two = quantiles_of(np.array([3.0, 1.0]))
    assert (of_two.mean_s, of_two.p50_s) == (2.0, 2.0)
    assert (of_two.p90_s, of_two.p99_s) == pytest.approx((2.8, 2.98))
    assert quantiles_of(np.array([7.0])).p99_s == 7.0
    assert quantiles_of(np.zeros(0)) is None


# Goodput


def test_which_requests_meet_their_targets():
    # Arrive at 0; first tokens at 1 and 2 s; nine further tokens within 9 or 18 s: TPOT 1 or 2 s. The fifth has one token,
    # the last one never finishes.
    log = log_of(np.zeros(6), start_s=np.zeros(6), first_s=[1, 1, 2, 2, 1, np.nan], finish_s=[10, 19, 11, 20, 1, np.nan],
                 osl_tok=[10, 10, 10, 10, 1, 10])
    assert meets(log, Targets()).tolist() == [True, True, True, True, True, False]
    assert meets(log, Targets(ttft_s=1.0)).tolist() == [True, True, False, False, True, False]
    assert meets(log, Targets(tpot_s=1.0)).tolist() == [True, False, True, False, True, False]
    assert meets(log, Targets(ttft_s=1.0, tpot_s=1.0)).tolist() == [True, False, False, False, True, False]


def test_goodput_of_a_run_counts_its_requests():
    requests = traffic(200, 40, np.arange(40) * 0.02, count=40)
    plain, detail = run(small_grid(max_num_seqs=4.0), requests)
    assert plain.goodput_req_s is plain.goodput_frac is None
    limit_s = plain.ttft.p50_s
    outcome, _ = run(small_grid(max_num_seqs=4.0), requests, targets=Targets(ttft_s=limit_s))
    good = int(np.sum(detail.requests.ttft_s <= limit_s))
    assert outcome.goodput_frac == pytest.approx(good / 40)
    every, _ = run(small_grid(max_num_seqs=4.0), requests, targets=Targets(ttft_s=1e3, tpot_s=1e3))
    assert every.goodput_frac == 1.0
    assert every.goodput_req_s == every.request_rate_req_s
    nothing, _ = run(small_grid(max_num_seqs=4.0), requests, targets=Targets(ttft_s=1e-9))
    assert nothing.goodput_req_s == nothing.goodput_frac == 0.0


def test_the_share_that_meets_targets_is_one_of_those_that_fit():
    outcome, _ = run(small_grid(num_gpu_blocks=8.0), traffic([20, 5000], [5, 5], [0.0, 1.0]), targets=Targets(ttft_s=10.0))
    assert (outcome.goodput_frac, outcome.num_unservable) == (1.0, 1)


# Rates


ONE_A_SECOND = log_of(np.arange(11.0), finish_s=np.arange(11.0) + 1.5)
"""Arrivals at 0, 1 ... 10 s, each served in 1.5 s with 10 tokens: finished at 1.5, 2.5 ... 11.5 s."""


def test_rates_of_a_ramped_closed_loop_are_those_under_full_load():
    # From 2 s, when the last client starts, to 10 s, the last arrival: 2.5 ... 9.5, eight requests in eight seconds.
    rates = rates_of(ONE_A_SECOND, Targets(), full_load_from_s=2.0)
    assert (rates.window_s, rates.request_rate_req_s, rates.throughput_tok_s, rates.good_req_s) == (8.0, 1.0, 10.0, 1.0)


def test_rates_of_clients_that_start_at_once_are_those_of_the_whole_run():
    # Eleven requests from 0 to 11.5 s.
    rates = rates_of(ONE_A_SECOND, Targets(), full_load_from_s=float("inf"))
    assert rates.window_s == 11.5
    assert rates.request_rate_req_s == pytest.approx(11 / 11.5)


def test_rates_of_an_open_loop_leave_out_filling_and_draining():
    # Nine in ten take 1.5 s: full from then on. 2.5 ... 9.5 finish until the last arrival at 10 s.
    rates = rates_of(ONE_A_SECOND, Targets(tpot_s=1e-9), full_load_from_s=None)
    assert rates.window_s == pytest.approx(8.5)
    assert rates.request_rate_req_s == pytest.approx(8 / 8.5)
    assert rates.good_req_s == 0.0


def test_replicas_that_keep_up_serve_what_arrives():
    # Eleven arrivals with ten gaps of 1 s between them: one per second.
    rates = rates_of(ONE_A_SECOND, Targets(), full_load_from_s=None, keeps_up=True)
    assert rates.window_s == pytest.approx(11.0)
    assert rates.request_rate_req_s == pytest.approx(1.0)
    assert rates.throughput_tok_s == pytest.approx(10.0)


@pytest.mark.parametrize("gap_s", [0.05, 0.001])
def test_a_run_that_is_over_before_its_batch_has_filled_shows_not_that_it_keeps_up(gap_s):
    # 60 requests of over half a second each arrive within 3 s, or all but at once; nobody waits for a place.
    outcome, _ = run(small_grid(), traffic(100, 100, np.arange(60) * gap_s, count=60), options=QUIET)
    assert not outcome.saturated
    if gap_s == 0.05:
        assert outcome.request_rate_req_s == pytest.approx(outcome.offered_rate_req_s, rel=1e-9)
    else:
        assert outcome.request_rate_req_s < 0.2 * outcome.offered_rate_req_s


def test_rates_of_a_run_that_is_too_short_are_those_of_all_of_it():
    # Requests take 9 s: little is left between 9 s and the last arrival at 10 s.
    slow = replace(ONE_A_SECOND, finish_s=np.arange(11.0) + 9.0)
    for full_load_from_s in (None, 9.5):
        rates = rates_of(slow, Targets(), full_load_from_s=full_load_from_s)
        assert rates.window_s == 19.0
        assert rates.throughput_tok_s == pytest.approx(110 / 19.0)


def test_rates_leave_out_what_never_ran():
    log = replace(ONE_A_SECOND, replica=np.array([-1, *[0] * 9, -1]),
                  finish_s=np.array([np.nan, *(np.arange(1.0, 10.0) + 1.5), np.nan]))
    rates = rates_of(log, Targets(), full_load_from_s=float("inf"))
    assert rates.window_s == 9.5
    assert rates.request_rate_req_s == pytest.approx(9 / 9.5)
    nothing = rates_of(replace(log, finish_s=np.full(11, np.nan)), Targets(), full_load_from_s=None)
    assert (nothing.window_s, nothing.throughput_tok_s, nothing.request_rate_req_s, nothing.good_req_s) == (0.0, 0.0, 0.0, 0.0)


def test_a_ramped_closed_loop_has_the_rate_of_its_steady_middle():
    # With a ramp the run starts and ends with few clients; the rate is that of a run twice as long.
    grid, ramp_s = small_grid(), run(small_grid(), traffic(100, 100, count=16), clients=[16])[0].e2e.mean_s
    short, long = (run(grid, traffic(100, 100, count=count), clients=[16], ramp_s=ramp_s)[0] for count in (160, 320))
    assert short.throughput_tok_s == pytest.approx(long.throughput_tok_s, rel=0.01)
    assert short.window_s < short.duration_s
    whole = short.num_completed * 100 / short.duration_s
    assert whole < 0.95 * short.throughput_tok_s


# Power, energy, cost


def busy_run(num_gpus: int, *, num_replicas: int = 1, gap_s: float = 0.01, price_usd_h: float | None = None):
    requests = traffic(200, 50, np.arange(60) * gap_s, count=60)
    grid = replace(small_grid(), isl_tok=200.0, osl_tok=50.0)
    return simulate(Deployment(grid=grid, num_replicas=num_replicas, num_gpus=num_gpus, price_usd_h=price_usd_h), requests,
                    options=QUIET)[0]


def test_power_lies_between_idle_and_the_board_and_energy_is_power_times_time():
    power = small_grid().hardware.power
    for num_replicas in (1, 2):
        for gap_s in (1e-4, 0.01, 10.0):
            outcome = busy_run(num_replicas, num_replicas=num_replicas, gap_s=gap_s)
            assert power.idle_w.value * num_replicas <= outcome.power_w <= power.board_w.value * num_replicas
            assert 0.0 < outcome.busy_frac <= 1.0
            assert outcome.energy_j_per_tok == pytest.approx(outcome.power_w * outcome.duration_s / (60 * 50))
    assert busy_run(1, gap_s=10.0).power_w == pytest.approx(power.idle_w.value, rel=0.01)
    assert busy_run(1, gap_s=1e-4).power_w > 1.2 * power.idle_w.value


def test_gpus_without_a_replica_are_idle_and_paid():
    one, three = busy_run(1, price_usd_h=2.0), busy_run(3, price_usd_h=2.0)
    assert three.power_w - one.power_w == pytest.approx(2 * small_grid().hardware.power.idle_w.value)
    assert three.cost_usd_per_mtok == pytest.approx(3 * one.cost_usd_per_mtok)
    assert three.throughput_per_gpu_tok_s == pytest.approx(one.throughput_per_gpu_tok_s / 3)
    # 2 USD an hour over the tokens of an hour.
    assert one.cost_usd_per_mtok == pytest.approx(2.0 / (one.throughput_tok_s * 3600.0) * 1e6)
    assert busy_run(1).cost_usd_per_mtok is None


# What holds on every run


@given(seed=st.integers(0, 10**6), rate=st.floats(1.0, 300.0), blocks=st.integers(40, 400), num_replicas=st.integers(1, 3))
def test_figures_of_a_run_agree_with_its_log(seed, rate, blocks, num_replicas):
    rng = np.random.default_rng(seed)
    requests = traffic(rng.integers(1, 600, 50), rng.integers(1, 120, 50), np.cumsum(rng.exponential(1 / rate, 50)))
    outcome, detail = run(small_grid(num_gpu_blocks=float(blocks), max_num_seqs=8.0), requests, num_replicas=num_replicas,
                          options=QUIET)
    log = detail.requests
    done = log.completed
    assert outcome.num_completed + outcome.num_unservable == outcome.num_requests == 50
    if not done.any():
        return
    assert outcome.duration_s == pytest.approx(log.finish_s[done].max() - log.arrival_s[log.replica >= 0].min())
    assert outcome.ttft.mean_s == pytest.approx(log.ttft_s[done].mean())
    assert outcome.e2e.p90_s == pytest.approx(np.quantile(log.e2e_s[done], 0.9))
    assert np.all(log.queue_s[done] >= -1e-9)
    assert outcome.mean_waiting_seqs == pytest.approx(np.nansum(log.queue_s) / num_replicas / outcome.duration_s, abs=1e-9)
    assert 0.0 < outcome.kv_used_frac <= outcome.kv_peak_frac <= 1.0
    assert 0.0 < outcome.busy_frac <= 1.0
    assert 0.0 < outcome.mean_running_seqs <= 8.0
    assert (outcome.num_preemptions > 0) == (outcome.recomputed_tok > 0)
    assert outcome.swap_bytes == 0.0
    for figures in (outcome.ttft, outcome.e2e, outcome.queue):
        assert figures.p50_s <= figures.p90_s <= figures.p99_s
