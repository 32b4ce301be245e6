"""Degrees chosen and judged, worked out by hand; limits, drift and the worst groups."""

import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))

from points import offline, run, scored

from tpplanner.domain.run_prediction import RunPrediction, ScoredRun
from tpplanner.domain.scores import Limits
from tpplanner.errors import WorkloadError
from tpplanner.validation.decisions import best_under, decision_rows, decisions_of
from tpplanner.validation.drift import drift_of
from tpplanner.validation.groups import groups_of
from tpplanner.validation.score import score
from tpplanner.validation.thresholds import broken_limits
from tpplanner.validation.worst import worst_by_regret, worst_by_throughput


def two_degrees(factor_1: float | None, factor_2: float | None) -> list[ScoredRun]:
    """8 in flight per GPU. TP 1: 8 * 101 / 2.5 s = 323.2 tok/s per GPU; TP 2: 16 * 101 / 2 s / 2 = 404."""
    return [scored(run("a"), factor_1), scored(run("b", tp=2, concurrency=16, ttft_s=0.5, tpot_s=0.015), factor_2)]


def test_equal_load_by_hand() -> None:
    # Predicted: TP 1 323.2, TP 2 404 / 2 = 202: we choose TP 1 and lose 1 - 323.2 / 404 = 0.2.
    (one,) = decisions_of(groups_of(two_degrees(1.0, 2.0)), rules_of_thumb={"b": 4})
    assert (one.definition, one.load_per_gpu, one.best_tp) == ("c", 8.0, 2)
    assert dict(one.chosen) == {"ours": 1, "smallest": 1, "largest": 2, "rule_of_thumb": 2}
    assert one.regret_frac() == pytest.approx(0.2, rel=1e-12)
    assert one.regret_frac("largest") == 0.0
    row = next(row for row in decision_rows([one]) if row.partition == "all")
    assert (row.policies["ours"].hit_frac, row.policies["ours"].strict_frac, row.policies["largest"].hit_frac) == (0, 0, 1)
    assert row.best_tps == {2: 1}


def test_a_degree_said_not_to_fit_is_not_chosen_and_none_at_all_means_the_largest() -> None:
    (one,) = decisions_of(groups_of(two_degrees(1.0, None)))
    assert one.chosen["ours"] == 1
    (none,) = decisions_of(groups_of(two_degrees(None, None)))
    assert none.chosen["ours"] == 2


def test_ties_go_to_the_smaller_degree() -> None:
    points = [scored(run("a")), scored(run("b", tp=2, concurrency=16))]
    (one,) = decisions_of(groups_of(points))
    assert one.chosen["ours"] == 1
    assert one.regret_frac() == 0.0


def test_offline_by_hand() -> None:
    # Per GPU: 1000 at TP 1, 700 at TP 2. Predicted 800 and 933: regret 0.3.
    points = [scored(offline("a", tp=1, throughput_tok_s=1000.0), 1.25),
              scored(offline("b", tp=2, throughput_tok_s=1400.0), 0.75)]
    (one,) = decisions_of(groups_of(points))
    assert (one.definition, one.load_per_gpu, one.chosen["ours"]) == ("offline", None, 2)
    assert one.regret_frac() == pytest.approx(0.3, rel=1e-12)


def test_under_a_limit_a_degree_needs_three_loads() -> None:
    points = [scored(run(f"{tp}-{n}", tp=tp, concurrency=n, tpot_s=0.002 * n / tp)) for tp in (1, 2) for n in (4, 8, 16)]
    names = {one.definition for one in decisions_of(groups_of(points))}
    assert names == {"a", "b10", "b20", "b30", "b50", "b100", "c"}
    fewer = [point for point in points if point.run.run_id != "1-16"]
    assert {one.definition for one in decisions_of(groups_of(fewer))} == {"c"}


def test_under_a_limit_that_one_degree_misses() -> None:
    # TP 1 is at 11 ms and more, TP 2 below 10 ms: b10 has one degree that serves, and choosing the other loses all.
    points = [scored(run(f"1-{n}", concurrency=n, tpot_s=0.011), 0.5) for n in (4, 8, 16)]
    points += [scored(run(f"2-{n}", tp=2, concurrency=n, tpot_s=0.009), 2.0) for n in (4, 8, 16)]
    one = next(d for d in decisions_of(groups_of(points), tpot_limits_s=[0.01]) if d.definition == "b10")
    assert (one.best_tp, one.chosen["ours"], one.regret_frac(), one.is_infeasible(), one.is_censored) == (2, 1, 1.0, True, True)
    row = next(row for row in decision_rows([one]) if row.partition == "dense")
    assert (row.policies["ours"].num_infeasible, row.num_censored) == (1, 1)
    assert not any(row.partition.startswith("uncensored") for row in decision_rows([one]))


def test_repeats_stand_for_themselves_once_and_moe_on_one_gpu_twice() -> None:
    repeats = [scored(run(name, tpot_s=tpot_s)) for name, tpot_s in (("a", 0.03), ("b", 0.01), ("c", 0.02), ("d", 0.04))]
    (group,) = groups_of([*repeats, scored(run("e", tp=2))])
    assert [point.run.run_id for point in group.by_tp[1]] == ["c"]
    moe = [scored(run("a", kind="moe")), scored(run("b", tp=2, kind="moe")), scored(run("c", tp=2, ep=2, kind="moe")),
           scored(run("d", tp=4, ep=2, kind="moe"))]
    assert {(group.key.parallel, tuple(group.by_tp)) for group in groups_of(moe)} == {("tp", (1, 2)), ("tep", (1, 2))}


@given(st.lists(st.tuples(st.floats(1e-4, 1.0), st.floats(1.0, 1e5)), min_size=1, max_size=6), st.floats(1e-4, 1.0))
def test_the_best_under_a_limit_is_bounded(curve: list[tuple[float, float]], limit_s: float) -> None:
    best, is_cut = best_under(curve, limit_s)
    unlimited, _ = best_under(curve, None)
    assert unlimited == max(value for _, value in curve)
    held = [value for tpot_s, value in curve if tpot_s <= limit_s]
    assert (best is None) == (not held)
    if best is not None and unlimited is not None:
        assert max(held) <= best <= unlimited * (1 + 1e-12)
    assert is_cut == (curve[-1][0] <= limit_s)


def test_worst_groups_and_the_term_that_somebody_named() -> None:
    points = [*two_degrees(1.0, 2.0), *[scored(p.run, 1.0) for p in (
        scored(run("c", isl_tok=2048)), scored(run("d", tp=2, concurrency=16, isl_tok=2048)))]]
    groups = groups_of(points)
    name = "Model-7B bf16, h100_sxm, vllm, 1024/101, tp"
    (worst,) = worst_by_regret(decisions_of(groups), {name: "comm"})
    assert (worst.group, worst.num, worst.term) == (name, 1, "comm")
    assert worst.value_frac == pytest.approx(0.2, rel=1e-12)
    assert worst.detail == "TP 1 for TP 2 at 8 requests per GPU loses 20.0 %"
    by_throughput = worst_by_throughput(groups)
    # Errors of throughput: 0 and 0.5 in the first group, none in the other.
    assert [(row.value_frac, row.term) for row in by_throughput] == [(0.25, None), (0.0, None)]
    assert by_throughput[0].detail == "predicted throughput x0.75, TPOT x1.50, TTFT x1.50"
    assert len(worst_by_throughput(groups, limit=1)) == 1


def test_all_broken_limits_are_listed() -> None:
    limits = Limits(maxima={"a": 1.0, "b": 1.0, "c": 1.0}, minima={"a": 1.5, "c": 2.0})
    broken = broken_limits("degree", {"a": 1.0, "b": 1.1, "c": 3.0}, limits, "file")
    assert [(one.figure, one.value, one.limit, one.is_maximum, one.scores) for one in broken] == [
        ("b", 1.1, 1.0, True, "degree"), ("c", 3.0, 1.0, True, "degree"), ("a", 1.0, 1.5, False, "degree")]


def test_a_limit_on_nothing_is_an_error() -> None:
    with pytest.raises(WorkloadError, match=r"file: packaged.max must name a figure of these runs \(did you mean dense"):
        broken_limits("packaged", {"dense.tpot.mean": 1.0}, Limits(maxima={"dense.tpot.men": 1.0}, minima={}), "file")


def accepted(*, tpot_s: float | None = 0.02, ttft_s: float | None = 0.5) -> dict[str, RunPrediction]:
    return {"a": RunPrediction(run_id="a", tpot_s=tpot_s, ttft_s=ttft_s, throughput_tok_s=323.2)}


def test_drift_by_hand() -> None:
    same = drift_of([scored(run("a"))], accepted())
    assert (same.num_compared, same.num_beyond, same.largest) == (1, 0, ())
    # TPOT of 20 ms where 19 were accepted.
    moved = drift_of([scored(run("a"))], accepted(tpot_s=0.019))
    assert (moved.num_beyond, moved.largest[0].quantity) == (1, "tpot")
    assert moved.largest[0].relative_frac == pytest.approx(1 / 19, rel=1e-12)
    assert drift_of([scored(run("a"))], accepted(tpot_s=0.019), tolerance_frac=0.1).num_beyond == 0
    assert len(drift_of([scored(run("a"), 2.0)], accepted(), limit=2).largest) == 2


@pytest.mark.parametrize(("points", "before"), [
    ([], accepted()), ([scored(run("a"))], {}), ([scored(run("a"), None)], accepted()),
    ([scored(run("a"))], accepted(ttft_s=None)), ([scored(run("a"), None)], {}),
])
def test_what_came_or_went_is_a_change_without_bound(points: list[ScoredRun], before: dict[str, RunPrediction]) -> None:
    drift = drift_of(points, before, tolerance_frac=0.5)
    assert drift.num_beyond == 1
    assert math.isinf(drift.largest[0].relative_frac)


def test_drift_tolerance_is_checked() -> None:
    with pytest.raises(WorkloadError, match="tolerance_frac must be a number >= 0"):
        drift_of([], {}, tolerance_frac=-0.1)


def test_folds_are_counted() -> None:
    points = [scored(run("a"), fold="tp 1"), scored(run("b", tp=2), fold="tp 2"), scored(run("c", tp=2, isl_tok=2), fold="tp 2")]
    assert score(points, name="degree", label="held out").folds == {"tp 1": 1, "tp 2": 2}
