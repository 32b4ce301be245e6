"""Tokens per second and GPU against tokens per second and user, along the concurrency of a replica."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tpplanner.domain.plan import Question
from tpplanner.domain.workload import LoadMode
from tpplanner.planner.cluster import evaluate
from tpplanner.planner.plans import grid_of


def pareto_points(question: Question, tps: Sequence[int]) -> dict[int, list[tuple[float, float, float]]]:
    """Return per degree (tok/s/user, tok/s/GPU, concurrency per replica), for concurrencies 1, 2, 4 ...

    Only points without a queue: past the batch limit throughput stays and latency grows.
    """
    if not tps or question.workload.osl_tok < 2:
        return {}
    most = int(np.ceil(np.log2(question.max_num_seqs)))
    concurrency = 2.0 ** np.arange(0.0, most + 0.01, 0.5)
    grid = grid_of(question, tps)
    grid = replace(grid, tp=np.asarray(tps, dtype=float)[:, None])
    state = evaluate(grid, num_gpus=float(question.num_gpus), mode=LoadMode.CONCURRENCY_PER_REPLICA,
                     value=concurrency[None, :])
    per_gpu = state.throughput_tok_s / state.num_replicas / grid.tp
    per_user = 1.0 / np.broadcast_to(np.asarray(state.latency.tpot_s), state.throughput_tok_s.shape)
    shown = state.runs & ~state.saturated
    return {
        tp: [(float(per_user[i, j]), float(per_gpu[i, j]), float(c)) for j, c in enumerate(concurrency) if shown[i, j]]
        for i, tp in enumerate(tps)
    }
