"""T4, sampling: on one rank, or divided over the ranks by rows."""

import numpy as np

from tpplanner.domain.engine import TaskCost
from tpplanner.domain.matrix import FloatOrArray

EQUATION = "a + b rows on one rank;  a + b max(rows / t, 1) with sequence-parallel sampling"


def sampling_s(
    task: TaskCost, *, tp: FloatOrArray, num_sampled: FloatOrArray, seq_parallel: bool
) -> FloatOrArray:
    """Time of sampling ``num_sampled`` rows [s].

    With ``seq_parallel`` each rank samples rows / t of them, padded to a whole row per rank
    (Albireo section 6). The mean number of rows of a steady state is no integer, so the padding
    is at least one row and at most the rows themselves.
    """
    rows = np.maximum(num_sampled / tp, np.minimum(num_sampled, 1.0)) if seq_parallel else num_sampled
    total: FloatOrArray = task.per_seq_s.value * rows
    return total + task.fixed_s.value * np.greater(num_sampled, 0)
