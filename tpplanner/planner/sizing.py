"""The fewest GPUs that carry a load: the smallest cluster in which some degree is feasible without a queue."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tpplanner.domain.plan import MAX_GPUS, Question
from tpplanner.domain.workload import LoadMode
from tpplanner.errors import WorkloadError, reject
from tpplanner.planner.cluster import evaluate
from tpplanner.planner.degrees import candidate_degrees, num_gpus_of, num_replicas_of
from tpplanner.planner.plans import grid_of


def _carried(question: Question, tps: Sequence[int], replicas: np.ndarray[tuple[int], np.dtype[np.float64]]) -> (
    np.ndarray[tuple[int], np.dtype[np.bool_]]
):
    grid = grid_of(question, tps)
    num_gpus = num_gpus_of(replicas, tp=grid.tp, gpus_per_node=question.hardware.gpus_per_node)
    state = evaluate(grid, num_gpus=num_gpus, mode=question.load.mode, value=question.load.value or 0.0,
                     targets=question.targets)
    carried: np.ndarray[tuple[int], np.dtype[np.bool_]] = state.feasible & ~state.saturated
    return carried


def fewest_gpus(question: Question) -> int | None:
    """Return the fewest GPUs with which some degree carries the load and meets the targets.

    More replicas never make it worse, so each degree's smallest number of replicas is found by
    bisection. ``None``: no number up to ``MAX_GPUS`` does (a target is out of reach, or the
    model does not fit).

    Raises
    ------
    WorkloadError
        If the load does not state a total for the cluster.
    """
    if question.load.mode not in (LoadMode.REQUEST_RATE, LoadMode.CONCURRENCY):
        reject(WorkloadError, "load", "be --request-rate or --concurrency where --gpus gives no number",
               question.load.mode.value)
    node = question.hardware.gpus_per_node
    degrees = candidate_degrees(question.model, question.hardware, max(question.max_tp or node, node), question.max_tp)
    tps = [d.tp for d in degrees if not d.obstacle]
    low = np.zeros(len(tps))
    high = np.asarray(num_replicas_of(MAX_GPUS, tp=np.asarray(tps, dtype=float), gpus_per_node=node))
    possible = _carried(question, tps, high)
    if not possible.any():
        return None
    while np.any(high - low > 1):
        middle = np.ceil(0.5 * (low + high))
        good = _carried(question, tps, middle)
        low, high = np.where(good, low, middle), np.where(good, middle, high)
    needed = np.where(possible, num_gpus_of(high, tp=np.asarray(tps, dtype=float), gpus_per_node=node), np.inf)
    return int(needed.min())


def sized(question: Question) -> Question:
    """Return the question with the fewest GPUs that carry its load, or with one node where none do."""
    num_gpus = fewest_gpus(question)
    return replace(question, num_gpus=num_gpus or question.hardware.gpus_per_node, num_gpus_given=False)
