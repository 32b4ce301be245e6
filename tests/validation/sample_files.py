"""The measured sample and the scorer, where they are at hand; tests that need them are skipped where they are not."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tpplanner.errors import TpplannerError
from tpplanner.io.silicon_package import silicon_root
from tpplanner.io.silicon_runs import SAMPLE_FILE

SHARED = Path(__file__).parents[3] / "shared"


def sample() -> Path:
    named = os.environ.get("SILICON_SAMPLE")
    if named:
        return Path(named)
    try:
        return silicon_root().parent / SAMPLE_FILE
    except TpplannerError as error:
        pytest.skip(str(error))


def peer_predictions() -> Path:
    path = SHARED / "facts" / "aic_predictions.csv"
    if not path.is_file():
        pytest.skip("no predictions of another tool beside the repository")
    return path


def scorer() -> ModuleType:
    path = SHARED / "tools" / "score.py"
    if not path.is_file():
        pytest.skip("no scorer beside the repository")
    spec = importlib.util.spec_from_file_location("score", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module
