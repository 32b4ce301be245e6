"""What would change the answer: where along a variable the best degree becomes another."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tpplanner.cost.replica import ReplicaGrid
from tpplanner.domain.dtypes import dtype_named
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.plan import FlipPoint, Question
from tpplanner.domain.workload import LoadMode
from tpplanner.planner.cluster import evaluate
from tpplanner.planner.plans import grid_of
from tpplanner.planner.ranking import scores

_LOAD_FACTORS = 2.0 ** np.arange(-6.0, 6.01, 0.5)
_LENGTH_FACTORS = 2.0 ** np.arange(-5.0, 4.01, 0.5)
_UTILISATIONS = np.arange(0.50, 0.961, 0.05)

_LOAD_NAMES = {
    LoadMode.REQUEST_RATE: ("request rate", "req/s"),
    LoadMode.CONCURRENCY: ("concurrency", "requests"),
    LoadMode.BATCH_PER_GPU: ("batch per GPU", "requests"),
    LoadMode.CONCURRENCY_PER_REPLICA: ("concurrency per replica", "requests"),
}


LEAD_FRAC = 0.02
"""A new best counts as a flip once it leads the old one by this: nearly equal degrees swap places without meaning."""


def _scores(question: Question, grid: ReplicaGrid, value: FloatOrArray) -> NDArray[np.float64]:
    """Score of a (degree x value) grid."""
    state = evaluate(grid, num_gpus=float(question.num_gpus), mode=question.load.mode, value=value,
                     targets=question.targets)
    found = scores(state, question.load.mode)
    # What is swept may change nothing (utilisation, where the blocks are given): the grid keeps its shape.
    swept = np.broadcast_shapes(*(np.shape(v) for v in (found, grid.tp, grid.osl_tok, grid.gpu_memory_utilization, value)))
    return np.broadcast_to(found, swept)


def _changes(
    variable: str, unit: str, values: Sequence[float | str], tps: Sequence[int], score: NDArray[np.float64]
) -> list[FlipPoint]:
    """Walk along the columns; a flip lies between the last best point of the old and a clear lead of the new."""
    found: list[FlipPoint] = []
    current: int | None = None
    last: float | str = values[0]
    for value, column in zip(values, score.T, strict=True):
        if not np.isfinite(column).any():
            continue
        best = int(np.argmax(column))
        if current is None or best == current:
            current, last = best, value
        elif column[best] > column[current] * (1.0 + LEAD_FRAC):
            found.append(FlipPoint(variable=variable, unit=unit, tp_before=tps[current], tp_after=tps[best],
                                   previous=last, value=value))
            current, last = best, value
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
    return _changes(name, unit, values, tps, _scores(question, grid, np.asarray(values)[None, :]))


def _along_osl(question: Question, tps: Sequence[int], grid: ReplicaGrid) -> list[FlipPoint]:
    longest = max(question.model.max_context_tok - question.workload.isl_tok, 1)
    lengths = np.clip(np.round(question.workload.osl_tok * _LENGTH_FACTORS), 1, max(longest, question.workload.osl_tok))
    values = sorted({float(v) for v in lengths})
    swept = replace(grid, osl_tok=np.asarray(values)[None, :])
    return _changes("output length", "tokens", values, tps, _scores(question, swept, question.load.value or 0.0))


def _along_utilisation(question: Question, tps: Sequence[int], grid: ReplicaGrid) -> list[FlipPoint]:
    values = [round(float(u), 2) for u in _UTILISATIONS]
    swept = replace(grid, gpu_memory_utilization=np.asarray(values)[None, :])
    return _changes("gpu_memory_utilization", "", values, tps, _scores(question, swept, question.load.value or 0.0))


def _along_kv_dtype(question: Question, tps: Sequence[int], grid: ReplicaGrid) -> list[FlipPoint]:
    precision = question.model.precision
    other = "fp8" if precision.kv.bits > 8 else precision.base.name
    model = replace(question.model, precision=replace(precision, kv=dtype_named(other)))
    value = np.asarray([[question.load.value or 0.0]])
    both = [_scores(question, grid, value), _scores(question, replace(grid, model=model), value)]
    return _changes("KV dtype", "", [precision.kv.name, other], tps, np.hstack(both))


def flip_points(question: Question, tps: Sequence[int]) -> tuple[FlipPoint, ...]:
    """Return where the best of ``tps`` changes along load, output length, KV dtype and utilisation.

    Each variable is swept alone over a grid (load x 1/64 .. 64, output length x 1/32 .. 16,
    utilisation 0.5 .. 0.95), everything else as asked. A flip is bracketed by two points of the grid: the last at
    which the old degree is best, and the first at which the new one leads it by ``LEAD_FRAC``.
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
