"""Amdahl's law for tensor parallelism, the optimum degree, and the rule of thumb.

Equations 1 and 2 and figure 3 of Albireo (arXiv 2606.01927).
"""

import math
from collections.abc import Mapping

from tpplanner.domain.matrix import FloatOrArray


def speedup(*, tp: FloatOrArray, parallel_frac: FloatOrArray) -> FloatOrArray:
    """Amdahl speed-up of a step at ``tp`` over the step at 1: 1 / ((1 - P) + P / t).

    Parameters
    ----------
    parallel_frac
        P, the share of the t = 1 step that t divides (T3).

    Examples
    --------
    P = 0.6 at t = 4: 1 / (0.4 + 0.15) = 1.8182.

    >>> round(speedup(tp=4, parallel_frac=0.6), 4)
    1.8182
    """
    return 1.0 / ((1.0 - parallel_frac) + parallel_frac / tp)


def best_degree(throughput_per_replica: Mapping[int, float], num_gpus: int) -> int:
    """Degree t_e with (N / t_e) T(t_e) >= (N / t) T(t) for every feasible t (equation 1).

    N / t counts whole replicas. Of equal degrees the smallest wins.

    Raises
    ------
    ValueError
        If no degree is given that fits into ``num_gpus``.

    Examples
    --------
    Figure 10, vLLM, Llama-3.1-70B on 8 GPUs: 4 x 0.9, 2 x 3.84, 1 x 6.07 K tok/s.

    >>> best_degree({2: 0.9, 4: 3.84, 8: 6.07}, 8)
    4
    """
    totals = {t: (num_gpus // t) * rate for t, rate in throughput_per_replica.items() if t <= num_gpus}
    if not totals:
        raise ValueError(f"no degree fits into {num_gpus} GPUs: {sorted(throughput_per_replica)}")
    return max(sorted(totals), key=lambda t: totals[t])


def rule_of_thumb_degree(*, weight_bytes: float, hbm_bytes: float) -> int:
    """Equation 2, t_e = 4 M / C, rounded up to a power of two (1 at least).

    It says: weights take at most a quarter of the replica's memory.

    Examples
    --------
    Llama-3.1-70B in 16 bits on 80 GB: 4 * 141.1 / 80 = 7.06 -> 8.

    >>> rule_of_thumb_degree(weight_bytes=141.1e9, hbm_bytes=80e9)
    8
    """
    return int(2 ** max(0, math.ceil(math.log2(4.0 * weight_bytes / hbm_bytes))))
