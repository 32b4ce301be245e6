"""TTFT, TPOT and end-to-end time of the requests of a steady state."""

from dataclasses import dataclass

import numpy as np

from tpplanner.domain.matrix import FloatOrArray
from tpplanner.planner.replica import ReplicaGrid
from tpplanner.planner.steady_state import SteadyState


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Latency:
    """Means over requests [s]; ``tpot_s`` is NaN where one token is asked for."""

    ttft_s: FloatOrArray
    tpot_s: FloatOrArray
    e2e_s: FloatOrArray


def latency_of(grid: ReplicaGrid, state: SteadyState) -> Latency:
    """Latency of a request in ``state``.

    TTFT = wait for a place + rest of the running step + prefill + fixed overhead of a request;
    TPOT = mean step, since each step gives every decoding sequence one token. Gaps of
    preempted sequences are charged to the step, not to their owner.
    """
    overhead = grid.engine.request_overhead_s
    ttft = state.admission_s + 0.5 * state.step_s + state.prefill_s + (overhead.value if overhead else 0.0)
    tpot = np.where(np.greater(grid.osl_tok, 1), state.step_s, np.nan)
    e2e = ttft + (grid.osl_tok - 1.0) * state.step_s
    return Latency(ttft_s=ttft, tpot_s=tpot, e2e_s=e2e)
