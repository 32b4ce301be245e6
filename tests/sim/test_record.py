"""What a run leaves behind: gaps in bins, load over time, the timeline."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulations import OVERLAPPED, run, small_grid, traffic

from tpplanner.domain.engine import Switches
from tpplanner.domain.simulation import SimulationOptions
from tpplanner.sim.record import GapHistogram, Series
from tpplanner.sim.step_cost import DecodeRun

GAPS = st.lists(st.tuples(st.floats(1e-5, 1e3), st.integers(1, 1000)), min_size=1, max_size=60)


def histogram(gaps) -> GapHistogram:
    found = GapHistogram()
    for gap_s, count in gaps:
        found.add(gap_s, count)
    return found


def decode_run(durations) -> DecodeRun:
    durations = tuple(map(float, durations))
    return DecodeRun(num_steps=len(durations), total_s=math.fsum(durations), device_s=0.0, read_bytes=0.0, flop=0.0,
                     context_s=0.0, duration_s=durations)


# Gaps


@given(GAPS)
def test_gap_quantiles_are_those_of_the_gaps_to_a_thousandth(gaps):
    found = GapHistogram.quantiles([histogram(gaps)])
    every = np.repeat([gap for gap, _ in gaps], [count for _, count in gaps])
    assert found.mean_s == pytest.approx(every.mean(), rel=1e-9)
    for share, value in ((0.5, found.p50_s), (0.9, found.p90_s), (0.99, found.p99_s)):
        # Where a quantile falls between two gaps, either is one.
        low, high = np.quantile(every, np.clip([share - 1e-9, share + 1e-9], 0, 1), method="inverted_cdf")
        assert low * 0.999 <= value <= high * 1.001


@given(GAPS, GAPS)
def test_gaps_of_two_replicas_count_together(one, two):
    apart, together = GapHistogram.quantiles([histogram(one), histogram(two)]), GapHistogram.quantiles([histogram(one + two)])
    assert (apart.p50_s, apart.p90_s, apart.p99_s) == (together.p50_s, together.p90_s, together.p99_s)
    assert apart.mean_s == pytest.approx(together.mean_s, rel=1e-12)


def test_no_gaps_have_no_quantiles():
    assert GapHistogram.quantiles([]) is None
    assert GapHistogram.quantiles([GapHistogram(), GapHistogram()]) is None


@given(st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=40), st.integers(1, 300))
def test_a_run_of_steps_counts_as_its_steps(durations, count):
    rising = sorted(durations)
    for steps in (rising, [durations[0] * (1.0 + 1e-6 * i) for i in range(len(durations))], rising[::-1]):
        at_once, one_by_one = GapHistogram(), GapHistogram()
        at_once.add_run(decode_run(steps), count)
        for duration_s in steps:
            one_by_one.add(duration_s, count)
        assert at_once._bins == one_by_one._bins
        assert at_once.num_gaps == one_by_one.num_gaps == count * len(steps)
        assert at_once.total_s == pytest.approx(one_by_one.total_s, rel=1e-12)


@pytest.mark.parametrize("switches", [Switches(), OVERLAPPED])
def test_the_gaps_of_a_run_are_those_between_its_tokens(switches):
    # One gap per token but the first of each request; together they last from first to last token.
    rng = np.random.default_rng(2)
    requests = traffic(rng.integers(1, 400, 60), rng.integers(1, 90, 60), np.cumsum(rng.exponential(0.02, 60)))
    outcome, detail = run(small_grid(switches=switches, num_gpu_blocks=80.0, max_num_seqs=8.0), requests)
    assert outcome.num_preemptions > 0
    log = detail.requests
    num_gaps = int((log.osl_tok - 1).sum())
    assert outcome.itl.mean_s == pytest.approx(float((log.finish_s - log.first_token_s).sum()) / num_gaps, rel=1e-9)


# Load over time


def series_of(states, end_s: float):
    found = Series()
    for time_s, running in states:
        found.add(time_s, running, 2 * running, running / 100.0)
    return found.log(3, end_s=end_s)


def area(log, values) -> float:
    return float((values[:-1] * np.diff(log.time_s)).sum())


def test_a_short_series_is_what_was_noted():
    log = series_of([(0.0, 1), (0.5, 3), (2.0, 0)], 4.0)
    assert log.replica == 3
    assert log.time_s.tolist() == [0.0, 0.5, 2.0, 4.0]
    assert log.num_running_seqs.tolist() == [1, 3, 0, 0]
    assert log.num_waiting_seqs.tolist() == [2, 6, 0, 0]
    assert log.kv_used_frac.tolist() == [0.01, 0.03, 0.0, 0.0]


def test_of_two_notes_at_one_time_the_later_one_holds():
    log = series_of([(0.0, 1), (1.0, 9), (1.0, 2)], 2.0)
    assert log.num_running_seqs.tolist() == [1, 2, 0]


def test_a_series_of_nothing():
    log = series_of([], 0.0)
    assert (log.time_s.tolist(), log.num_running_seqs.tolist()) == ([0.0], [0.0])


@pytest.mark.parametrize("count", [4095, 4096, 4097, 4098, 10_000, 50_000])
def test_a_long_series_is_bounded_and_loses_no_load(count):
    rng = np.random.default_rng(count)
    times = np.cumsum(rng.exponential(0.01, count))
    # Busy and idle in turn: dropping every second note would drop all that is idle.
    running = np.where(np.arange(count) % 2, 0, rng.integers(1, 60, count))
    end_s = float(times[-1]) + 1.0
    log = series_of(zip(times.tolist(), running.tolist(), strict=True), end_s)
    assert count // 16 < 512 or log.time_s.size >= 1024
    assert log.time_s.size <= 4097 + 1
    assert np.all(np.diff(log.time_s) > 0.0)
    expected = float((running * np.diff([*times, end_s])).sum())
    assert area(log, log.num_running_seqs) == pytest.approx(expected, rel=1e-6)
    assert area(log, log.num_waiting_seqs) == pytest.approx(2 * expected, rel=1e-6)
    assert log.num_running_seqs.max() <= 60


@pytest.mark.parametrize("switches", [Switches(), OVERLAPPED])
@pytest.mark.parametrize("step_by_step", [False, True])
def test_the_series_of_a_run_shows_that_it_is_idle_between_requests(switches, step_by_step):
    # A request takes some tenths of a second; a hundred seconds pass between two.
    requests = traffic(100, 50, [0.0, 100.0, 200.0], count=3)
    outcome, detail = run(small_grid(switches=switches), requests, step_by_step=step_by_step)
    [series], log = detail.series, detail.requests
    for time_s in (50.0, 99.0, 150.0, 199.0):
        assert series.num_running_seqs[np.searchsorted(series.time_s, time_s, side="right") - 1] == 0.0
    busy_s = float((log.finish_s - log.start_s).sum())
    assert area(series, series.num_running_seqs) == pytest.approx(busy_s, rel=0.05)
    assert outcome.mean_running_seqs * outcome.duration_s == pytest.approx(area(series, series.num_running_seqs), rel=1e-6)


@pytest.mark.parametrize("num_replicas", [1, 3])
def test_the_series_of_the_replicas_hold_the_load_of_the_run(num_replicas):
    rng = np.random.default_rng(4)
    requests = traffic(rng.integers(1, 400, 150), rng.integers(1, 90, 150), np.cumsum(rng.exponential(0.03, 150)))
    outcome, detail = run(small_grid(num_gpu_blocks=100.0, max_num_seqs=8.0), requests, num_replicas=num_replicas)
    total = sum(area(series, series.num_running_seqs) for series in detail.series)
    assert total == pytest.approx(outcome.mean_running_seqs * num_replicas * outcome.duration_s, rel=1e-6)
    assert [series.replica for series in detail.series] == list(range(num_replicas))
    assert max(series.kv_used_frac.max() for series in detail.series) <= outcome.kv_peak_frac + 1e-9


# Timeline


def test_the_timeline_stops_where_it_was_told():
    requests = traffic(100, 50, np.arange(20) * 0.1, count=20)
    none, some, every = (run(small_grid(), requests, num_replicas=2, options=SimulationOptions(num_timeline_steps=n))
                         for n in (0, 5, 10**6))
    assert none[1].steps.start_s.size == 0
    assert np.bincount(some[1].steps.replica).tolist() == [5, 5]
    assert not some[1].steps.complete
    steps = every[1].steps
    assert steps.complete
    assert int(steps.num_steps.sum()) == every[0].num_steps == none[0].num_steps
    for replica in (0, 1):
        own = steps.replica == replica
        ends = steps.start_s[own] + steps.duration_s[own]
        assert np.all(ends[:-1] <= steps.start_s[own][1:] + 1e-12)
