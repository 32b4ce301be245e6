"""Runs that differ in nothing but degree and load, so that their degrees can be compared."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tpplanner.domain.run_prediction import ScoredRun
from tpplanner.domain.scores import GroupKey
from tpplanner.validation.partitions import kind_of, precision_of

_COMPARED = ("tp", "tep")
"""All experts cut, or all shared out whole; what mixes the two has no other degree to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """At least two degrees, each with its runs by rising load, one run per load."""

    key: GroupKey
    kind: str
    by_tp: Mapping[int, tuple[ScoredRun, ...]]

    @property
    def points(self) -> Iterator[ScoredRun]:
        """Every run of the group."""
        for points in self.by_tp.values():
            yield from points


def load_per_gpu(point: ScoredRun) -> float:
    """Requests in flight per GPU of the replica; infinite where everything is queued."""
    return math.inf if point.concurrency is None else point.concurrency / point.run.tp


def groups_of(points: Sequence[ScoredRun]) -> tuple[Group, ...]:
    """Return the groups with at least two degrees, over the runs for which something is predicted.

    Of several runs with one degree and load, that with the median TPOT (offline: throughput) stands, the lower of two.
    A MoE run of one GPU belongs to both ways of cutting experts.
    """
    found: dict[GroupKey, dict[int, dict[int | None, list[ScoredRun]]]] = {}
    for point in points:
        if not point.is_judged or point.run.parallel not in _COMPARED:
            continue
        for parallel in _parallels(point):
            loads = found.setdefault(_key(point, parallel), defaultdict(lambda: defaultdict(list)))[point.run.tp]
            loads[point.concurrency].append(point)
    return tuple(
        Group(key=key, kind=kind_of(next(iter(next(iter(by_tp.values())).values()))[0]),
              by_tp={tp: _one_per_load(by_tp[tp]) for tp in sorted(by_tp)})
        for key, by_tp in found.items() if len(by_tp) >= 2
    )


def _parallels(point: ScoredRun) -> tuple[str, ...]:
    return _COMPARED if point.run.tp == 1 and point.run.kind == "moe" else (point.run.parallel,)


def _key(point: ScoredRun, parallel: str) -> GroupKey:
    run = point.run
    return GroupKey(
        model=run.model, machine=run.machine, engine=run.engine, engine_version=run.engine_version or "?",
        precision=precision_of(point), kv_cache_dtype=run.kv_cache_dtype or "auto", isl_tok=run.isl_tok,
        osl_tok=run.osl_tok, parallel=parallel, is_offline=point.concurrency is None,
    )


def _one_per_load(by_load: Mapping[int | None, list[ScoredRun]]) -> tuple[ScoredRun, ...]:
    medians = []
    for load in sorted(by_load, key=lambda load: math.inf if load is None else load):
        repeats = sorted(by_load[load], key=_speed)
        medians.append(repeats[(len(repeats) - 1) // 2])
    return tuple(medians)


def _speed(point: ScoredRun) -> float:
    tpot_s = point.measured("tpot")
    return point.run.throughput_tok_s if tpot_s is None else tpot_s
