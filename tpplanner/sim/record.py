"""What a run leaves behind: times per request, and what each replica did."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.simulation import LoadSeries, Quantiles
from tpplanner.serving.step import Step
from tpplanner.sim.step_cost import DecodeRun, StepCost

FloatArray = NDArray[np.float64]

_GAP_BINS_PER_E = 1000.0
"""Bins of gaps between tokens: a thousandth of their size each, so that a quantile is right to 0.05 %."""

_MAX_POINTS = 4096
"""Of a series over time; beyond, every two become one."""


class RequestTimes:
    """Times of every request, NaN until they are known [s]."""

    __slots__ = ("arrival_s", "finish_s", "first_token_s", "num_preemptions", "outside_s", "replica", "start_s")

    def __init__(self, num_requests: int) -> None:
        unknown = [np.full(num_requests, np.nan) for _ in range(4)]
        self.arrival_s, self.start_s, self.first_token_s, self.finish_s = unknown
        self.outside_s = np.zeros(num_requests)
        self.replica = np.full(num_requests, -1, dtype=np.int64)
        self.num_preemptions = np.zeros(num_requests, dtype=np.int64)


class GapHistogram:
    """Gaps between a request's tokens: counts in bins of equal width in the logarithm."""

    __slots__ = ("_bins", "num_gaps", "total_s")

    def __init__(self) -> None:
        self._bins: dict[int, int] = {}
        self.num_gaps = 0
        self.total_s = 0.0

    def add(self, gap_s: float, count: int) -> None:
        """Count ``count`` gaps of ``gap_s``."""
        key = int(math.log(gap_s) * _GAP_BINS_PER_E // 1)
        self._bins[key] = self._bins.get(key, 0) + count
        self.num_gaps += count
        self.total_s += count * gap_s

    def add_run(self, run: DecodeRun, count: int) -> None:
        """Count ``count`` gaps for each step of ``run``: in one go where its first and last step share a bin."""
        first, last = run.duration_s[0], run.duration_s[-1]
        key = int(math.log(first) * _GAP_BINS_PER_E // 1)
        if key != int(math.log(last) * _GAP_BINS_PER_E // 1) or not first <= last:
            for duration_s in run.duration_s:
                self.add(duration_s, count)
            return
        self._bins[key] = self._bins.get(key, 0) + count * run.num_steps
        self.num_gaps += count * run.num_steps
        self.total_s += count * run.total_s

    @staticmethod
    def quantiles(histograms: "Iterable[GapHistogram]") -> Quantiles | None:
        """Mean and quantiles over all gaps; ``None`` where there are none."""
        merged: dict[int, int] = {}
        total_s = 0.0
        for histogram in histograms:
            total_s += histogram.total_s
            for key, count in histogram._bins.items():
                merged[key] = merged.get(key, 0) + count
        num_gaps = sum(merged.values())
        if not num_gaps:
            return None
        keys = np.asarray(sorted(merged))
        below = np.cumsum([merged[key] for key in keys])

        def quantile_s(share: float) -> float:
            return math.exp((float(keys[np.searchsorted(below, share * num_gaps)]) + 0.5) / _GAP_BINS_PER_E)

        return Quantiles(mean_s=total_s / num_gaps, p50_s=quantile_s(0.5), p90_s=quantile_s(0.9), p99_s=quantile_s(0.99))


class Series:
    """State over time; as it grows, neighbours become one with the mean of both over time, so that no load is lost."""

    __slots__ = ("_least_s", "_since_s", "_state", "_sums")

    def __init__(self) -> None:
        self._sums: list[list[float]] = []  # start of each interval, and each number times the time that it held
        self._state, self._since_s = (0.0, 0.0, 0.0), 0.0
        self._least_s = 0.0

    def add(self, time_s: float, num_running: int, num_waiting: int, kv_used_frac: float) -> None:
        """Note the state from ``time_s`` on."""
        sums = self._sums
        self._hold_until(time_s)
        if not sums or time_s - sums[-1][0] > self._least_s:
            sums.append([time_s, 0.0, 0.0, 0.0])
        self._state = (num_running, num_waiting, kv_used_frac)
        if len(sums) > _MAX_POINTS:
            for one, two in zip(sums[::2], sums[1::2], strict=False):
                one[1:] = [x + y for x, y in zip(one[1:], two[1:], strict=True)]
            del sums[1::2]
            self._least_s = 2.0 * (time_s - sums[0][0]) / _MAX_POINTS

    def _hold_until(self, time_s: float) -> None:
        if self._sums:
            held_s, last, (running, waiting, kv) = time_s - self._since_s, self._sums[-1], self._state
            last[1] += held_s * running
            last[2] += held_s * waiting
            last[3] += held_s * kv
        self._since_s = time_s

    def log(self, replica: int, *, end_s: float) -> LoadSeries:
        """Return the series as arrays, closed; at ``end_s`` nothing runs any more."""
        self._hold_until(end_s)
        times, *sums = np.asarray([*self._sums, (end_s, 0.0, 0.0, 0.0)], dtype=float).T
        lasted_s = np.append(np.diff(times), 0.0)
        running, waiting, kv = (np.round(np.divide(x, lasted_s, out=np.zeros_like(x), where=lasted_s > 0), 9) for x in sums)
        return LoadSeries(replica=replica, time_s=times, num_running_seqs=running, num_waiting_seqs=waiting, kv_used_frac=kv)


class Meter:
    """Sums over the steps of one replica, and its logs."""

    __slots__ = ("busy_s", "flop", "gaps", "kv_peak_blocks", "num_steps", "num_unused_rows", "read_bytes",
                 "running_s", "series", "steps", "swapped_blocks", "timeline", "tok_s")

    def __init__(self, *, num_timeline_steps: int) -> None:
        self.num_steps = self.num_unused_rows = self.swapped_blocks = self.kv_peak_blocks = 0
        self.busy_s = self.read_bytes = self.flop = self.running_s = self.tok_s = 0.0
        self.gaps, self.series = GapHistogram(), Series()
        self.timeline = num_timeline_steps
        self.steps: list[tuple[float, ...]] = []

    def add_cost(self, cost: StepCost | DecodeRun) -> None:
        """Add one step's work, or that of several."""
        self.busy_s += cost.device_s
        self.read_bytes += cost.read_bytes
        self.flop += cost.flop

    def add_to_timeline(self, step: Step, *, start_s: float, duration_s: float, num_steps: int, num_waiting: int,
                        kv_used_frac: float) -> None:
        """Log the steps, while there is room."""
        if len(self.steps) < self.timeline:
            self.steps.append((start_s, duration_s, num_steps, step.num_decode_seqs, step.num_prefill_tok, num_waiting,
                               len(step.preempted), kv_used_frac))
