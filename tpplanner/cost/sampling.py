"""T4, sampling: on one rank, or divided over the ranks by rows."""

import numpy as np

from tpplanner.domain.engine import TaskCost
from tpplanner.domain.matrix import FloatOrArray

EQUATION = "a + (b + c V) rows on one rank;  a + (b + c V) max(rows / t, 1) with sequence-parallel sampling"


def sampling_s(
    task: TaskCost, *, tp: FloatOrArray, num_sampled: FloatOrArray, seq_parallel: bool, vocab_size: float = 0.0
) -> FloatOrArray:
    """Time of sampling ``num_sampled`` rows of ``vocab_size`` logits [s].

    With ``seq_parallel`` each rank samples rows / t of them, padded to a whole row per rank
    (Albireo section 6). The mean number of rows of a steady state is no integer, so the padding
    is at least one row and at most the rows themselves.
    """
    rows = np.maximum(num_sampled / tp, np.minimum(num_sampled, 1.0)) if seq_parallel else num_sampled
    per_tok = task.per_seq_per_vocab_tok_s.value if task.per_seq_per_vocab_tok_s else 0.0
    total: FloatOrArray = (task.per_seq_s.value + per_tok * vocab_size) * rows
    return total + task.fixed_s.value * np.greater(num_sampled, 0)
