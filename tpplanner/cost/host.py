"""Host tasks: T1 scheduling, T2 input processing, T5 output processing. t divides none of them."""

import numpy as np

from tpplanner.domain.engine import TaskCost
from tpplanner.domain.matrix import FloatOrArray

EQUATION = "T1 + T2 + T5, each a + b n;  T2 also (c + d n) log2 t for the broadcast to the ranks"


def task_s(task: TaskCost, *, tp: FloatOrArray, num_seqs: FloatOrArray) -> FloatOrArray:
    """Time of one host task for a batch of ``num_seqs`` sequences [s].

    a + b n + (c + d n) log2 t; the growth with t is the broadcast of the input metadata to the ranks
    (Albireo, arXiv 2606.01927, section 3; the form in log2 t is the fit of its ablation).
    """
    total: FloatOrArray = task.fixed_s.value + task.per_seq_s.value * num_seqs
    fixed = task.per_log2_tp_s.value if task.per_log2_tp_s else 0.0
    per_seq = task.per_seq_per_log2_tp_s.value if task.per_seq_per_log2_tp_s else 0.0
    if fixed or per_seq:
        total = total + (fixed + per_seq * num_seqs) * np.log2(tp)
    return total
