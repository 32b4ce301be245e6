"""Capacity under targets where the latencies are in error: the load that meets the targets is found anew in each draw."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tpplanner.cost.latency import latency_of
from tpplanner.cost.replica import kv_room
from tpplanner.cost.steady_state import closed_loop, running_limit
from tpplanner.domain.plan import Question
from tpplanner.domain.workload import Targets
from tpplanner.planner.plans import grid_of

FloatArray = NDArray[np.float64]

_NUM_KNOTS = 24
"""Concurrencies per degree, from one request to a full batch; between them latencies are interpolated in logs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CapacityCurves:
    """Per degree and concurrency (degrees, knots), rising: logs of concurrency, latencies and requests per second.

    ``ttft_share`` is TTFT over the request's whole time.
    """

    log_concurrency: FloatArray
    log_tpot: FloatArray
    log_ttft: FloatArray
    log_rate: FloatArray
    ttft_share: FloatArray


def capacity_curves(question: Question, tps: Sequence[int]) -> CapacityCurves:
    """Return one replica's latencies and rate against its concurrency, without a queue."""
    grid = grid_of(question, tps)
    grid = replace(grid, tp=np.asarray(grid.tp)[:, None])
    room = kv_room(grid)
    most = np.maximum(np.floor(running_limit(grid, room)), 1.0)
    concurrency = most ** np.linspace(0.0, 1.0, _NUM_KNOTS)
    latency = latency_of(grid, closed_loop(grid, room, concurrency))
    # Rising without flat stretches, so that a latency has one concurrency.
    ramp = 1e-9 * np.arange(_NUM_KNOTS)

    def rising(latency_s: object) -> FloatArray:
        shaped = np.broadcast_to(np.asarray(latency_s, dtype=float), concurrency.shape)
        return np.asarray(np.maximum.accumulate(np.log(np.maximum(shaped, 1e-12)), axis=1) + ramp)

    return CapacityCurves(
        log_concurrency=np.log(concurrency), log_tpot=rising(latency.tpot_s), log_ttft=rising(latency.ttft_s),
        log_rate=np.log(concurrency / latency.e2e_s),
        ttft_share=np.asarray(latency.ttft_s / latency.e2e_s, dtype=float),
    )


def log_capacity(curves: CapacityCurves, targets: Targets, tpot_error: FloatArray, ttft_error: FloatArray) -> FloatArray:
    """Log of a replica's capacity [requests/s] per draw and degree, its latencies being exp(error) times the predicted.

    Whole requests are in flight; minus infinity where not even one meets the targets. The errors have the shape (draws, degrees).
    """
    columns = [
        _of_degree(curves, targets, i, tpot_error[:, i], ttft_error[:, i]) for i in range(len(curves.log_concurrency))
    ]
    return np.stack(columns, axis=1)


def _of_degree(
    curves: CapacityCurves, targets: Targets, i: int, tpot_error: FloatArray, ttft_error: FloatArray
) -> FloatArray:
    knots = curves.log_concurrency[i]
    load = np.full(tpot_error.shape, knots[-1])
    for target_s, latency, error in ((targets.tpot_s, curves.log_tpot[i], tpot_error),
                                     (targets.ttft_s, curves.log_ttft[i], ttft_error)):
        # TPOT does not exist where one token is asked for.
        if target_s is not None and not np.isnan(latency).any():
            load = np.minimum(load, np.interp(np.log(target_s) - error, latency, knots, left=-np.inf))
    with np.errstate(divide="ignore"):
        load = np.log(np.floor(np.exp(load) * (1.0 + 1e-9)))
    share = np.interp(load, knots, curves.ttft_share[i])
    log_rate = np.interp(load, knots, curves.log_rate[i]) - share * ttft_error - (1.0 - share) * tpot_error
    return np.where(np.isfinite(load), log_rate, -np.inf)
