"""Closed-form steady state of continuous batching with chunked prefill, for arrays of replicas.

:mod:`tpplanner.cost.batches` counts it in steps: x requests finished per step, a decode batch, and a mixed batch in a
share f of the steps. Time enters here: the mean step lasts

    T = (1 - f) step(b, 0) + f step(b, c)                                           (2)

and a replica finishes X = x / T requests per second, so that a request spends S / X in the batch; see
:mod:`tpplanner.cost.latency` for its TTFT and TPOT. Serving runs add a factor on the mixed steps' excess over the
decode steps, and one on the whole near runs of the same model.
"""

from dataclasses import dataclass

import numpy as np

from tpplanner.cost.batches import BatchPlan, plan_batches
from tpplanner.cost.outside import Corrections, corrections_at, outside_s
from tpplanner.cost.preemption import swap_s
from tpplanner.cost.replica import KvRoom, ReplicaGrid
from tpplanner.cost.step_time import with_interference
from tpplanner.domain.matrix import BoolOrArray, FloatOrArray
from tpplanner.domain.step import Batch, StepTime

_NUM_ROUNDS = 6
"""Of the requests outside the batch: Little's law then holds to 1 % where they are half of all, else far better."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SteadyState:
    """Steady state of one replica per grid point, all arrays. Times [s], rates [1/s].

    ``tpot_s`` is NaN where O = 1; ``ttft_s`` leaves out the wait for a place in the batch, which
    ``admission_s`` holds (infinite where the load exceeds the capacity). ``measured_factor`` and ``ttft_factor``
    are what measured runs of the model multiply every step and the TTFT by, 1 without.
    """

    num_running_seqs: FloatOrArray
    num_decode_seqs: FloatOrArray
    num_queued_seqs: FloatOrArray
    rate_req_s: FloatOrArray
    step_s: FloatOrArray
    prefill_s: FloatOrArray
    admission_s: FloatOrArray
    prefill_util_frac: FloatOrArray
    preemptions_per_req: FloatOrArray
    recompute_tok_per_req: FloatOrArray
    swap_bytes_per_req: FloatOrArray
    swap_stall_s: FloatOrArray
    decode_batch: Batch
    mixed_batch: Batch
    mixed_frac: FloatOrArray
    decode_step: StepTime
    mixed_step: StepTime
    measured_factor: FloatOrArray
    term_factor: FloatOrArray
    ttft_factor: FloatOrArray

    def mean_of(self, term: str) -> FloatOrArray:
        """Mean over the steps of one field of ``StepTime`` [s].

        Scaled so that the terms add up to the mean step: serving runs correct the sum and say nothing of its parts.
        """
        pure: FloatOrArray = getattr(self.decode_step, term)
        mixed: FloatOrArray = getattr(self.mixed_step, term)
        return self.term_factor * ((1.0 - self.mixed_frac) * pure + self.mixed_frac * mixed)

    @property
    def decode_s(self) -> FloatOrArray:
        """A step without prompt tokens, corrected by serving runs [s]."""
        return self.measured_factor * self.decode_step.total_s


def running_limit(grid: ReplicaGrid, room: KvRoom) -> FloatOrArray:
    """Most sequences that a replica keeps in its batch: ``max_num_seqs``, or what the KV cache holds."""
    return np.minimum(grid.max_num_seqs, room.num_seqs)


def state_of(
    grid: ReplicaGrid, plan: BatchPlan, decode_step: StepTime, mixed_step: StepTime, corrections: Corrections
) -> SteadyState:
    """Steady state of the batches of ``plan``, given the times of their two kinds of step."""
    swapped = (plan.evicted - plan.recomputed) * 2.0 * grid.seq_kv_bytes(grid.isl_tok)
    stall_s = plan.finish_per_step * swap_s(swap_bytes=swapped, link=grid.hardware.host_link)
    measured = corrections.step
    terms_s = (1.0 - plan.mixed_frac) * decode_step.total_s + plan.mixed_frac * mixed_step.total_s
    busy_s = measured * with_interference(grid.engine, decode_s=decode_step.total_s, mixed_s=terms_s)
    mixed_s = with_interference(grid.engine, decode_s=decode_step.total_s, mixed_s=mixed_step.total_s)
    step_s = busy_s + stall_s
    rate = plan.working * plan.finish_per_step / step_s
    return SteadyState(
        num_running_seqs=plan.num_seqs + 0.0 * rate, num_decode_seqs=plan.working * plan.decode.num_decode_seqs,
        num_queued_seqs=plan.num_waiting + 0.0 * rate, rate_req_s=rate, step_s=step_s,
        prefill_s=measured * plan.prefill_steps / (1.0 + plan.recomputed) * mixed_s,
        admission_s=plan.num_waiting / rate, prefill_util_frac=plan.prefill_load, preemptions_per_req=plan.evicted,
        recompute_tok_per_req=plan.recomputed * grid.isl_tok, swap_bytes_per_req=swapped * grid.tp, swap_stall_s=stall_s,
        decode_batch=plan.decode, mixed_batch=plan.mixed, mixed_frac=plan.mixed_frac,
        decode_step=decode_step, mixed_step=mixed_step, measured_factor=measured, term_factor=busy_s / terms_s,
        ttft_factor=corrections.ttft,
    )


def batch_state(
    grid: ReplicaGrid, *, num_seqs: FloatOrArray, num_waiting: FloatOrArray = 0.0, kv_full: BoolOrArray = False,
    corrections: Corrections | None = None,
) -> SteadyState:
    """Steady state with ``num_seqs`` sequences in the batch of each replica; see :func:`tpplanner.cost.batches.plan_batches`.

    ``corrections`` are those at ``num_seqs`` unless given.
    """
    plan = plan_batches(grid, num_seqs=num_seqs, num_waiting=num_waiting, kv_full=kv_full)
    return state_of(grid, plan, grid.step(plan.decode), grid.step(plan.mixed), corrections or corrections_at(grid, num_seqs))


def full_state(grid: ReplicaGrid, room: KvRoom) -> SteadyState:
    """Steady state of a replica whose batch is full and in front of which requests always wait."""
    kv_full = np.less_equal(room.num_seqs, grid.max_num_seqs)
    return batch_state(grid, num_seqs=running_limit(grid, room), num_waiting=np.inf, kv_full=kv_full)


def outside_of(grid: ReplicaGrid, state: SteadyState) -> FloatOrArray:
    """Time that a request of ``state`` spends neither in the batch nor queued for it [s]."""
    return outside_s(grid, num_seqs=state.num_running_seqs, decode_s=state.decode_s, step_s=state.step_s,
                     prefill_s=state.prefill_s, ttft_factor=state.ttft_factor)


def closed_loop(grid: ReplicaGrid, room: KvRoom, concurrency: FloatOrArray) -> SteadyState:
    """Steady state with ``concurrency`` requests always in flight on each replica (>= 1).

    Requests in flight are those in the batch, those queued for it, and those outside both, X times
    :func:`outside_of`; the last are found in a few rounds, since the time in the batch depends little on them.
    """
    limit = running_limit(grid, room)
    running = np.minimum(concurrency, limit)
    inside = concurrency
    corrections = corrections_at(grid, running)
    for _ in range(_NUM_ROUNDS):
        state = batch_state(grid, num_seqs=running, corrections=corrections)
        in_batch_s = running / state.rate_req_s
        outside = outside_of(grid, state)
        # A batch that is not full shares the requests by time; a full one finishes X whatever waits. The larger holds.
        inside = np.maximum(concurrency * in_batch_s / (in_batch_s + outside), concurrency - state.rate_req_s * outside)
        running = np.minimum(inside, limit)
    waiting = np.maximum(inside - running, 0.0)
    kv_full: BoolOrArray = np.greater(waiting, 0.0) & np.less_equal(room.num_seqs, grid.max_num_seqs)
    return batch_state(grid, num_seqs=running, num_waiting=waiting, kv_full=kv_full, corrections=corrections)
