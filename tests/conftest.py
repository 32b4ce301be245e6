"""Shared set-up: the factories are importable from every folder, and Hypothesis repeats itself."""

import os
import sys
from pathlib import Path

# Small matrices: threads of BLAS only wait for each other, tens of times as long where other work runs beside.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may depend on a hub that answers, or does not.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import settings

from tpplanner.api import loaded
from tpplanner.cli.main import main

sys.path.append(str(Path(__file__).parent / "report"))

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def run(capsys):
    """Run the command line in this process; return (exit code, stdout, stderr)."""

    def call(*argv):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def use_profiles(monkeypatch):
    """Look for profiles in a folder first, as a new process with TPPLANNER_PROFILES does."""

    def forget():
        for cached in (loaded.hardware_of, loaded.engine_of):
            cached.cache_clear()

    def use(folder):
        monkeypatch.setenv("TPPLANNER_PROFILES", str(folder))
        forget()

    yield use
    monkeypatch.delenv("TPPLANNER_PROFILES", raising=False)
    forget()
