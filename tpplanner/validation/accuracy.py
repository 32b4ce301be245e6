"""Errors of TPOT, TTFT and throughput, and of the gain of doubling the degree."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from tpplanner.domain.run_prediction import QUANTITIES, ScoredRun
from tpplanner.domain.scores import AccuracyRow, DoublingRow
from tpplanner.validation.groups import Group, load_per_gpu
from tpplanner.validation.partitions import WHOLE, Partition, error_stats, kind_partition, partitions_of


def accuracy(points: Sequence[ScoredRun]) -> tuple[AccuracyRow, ...]:
    """Return the errors of every partition that has a predicted run."""
    ratios: dict[Partition, list[dict[str, float]]] = defaultdict(list)
    for point in points:
        if not point.is_predicted:
            continue
        own = {name: ratio for name in QUANTITIES if (ratio := point.ratio(name)) is not None}
        for partition in partitions_of(point):
            ratios[partition].append(own)
    return tuple(_row(partition.name, ratios[partition]) for partition in sorted(ratios))


def _row(partition: str, ratios: Sequence[dict[str, float]]) -> AccuracyRow:
    tpot, ttft, throughput = (error_stats([own[name] for own in ratios if name in own]) for name in QUANTITIES)
    return AccuracyRow(partition=partition, num_runs=len(ratios), tpot=tpot, ttft=ttft, throughput=throughput)


def doubling(groups: Sequence[Group]) -> tuple[DoublingRow, ...]:
    """Return the errors of T(2t) / T(t), throughput of the replica, over all pairs t, 2t at equal load per GPU.

    Runs in which everything is queued are paired with each other.
    """
    ratios: dict[Partition, list[float]] = defaultdict(list)
    for group in groups:
        for ratio in _gain_ratios(group):
            ratios[WHOLE].append(ratio)
            ratios[kind_partition(group.kind)].append(ratio)
    rows = []
    for partition in sorted(ratios):
        stats = error_stats(ratios[partition])
        if stats is not None:
            rows.append(DoublingRow(partition=partition.name, errors=stats))
    return tuple(rows)


def _gain_ratios(group: Group) -> Iterator[float]:
    """Yield the predicted over the measured gain of every pair of degrees t and 2t."""
    by_load: dict[float, dict[int, ScoredRun]] = defaultdict(dict)
    for tp, points in group.by_tp.items():
        for point in points:
            if point.is_predicted:
                by_load[load_per_gpu(point)][tp] = point
    for by_tp in by_load.values():
        for tp, point in by_tp.items():
            double = by_tp.get(2 * tp)
            ratio = point.ratio("throughput")
            twice = None if double is None else double.ratio("throughput")
            if ratio is not None and twice is not None:
                yield twice / ratio
