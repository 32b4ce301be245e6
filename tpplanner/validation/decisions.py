"""Degrees that predictions choose, judged by measured throughput per GPU.

One group of runs gives these decisions:

* ``a``: the degree with the highest throughput per GPU at any measured load. Biased to small degrees where all were
  measured up to the same load.
* ``b20``: the same with a mean TPOT of at most 20 ms. Between neighbouring loads TPOT is linear in log2(load) and
  throughput log-linear; nothing is extrapolated. A degree counts in ``a`` and ``b`` with at least three loads.
* ``c``: the degree with the highest throughput per GPU at equal load per GPU: one decision for every such load that
  two degrees were measured at. N GPUs then hold the same requests whatever the degree, so that no degree is favoured.
* ``offline``: the degree with the highest throughput per GPU with everything queued at once.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tpplanner.domain.run_prediction import ScoredRun
from tpplanner.domain.scores import (
    LARGEST,
    OFFLINE,
    OURS,
    RULE_OF_THUMB,
    SAME_LOAD,
    SMALLEST,
    Decision,
    DecisionRow,
    PolicyScore,
)
from tpplanner.units import MS
from tpplanner.validation.groups import Group, load_per_gpu
from tpplanner.validation.partitions import ALL, load_band

DEFAULT_TPOT_LIMITS_S: Final = (0.01, 0.02, 0.03, 0.05, 0.1)
"""Targets on the mean TPOT of definition b [s]."""

HIT_FRAC: Final = 0.01
"""A degree within this of the best is a hit: repeats of a run differ by 0.7 % in the median."""

MIN_LOADS: Final = 3

Curve = Sequence[tuple[float, float]]
"""(TPOT [s], throughput per GPU [tok/s]) by rising load."""


def decisions_of(
    groups: Sequence[Group], *, tpot_limits_s: Sequence[float] = DEFAULT_TPOT_LIMITS_S,
    rules_of_thumb: Mapping[str, int] | None = None,
) -> tuple[Decision, ...]:
    """Return every decision of every group.

    Parameters
    ----------
    groups
        As of `groups_of`.
    tpot_limits_s
        Targets of definition b [s].
    rules_of_thumb
        ``run_id`` -> degree of the rule of thumb; without it that baseline is left out.
    """
    return tuple(
        decision for group in groups
        for decision in _of_group(group, tpot_limits_s, _rule_of(group, rules_of_thumb or {}))
    )


def _rule_of(group: Group, rules: Mapping[str, int]) -> int | None:
    return next((rules[point.run.run_id] for point in group.points if point.run.run_id in rules), None)


def _of_group(group: Group, tpot_limits_s: Sequence[float], rule: int | None) -> Iterator[Decision]:
    if group.key.is_offline:
        yield _decision(OFFLINE, group, {tp: points[0] for tp, points in group.by_tp.items()}, rule, None)
        return
    wide = {tp: points for tp, points in group.by_tp.items() if len(points) >= MIN_LOADS}
    if len(wide) >= 2:
        for name, limit_s in (("a", None), *((f"b{limit_s / MS:g}", limit_s) for limit_s in tpot_limits_s)):
            decision = _under_limit(name, group, wide, limit_s, rule)
            if decision is not None:
                yield decision
    by_load: dict[float, dict[int, ScoredRun]] = defaultdict(dict)
    for tp, points in group.by_tp.items():
        for point in points:
            by_load[load_per_gpu(point)][tp] = point
    for load, at in sorted(by_load.items()):
        if len(at) >= 2:
            yield _decision(SAME_LOAD, group, at, rule, load)


def _under_limit(
    name: str, group: Group, wide: Mapping[int, Sequence[ScoredRun]], limit_s: float | None, rule: int | None
) -> Decision | None:
    """Decide at the best load that holds the limit; ``None`` where no degree holds it, as measured."""
    measured: dict[int, float | None] = {}
    predicted: dict[int, float | None] = {}
    censored = False
    for tp, points in wide.items():
        measured[tp], is_cut = best_under(_curve(points, "measured"), limit_s)
        predicted[tp], _ = best_under(_curve([p for p in points if p.is_predicted], "predicted"), limit_s)
        censored = censored or is_cut
    if all(value is None for value in measured.values()):
        return None
    return _judged(name, group, _Values(measured=measured, predicted=predicted), rule=rule, is_censored=censored)


def _curve(points: Sequence[ScoredRun], side: str) -> Curve:
    curve = []
    for point in points:
        figure = point.measured if side == "measured" else point.predicted
        tpot_s, throughput = figure("tpot"), figure("throughput")
        if tpot_s is not None and throughput is not None:
            curve.append((tpot_s, throughput / point.run.tp))
    return curve


def best_under(curve: Curve, limit_s: float | None) -> tuple[float | None, bool]:
    """Return the highest throughput per GPU with TPOT at most ``limit_s`` [tok/s], and whether the data end before it.

    Between neighbours TPOT is taken as linear and throughput as log-linear in the same variable.

    Examples
    --------
    10 ms at 100 tok/s, 30 ms at 400: 20 ms lies half way, at sqrt(100 * 400) = 200 tok/s.

    >>> best, is_cut = best_under([(0.010, 100.0), (0.030, 400.0)], 0.020)
    >>> round(best, 9), is_cut
    (200.0, False)
    >>> best_under([(0.010, 100.0), (0.030, 400.0)], 0.005), best_under([(0.010, 100.0)], 0.005 * 3)
    ((None, False), (100.0, True))
    """
    best: float | None = None
    is_cut = False
    for i, (tpot_s, value) in enumerate(curve):
        if limit_s is not None and tpot_s > limit_s:
            continue
        best = value if best is None else max(best, value)
        if limit_s is None:
            continue
        if i == len(curve) - 1:
            is_cut = True
        elif curve[i + 1][0] > limit_s:
            next_s, next_value = curve[i + 1]
            part = (limit_s - tpot_s) / (next_s - tpot_s)
            best = max(best, math.exp(math.log(value) * (1 - part) + math.log(next_value) * part))
    return best, is_cut


def _decision(name: str, group: Group, at: Mapping[int, ScoredRun], rule: int | None, load: float | None) -> Decision:
    measured: dict[int, float | None] = {tp: point.run.throughput_tok_s / tp for tp, point in at.items()}
    predicted: dict[int, float | None] = {}
    for tp, point in at.items():
        throughput = point.predicted("throughput")
        predicted[tp] = None if throughput is None else throughput / tp
    return _judged(name, group, _Values(measured=measured, predicted=predicted), rule=rule, load=load)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Values:
    """Degree -> throughput per GPU [tok/s], ``None`` where the degree cannot serve."""

    measured: Mapping[int, float | None]
    predicted: Mapping[int, float | None]


def _judged(
    name: str, group: Group, values: _Values, *, rule: int | None, load: float | None = None, is_censored: bool = False
) -> Decision:
    tps = sorted(values.measured)
    served = {tp: value for tp in tps if (value := values.measured[tp]) is not None}
    promised = {tp: value for tp in tps if (value := values.predicted[tp]) is not None}
    chosen = {
        # Of equals the smallest degree; where nothing is said to serve, the one with the most memory.
        OURS: max(promised, key=lambda tp: (promised[tp], -tp)) if promised else tps[-1],
        SMALLEST: tps[0], LARGEST: tps[-1],
    }
    if rule is not None:
        chosen[RULE_OF_THUMB] = max((tp for tp in tps if tp <= rule), default=tps[0])
    return Decision(definition=name, group=group.key, kind=group.kind, load_per_gpu=load, measured=values.measured,
                    predicted=values.predicted, best_tp=max(served, key=lambda tp: served[tp]), chosen=chosen,
                    is_censored=is_censored)


def decision_rows(decisions: Sequence[Decision]) -> tuple[DecisionRow, ...]:
    """Return the policies side by side, by definition and partition, in the order of the definitions."""
    found: dict[tuple[str, str], list[Decision]] = defaultdict(list)
    for decision in decisions:
        for partition in _partitions(decision):
            found[decision.definition, partition].append(decision)
    return tuple(_row(name, partition, chosen) for (name, partition), chosen in sorted(found.items(), key=_order))


def _partitions(decision: Decision) -> Iterator[str]:
    key = decision.group
    yield ALL
    yield decision.kind
    yield f"{key.machine}/{key.engine}/{decision.kind}"
    if decision.definition.startswith("b") and not decision.is_censored:
        yield "uncensored"
        yield f"uncensored {decision.kind}"
    if decision.load_per_gpu is not None:
        yield f"{decision.kind} {load_band(decision.load_per_gpu)}"


def _order(item: tuple[tuple[str, str], list[Decision]]) -> tuple[int, float, int, str]:
    (name, partition), _ = item
    is_limit = name.startswith("b")
    rank = 0 if partition == ALL else 2 if "/" in partition else 1
    return "abco".index(name[0]), float(name[1:]) if is_limit else 0.0, rank, partition


def _row(name: str, partition: str, decisions: Sequence[Decision]) -> DecisionRow:
    policies = [policy for policy in decisions[0].chosen if all(policy in one.chosen for one in decisions)]
    return DecisionRow(
        definition=name, partition=partition, num_censored=sum(one.is_censored for one in decisions),
        policies={policy: _policy(decisions, policy) for policy in policies},
        best_tps=dict(sorted(Counter(one.best_tp for one in decisions).items())),
    )


def _policy(decisions: Sequence[Decision], policy: str) -> PolicyScore:
    regrets = np.asarray([one.regret_frac(policy) for one in decisions])
    return PolicyScore(
        num=len(decisions), hit_frac=float(np.mean(regrets <= HIT_FRAC)),
        strict_frac=float(np.mean([one.chosen[policy] == one.best_tp for one in decisions])),
        regret_mean_frac=float(np.mean(regrets)), regret_p90_frac=float(np.quantile(regrets, 0.9)),
        regret_max_frac=float(np.max(regrets)), num_infeasible=sum(one.is_infeasible(policy) for one in decisions),
    )
