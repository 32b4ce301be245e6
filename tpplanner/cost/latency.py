"""TTFT, TPOT and end-to-end time of the requests of a steady state."""

from dataclasses import dataclass

import numpy as np

from tpplanner.cost.replica import ReplicaGrid
from tpplanner.cost.steady_state import SteadyState, outside_s
from tpplanner.domain.matrix import FloatOrArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Latency:
    """Means over requests [s]; ``tpot_s`` is NaN where one token is asked for."""

    ttft_s: FloatOrArray
    tpot_s: FloatOrArray
    e2e_s: FloatOrArray


def latency_of(grid: ReplicaGrid, state: SteadyState) -> Latency:
    """Latency of a request in ``state``.

    TTFT = wait for a place + rest of a step that others run + prefill + fixed overhead of a request.

    TPOT = (time in the batch - prefill) / (O - 1), the time in the batch being S / X by Little's law: the
    prefills of others slow a request's decode, its own does not; the prefills that follow a preemption do.
    It is never below the step without prefill.
    """
    ttft = state.admission_s + outside_s(grid, state) + state.prefill_s
    decode_steps = np.asarray(grid.osl_tok - 1.0, dtype=float)
    decode_s = state.num_running_seqs / state.rate_req_s - state.prefill_s
    per_token = np.maximum(decode_s / np.maximum(decode_steps, 1.0), state.decode_step.total_s)
    tpot = np.where(decode_steps > 0, per_token, np.nan)
    return Latency(ttft_s=ttft, tpot_s=tpot, e2e_s=ttft + np.where(decode_steps > 0, decode_steps * per_token, 0.0))
