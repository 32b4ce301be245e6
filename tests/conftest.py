"""Shared set-up: the factories are importable from every folder, and Hypothesis repeats itself."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.append(str(Path(__file__).parent / "report"))

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
