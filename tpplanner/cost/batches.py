"""What the steps of continuous batching carry, counted in steps: time plays no part in it.

A request spends O - 1 steps in decode and n_p steps in prefill, and each step finishes x requests. With S sequences in
the batch Little's law gives

    S = x (O - 1 + n_p)                                                             (1)

and the prefill tokens of the mean step are x I: b = x (O - 1) sequences decode, and a share f of the steps carries
c = x I / f prompt tokens.
"""

from dataclasses import dataclass

import numpy as np

from tpplanner.cost.preemption import evictions_per_request
from tpplanner.cost.replica import ReplicaGrid
from tpplanner.domain.engine import Preemption
from tpplanner.domain.matrix import BoolOrArray, FloatOrArray
from tpplanner.domain.step import Batch

_NUM_BISECTIONS = 36
"""Of equation (1); 2**-36 of the largest rate that the batch and the token budget allow is below 1e-10."""


_NUM_SUBSTITUTIONS = 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchPlan:
    """The batches of a steady state. All arrays of one shape.

    ``working`` is the share of time that the replica works at all (below one sequence), ``finish_per_step`` x,
    ``prefill_steps`` n_p; ``evicted`` and ``recomputed`` count evictions per request, and those whose prompt is computed
    again; ``prefill_load`` is the share of the token budget that prompts take.
    """

    num_seqs: FloatOrArray
    num_waiting: FloatOrArray
    working: FloatOrArray
    finish_per_step: FloatOrArray
    prefill_steps: FloatOrArray
    evicted: FloatOrArray
    recomputed: FloatOrArray
    decode: Batch
    mixed: Batch
    mixed_frac: FloatOrArray
    prefill_load: FloatOrArray


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


def plan_batches(
    grid: ReplicaGrid, *, num_seqs: FloatOrArray, num_waiting: FloatOrArray = 0.0, kv_full: BoolOrArray = False
) -> BatchPlan:
    """Batches of a steady state with ``num_seqs`` sequences in the batch of each replica.

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
    held = np.maximum(num_seqs, 1.0)
    finish, prefill_steps = _finish_rate_per_step(grid, held, prefill_tok, 1.0 + again)
    decode, mixed, mixed_frac, load = _batches(grid, held, finish, prefill_steps, prefill_tok)
    return BatchPlan(
        num_seqs=num_seqs, num_waiting=num_waiting, working=np.minimum(num_seqs, 1.0), finish_per_step=finish,
        prefill_steps=prefill_steps, evicted=evicted, recomputed=again, decode=decode, mixed=mixed,
        mixed_frac=mixed_frac, prefill_load=load,
    )
