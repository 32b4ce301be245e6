"""Shared set-up: the factories are importable from every folder, and Hypothesis repeats itself."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

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
