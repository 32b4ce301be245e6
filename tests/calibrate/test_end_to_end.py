"""The loop as an owner of a machine runs it: measure, be interrupted, go on, fit, predict, run, validate."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow
COMMAND = (sys.executable, "-m", "tpplanner", "calibrate")


def run(folder, *arguments, command=COMMAND, **more):
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, timeout=600, check=False, **more)


def test_from_nothing_to_a_comparison(tmp_path):
    with subprocess.Popen([*COMMAND, "--quick", "--machine", "here"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as first:
        samples = tmp_path / "profiles" / "here" / "samples"
        deadline = time.monotonic() + 120.0
        while not (samples / "gemm.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGINT)
        words = first.stderr.read()
    assert first.returncode not in (0, None)
    assert "Traceback" not in words
    before = {path.name: path.read_bytes() for path in samples.glob("*.jsonl")}
    done = run(tmp_path, "--quick", "--machine", "here")
    assert done.returncode == 0, done.stderr
    for name, content in before.items():
        whole = content[: content.rfind(b"\n") + 1]
        assert (samples / name).read_bytes().startswith(whole)
    fitted = run(tmp_path, "fit")
    assert fitted.returncode == 0, fitted.stderr
    verified = run(tmp_path, "verify", "--tp", "1,2", "--batch", "4")
    assert verified.returncode == 0, verified.stderr
    assert "best degree ranked right" in verified.stdout
    with (tmp_path / "profiles" / "here" / "verify.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6  # two degrees and two loops, and both loops with injected time
    assert all(float(row["measured_throughput_tok_s"]) > 0 for row in rows)
    validated = run(tmp_path, "validate", "profiles/here/runs.csv", command=(sys.executable, "-m", "tpplanner"),
                    env=os.environ | {"TPPLANNER_PROFILES": str(tmp_path / "profiles")})
    assert validated.returncode == 0, validated.stderr
    assert "4 of 4 runs predicted" in validated.stdout


def test_no_samples_is_one_error(tmp_path):
    for command in ("fit", "verify"):
        done = run(tmp_path, command)
        assert done.returncode == 2
        assert done.stderr.startswith("tpplanner: error: profiles: holds samples of no machine")
