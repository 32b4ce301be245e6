"""Sweeps that end before they are done, and go on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import tpplanner
from tpplanner.api.sweeping import parts_folder, sweep_file
from tpplanner.io.sweep_parts import _read_part

CLOSED = {"run": {"kind": "recommend"}, "grid": {"model": "Qwen/Qwen3-8B", "gpus": "1xl40s", "isl": [64, 128, 256], "osl": 16}}
LONG = """
[fixed]
num_requests = 400
[grid]
model = "Qwen/Qwen3-8B"
gpus = "4xl40s"
isl = [100, 200, 300, 400, 500, 600]
osl = [32, 64]
"""


def same(one, other):
    pd.testing.assert_frame_equal(one.drop(columns="wall_s"), other.drop(columns="wall_s"))


class StoppedError(Exception):
    """Ends a sweep from within."""


def stop_after(number):
    def tell(done, total):
        if done == number:
            raise StoppedError

    return tell


def test_a_second_run_computes_only_the_rest(tmp_path):
    out = tmp_path / "r.parquet"
    with pytest.raises(StoppedError):
        sweep_file(CLOSED, out, jobs=1, progress=stop_after(2))
    assert not out.exists()
    assert len(list(parts_folder(out).iterdir())) == 2
    seen = []
    summary = sweep_file(CLOSED, out, jobs=1, progress=lambda *counts: seen.append(counts))
    assert seen == [(2, 3), (3, 3)]
    assert (summary.num_points, summary.num_run, summary.num_skipped, summary.num_failed) == (3, 1, 2, 0)
    same(pd.read_parquet(out), tpplanner.sweep(CLOSED, jobs=1))
    assert [p.name for p in tmp_path.iterdir()] == ["r.parquet"]


def test_points_of_another_plan_are_taken_where_they_are_the_same(tmp_path):
    out = tmp_path / "r.csv"
    with pytest.raises(StoppedError):
        sweep_file(CLOSED, out, jobs=1, progress=stop_after(2))
    wider = {**CLOSED, "grid": {"gpus": "1xl40s", "isl": [512, 128], "model": "Qwen/Qwen3-8B", "osl": 16}}
    summary = sweep_file(wider, out, jobs=1)
    assert (summary.num_run, summary.num_skipped) == (1, 1)
    assert pd.read_csv(out).isl.tolist() == [512, 128]
    assert not parts_folder(out).exists()


def test_a_damaged_part_is_computed_again(tmp_path):
    out = tmp_path / "r.parquet"
    with pytest.raises(StoppedError):
        sweep_file(CLOSED, out, jobs=1, progress=stop_after(2))
    damaged = sorted(parts_folder(out).iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    summary = sweep_file(CLOSED, out, jobs=1)
    assert (summary.num_run, summary.num_skipped) == (2, 1)
    same(pd.read_parquet(out), tpplanner.sweep(CLOSED, jobs=1))


def test_a_changed_trace_is_another_point(tmp_path):
    out, trace = tmp_path / "r.csv", tmp_path / "t.csv"
    plan = {"grid": {"model": "Qwen/Qwen3-8B", "gpus": "1xl40s", "trace": str(trace), "concurrency": [1, 2]}}
    trace.write_text("isl_tok,osl_tok\n64,8\n")
    with pytest.raises(StoppedError):
        sweep_file(plan, out, jobs=1, progress=stop_after(1))
    trace.write_text("isl_tok,osl_tok\n65,8\n")
    assert sweep_file(plan, out, jobs=1).num_skipped == 0


def test_points_that_failed_are_tried_again_and_the_others_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("isl_tok,osl_tok\n64,8\n")
    plan = {"grid": {"model": "Qwen/Qwen3-8B", "gpus": "1xl40s", "concurrency": 1, "trace": ["a.csv", "b.csv"]}}
    summary = sweep_file(plan, "r.csv", jobs=1)
    assert (summary.num_run, summary.num_failed) == (2, 1)
    assert len(list(Path("r.csv.parts").iterdir())) == 1
    (tmp_path / "b.csv").write_text("isl_tok,osl_tok\n64,8\n")
    summary = sweep_file(plan, "r.csv", jobs=1, overwrite=True)
    assert (summary.num_run, summary.num_skipped, summary.num_failed) == (1, 1, 0)
    assert pd.read_csv("r.csv").status.tolist() == ["ok", "ok"]
    assert sorted(os.listdir()) == ["a.csv", "b.csv", "r.csv"]


def session(pid):
    """Processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, leader = path.read_text().rpartition(")")[2].split()[:4]
            if int(leader) == pid and state not in "ZX":
                found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are listed by /proc")
def test_an_interrupt_leaves_whole_files_and_no_process_and_the_next_run_goes_on(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plan.toml").write_text(LONG)
    command = [sys.executable, "-m", "tpplanner", "sweep", "plan.toml", "--out", "r.parquet", "--jobs", "2"]
    # A shell that starts pytest in the background hands down an ignored Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    parts, deadline = Path("r.parquet.parts"), time.monotonic() + 60
    while len(found := list(parts.glob("*.part"))) < 3:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        assert all(_read_part(path) for path in found)
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    start = time.monotonic()
    errors = process.communicate(timeout=20)[1]
    assert time.monotonic() - start < 5
    assert process.returncode == 130
    assert errors.split("\n")[0] == "finished points are kept in r.parquet.parts; the same command goes on from there"
    assert errors.rstrip().endswith("tpplanner: interrupted")
    while session(process.pid):
        assert time.monotonic() - start < 5
        time.sleep(0.05)
    left = sorted(parts.iterdir())
    assert sorted(os.listdir()) == ["plan.toml", "r.parquet.parts"]
    assert 3 <= len(left) < 12
    assert all(_read_part(path) for path in left)
    wall_s = {json.loads(path.read_text().splitlines()[1])["wall_s"] for path in left}

    code, _, errors = run(*command[3:-1], "1")
    assert code == 0
    assert errors.startswith(f"12 points: {12 - len(left)} done, {len(left)} skipped (finished before), 0 failed, ")
    frame = pd.read_parquet("r.parquet")
    assert wall_s <= set(frame.wall_s)
    same(frame, tpplanner.sweep("plan.toml", jobs=1))
    assert sorted(os.listdir()) == ["plan.toml", "r.parquet"]
