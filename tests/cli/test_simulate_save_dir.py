"""``simulate --save-dir``: all files or none, refused before anything is simulated, nothing left by an interrupt."""

import json
import subprocess
import sys

import pytest
from commands import SIMULATED, changed, one_error

from tpplanner import api

AT_RATE = [*SIMULATED, "--request-rate", "20"]
FILES = {"simulation.json", "simulation.csv", "latency_cdf.png", "degrees.png", "launch.sh",
         *(name.format(tp) for tp in (2, 4) for name in ("requests-tp{}.csv", "steps-tp{}.trace.json", "load-tp{}.png"))}


@pytest.fixture
def no_run(monkeypatch):
    """Whatever simulates fails."""
    def fail(**_):
        raise AssertionError("was simulated")

    monkeypatch.setattr(api, "simulate", fail)


def test_save_dir_writes_what_is_documented(run, tmp_path):
    folder = tmp_path / "out"
    code, out, err = run(*AT_RATE, "--tp", "2,4", "--save-dir", str(folder))
    assert code == 0
    assert {path.name for path in folder.iterdir()} == FILES
    assert {line.rpartition("/")[2] for line in err.splitlines() if line.startswith("wrote ")} == FILES
    assert len((folder / "requests-tp2.csv").read_text().splitlines()) == 51
    assert len((folder / "simulation.csv").read_text().splitlines()) == 3
    events = json.loads((folder / "steps-tp4.trace.json").read_text())["traceEvents"]
    assert any(event["ph"] == "X" for event in events)
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in FILES if name.endswith(".png"))
    assert (folder / "launch.sh").read_text().count("vllm serve") == out.count("vllm serve")
    assert run(*AT_RATE, "--tp", "2,4", "--save-dir", str(folder), "--overwrite")[0] == 0


def test_without_a_feasible_degree_there_is_no_launch_script(run, tmp_path):
    folder = tmp_path / "out"
    assert run(*AT_RATE, "--ttft", "0.01", "--tp", "2,4", "--save-dir", str(folder))[0] == 1
    assert {path.name for path in folder.iterdir()} == FILES - {"launch.sh"}


@pytest.mark.parametrize("name", ["simulation.json", "launch.sh", "requests-tp4.csv", "steps-tp2.trace.json", "load-tp1.png",
                                  "requests-tp8.parquet"])
@pytest.mark.parametrize("command", [SIMULATED, ["recommend", "--simulate", *SIMULATED[1:]]], ids=["simulate", "recommend"])
@pytest.mark.usefixtures("no_run")
def test_existing_files_refuse_before_anything_is_simulated(run, tmp_path, command, name):
    (tmp_path / name).write_text("mine")
    err = one_error(run(*command, "--save-dir", str(tmp_path)))
    assert name in err
    assert "--overwrite" in err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "mine"}


@pytest.mark.parametrize("folder", ["", " ", "file", "file/out", "no/such"])
@pytest.mark.usefixtures("no_run")
def test_a_folder_that_cannot_be_written_refuses_before_anything_is_simulated(run, tmp_path, folder):
    (tmp_path / "file").write_text("here")
    one_error(run(*SIMULATED, "--save-dir", str(tmp_path / folder) if folder.strip() else folder, "--overwrite"))


def test_a_full_disk_leaves_nothing(run, tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tpplanner.io.files.os.fsync", full)
    folder = tmp_path / "out"
    assert "no space left on device" in one_error(run(*AT_RATE, "--tp", "2", "--save-dir", str(folder)))
    assert not folder.exists()
    folder.mkdir()
    (folder / "mine.txt").write_text("here")
    one_error(run(*AT_RATE, "--tp", "2", "--save-dir", str(folder)))
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


INTERRUPTED = """
import os, signal, sys, threading
from tpplanner.cli.main import main
from tpplanner.sim.cluster import Cluster

serve = Cluster.serve_open

def serving(self, router):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    serve(self, router)

Cluster.serve_open = serving
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", [SIMULATED, ["recommend", "--simulate", *SIMULATED[1:]]], ids=["simulate", "recommend"])
def test_an_interrupt_in_the_middle_is_exit_130_and_leaves_no_file(tmp_path, command):
    argv = [*changed(command, "--num-requests", "20000"), "--request-rate", "50", "--step-by-step", "--save-dir",
            str(tmp_path / "out")]
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED, *argv], capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "\ntpplanner: interrupted\n")
    assert list(tmp_path.iterdir()) == []
