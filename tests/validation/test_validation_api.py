"""Predictions of measured runs in arrays, and the library's way to validate."""

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

sys.path.append(str(Path(__file__).parent))

from points import offline, run
from sample_files import sample

import tpplanner
from tpplanner.api.cases import predict_case
from tpplanner.api.question import question
from tpplanner.api.validate import SPLITS, Validation, validate
from tpplanner.api.validate_runs import out_of_sample, predict_runs, rules_of_thumb, with_kind
from tpplanner.domain.offline_run import MeasuredRun, OfflineRun
from tpplanner.domain.run_prediction import RunPrediction
from tpplanner.domain.serving_fit import STEADY
from tpplanner.domain.serving_run import ServingRun
from tpplanner.errors import TpplannerError, WorkloadError
from tpplanner.fit.serving_groups import Served
from tpplanner.io.cases import Case
from tpplanner.io.measured_runs import read_measured_runs
from tpplanner.io.silicon_runs import read_silicon_runs
from tpplanner.io.validation_files import SCORES
from tpplanner.planner.predict import predict

PUBLIC = Path(__file__).parents[2] / "benchmarks" / "validation" / "public_runs.csv"
LLAMA, MIXTRAL = "meta-llama/Llama-3.1-70B-Instruct", "mistralai/Mixtral-8x7B-Instruct-v0.1"


def llama(run_id: str, **changes: object) -> ServingRun:
    return run(run_id, **{"model": LLAMA, "checkpoint": LLAMA, "kind": None, **changes})  # type: ignore[arg-type]


RUNS: tuple[MeasuredRun, ...] = (
    llama("a", tp=2, concurrency=8, dtype="fp8"), llama("b", tp=4, concurrency=64), llama("c", tp=8, concurrency=500),
    llama("d", tp=8, concurrency=2000, max_num_seqs=128), llama("e", tp=4, concurrency=1, gpu_memory_utilization=0.8),
    llama("f", tp=4, isl_tok=8000, osl_tok=1000, concurrency=100), llama("oom", tp=1, concurrency=4),
    llama("other", tp=4, concurrency=16, engine="sglang", machine="b200"),
    llama("latent", tp=8, concurrency=64, checkpoint="deepseek-ai/DeepSeek-V3", machine="h200"),
    offline("off", tp=8, throughput_tok_s=1.0, model=LLAMA, checkpoint=LLAMA, kind=None, gpu_memory_utilization=0.95),
    offline("moe", tp=2, throughput_tok_s=1.0, model=MIXTRAL, checkpoint=MIXTRAL, kind=None, dtype="fp8", kv_cache_dtype="fp8"),
)


def one_by_one(measured: MeasuredRun) -> tuple[str, float | None, float | None]:
    """As ``tpplanner predict`` does it: one question per run."""
    is_offline = isinstance(measured, OfflineRun)
    case = Case(
        case_id=measured.run_id, model=measured.checkpoint, system=measured.machine, engine=measured.engine, tp=measured.tp,
        isl_tok=measured.isl_tok, osl_tok=measured.osl_tok, request_rate=None, offline=is_offline, dtype=measured.dtype,
        concurrency=None if isinstance(measured, OfflineRun) else measured.concurrency, kv_cache_dtype=measured.kv_cache_dtype,
        gpu_memory_utilization=measured.gpu_memory_utilization, max_num_seqs=measured.max_num_seqs, ep=measured.ep,
    )
    found = predict_case(case)
    return found.status, found.tpot_s, found.throughput_tok_s if is_offline else found.ttft_s


def assert_equal_one_by_one(runs: tuple[MeasuredRun, ...]) -> None:
    for measured, prediction in zip(runs, predict_runs(runs), strict=True):
        status, tpot_s, other = one_by_one(measured)
        assert (prediction.run_id, prediction.status) == (measured.run_id, status)
        if status == "ok":
            ours = prediction.throughput_tok_s if isinstance(measured, OfflineRun) else prediction.ttft_s
            assert [prediction.tpot_s, ours] == pytest.approx([tpot_s, other], rel=1e-9), measured.run_id


def test_arrays_equal_one_by_one() -> None:
    assert_equal_one_by_one(RUNS)


def test_arrays_equal_one_by_one_on_the_sample() -> None:
    # A question knows no benchmark: neither its load nor, of a machine and engine measured by two, its own terms.
    runs = [replace(measured, load=STEADY, family="own") for measured in read_silicon_runs(sample())[0][::23]]
    assert any(measured.ep > 1 for measured in runs)
    assert_equal_one_by_one(tuple(runs))


def test_batched_tokens_of_the_run_count() -> None:
    measured = llama("a", tp=4, concurrency=64, max_num_batched_tokens=2048)
    asked = question(model=LLAMA, gpus="4xh100_sxm", isl=1024, osl=101, engine="vllm", concurrency=64,
                     max_num_batched_tokens=2048)
    assert predict_runs([measured])[0].ttft_s == pytest.approx(predict(asked, 4).ttft_s, rel=1e-9)
    assert predict_runs([measured])[0].ttft_s != predict_runs([replace(measured, max_num_batched_tokens=None)])[0].ttft_s


def test_a_run_that_cannot_be_predicted_says_why_and_stops_no_other() -> None:
    runs = [llama("heads", tp=3), llama("model", checkpoint="no/such-model"), llama("machine", machine="h1000"),
            llama("good", tp=8)]
    heads, model, machine, good = predict_runs(runs)
    assert heads.status == "error: tp 3: 3 does not divide 64 heads"
    assert model.status.startswith("error: ")
    assert machine.status.startswith("error: unknown GPU 'h1000'")
    assert good.status == "ok"


def test_kinds_and_rules_of_thumb() -> None:
    kinds = [measured.kind for measured in with_kind((*RUNS, llama("x", checkpoint="no/such-model")))]
    assert kinds == ["dense"] * 8 + ["moe", "dense", "moe", None]
    rules = rules_of_thumb((*RUNS, llama("x", checkpoint="no/such-model")))
    # 4 * 141 GB / 85.9 GB = 6.6 -> 8.
    assert rules["b"] == 8
    assert "x" not in rules


def test_public_runs_by_an_independent_sum() -> None:
    """The figures of the committed table, from the file and one recommendation per run."""
    by_group: dict[tuple[str, ...], dict[int, tuple[float, float]]] = {}
    for row in csv.DictReader(PUBLIC.read_text().splitlines()):
        key = tuple(row[name] for name in ("model", "system", "dtype", "kv_cache_dtype", "isl", "osl"))
        tp = int(row["tp"])
        answer = tpplanner.recommend(
            model=row["model"], gpus=f"{tp}x{row['system']}", isl=int(row["isl"]), osl=int(row["osl"]), engine=row["engine"],
            offline=True, dtype=row["dtype"], kv_cache_dtype=row["kv_cache_dtype"], flip_points=False, max_tp=tp,
            gpu_memory_utilization=float(row["gpu_memory_utilization"]),
        )
        outcome = answer.plan(tp).outcome
        assert outcome is not None
        by_group.setdefault(key, {})[tp] = (float(row["throughput_tok_s"]), outcome.throughput_tok_s)
    regrets = []
    for found in by_group.values():
        if len(found) > 1:
            chosen = max(found, key=lambda tp: found[tp][1] / tp)
            regrets.append(1 - found[chosen][0] / chosen / max(measured / tp for tp, (measured, _) in found.items()))
    errors = [abs(ours / measured - 1) for found in by_group.values() for measured, ours in found.values()]
    figures = validate(PUBLIC).figures()
    assert (figures["runs"], figures["predicted"], figures["groups"]) == (len(errors), 176, len(regrets))
    assert figures["all.throughput.mean"] == pytest.approx(sum(errors) / 176, rel=1e-9)
    assert figures["all.offline.regret"] == pytest.approx(sum(regrets) / len(regrets), rel=1e-9)
    assert figures["all.offline.hit"] == pytest.approx(sum(r <= 0.01 for r in regrets) / len(regrets), rel=1e-9)


@pytest.fixture(scope="module")
def closed() -> tuple[ServingRun, ...]:
    return tuple(
        llama(f"{machine}-{tp}-{n}", tp=tp, concurrency=n, tpot_s=0.02, machine=machine)
        for machine in ("h100-sxm", "h200") for tp in (4, 8) for n in (8, 16, 32)
    )


def test_filters(closed: tuple[ServingRun, ...]) -> None:
    runs = (*closed, *cast(tuple[ServingRun, ...], RUNS[7:9]))
    result = validate(runs, only="dense", machines=["h200_sxm", "B200"])
    assert result.scores.num_runs == 7
    assert result.validated.left_out == {"only dense": 1, "machine h200_sxm, B200": 6}
    assert validate(runs, engines=["SGLang"]).scores.num_runs == 1
    with pytest.raises(WorkloadError, match="runs must be at least one after the filters engine vlm"):
        validate(runs, engines=["vlm"])


@pytest.mark.parametrize(("changes", "message"), [
    ({"split": "models"}, "validate: split must be one of degree, model, machine, load, shape, architecture (did you mean model"),
    ({"split": "model", "predictions": []}, "validate: split must be absent where predictions are given"),
    ({"only": "big"}, "validate: only must be one of dense, moe, got 'big'"),
    ({"tpot_limits_ms": [0]}, "validate: tpot_limits_ms must be > 0"),
    ({"runs": []}, "validate: runs must be at least one"),
])
def test_arguments_are_checked(closed: tuple[ServingRun, ...], changes: dict[str, object], message: str) -> None:
    with pytest.raises(WorkloadError) as error:
        validate(**{"runs": closed, **changes})  # type: ignore[arg-type]
    assert str(error.value).startswith(message)
    assert set(SPLITS) < set(SCORES)


def test_splits_have_one_list() -> None:
    from tpplanner.cli.validate import SPLITS as FLAG
    from tpplanner.fit.serving_splits import SPLITS as FITTED

    assert FLAG == SPLITS
    assert set(SPLITS) == set(FITTED)


def test_offline_runs_cannot_be_held_out() -> None:
    with pytest.raises(WorkloadError, match="split must be absent where runs are offline"):
        out_of_sample([offline("a", tp=1, throughput_tok_s=1.0)], "degree")
    with pytest.raises(WorkloadError, match="split degree needs a run that can be fitted: error: unknown GPU"):
        out_of_sample([llama("x", machine="h1000")], "degree")


def test_held_out_and_in_sample_stay_apart(closed: tuple[ServingRun, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that is twice as slow as measured, of every run, whatever the filters."""
    def held_out(served: Sequence[Served], split: str) -> tuple[RunPrediction, ...]:
        assert len(served) == len(closed)
        runs = [one.run for one in served]
        return tuple(RunPrediction(run_id=r.run_id, ttft_s=2 * r.ttft_s, tpot_s=2 * r.tpot_s, fold=f"{split} {r.tp}")
                     for r in runs)

    monkeypatch.setattr("tpplanner.fit.serving_splits.out_of_sample", held_out)
    result = validate((*closed, llama("x", machine="h1000")), split="degree", machines=["h200", "h1000"])
    assert [scores.name for scores in result.validated.scores] == ["degree", "packaged"]
    assert result.figures()["all.tpot.mean"] == pytest.approx(1.0, rel=1e-12)
    assert list(result.scores.not_predicted.values()) == [1]
    assert result.figures()["fold degree 4.tpot.mean"] == pytest.approx(1.0, rel=1e-12)
    assert result.scores.folds == {"degree 4": 3, "degree 8": 3}
    text = result.text()
    assert text.index("=== held out by degree") < text.index("=== packaged profiles, in-sample")
    assert "parts held out: degree 4 3, degree 8 3" in text


def test_ways_out(closed: tuple[ServingRun, ...]) -> None:
    result = validate(closed)
    assert isinstance(result, Validation)
    data = result.to_dict()
    assert {"source", "dropped", "left_out", "scores"} == set(data)
    text = result.text()
    for words in ("12 measured runs of the runs given", "Absolute relative error", "c: equal load per GPU", "b30: TPOT <= 30 ms",
                  "Gain of doubling", "inside the 80 % interval [%]", "Worst groups by error of throughput"):
        assert words in text
    assert all(len(result.plot(kind).axes) == num for kind, num in (("accuracy", 3), ("regret", 1)))
    with pytest.raises(TpplannerError, match="kind must be one of accuracy, regret"):
        result.plot("pie")
    nothing = validate([llama("x", checkpoint="no/such-model", tp=2)])
    assert "not predicted: 1 (error: " in nothing.text()
    assert nothing.plot("accuracy").axes == []
    assert len(nothing.plot("regret").axes) == 1


def test_speed_on_the_sample() -> None:
    runs, _ = read_measured_runs(sample())
    start = time.perf_counter()
    validate(runs)
    assert time.perf_counter() - start < 10.0
