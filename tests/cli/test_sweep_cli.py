"""``tpplanner sweep``: exit codes, what it says, and where it runs."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

PLAN = """
[run]
kind = "recommend"
[grid]
model = ["Qwen/Qwen3-8B", "Qwen/Qwen3-14B"]
gpus = "2xl40s"
isl = 128
osl = [16, 32]
"""


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plan.toml").write_text(PLAN)


def files():
    return sorted(path.name for path in Path().iterdir())


def test_done_is_exit_0_and_one_line(run):
    code, out, err = run("sweep", "plan.toml", "--out", "r.parquet", "--jobs", "1")
    assert (code, out) == (0, "")
    assert re.fullmatch(r"4 points: 4 done, 0 skipped \(finished before\), 0 failed, \d+\.\d s -> r\.parquet\n", err)
    assert len(pd.read_parquet("r.parquet")) == 8
    assert files() == ["plan.toml", "r.parquet"]


def test_some_failed_is_exit_0_and_says_how_to_go_on(run):
    Path("plan.toml").write_text(PLAN.replace("Qwen/Qwen3-14B", "no/such"))
    code, _, err = run("sweep", "plan.toml", "--out", "r.csv", "--jobs", "1")
    assert code == 0
    first, second = err.splitlines()
    assert first.startswith("4 points: 2 done, 0 skipped (finished before), 2 failed, ")
    assert second == ("failed points say why in the column status; the same command with --overwrite tries them again, and takes "
                      "the others from r.csv.parts")
    code, _, err = run("sweep", "plan.toml", "--out", "r.csv", "--jobs", "1", "--overwrite")
    assert code == 0
    assert err.startswith("4 points: 0 done, 2 skipped (finished before), 2 failed, ")


def test_all_failed_is_exit_1(run):
    Path("plan.toml").write_text(PLAN.replace("2xl40s", "2xl41s"))
    code, _, err = run("sweep", "plan.toml", "--out", "r.csv", "--jobs", "1")
    assert code == 1
    assert err.startswith("4 points: 0 done, 0 skipped (finished before), 4 failed, ")
    assert "parts" not in err
    assert pd.read_csv("r.csv").status.str.startswith("error: unknown GPU 'l41s'").all()
    assert files() == ["plan.toml", "r.csv"]


@pytest.mark.parametrize(("argv", "named"), [
    (["missing.toml", "--out", "r.csv"], "missing.toml: must be a readable file"),
    (["bad.toml", "--out", "r.csv"], "bad.toml: keys of grid must be arguments of simulate (did you mean model"),
    (["plan.toml"], "--out"),
    (["plan.toml", "--out", "r.txt"], "r.txt"),
    (["plan.toml", "--out", "plan.toml.csv/r.csv"], "does not exist"),
    (["plan.toml", "--out", "r.csv", "--jobs", "0"], "--jobs: jobs must be between 1"),
    (["plan.toml", "--out", "r.csv", "--jobs", "two"], "two"),
    (["plan.toml", "--out", "r.csv", "--ray", "127.0.0.1:1"], "--ray"),
])
def test_bad_input_is_exit_2_one_line_and_nothing_written(run, argv, named):
    Path("bad.toml").write_text("[grid]\nmodle = 1\n")
    code, out, err = run("sweep", *argv)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("tpplanner: error: ")
    assert named in err
    assert files() == ["bad.toml", "plan.toml"]


def test_an_existing_output_needs_overwrite(run):
    Path("r.csv").write_text("mine")
    code, _, err = run("sweep", "plan.toml", "--out", "r.csv", "--jobs", "1")
    assert (code, Path("r.csv").read_text()) == (2, "mine")
    assert "already exists" in err
    assert run("sweep", "plan.toml", "--out", "r.csv", "--jobs", "1", "--overwrite")[0] == 0
    assert len(pd.read_csv("r.csv")) == 8


def test_an_interrupt_is_exit_130(run, monkeypatch):
    def interrupted(tasks):
        raise KeyboardInterrupt

    monkeypatch.setattr("tpplanner.api.sweeping.in_process", interrupted)
    code, _, err = run("sweep", "plan.toml", "--out", "r.csv", "--jobs", "1")
    assert code == 130
    assert err.split() == ["tpplanner:", "interrupted"]
    assert files() == ["plan.toml"]


def test_a_bar_with_the_time_left_where_stderr_is_a_terminal(run, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, err = run("sweep", "plan.toml", "--out", "r.csv", "--jobs", "1")
    assert out == ""
    assert "4/4" in err
    assert re.search(r"\d:\d\d:\d\d", err)


def test_a_script_without_a_main_guard_is_told_so():
    Path("script.py").write_text("import tpplanner\ntpplanner.sweep('plan.toml', 'r.csv', jobs=2)\n")
    ended = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert "if __name__ == '__main__':" in ended.stderr.splitlines()[-1]
    assert files() == ["plan.toml", "script.py"]


@pytest.mark.slow
def test_ray_on_this_machine_gives_the_same_table(run):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'tpplanner[ray]'")
    Path("t.csv").write_text("isl_tok,osl_tok\n64,8\n65,9\n")
    Path("plan.toml").write_text('[grid]\nmodel = ["Qwen/Qwen3-8B", "no/such"]\ngpus = "2xl40s"\nconcurrency = [1, 2]\n'
                                 'workloads = [{isl = 64, osl = 8, num_requests = 20}, {trace = "t.csv"}]\n')
    command = [sys.executable, "-m", "tpplanner", "sweep", "plan.toml", "--out", "ray.parquet", "--ray", "local", "--jobs", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.startswith("8 points: 4 done, 0 skipped (finished before), 4 failed, ")
    assert len(ended.stderr.splitlines()) == 2
    assert run("sweep", "plan.toml", "--out", "here.parquet", "--jobs", "1")[0] == 0
    ours, theirs = (pd.read_parquet(name).drop(columns="wall_s") for name in ("here.parquet", "ray.parquet"))
    pd.testing.assert_frame_equal(ours, theirs)
