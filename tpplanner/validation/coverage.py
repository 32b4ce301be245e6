"""Whether the stated 80 % intervals hold 80 % of what was measured."""

from collections import defaultdict
from collections.abc import Sequence

from tpplanner.domain.run_prediction import QUANTITIES, ScoredRun
from tpplanner.domain.scores import CoverageRow
from tpplanner.validation.partitions import Partition, partitions_of


def coverage(points: Sequence[ScoredRun]) -> tuple[CoverageRow, ...]:
    """Return the share of runs inside their interval, by partition; no row where no interval is stated."""
    inside: dict[Partition, list[dict[str, bool]]] = defaultdict(list)
    for point in points:
        own = {name: is_in for name in QUANTITIES if (is_in := _is_inside(point, name)) is not None}
        if not own:
            continue
        for partition in partitions_of(point):
            inside[partition].append(own)
    rows = []
    for partition in sorted(inside):
        tpot, ttft, throughput = (_share([own[n] for own in inside[partition] if n in own]) for n in QUANTITIES)
        rows.append(CoverageRow(partition=partition.name, num_runs=len(inside[partition]), tpot_frac=tpot,
                                ttft_frac=ttft, throughput_frac=throughput))
    return tuple(rows)


def _is_inside(point: ScoredRun, quantity: str) -> bool | None:
    measured = point.measured(quantity)
    if point.prediction is None or measured is None:
        return None
    low, high = point.prediction.interval(quantity)
    return None if low is None or high is None else low <= measured <= high


def _share(inside: Sequence[bool]) -> float | None:
    return sum(inside) / len(inside) if inside else None
