"""The groups that are predicted worst: where to look for the term that is wrong."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, median

from tpplanner.domain.run_prediction import QUANTITIES, ScoredRun
from tpplanner.domain.scores import OFFLINE, OURS, SAME_LOAD, Decision, GroupKey, WorstGroup
from tpplanner.validation.groups import Group

NUM_WORST = 10


def worst_by_regret(
    decisions: Sequence[Decision], terms: Mapping[str, str] | None = None, *, limit: int = NUM_WORST
) -> tuple[WorstGroup, ...]:
    """Return the groups with the highest mean regret at equal load per GPU (or offline), worst first.

    ``terms`` names what is known to be wrong: group -> term. Groups without regret are left out.
    """
    found: dict[GroupKey, list[Decision]] = defaultdict(list)
    for decision in decisions:
        if decision.definition in (SAME_LOAD, OFFLINE):
            found[decision.group].append(decision)
    rows = [
        WorstGroup(group=key.name, num=len(own), value_frac=fmean(one.regret_frac() for one in own),
                   detail=_choice(max(own, key=lambda one: one.regret_frac())), term=(terms or {}).get(key.name))
        for key, own in found.items()
    ]
    return _worst([row for row in rows if row.value_frac > 0], limit)


def worst_by_throughput(
    groups: Sequence[Group], terms: Mapping[str, str] | None = None, *, limit: int = NUM_WORST
) -> tuple[WorstGroup, ...]:
    """Return the groups with the highest mean absolute error of throughput, worst first."""
    rows = []
    for group in groups:
        points = [point for point in group.points if point.is_predicted]
        errors = [abs(ratio - 1) for point in points if (ratio := point.ratio("throughput")) is not None]
        if errors:
            rows.append(WorstGroup(group=group.key.name, num=len(errors), value_frac=fmean(errors),
                                   detail=_bias(points), term=(terms or {}).get(group.key.name)))
    return _worst(rows, limit)


def _worst(rows: Sequence[WorstGroup], limit: int) -> tuple[WorstGroup, ...]:
    return tuple(sorted(rows, key=lambda row: (-row.value_frac, row.group))[:limit])


def _choice(decision: Decision) -> str:
    where = "" if decision.load_per_gpu is None else f" at {decision.load_per_gpu:g} requests per GPU"
    return (f"TP {decision.chosen[OURS]} for TP {decision.best_tp}{where} "
            f"loses {100 * decision.regret_frac():.1f} %")


def _bias(points: Sequence[ScoredRun]) -> str:
    """Return the median ratio of predicted to measured figures."""
    told = []
    for name in ("throughput", *QUANTITIES[:2]):
        ratios = [ratio for point in points if (ratio := point.ratio(name)) is not None]
        if ratios:
            told.append(f"{name if name == 'throughput' else name.upper()} x{median(ratios):.2f}")
    return "predicted " + ", ".join(told)
