"""All figures of one set of predictions at once, and the names that limits give them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tpplanner.domain.offline_run import MeasuredRun
from tpplanner.domain.run_prediction import OK, QUANTITIES, RunPrediction, ScoredRun
from tpplanner.domain.scores import (
    OURS,
    AccuracyRow,
    CoverageRow,
    DecisionRow,
    DoublingRow,
    ErrorStats,
    PolicyScore,
    Scores,
)
from tpplanner.validation.accuracy import accuracy, doubling
from tpplanner.validation.coverage import coverage
from tpplanner.validation.decisions import DEFAULT_TPOT_LIMITS_S, decision_rows, decisions_of
from tpplanner.validation.groups import groups_of
from tpplanner.validation.worst import worst_by_regret, worst_by_throughput


def match(runs: Sequence[MeasuredRun], predictions: Iterable[RunPrediction]) -> tuple[ScoredRun, ...]:
    """Put every run beside its prediction: of several ids of the run, the first with figures, else the first at all."""
    by_id: dict[str, RunPrediction] = {}
    for prediction in predictions:
        by_id.setdefault(prediction.run_id, prediction)
    points = []
    for run in runs:
        own = [by_id[name] for name in run.ids if name in by_id]
        with_figures = [p for p in own if ScoredRun(run=run, prediction=p).is_predicted]
        rest = [p for p in own if p.is_oom] or own
        points.append(ScoredRun(run=run, prediction=next(iter(with_figures or rest), None)))
    return tuple(points)


def score(
    points: Sequence[ScoredRun], *, name: str, label: str,
    tpot_limits_s: Sequence[float] = DEFAULT_TPOT_LIMITS_S, rules_of_thumb: Mapping[str, int] | None = None,
    terms: Mapping[str, str] | None = None,
) -> Scores:
    """Score predictions against measured runs.

    Parameters
    ----------
    points
        Runs with their predictions, as of `match`.
    name, label
        Of the result; see `Scores`.
    tpot_limits_s
        Targets of definition b [s].
    rules_of_thumb
        ``run_id`` -> degree that the rule of thumb names.
    terms
        Group -> term that is known to be wrong.
    """
    groups = groups_of(points)
    choices = decisions_of(groups, tpot_limits_s=tpot_limits_s, rules_of_thumb=rules_of_thumb)
    folds = Counter(p.prediction.fold for p in points if p.prediction is not None and p.prediction.fold is not None)
    return Scores(
        name=name, label=label, num_runs=len(points), num_predicted=sum(p.is_predicted for p in points),
        num_oom=sum(p.prediction is not None and p.prediction.is_oom for p in points),
        not_predicted=dict(Counter(_why_not(p) for p in points if not p.is_judged).most_common()),
        folds=dict(sorted(folds.items())), num_groups=len(groups), accuracy=accuracy(points),
        decisions=decision_rows(choices), doubling=doubling(groups), coverage=coverage(points),
        worst_by_regret=worst_by_regret(choices, terms), worst_by_throughput=worst_by_throughput(groups, terms),
        choices=choices,
    )


def _why_not(point: ScoredRun) -> str:
    if point.prediction is None:
        return "no prediction"
    return "a figure is missing" if point.prediction.status == OK else point.prediction.status


def figures(scores: Scores) -> dict[str, float]:
    """Return every figure by the name that limits use.

    ``dense.tpot.mean`` (also median, p90, ratio; ttft, throughput), ``dense.c.hit`` (also strict, regret,
    regret_p90, regret_max, infeasible; ``dense.c.smallest.regret`` for a baseline), ``dense.doubling.mean``,
    ``dense.coverage.tpot``, and ``runs``, ``predicted``, ``oom``, ``groups``.
    """
    named: dict[str, float] = {"runs": scores.num_runs, "predicted": scores.num_predicted, "oom": scores.num_oom,
                               "groups": scores.num_groups}
    for accuracy_row in scores.accuracy:
        named.update(_accuracy_figures(accuracy_row))
    for decision_row in scores.decisions:
        named.update(_decision_figures(decision_row))
    for doubling_row in scores.doubling:
        named.update(_doubling_figures(doubling_row))
    for coverage_row in scores.coverage:
        named.update(_coverage_figures(coverage_row))
    return named


def _error_figures(place: str, stats: ErrorStats) -> Iterator[tuple[str, float]]:
    yield f"{place}.mean", stats.mean_frac
    yield f"{place}.median", stats.median_frac
    yield f"{place}.p90", stats.p90_frac
    yield f"{place}.ratio", stats.median_ratio


def _accuracy_figures(row: AccuracyRow) -> Iterator[tuple[str, float]]:
    for quantity, stats in zip(QUANTITIES, (row.tpot, row.ttft, row.throughput), strict=True):
        if stats is not None:
            yield from _error_figures(f"{row.partition}.{quantity}", stats)


def _decision_figures(row: DecisionRow) -> Iterator[tuple[str, float]]:
    place = f"{row.partition}.{row.definition}"
    for policy, own in row.policies.items():
        yield from _policy_figures(place if policy == OURS else f"{place}.{policy}", own)


def _policy_figures(place: str, own: PolicyScore) -> Iterator[tuple[str, float]]:
    yield f"{place}.hit", own.hit_frac
    yield f"{place}.strict", own.strict_frac
    yield f"{place}.regret", own.regret_mean_frac
    yield f"{place}.regret_p90", own.regret_p90_frac
    yield f"{place}.regret_max", own.regret_max_frac
    yield f"{place}.infeasible", own.num_infeasible


def _doubling_figures(row: DoublingRow) -> Iterator[tuple[str, float]]:
    return _error_figures(f"{row.partition}.doubling", row.errors)


def _coverage_figures(row: CoverageRow) -> Iterator[tuple[str, float]]:
    for quantity, share in zip(QUANTITIES, (row.tpot_frac, row.ttft_frac, row.throughput_frac), strict=True):
        if share is not None:
            yield f"{row.partition}.coverage.{quantity}", share
