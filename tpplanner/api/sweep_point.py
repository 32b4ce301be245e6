"""One point of a sweep, answered: what a worker runs."""

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from tpplanner import __version__
from tpplanner.domain.sweep import Cell, PointResult, Setting, SweepKind, SweepTask
from tpplanner.domain.traffic import Traffic
from tpplanner.errors import TpplannerError, WorkloadError
from tpplanner.io.sweep_key import file_digest, point_key, profiles_digest, source_digest
from tpplanner.io.traces import read_trace

_TRACE_ARGUMENTS: Final = ("trace_format", "chars_per_tok", "tokenizer")


def version() -> str:
    """Return what tells this tpplanner from another."""
    return f"{__version__} {source_digest()}"


def run_points(tasks: Sequence[SweepTask]) -> list[PointResult]:
    """Answer points one after the other; whatever goes wrong with one of them is its error."""
    return [_run_point(task) for task in tasks]


def failed(task: SweepTask, why: str, wall_s: float = 0.0) -> PointResult:
    """Return the result of a point without an answer."""
    return PointResult(key=task.key, rows=(), error=" ".join(why.split()), wall_s=wall_s)


def _run_point(task: SweepTask) -> PointResult:
    start_s = time.perf_counter()
    try:
        _check_same(task)
        rows = tuple(_rows(task))
    except TpplannerError as error:
        return failed(task, str(error), time.perf_counter() - start_s)
    except Exception as error:  # a defect of ours costs one point, not the sweep
        return failed(task, f"{type(error).__name__}: {error}", time.perf_counter() - start_s)
    return PointResult(key=task.key, rows=rows, error=None, wall_s=time.perf_counter() - start_s)


def _check_same(task: SweepTask) -> None:
    """Refuse to answer from other files, profiles or another version than the key was made of."""
    if os.getcwd() != task.folder:  # a worker of a cluster: paths of the plan are relative to where the sweep began
        with suppress(OSError):
            os.chdir(task.folder)
    key = point_key(task.kind, task.settings, version=version(), profiles=_own_profiles(task.profiles),
                    digest_of=file_digest)
    if key != task.key:
        raise WorkloadError("worker: the files that the point names, the profiles and the version of tpplanner must be those "
                            "that the sweep began with, got others")


@lru_cache(maxsize=8)
def _own_profiles(expected: str) -> str:
    """Return the digest of the profiles here, read once per sweep: ``expected`` tells sweeps apart."""
    return profiles_digest()


def _rows(task: SweepTask) -> list[dict[str, Cell]]:
    settings: dict[str, Setting] = dict(task.settings)
    rows = _recommended(settings) if task.kind is SweepKind.RECOMMEND else _simulated(settings)
    return [{name: _plain(cell) for name, cell in row.items()} for row in rows]


def _recommended(settings: dict[str, Any]) -> list[dict[str, Cell]]:
    from tpplanner.api import recommend
    from tpplanner.report.frame import rows

    tp = settings.pop("tp", "all")
    answer = recommend(flip_points=False, **settings)
    if tp == "all":
        return rows(answer.recommendation)
    plans = [answer.plan(degree) for degree in ([tp] if isinstance(tp, int) else tp)]
    return rows(replace(answer.recommendation, plans=tuple(plans)))


def _simulated(settings: dict[str, Any]) -> list[dict[str, Cell]]:
    from tpplanner.api import simulate
    from tpplanner.report.simulation_json import simulation_rows

    # With isl, osl or a workload the question is refused as it stands; reading the trace would only come before that.
    if "trace" in settings and not settings.keys() & {"isl", "osl", "workload"}:
        arguments = tuple(settings.get(name) for name in _TRACE_ARGUMENTS)
        settings["trace"] = _trace(settings["trace"], file_digest(Path(settings["trace"])), *arguments)
    return simulation_rows(simulate(**settings).simulation)


@lru_cache(maxsize=2)
def _trace(path: str, digest: str, trace_format: str | None, chars_per_tok: float | None, tokenizer: str | None) -> Traffic:
    """Return the requests of a trace, read once for the points that share it: reading takes longer than many a run."""
    return read_trace(path, trace_format=trace_format, chars_per_tok=chars_per_tok, tokenizer=tokenizer).traffic


def _plain(cell: Cell) -> Cell:
    """Return a cell as JSON holds it: a number that does not exist is absent."""
    value = cell.item() if isinstance(cell, np.generic) else cell
    return None if isinstance(value, float) and not math.isfinite(value) else value
