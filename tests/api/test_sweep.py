"""Sweeps from Python: rows, order, errors, processes."""

import multiprocessing
import os
import sys
from dataclasses import replace

import pandas as pd
import pytest

import tpplanner
from tpplanner.api import sweep_point, sweep_workers, sweeping
from tpplanner.domain.sweep import SweepKind
from tpplanner.errors import OutputError, WorkloadError
from tpplanner.io.sweep_plan import read_plan
from tpplanner.report.frame import COLUMNS
from tpplanner.report.simulation_json import SIMULATION_COLUMNS

MODEL = "Qwen/Qwen3-8B"
SIMULATED = {"fixed": {"num_requests": 20, "osl": 16}, "grid": {
    "model": MODEL, "gpus": ["1xl40s", "2xl40s"], "isl": [64, "lognormal:80:1"],
    "loads": [{"request_rate": 4}, {"concurrency": 8}]}}
CLOSED = {"run": {"kind": "recommend"}, "grid": {"model": MODEL, "gpus": ["1xl40s", "2xl40s"], "isl": [64, 128], "osl": 16}}


def figures(frame):
    return frame.drop(columns="wall_s")


def same(one, other):
    pd.testing.assert_frame_equal(figures(one), figures(other))


@pytest.fixture(scope="module")
def simulated():
    return tpplanner.sweep(SIMULATED, jobs=1)


def test_rows_are_points_in_order_and_their_degrees(simulated):
    asked = simulated[["gpus", "isl", "request_rate", "concurrency", "tp"]].astype(object)
    asked = asked.where(asked.notna(), None)
    expected = [[gpus, isl, rate, clients, tp] for gpus, tps in (("1xl40s", [1]), ("2xl40s", [1, 2]))
                for isl in ("64", "lognormal:80:1") for rate, clients in ((4.0, None), (None, 8.0)) for tp in tps]
    assert asked.values.tolist() == expected
    assert (simulated.status == "ok").all()
    assert (simulated.wall_s > 0).all()


def test_figures_are_those_of_simulate_with_its_columns(simulated):
    answer = tpplanner.simulate(model=MODEL, gpus="2xl40s", isl=64, osl=16, request_rate=4, num_requests=20)
    own = answer.to_frame()
    row = simulated[(simulated.gpus == "2xl40s") & (simulated.isl == "64") & (simulated.request_rate == 4)].reset_index(drop=True)
    assert row.is_best.tolist() == own.best.tolist() == [tp == answer.best_tp for tp in (1, 2)]
    names = [name for name in SIMULATION_COLUMNS if name != "best"]
    assert set(simulated.columns) == {*names, "osl", "gpus", "isl", "request_rate", "concurrency", "is_best", "status", "wall_s"}
    for name in own.select_dtypes("number").columns:
        ours, theirs = (frame[name].astype(float).tolist() for frame in (row, own))
        assert ours == pytest.approx(theirs, rel=0, abs=0, nan_ok=True), name


def test_two_processes_give_the_same_rows(simulated):
    seen = []
    same(tpplanner.sweep(SIMULATED, jobs=2, progress=lambda done, total: seen.append((done, total))), simulated)
    assert seen == [(done, 8) for done in range(9)]


@pytest.mark.slow
def test_a_process_that_is_killed_costs_no_point(simulated):
    def kill_one(done, total):
        if done == 1:
            multiprocessing.active_children()[0].kill()

    same(tpplanner.sweep(SIMULATED, jobs=2, progress=kill_one), simulated)
    assert not multiprocessing.active_children()


class Deadly(dict):
    """Settings that end the process that reads them."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_point_that_kills_its_process_is_the_only_one_that_fails():
    sweep = sweeping._Sweep(read_plan(CLOSED))
    sweep._num_points = 4
    good = [task for chunk in sweep._tasks(4, 4) for task in chunk]
    bad = replace(good[0], key="bad", settings=Deadly())
    chunks = [good[:2], [good[2], bad], good[3:]]
    found = {r.key: r for results in sweep_workers.in_processes(iter(chunks), 2) for r in results}
    assert sorted(found) == sorted([*(task.key for task in good), "bad"])
    assert found["bad"].error == "the process that computed this point ended (killed, or out of memory)"
    assert [found[task.key].error for task in good] == [None] * 4


def test_the_closed_form_has_the_columns_of_its_plan():
    frame = tpplanner.sweep({**CLOSED, "fixed": {"tp": [2, 1, 16]}}, jobs=1)
    assert frame.tp.tolist() == [1, 2, 16] * 4
    assert set(COLUMNS) - {"best"} <= set(frame.columns)
    answer = tpplanner.recommend(model=MODEL, gpus="2xl40s", isl=128, osl=16, flip_points=False)
    last = frame[(frame.gpus == "2xl40s") & (frame.isl == 128)]
    assert last[last.is_best].tp.tolist() == [answer.best_tp]
    assert last.throughput_tok_s.tolist()[:2] == [p.outcome.throughput_tok_s for p in answer.plans]
    assert last.feasible.tolist() == [True, True, False]
    assert (last.status == "ok").all()


def test_a_bad_point_is_a_row_with_its_error_and_stops_no_other():
    plan = {"grid": {"model": [MODEL, "no-such"], "gpus": "1xl40s", "isl": [64, 0], "osl": 16, "num_requests": 20, "tp": 1}}
    frame = tpplanner.sweep(plan, jobs=1)
    assert [status.split(":")[0] for status in frame.status] == ["ok", "error", "error", "error"]
    assert "tok must be between" in frame.status[1]
    assert "unknown model" in frame.status[2]
    assert frame.tp.tolist() == [1] * 4
    assert frame.isl.tolist() == [64, 0] * 2
    assert frame.num_requests.tolist() == [20] * 4
    assert frame.is_best.tolist() == [True, False, False, False]
    assert frame.throughput_tok_s.notna().tolist() == [True, False, False, False]
    assert (frame.dtypes == tpplanner.sweep({"grid": {**plan["grid"], "model": MODEL, "isl": [64, 65]}}, jobs=1).dtypes).all()


def test_a_defect_of_ours_costs_one_point(monkeypatch):
    def defect(*, isl, **asked):
        if isl == 64:
            raise ZeroDivisionError("division\nby zero")
        return recommend(isl=isl, **asked)

    recommend = tpplanner.api.recommend
    monkeypatch.setattr(tpplanner.api, "recommend", defect)
    frame = tpplanner.sweep(CLOSED, jobs=1)
    assert set(frame.status) == {"ok", "error: ZeroDivisionError: division by zero"}


def test_a_point_that_is_given_twice_is_one():
    point = {"osl": 16, "isl": 64, "gpus": "1xl40s", "model": MODEL}
    assert len(tpplanner.sweep({**CLOSED, "points": [point, {**point, "isl": 65}]}, jobs=1)) == 6 + 1


def test_a_trace_is_read_once_for_its_points(tmp_path, monkeypatch):
    reads = []
    read_trace = sweep_point.read_trace
    monkeypatch.setattr(sweep_point, "read_trace", lambda path, **asked: reads.append(path) or read_trace(path, **asked))
    (tmp_path / "t.csv").write_text("arrival_s,isl_tok,osl_tok\n" + "".join(f"{i / 4},{40 + i},8\n" for i in range(20)))
    monkeypatch.chdir(tmp_path)
    plan = {"grid": {"model": MODEL, "gpus": "1xl40s", "trace": "t.csv", "scale_rate": [1, 2, 3]}}
    frame = tpplanner.sweep(plan, jobs=1)
    assert reads == ["t.csv"]
    answer = tpplanner.simulate(model=MODEL, gpus="1xl40s", trace="t.csv", scale_rate=2)
    assert frame.ttft_p99_s[1] == answer.to_frame().ttft_p99_s[0]
    assert frame.traffic.tolist() == [answer.simulation.traffic.name] * 3


def test_a_file_that_changes_meanwhile_is_an_error_of_its_points(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("isl_tok,osl_tok\n64,8\n")
    plan = {"grid": {"model": MODEL, "gpus": "1xl40s", "trace": str(path), "concurrency": [1, 2]}}

    def rewrite(done, total):
        if done == 1:
            path.write_text("isl_tok,osl_tok\n65,8\n")

    frame = tpplanner.sweep(plan, jobs=1, progress=rewrite)
    assert frame.status[0] == "ok"
    assert "must be those that the sweep began with" in frame.status[1]


def test_output_and_frame_are_the_same(tmp_path):
    for name in ("r.parquet", "r.csv"):
        frame = tpplanner.sweep(CLOSED, tmp_path / name, jobs=1)
    pd.testing.assert_frame_equal(figures(pd.read_parquet(tmp_path / "r.parquet")), figures(frame))
    text = pd.read_csv(tmp_path / "r.csv")
    assert list(text.columns) == list(frame.columns)
    assert text.throughput_tok_s.tolist() == frame.throughput_tok_s.tolist()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.csv", "r.parquet"]


@pytest.mark.parametrize(("arguments", "error", "named"), [
    ({"jobs": 0}, WorkloadError, "jobs"), ({"jobs": 1.5}, WorkloadError, "jobs"),
    ({"ray_address": " "}, WorkloadError, "ray://"), ({"out": ""}, OutputError, "--out"),
    ({"out": "r.json"}, OutputError, "end in .parquet or .csv"), ({"out": "no/such/r.csv"}, OutputError, "does not exist"),
    ({"out": "taken.csv"}, OutputError, "already exists"), ({"out": "folder.csv"}, OutputError, "is a folder"),
])
def test_bad_arguments_are_refused_before_anything_runs(tmp_path, monkeypatch, arguments, error, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.csv").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    monkeypatch.setattr(sweeping, "in_process", None)
    with pytest.raises(error, match=named):
        tpplanner.sweep(CLOSED, **{"jobs": 1, **arguments})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.csv", "taken.csv"]
    assert (tmp_path / "taken.csv").read_text() == "mine"


@pytest.mark.parametrize(("module", "arguments", "install"), [
    ("pyarrow.parquet", {"out": "r.parquet"}, r"pip install 'tpplanner\[sweep\]'"),
    ("ray", {"ray_address": "local"}, r"pip install 'tpplanner\[ray\]'"),
])
def test_what_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch, module, arguments, install):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises((OutputError, WorkloadError), match=install):
        tpplanner.sweep(CLOSED, **arguments)
    assert not list(tmp_path.iterdir())


def test_tasks_of_the_closed_form_are_larger_than_those_of_simulations():
    def sizes(kind, num_points, workers):
        grid = {**CLOSED["grid"], "isl": list(range(1, num_points + 1)), "gpus": "1xl40s"}
        sweep = sweeping._Sweep(read_plan({"run": {"kind": kind}, "grid": grid}))
        return [len(chunk) for chunk in sweep._tasks(num_points, workers)]

    assert sizes(SweepKind.SIMULATE, 5, 2) == [1] * 5
    assert sizes(SweepKind.RECOMMEND, 5, 2) == [1] * 5
    assert sizes(SweepKind.RECOMMEND, 1000, 2) == [16] * 62 + [8]
