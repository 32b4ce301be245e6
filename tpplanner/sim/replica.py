"""One replica: the scheduler's steps on the cost model's clock."""

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import isnan
from typing import NamedTuple

from tpplanner.cost.outside import entry_s
from tpplanner.cost.preemption import swap_s
from tpplanner.cost.replica import ReplicaGrid
from tpplanner.domain.traffic import Traffic
from tpplanner.serving.scheduler import Scheduler
from tpplanner.serving.sequence import Sequence, Status
from tpplanner.serving.step import Step
from tpplanner.sim.record import Meter, RequestTimes
from tpplanner.sim.step_cost import Clock, Shape, StepCost

NEVER_S = float("inf")
_NO_KEYS: tuple[int, ...] = ()


class _Stop(NamedTuple):
    """When a sequence has all its tokens; void where it lost its place since (``base`` differs)."""

    step_index: int
    serial: int
    sequence: Sequence
    base: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplicaPlan:
    """What all replicas of a run share.

    Attributes
    ----------
    grid
        One point: the replica, its engine and the mean lengths of the traffic.
    isl_tok, osl_tok
        Lengths of the requests, as lists: their elements are read one by one.
    kv_block_bytes
        Of one rank.
    keys_of
        Keys of the prompt blocks of a request; ``None`` without prefix caching.
    fast_forward
        Whether equal decode steps are taken at once.
    """

    grid: ReplicaGrid
    clock: Clock
    traffic: Traffic
    isl_tok: list[int]
    osl_tok: list[int]
    kv_block_bytes: float
    num_timeline_steps: int
    keys_of: Callable[[int], tuple[int, ...]] | None
    fast_forward: bool


class Replica:
    """Queue, batch and clock of one replica.

    ``now_s`` is the end of the last step that was begun. An engine that overlaps its host work picks the next step
    before it knows who stopped in the last one; any other the other way round. That is all the difference here: what
    overlap hides is in the step times.
    """

    def __init__(self, number: int, plan: ReplicaPlan, scheduler: Scheduler, times: RequestTimes,
                 on_finish: Callable[["Replica"], None]) -> None:
        self.number = number
        self.now_s = 0.0
        self.scheduler = scheduler
        self.meter = Meter(num_timeline_steps=plan.num_timeline_steps)
        self.num_pushed = 0
        self._plan, self._times, self._on_finish = plan, times, on_finish
        self._overlaps = plan.grid.engine.switches.async_sched
        self._plain_entry_s = float(entry_s(plan.grid, num_seqs=1.0, decode_s=0.0, prefill_s=0.0))
        self._isl, self._osl = plan.isl_tok, plan.osl_tok
        self._inbox: list[tuple[float, int]] = []
        self._stops: list[_Stop] = []
        self._last: Step | None = None
        self._num_unused_rows = 0
        self._token_lost_s: dict[Sequence, float] = {}
        self._prompt_s: dict[int, float] = {}

    # Requests

    def push(self, request: int, at_s: float) -> None:
        """Take a request that arrives at ``at_s``; it is in the engine's queue when it has passed what lies before it."""
        outside = self._entry_s(self._isl[request])
        self._times.arrival_s[request] = at_s
        self._times.outside_s[request] = outside
        self._times.replica[request] = self.number
        self.num_pushed += 1
        heappush(self._inbox, (at_s + outside, request))

    def _entry_s(self, isl_tok: int) -> float:
        grid = self._plan.grid
        if grid.engine.terms is None:
            return self._plain_entry_s
        running = self.scheduler.num_running_seqs
        clock = self._plan.clock
        decode_s = clock.cost(Shape(*self._decode_rows())).total_s
        if isl_tok not in self._prompt_s:
            alone = clock.cost(Shape(0, 0, isl_tok, isl_tok, 1, 1)).total_s
            self._prompt_s[isl_tok] = alone - clock.cost(Shape(0, 0)).total_s
        factor = clock.ttft_factor[min(running + 1, len(clock.ttft_factor) - 1)]
        return float(entry_s(grid, num_seqs=running + 1.0, decode_s=decode_s, prefill_s=decode_s + self._prompt_s[isl_tok],
                             ttft_factor=factor))

    def _decode_rows(self) -> tuple[int, int]:
        num_seqs = len(self.scheduler.decoding)
        if not num_seqs:
            return 1, int(self._plan.grid.isl_tok)
        return num_seqs, (2 * self.scheduler.decoding.context_tok + num_seqs) // (2 * num_seqs)

    @property
    def has_work(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._inbox) or self._last is not None or self.scheduler.has_work

    # Steps

    def advance(self, until_s: float) -> None:
        """Begin every step that begins before ``until_s``."""
        while self.now_s < until_s and self.has_work:
            self.turn(until_s)

    def turn(self, until_s: float) -> None:
        """Pick a step and take it, with as many like it as fit before ``until_s``; or wait."""
        # An overlapping engine may have to wait for the blocks of a step in flight; any other has none.
        may_wait = self._overlaps and self._last is not None
        if self._overlaps:
            self._take_arrivals()
            step = self.scheduler.schedule()
            self._commit()
        else:
            self._commit()
            self._take_arrivals()
            step = self.scheduler.schedule()
        if step is not None:
            self._execute(step, until_s)
        elif not self.scheduler.has_work:
            self.meter.series.add(self.now_s, 0, 0, 0.0)
            if self._inbox:
                self.now_s = max(self.now_s, min(self._inbox[0][0], until_s))
        elif not may_wait:
            raise AssertionError(f"replica {self.number}: sequences that no step can take")  # a defect: it would never end

    def _take_arrivals(self) -> None:
        inbox = self._inbox
        while inbox and inbox[0][0] <= self.now_s:
            request = heappop(inbox)[1]
            keys = _NO_KEYS if self._plan.keys_of is None else self._plan.keys_of(request)
            self.scheduler.add(Sequence(request, prompt_tok=self._isl[request], max_tokens=self._osl[request], keys=keys))

    def _commit(self) -> None:
        """Take the outcome of the last step, which ends now."""
        step, self._last, self._num_unused_rows = self._last, None, 0
        if step is None:
            return
        times, osl = self._times, self._osl
        for chunk in step.chunks:
            if chunk.ends:
                sequence = chunk.sequence
                request = sequence.request_id
                self._push_stop(sequence, osl[request])
                if isnan(times.first_token_s[request]):
                    times.first_token_s[request] = self.now_s
                elif sequence in self._token_lost_s:
                    self.meter.gaps.add(self.now_s - self._token_lost_s.pop(sequence), 1)
        for sequence in step.swapped_in:
            self._push_stop(sequence, osl[sequence.request_id])
        finished = self._stopped(step.step_index)
        self._num_unused_rows = self.scheduler.commit(step, finished)
        self.meter.num_unused_rows += self._num_unused_rows
        for sequence in finished:
            request = sequence.request_id
            times.finish_s[request] = self.now_s
            times.num_preemptions[request] = sequence.num_preemptions
            self._token_lost_s.pop(sequence, None)
            self._on_finish(self)

    def _push_stop(self, sequence: Sequence, osl_tok: int) -> None:
        heappush(self._stops, _Stop(osl_tok + sequence.prompt_tok - 1 - sequence.base, sequence.request_id, sequence,
                                    sequence.base))

    def _stopped(self, step_index: int) -> list[Sequence]:
        finished = []
        while self._stops and self._stops[0].step_index <= step_index:
            stop = heappop(self._stops)
            sequence = stop.sequence
            if sequence.status is Status.DECODE:
                if sequence.base == stop.base:
                    finished.append(sequence)
            elif sequence.target_tok - sequence.prompt_tok == self._osl[sequence.request_id]:
                # It lost its place to the step that was picked before its stop was known.
                finished.append(sequence)
        return finished

    def _execute(self, step: Step, until_s: float) -> None:
        start_s, meter, scheduler = self.now_s, self.meter, self.scheduler
        num_steps, running = 1, scheduler.num_running_seqs
        self._note_starts(step)
        if step.is_decode_only:
            step, num_steps = self._run_decodes(step, until_s)
        else:
            self._take(step, self._cost(step))
        self._last = step
        pool = scheduler.pool
        used = pool.num_blocks - pool.num_free
        duration_s = self.now_s - start_s
        meter.num_steps += num_steps
        meter.running_s += running * duration_s
        meter.kv_peak_blocks = max(meter.kv_peak_blocks, used)
        waiting = len(scheduler.waiting) + len(scheduler.swapped)
        meter.series.add(start_s, running, waiting, used / pool.num_blocks)
        if meter.timeline:
            meter.add_to_timeline(step, start_s=start_s, duration_s=duration_s, num_steps=num_steps, num_waiting=waiting,
                                  kv_used_frac=used / pool.num_blocks)

    def _note_starts(self, step: Step) -> None:
        start_s = self._times.start_s
        for chunk in step.chunks:
            request = chunk.sequence.request_id
            if isnan(start_s[request]):
                start_s[request] = self.now_s
        for sequence in step.preempted:
            if sequence.target_tok > sequence.prompt_tok:
                self._token_lost_s.setdefault(sequence, self.now_s)

    def _cost(self, step: Step) -> StepCost:
        """Cost of a step that is no plain decode step; the bytes that are swapped for it stop everything."""
        rows, chunks = step.num_decode_seqs, step.chunks
        context2 = 0
        for chunk in chunks:
            context2 += chunk.num_tok * (2 * chunk.start_tok + chunk.num_tok)
        tok = step.num_prefill_tok
        shape = Shape(rows, (2 * step.context_tok + rows) // (2 * rows) if rows else 0, tok,
                      (2 * context2 + tok) // (2 * tok) if tok else 0, len(chunks), sum(c.ends for c in chunks))
        cost = self._plan.clock.cost(shape)
        blocks = step.num_swapped_out_blocks + step.num_swapped_in_blocks
        if not blocks:
            return cost
        self.meter.swapped_blocks += blocks
        stall_s = float(swap_s(swap_bytes=blocks * self._plan.kv_block_bytes, link=self._plan.grid.hardware.host_link))
        return cost._replace(total_s=cost.total_s + stall_s)

    def _take(self, step: Step, cost: StepCost) -> None:
        self.now_s += cost.total_s
        self.meter.add_cost(cost)
        self.meter.tok_s += cost.total_s * (step.context_tok + sum(c.start_tok + c.num_tok for c in step.chunks))
        old = step.num_decode_seqs - len(step.swapped_in) - self._num_unused_rows
        if old:
            self.meter.gaps.add(cost.total_s, old)
        for sequence in step.swapped_in:
            lost_s = self._token_lost_s.pop(sequence, None)
            if lost_s is not None:
                self.meter.gaps.add(self.now_s - lost_s, 1)

    def _run_decodes(self, step: Step, until_s: float) -> tuple[Step, int]:
        """Take a decode step and those after it that are bound to be like it; return the last, and how many."""
        num_seqs = step.num_decode_seqs
        limit = self._num_alike(step) if self._plan.fast_forward else 1
        # An arrival ends the run where it could join the batch, at the first step that begins after it.
        if limit > 1 and self._inbox and self.scheduler.can_admit:
            until_s = min(until_s, self._inbox[0][0])
        context = (2 * step.context_tok + num_seqs) // (2 * num_seqs)
        done, meter = 0, self.meter
        while True:
            run = self._plan.clock.decode_run(num_seqs, context + done, limit - done, until_s - self.now_s)
            done += run.num_steps
            self.now_s += run.total_s
            meter.add_cost(run)
            meter.tok_s += num_seqs * run.context_s
            if num_seqs > self._num_unused_rows:
                meter.gaps.add_run(run, num_seqs - self._num_unused_rows)
            if done >= limit or self.now_s >= until_s:
                break
        return (self.scheduler.repeat(step, done - 1), done) if done > 1 else (step, 1)

    def _num_alike(self, step: Step) -> int:
        """Steps from ``step`` on until a sequence stops or the scheduler has something to decide."""
        stops = self._stops
        while stops and (stops[0].sequence.status is not Status.DECODE or stops[0].sequence.base != stops[0].base):
            heappop(stops)
        to_stop = stops[0].step_index - step.step_index if stops else 0
        return 1 + self.scheduler.num_steady_steps(to_stop) if to_stop > 0 else 1
