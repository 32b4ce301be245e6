"""Closed-form steady state of continuous batching with chunked prefill, for arrays of replicas.

Counted in steps, a request spends O - 1 steps in decode and n_p steps in prefill, and each step
finishes x requests. With S sequences in the batch Little's law gives

    S = x (O - 1 + n_p)                                                             (1)

and the prefill tokens of the mean step are x I. Time enters last: the mean step lasts

    T = (1 - f) step(b, 0) + f step(b, c)                                           (2)

with b = x (O - 1) decoding sequences, a share f of the steps carrying c = x I / f prompt tokens.
A replica finishes X = x / T requests per second, so that a request spends S / X in the batch; see
:mod:`tpplanner.cost.latency` for its TTFT and TPOT.
"""

from dataclasses import dataclass

import numpy as np

from tpplanner.cost.outside import outside_s, step_factor
from tpplanner.cost.preemption import evictions_per_request, swap_s
from tpplanner.cost.replica import KvRoom, ReplicaGrid
from tpplanner.domain.engine import Preemption
from tpplanner.domain.matrix import BoolOrArray, FloatOrArray
from tpplanner.domain.step import Batch, StepTime

_NUM_BISECTIONS = 36
"""Of equation (1); 2**-36 of the largest rate that the batch and the token budget allow is below 1e-10."""


_NUM_SUBSTITUTIONS = 12

_NUM_ROUNDS = 6
"""Of the requests outside the batch: Little's law then holds to 1 % where they are half of all, else far better."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SteadyState:
    """Steady state of one replica per grid point, all arrays. Times [s], rates [1/s].

    ``tpot_s`` is NaN where O = 1; ``ttft_s`` leaves out the wait for a place in the batch, which
    ``admission_s`` holds (infinite where the load exceeds the capacity). ``measured_factor`` is what measured runs of the
    model multiply every step by, 1 without.
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


def _finish_rate_per_step(
    grid: ReplicaGrid, num_seqs: FloatOrArray, prefill_tok: FloatOrArray, num_prefills: FloatOrArray
) -> tuple[FloatOrArray, FloatOrArray]:
    """Solve (1) for x, the requests finished per step; return it with n_p.

    n_p grows with x (prompts wait for each other), so x (O - 1 + n_p(x)) does. Where few prompts wait, substitution
    settles at once; where the token budget is nearly used up it need not, and bisection finds x.
    """
    decode_steps = grid.osl_tok - 1.0
    budget = grid.max_num_batched_tokens

    def prefill_steps(finish: FloatOrArray) -> FloatOrArray:
        # Chunks of the prompt, and an M/D/1 wait behind the prefills of others, which the budget serves.
        chunks = prefill_tok / (budget - finish * decode_steps)
        load = np.minimum(finish * chunks, 1.0 - 1e-12)
        wait = load / (2.0 * (1.0 - load)) * chunks
        steps: FloatOrArray = np.maximum(num_prefills, chunks) + np.minimum(wait, (num_seqs - 1.0) * chunks)
        return steps

    # The token budget of a step serves decode first: x (O - 1) + x I <= budget.
    high = np.minimum(num_seqs / (decode_steps + num_prefills), budget / (prefill_tok + decode_steps))
    finish = high
    for _ in range(_NUM_SUBSTITUTIONS):
        before = finish
        finish = np.minimum(num_seqs / (decode_steps + prefill_steps(finish)), high)
        if np.all(np.abs(finish - before) <= 1e-12 * finish):
            return finish, num_seqs / finish - decode_steps
    low: FloatOrArray = 0.0 * high
    for _ in range(_NUM_BISECTIONS):
        middle = 0.5 * (low + high)
        enough = np.greater(middle * (decode_steps + prefill_steps(middle)), num_seqs)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high, num_seqs / high - decode_steps


def _batches(
    grid: ReplicaGrid, num_seqs: FloatOrArray, finish: FloatOrArray, prefill_steps: FloatOrArray,
    prefill_tok: FloatOrArray,
) -> tuple[Batch, Batch, FloatOrArray, FloatOrArray]:
    """Return the decode-only batch, the mixed batch, the share of mixed steps and the prefill load."""
    decode_seqs = finish * (grid.osl_tok - 1.0)
    per_step = finish * prefill_tok
    room = np.maximum(grid.max_num_batched_tokens - decode_seqs, 1.0)
    unit = np.minimum(prefill_tok, room)
    load = np.minimum(per_step / room, 1.0)
    # Each of S sequences is in decode in (O - 1) of its O - 1 + n_p steps, independently of the others; a step
    # without prefill needs all of them there. Exact for one sequence, and for O = 1.
    all_decode = (1.0 - prefill_steps / (grid.osl_tok - 1.0 + prefill_steps)) ** num_seqs
    mixed_frac = np.clip(np.maximum(1.0 - all_decode, load), 1e-12, 1.0)
    chunk = per_step / mixed_frac
    context = grid.isl_tok + grid.osl_tok / 2.0
    decode = Batch(num_decode_seqs=decode_seqs, decode_context_tok=context)
    mixed = Batch(
        num_decode_seqs=decode_seqs, decode_context_tok=context, num_prefill_tok=chunk,
        prefill_context_tok=grid.isl_tok / 2.0, num_prefill_seqs=chunk / unit,
        num_prefill_ends=chunk / prefill_tok,
    )
    return decode, mixed, mixed_frac, load


def batch_state(
    grid: ReplicaGrid, *, num_seqs: FloatOrArray, num_waiting: FloatOrArray = 0.0, kv_full: BoolOrArray = False
) -> SteadyState:
    """Steady state with ``num_seqs`` sequences in the batch of each replica.

    Parameters
    ----------
    num_seqs
        Sequences in prefill or decode, a mean. Below 1 the replica stands still for the rest of the time: its
        steps are those of one sequence.
    num_waiting
        Requests outside the batch.
    kv_full
        Whether the KV cache, not another limit, keeps them out: then sequences are preempted.
    """
    evicted = np.where(kv_full, evictions_per_request(isl_tok=grid.isl_tok, osl_tok=grid.osl_tok,
                                                      num_waiting=num_waiting), 0.0)
    policy = grid.engine.preemption
    if policy is Preemption.RESERVE:
        evicted = 0.0 * evicted
    again = evicted if policy is Preemption.RECOMPUTE else 0.0 * evicted
    prefill_tok = grid.isl_tok * (1.0 + again)
    working, held = np.minimum(num_seqs, 1.0), np.maximum(num_seqs, 1.0)
    finish, prefill_steps = _finish_rate_per_step(grid, held, prefill_tok, 1.0 + again)
    decode, mixed, mixed_frac, load = _batches(grid, held, finish, prefill_steps, prefill_tok)
    decode_step, mixed_step = grid.step(decode), grid.step(mixed)
    swapped = (evicted - again) * 2.0 * grid.seq_kv_bytes(grid.isl_tok)
    stall_s = finish * swap_s(swap_bytes=swapped, link=grid.hardware.host_link)
    measured = step_factor(grid, num_seqs)
    terms_s = (1.0 - mixed_frac) * decode_step.total_s + mixed_frac * mixed_step.total_s
    interference = 1.0 if grid.engine.terms is None else grid.engine.terms.prefill_interference.value
    busy_s = measured * (decode_step.total_s + interference * (terms_s - decode_step.total_s))
    step_s = busy_s + stall_s
    rate = working * finish / step_s
    return SteadyState(
        num_running_seqs=num_seqs + 0.0 * rate, num_decode_seqs=working * decode.num_decode_seqs,
        num_queued_seqs=num_waiting + 0.0 * rate, rate_req_s=rate, step_s=step_s,
        prefill_s=measured * prefill_steps / (1.0 + again) * mixed_step.total_s,
        admission_s=num_waiting / rate, prefill_util_frac=load, preemptions_per_req=evicted,
        recompute_tok_per_req=again * grid.isl_tok,
        swap_bytes_per_req=swapped * grid.tp, swap_stall_s=stall_s, decode_batch=decode, mixed_batch=mixed, mixed_frac=mixed_frac,
        decode_step=decode_step, mixed_step=mixed_step, measured_factor=measured, term_factor=busy_s / terms_s,
    )


def full_state(grid: ReplicaGrid, room: KvRoom) -> SteadyState:
    """Steady state of a replica whose batch is full and in front of which requests always wait."""
    kv_full = np.less_equal(room.num_seqs, grid.max_num_seqs)
    return batch_state(grid, num_seqs=running_limit(grid, room), num_waiting=np.inf, kv_full=kv_full)


def outside_of(grid: ReplicaGrid, state: SteadyState) -> FloatOrArray:
    """Time that a request of ``state`` spends neither in the batch nor queued for it [s]."""
    return outside_s(grid, num_seqs=state.num_running_seqs, decode_s=state.decode_s, step_s=state.step_s,
                     prefill_s=state.prefill_s)


def closed_loop(grid: ReplicaGrid, room: KvRoom, concurrency: FloatOrArray) -> SteadyState:
    """Steady state with ``concurrency`` requests always in flight on each replica (>= 1).

    Requests in flight are those in the batch, those queued for it, and those outside both, X times
    :func:`outside_of`; the last are found in a few rounds, since the time in the batch depends little on them.
    """
    limit = running_limit(grid, room)
    running = np.minimum(concurrency, limit)
    inside = concurrency
    for _ in range(_NUM_ROUNDS):
        state = batch_state(grid, num_seqs=running)
        in_batch_s = running / state.rate_req_s
        outside = outside_of(grid, state)
        # A batch that is not full shares the requests by time; a full one finishes X whatever waits. The larger holds.
        inside = np.maximum(concurrency * in_batch_s / (in_batch_s + outside), concurrency - state.rate_req_s * outside)
        running = np.minimum(inside, limit)
    waiting = np.maximum(inside - running, 0.0)
    kv_full: BoolOrArray = np.greater(waiting, 0.0) & np.less_equal(room.num_seqs, grid.max_num_seqs)
    return batch_state(grid, num_seqs=running, num_waiting=waiting, kv_full=kv_full)
