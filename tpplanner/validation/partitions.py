"""The parts of the measured runs for which figures are stated."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from tpplanner.domain.offline_run import OfflineRun
from tpplanner.domain.run_prediction import ScoredRun
from tpplanner.domain.scores import ErrorStats

ALL: Final = "all"
UNKNOWN_KIND: Final = "other"
"""Where nobody has said whether the model is dense."""

_FEW: Final = 8
_MANY: Final = 32
"""Edges of the bands of requests in flight in a replica."""


def kind_of(point: ScoredRun) -> str:
    """``dense``, ``moe``, or ``other`` where the run does not say."""
    return point.run.kind or UNKNOWN_KIND


def precision_of(point: ScoredRun) -> str:
    """The run's precision in its source's words; ``bf16`` where it has none."""
    return point.run.precision or "bf16"


def concurrency_band(concurrency: int) -> str:
    """Name the band of requests in flight.

    Examples
    --------
    >>> [concurrency_band(n) for n in (1, 8, 9, 32, 33)]
    ['conc<=8', 'conc<=8', 'conc 9-32', 'conc 9-32', 'conc>32']
    """
    if concurrency <= _FEW:
        return f"conc<={_FEW}"
    return f"conc {_FEW + 1}-{_MANY}" if concurrency <= _MANY else f"conc>{_MANY}"


def load_band(load_per_gpu: float) -> str:
    """Name the band of requests in flight per GPU.

    Examples
    --------
    >>> [load_band(load) for load in (0.5, 2, 4, 8, 16)]
    ['load<=2', 'load<=2', 'load<=8', 'load<=8', 'load>8']
    """
    if load_per_gpu <= 2:
        return "load<=2"
    return "load<=8" if load_per_gpu <= 8 else "load>8"


class Partition(NamedTuple):
    """A part of the runs; reports are sorted by ``rank``, then by ``order``."""

    rank: int
    order: str
    name: str


WHOLE: Final = Partition(0, ALL, ALL)


def kind_partition(kind: str) -> Partition:
    """Return the partition of all runs of dense or of MoE models."""
    return Partition(1, kind, kind)


def partitions_of(point: ScoredRun) -> Iterator[Partition]:
    """Yield the partitions that a run belongs to, each once."""
    run, kind = point.run, kind_of(point)
    yield WHOLE
    yield kind_partition(kind)
    if point.concurrency is not None and not point.is_saturated:
        yield _named(0, f"{ALL}, not saturated")
        yield _named(1, f"{kind}, not saturated")
    if not isinstance(run, OfflineRun) and run.doubt is None:
        yield _named(1, f"{kind}, not in doubt")
    yield _named(2, f"{run.machine}/{run.engine}/{kind}")
    yield Partition(3, f"{kind} {run.tp:09d}", f"{kind} tp{run.tp}")
    yield _load_partition(kind, point.concurrency)
    yield _named(5, f"source {run.family}/{kind}")
    yield _named(6, f"model {run.model.split('/')[-1]} {precision_of(point)}")
    if point.prediction is not None and point.prediction.fold is not None:
        yield _named(7, f"fold {point.prediction.fold}")


def _named(rank: int, name: str) -> Partition:
    return Partition(rank, name, name)


def _load_partition(kind: str, concurrency: int | None) -> Partition:
    if concurrency is None:
        return _named(4, f"{kind} offline")
    order = (concurrency > _FEW) + (concurrency > _MANY)
    return Partition(4, f"{kind} {order}", f"{kind} {concurrency_band(concurrency)}")


def error_stats(ratios: Sequence[float]) -> ErrorStats | None:
    """Return the errors |r - 1| of the ratios r of predicted to measured figures, ``None`` where there is none.

    Examples
    --------
    Errors 0.1, 0.2 and 0.4: mean 0.7 / 3; the 90th percentile lies 0.8 of the way from 0.2 to 0.4.

    >>> stats = error_stats([1.1, 0.8, 1.4])
    >>> [round(x, 6) for x in (stats.mean_frac, stats.median_frac, stats.p90_frac, stats.median_ratio)]
    [0.233333, 0.2, 0.36, 1.1]
    """
    if not ratios:
        return None
    values = np.asarray(ratios, dtype=float)
    errors = np.abs(values - 1.0)
    return ErrorStats(num=len(ratios), mean_frac=float(np.mean(errors)), median_frac=float(np.median(errors)),
                      p90_frac=float(np.quantile(errors, 0.9)), median_ratio=float(np.median(values)))
