"""What would change the answer: where along a variable the best degree becomes another."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.dtypes import dtype_named
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.plan import FlipPoint, Question
from tpplanner.domain.workload import LoadMode
from tpplanner.planner.cluster import evaluate
from tpplanner.planner.plans import grid_of
from tpplanner.planner.ranking import scores
from tpplanner.planner.replica import ReplicaGrid

_LOAD_FACTORS = 2.0 ** np.arange(-6.0, 6.01, 0.5)
_LENGTH_FACTORS = 2.0 ** np.arange(-5.0, 4.01, 0.5)
_UTILISATIONS = np.arange(0.50, 0.961, 0.05)

_LOAD_NAMES = {
    LoadMode.REQUEST_RATE: ("request rate", "req/s"),
    LoadMode.CONCURRENCY: ("concurrency", "requests"),
    LoadMode.BATCH_PER_GPU: ("batch per GPU", "requests"),
    LoadMode.CONCURRENCY_PER_REPLICA: ("concurrency per replica", "requests"),
}


def _best_degrees(
    question: Question, tps: Sequence[int], grid: ReplicaGrid, value: FloatOrArray
) -> list[int | None]:
    """Best degree in each column of a (degree x value) grid."""
    state = evaluate(grid, num_gpus=float(question.num_gpus), mode=question.load.mode, value=value,
                     targets=question.targets)
    score: NDArray[np.float64] = scores(state, question.load.mode)
    return [tps[int(np.argmax(column))] if np.isfinite(column).any() else None for column in score.T]


def _changes(variable: str, unit: str, values: Sequence[float | str], best: Sequence[int | None]) -> list[FlipPoint]:
    found = []
    for i in range(1, len(values)):
        before, after = best[i - 1], best[i]
        if before is not None and after is not None and before != after:
            found.append(FlipPoint(variable=variable, unit=unit, tp_before=before, tp_after=after,
                                   previous=values[i - 1], value=values[i]))
    return found


def _rounded(values: NDArray[np.float64], minimum: float) -> list[float]:
    whole = {float(max(round(v), minimum)) if v >= 4 else float(f"{max(v, minimum / 4):.3g}") for v in values}
    return sorted(whole)


def _along_load(question: Question, tps: Sequence[int], grid: ReplicaGrid) -> list[FlipPoint]:
    if question.load.value is None:
        return []
    name, unit = _LOAD_NAMES[question.load.mode]
    values = _rounded(question.load.value * _LOAD_FACTORS, 1.0 if unit == "requests" else 0.0)
    if unit == "requests":
        values = sorted({max(float(round(v)), 1.0) for v in values})
    best = _best_degrees(question, tps, grid, np.asarray(values)[None, :])
    return _changes(name, unit, values, best)


def _along_osl(question: Question, tps: Sequence[int], grid: ReplicaGrid) -> list[FlipPoint]:
    longest = max(question.model.max_context_tok - question.workload.isl_tok, 1)
    lengths = np.clip(np.round(question.workload.osl_tok * _LENGTH_FACTORS), 1, max(longest, question.workload.osl_tok))
    values = sorted({float(v) for v in lengths})
    best = _best_degrees(question, tps, replace(grid, osl_tok=np.asarray(values)[None, :]), question.load.value or 0.0)
    return _changes("output length", "tokens", values, best)


def _along_utilisation(question: Question, tps: Sequence[int], grid: ReplicaGrid) -> list[FlipPoint]:
    values = [round(float(u), 2) for u in _UTILISATIONS]
    best = _best_degrees(question, tps, replace(grid, gpu_memory_utilization=np.asarray(values)[None, :]),
                         question.load.value or 0.0)
    return _changes("gpu_memory_utilization", "", values, best)


def _along_kv_dtype(question: Question, tps: Sequence[int], grid: ReplicaGrid) -> list[FlipPoint]:
    precision = question.model.precision
    other = "fp8" if precision.kv.bits > 8 else precision.base.name
    model = replace(question.model, precision=replace(precision, kv=dtype_named(other)))
    value = np.asarray([[question.load.value or 0.0]])
    now = _best_degrees(question, tps, grid, value)
    then = _best_degrees(question, tps, replace(grid, model=model), value)
    return _changes("KV dtype", "", [precision.kv.name, other], [now[0], then[0]])


def flip_points(question: Question, tps: Sequence[int]) -> tuple[FlipPoint, ...]:
    """Return where the best of ``tps`` changes along load, output length, KV dtype and utilisation.

    Each variable is swept alone over a grid (load x 1/64 .. 64, output length x 1/32 .. 16,
    utilisation 0.5 .. 0.95), everything else as asked; a flip lies between two neighbours of the grid.
    """
    if len(tps) < 2:
        return ()
    column = grid_of(question, tps)
    column = replace(column, tp=np.asarray(tps, dtype=float)[:, None])
    return tuple(
        flip
        for sweep in (_along_load, _along_osl, _along_utilisation, _along_kv_dtype)
        for flip in sweep(question, tps, column)
    )
