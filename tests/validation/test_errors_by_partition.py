"""Errors, gains of doubling and intervals, worked out by hand."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from points import offline, run, scored

from tpplanner.domain.run_prediction import RunPrediction, ScoredRun
from tpplanner.errors import WorkloadError
from tpplanner.validation.accuracy import accuracy, doubling
from tpplanner.validation.coverage import coverage
from tpplanner.validation.groups import groups_of
from tpplanner.validation.score import figures, match, score


def test_errors_by_hand() -> None:
    # TPOT and TTFT at 1.1, 0.8 and 1.5 of the measured figure: errors 0.1, 0.2, 0.5; throughput 1/1.1, 1/0.8, 1/1.5.
    points = [scored(run("a"), 1.1), scored(run("b", tp=2), 0.8), scored(run("c", kind="moe"), 1.5)]
    rows = {row.partition: row for row in accuracy(points)}
    every = rows["all"].tpot
    assert every is not None
    assert [every.num, every.mean_frac, every.median_frac] == pytest.approx([3, 0.8 / 3, 0.2], rel=1e-12)
    # The 90th percentile of three lies 0.8 of the way from the second to the third.
    assert [every.p90_frac, every.median_ratio] == pytest.approx([0.2 + 0.8 * 0.3, 1.1], rel=1e-12)
    throughput = rows["dense"].throughput
    assert throughput is not None
    assert throughput.mean_frac == pytest.approx((1 - 1 / 1.1 + 1 / 0.8 - 1) / 2, rel=1e-12)
    assert rows["moe"].num_runs == 1
    assert rows["dense tp2"].num_runs == 1


def test_partitions_and_their_order() -> None:
    points = [
        scored(run("a", tp=16, concurrency=64, precision="fp8"), fold="tp 16"), scored(run("b", tp=2), fold="tp 2"),
        scored(run("c", concurrency=9, ttft_s=100.0)),
    ]
    assert [row.partition for row in accuracy(points)] == [
        "all", "all, not saturated", "dense", "dense, not in doubt", "dense, not saturated", "h100_sxm/vllm/dense", "dense tp1",
        "dense tp2", "dense tp16", "dense conc<=8", "dense conc 9-32", "dense conc>32", "source own/dense", "model Model-7B bf16",
        "model Model-7B fp8", "fold tp 16", "fold tp 2",
    ]
    saturated = next(row for row in accuracy(points) if row.partition == "all, not saturated")
    assert saturated.num_runs == 2


def test_runs_without_figures_count_nowhere() -> None:
    points = [scored(run("a"), None), ScoredRun(run=run("b"), prediction=None)]
    assert accuracy(points) == ()
    result = score(points, name="packaged", label="")
    assert (result.num_runs, result.num_predicted, result.num_oom, result.not_predicted) == (2, 0, 1, {"no prediction": 1})


def test_offline_runs_have_throughput_only() -> None:
    rows = accuracy([scored(offline("a", tp=1, throughput_tok_s=1000.0), 0.8)])
    assert rows[0].tpot is rows[0].ttft is None
    assert rows[0].throughput is not None
    assert rows[0].throughput.mean_frac == pytest.approx(0.25, rel=1e-12)
    assert "dense offline" in [row.partition for row in rows]


def test_gain_of_doubling_by_hand() -> None:
    # Equal load per GPU: 8 in flight at TP 1 and 16 at TP 2. Measured times 2.5 s and 1.5 s; predicted 2.5 s and 3 s: the
    # gain T(2)/T(1) is measured as (16/1.5)/(8/2.5), predicted half of it. 8 in flight at TP 2 pairs with nothing.
    points = [
        scored(run("a")), scored(run("b", tp=2, concurrency=16, ttft_s=0.5, tpot_s=0.01), 2.0),
        scored(run("c", tp=2, concurrency=8), 9.0),
    ]
    rows = doubling(groups_of(points))
    assert [row.partition for row in rows] == ["all", "dense"]
    assert rows[0].errors.num == 1
    assert rows[0].errors.mean_frac == pytest.approx(0.5, rel=1e-12)


def test_gain_of_doubling_offline() -> None:
    points = [scored(offline("a", tp=2, throughput_tok_s=1000.0)), scored(offline("b", tp=4, throughput_tok_s=1500.0), 0.5)]
    assert doubling(groups_of(points))[0].errors.mean_frac == pytest.approx(1.0, rel=1e-12)


def test_coverage_by_hand() -> None:
    # Measured TPOT is 20 ms: inside [10, 20], outside [21, 30]; TTFT has one interval, throughput none.
    points = [
        scored(run("a"), tpot_low_s=0.01, tpot_high_s=0.02, ttft_low_s=0.4, ttft_high_s=0.6),
        scored(run("b", kind="moe"), tpot_low_s=0.021, tpot_high_s=0.03), scored(run("c")),
    ]
    rows = {row.partition: row for row in coverage(points)}
    every = rows["all"]
    assert (every.num_runs, every.tpot_frac, every.ttft_frac, every.throughput_frac) == (2, 0.5, 1.0, None)
    assert rows["moe"].tpot_frac == 0.0
    assert coverage([scored(run("c"))]) == ()
    named = figures(score(points, name="packaged", label=""))
    assert named["all.coverage.tpot"] == 0.5
    assert "all.coverage.throughput" not in named


def test_matching_takes_the_first_id_with_figures() -> None:
    measured = run("a", copies=("b", "c"))
    oom, good = RunPrediction(run_id="a", status="OOM"), RunPrediction(run_id="c", ttft_s=1.0, tpot_s=0.1)
    failed = RunPrediction(run_id="b", status="error: no such model")
    assert match([measured], [oom, failed, good])[0].prediction == good
    assert match([measured], [failed, oom])[0].prediction == oom
    assert match([measured], [failed])[0].prediction == failed
    assert match([measured], [])[0].prediction is None


def test_given_throughput_stands_and_else_follows_from_the_times() -> None:
    # 8 clients, 101 tokens in 0.5 s + 100 * 20 ms = 2.5 s.
    assert scored(run()).predicted("throughput") == pytest.approx(323.2, rel=1e-12)
    assert scored(run(), throughput_tok_s=400.0).predicted("throughput") == 400.0


@pytest.mark.parametrize(("changes", "message"), [
    ({"tpot_s": -1.0}, "prediction of a: tpot_s must be >= 0, got -1.0"),
    ({"tpot_s": 0.0}, "prediction of a: tpot_s must be > 0, got 0"),
    ({"ttft_s": float("nan")}, "prediction of a: ttft_s must be a finite number"),
    ({"status": ""}, "prediction of a: status must be given"),
    ({"tpot_low_s": 0.1}, "prediction of a: tpot interval must have both ends or none"),
    ({"ttft_low_s": 0.2, "ttft_high_s": 0.1}, "prediction of a: ttft interval must have its low end below"),
])
def test_predictions_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(WorkloadError) as error:
        RunPrediction(run_id="a", **changes)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("changes", "message"), [
    ({"tp": 0}, "run: tp must be between 1 and"), ({"throughput_tok_s": 0}, "run: throughput_tok_s must be > 0"),
    ({"ep": 3, "tp": 4}, "run: ep must divide tp 4"), ({"kind": "big"}, "run: kind must be one of dense, moe"),
])
def test_offline_runs_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(WorkloadError) as error:
        offline("a", **{"tp": 1, "throughput_tok_s": 1.0, **changes})  # type: ignore[arg-type]
    assert str(error.value).startswith(message)
    assert offline("a", tp=4, throughput_tok_s=1.0, ep=4).parallel == "tep"
    assert offline("a", tp=4, throughput_tok_s=1.0, ep=2).parallel == "tp_ep2"
