"""TTFT, TPOT and end-to-end time of the requests of a steady state."""

from dataclasses import dataclass

import numpy as np

from tpplanner.cost.outside import burst_s
from tpplanner.cost.replica import ReplicaGrid
from tpplanner.cost.steady_state import SteadyState, outside_of
from tpplanner.domain.matrix import FloatOrArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Latency:
    """Means over requests [s]; ``tpot_s`` is NaN where one token is asked for."""

    ttft_s: FloatOrArray
    tpot_s: FloatOrArray
    e2e_s: FloatOrArray


def latency_of(grid: ReplicaGrid, state: SteadyState) -> Latency:
    """Latency of a request in ``state``.

    TTFT = wait for a place + what it spends outside the batch + prefill + the burst of a benchmark's start.

    TPOT = (time in the batch - prefill - burst) / (O - 1), the time in the batch being S / X by Little's law: the
    prefills of others slow a request's decode, its own does not; the prefills that follow a preemption do. Whatever
    the order in which prompts are served, what they cost is paid once: prompts that a first token waits for do not
    slow its decode. TPOT is never below the step without prefill.
    """
    decode_steps = np.asarray(grid.osl_tok - 1.0, dtype=float)
    in_batch_s = state.num_running_seqs / state.rate_req_s
    burst = _burst_s(grid, state)
    ttft = state.admission_s + outside_of(grid, state) + state.prefill_s + state.ttft_factor * burst
    decode_s = in_batch_s - state.prefill_s - np.minimum(burst, 0.5 * in_batch_s)
    per_token = np.maximum(decode_s / np.maximum(decode_steps, 1.0), state.decode_s)
    tpot = np.where(decode_steps > 0, per_token, np.nan)
    return Latency(ttft_s=ttft, tpot_s=tpot, e2e_s=ttft + np.where(decode_steps > 0, decode_steps * per_token, 0.0))


def _burst_s(grid: ReplicaGrid, state: SteadyState) -> FloatOrArray:
    added_s = state.measured_factor * (state.mixed_step.total_s - state.decode_step.total_s)
    prompts = np.maximum(state.mixed_batch.num_prefill_tok / grid.isl_tok, 1e-12)
    return burst_s(grid, num_seqs=state.num_running_seqs, prompt_s=added_s / prompts)
