"""Sweeps: the points of a plan answered on all cores or on a Ray cluster, and their rows in one table."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from multiprocessing.process import current_process
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tpplanner.api.sweep_columns import columns_of, table_rows
from tpplanner.api.sweep_point import version
from tpplanner.api.sweep_workers import Results, in_process, in_processes
from tpplanner.domain.checks import check_count
from tpplanner.domain.sweep import Cell, ColumnKind, PointResult, Settings, SweepKind, SweepPlan, SweepSummary, SweepTask
from tpplanner.errors import OutputError, WorkloadError, reject
from tpplanner.io.files import write_bytes_whole
from tpplanner.io.sweep_key import file_digest, point_key, profiles_digest
from tpplanner.io.sweep_parts import PARTS_SUFFIX, Finished, FolderParts, MemoryParts
from tpplanner.io.sweep_plan import read_plan

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[int, int], None]
"""Called with the points that are done and those that there are."""

_TASKS_PER_JOB: Final = 8
_MOST_POINTS_PER_TASK: Final = 16
"""Of the closed form, a tenth of a second each: fewer files and messages than one each. A simulation is a task of its own."""


def parts_folder(out: str | Path) -> Path:
    """Return the folder that keeps the finished points of a sweep to ``out`` until all are."""
    return Path(out).with_name(Path(out).name + PARTS_SUFFIX)


def sweep_frame(
    plan: str | Path | Mapping[str, object], out: str | Path | None = None, *, jobs: int | None = None,
    ray_address: str | None = None, overwrite: bool = False, progress: Progress | None = None,
) -> "pd.DataFrame":
    """Run a sweep and return its rows; :func:`tpplanner.sweep` documents the arguments."""
    from tpplanner.io.sweep_table import frame_of

    run = _Sweep(read_plan(plan))
    _check(jobs, ray_address)
    if out is None:
        run.compute(MemoryParts(), jobs, ray_address, progress)
        return frame_of(run.columns, list(run.rows()))
    with _parts(out, overwrite=overwrite) as parts:
        run.compute(parts, jobs, ray_address, progress)
        frame = frame_of(run.columns, list(run.rows()))
        run.write(Path(out), parts, overwrite=overwrite)
    return frame


def sweep_file(
    plan: str | Path | Mapping[str, object], out: str | Path, *, jobs: int | None = None, ray_address: str | None = None,
    overwrite: bool = False, progress: Progress | None = None,
) -> SweepSummary:
    """Run a sweep to a file, its rows never in memory at once; :func:`tpplanner.sweep` documents the arguments."""
    start_s = time.perf_counter()
    run = _Sweep(read_plan(plan))
    _check(jobs, ray_address)
    with _parts(out, overwrite=overwrite) as parts:
        run.compute(parts, jobs, ray_address, progress)
        run.write(Path(out), parts, overwrite=overwrite)
    return run.summary(time.perf_counter() - start_s)


def _check(jobs: int | None, ray_address: str | None) -> None:
    check_count(WorkloadError, "--jobs", jobs=jobs)
    if ray_address is not None:
        from tpplanner.api.sweep_ray import ray_module

        if not ray_address.strip():
            reject(WorkloadError, "address", "be local, auto or ray://HOST:PORT", ray_address, "--ray")
        ray_module()
    if getattr(current_process(), "_inheriting", False):
        # A process that is being started runs the script that began the sweep, which begins it again.
        raise WorkloadError("sweep: a script must call tpplanner.sweep under if __name__ == '__main__':, or with jobs=1")


@contextlib.contextmanager
def _parts(out: str | Path, *, overwrite: bool) -> Iterator[FolderParts]:
    """Check that the output can be written, and hold the folder of its finished points."""
    from tpplanner.io.sweep_table import check_table_path

    if not str(out).strip():
        reject(OutputError, "output", "be named", str(out), "--out")
    check_table_path(Path(out), overwrite=overwrite)
    with FolderParts(parts_folder(out)) as parts:
        yield parts


def _default_jobs() -> int:
    """Return the cores that this process may use: fewer than the machine has in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Sweep:
    """A plan on its way to a table. Files are known by their content when they are first looked at."""

    def __init__(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._profiles, self._folder, self._digest_of = profiles_digest(), os.getcwd(), cache(file_digest)
        self._failed: dict[str, PointResult] = {}
        self._finished: Finished = MemoryParts()
        self._num_points = self._num_skipped = 0
        self.columns: dict[str, ColumnKind] = columns_of(plan)

    def compute(self, finished: Finished, jobs: int | None, ray_address: str | None, progress: Progress | None) -> None:
        """Answer the points that are not finished."""
        self._finished = finished
        for key, _ in self._points():
            self._num_points += 1
            self._num_skipped += key in finished
        done = self._num_skipped
        tell = progress or (lambda done, total: None)
        tell(done, self._num_points)
        with contextlib.closing(self._results(jobs, ray_address)) as results:
            for some in results:
                self._failed.update((result.key, result) for result in some if result.error is not None)
                finished.add([result for result in some if result.error is None])
                done += len(some)
                tell(done, self._num_points)

    def rows(self) -> Iterator[dict[str, Cell]]:
        """Yield the rows of all points in the order of the plan."""
        for key, settings in self._points():
            yield from table_rows(settings, self._failed.get(key) or self._finished.result(key), self.columns)

    def write(self, out: Path, parts: FolderParts, *, overwrite: bool) -> None:
        """Write the table, whole or not at all; then drop the parts, unless points are to be tried again."""
        if out.suffix.lower() == ".csv":
            from tpplanner.report.frame import csv_text

            content = csv_text(tuple(self.columns), self.rows()).encode()
        else:
            from tpplanner.io.sweep_table import parquet_table

            content = parquet_table(self.columns, self.rows(), out)
        write_bytes_whole(out, content, overwrite=overwrite)
        if not self._failed:
            parts.discard()

    def summary(self, wall_s: float) -> SweepSummary:
        """Return how it went."""
        return SweepSummary(num_points=self._num_points, num_run=self._num_points - self._num_skipped,
                            num_skipped=self._num_skipped, num_failed=len(self._failed), wall_s=wall_s)

    def _points(self) -> Iterator[tuple[str, Settings]]:
        """Yield every point with its key; one that is given twice, once."""
        seen, this_version = set[str](), version()
        for settings in self._plan.points():
            key = point_key(self._plan.kind, settings, version=this_version, profiles=self._profiles,
                            digest_of=self._digest_of)
            if key not in seen:
                seen.add(key)
                yield key, settings

    def _results(self, jobs: int | None, ray_address: str | None) -> Results:
        num_open = self._num_points - self._num_skipped
        workers = jobs or _default_jobs()
        tasks = self._tasks(num_open, workers)
        if not num_open:
            return in_process(())
        if ray_address is not None:
            from tpplanner.api.sweep_ray import on_ray

            return on_ray(tasks, ray_address, jobs)
        workers = min(workers, num_open)
        return in_process(tasks) if workers == 1 else in_processes(tasks, workers)

    def _tasks(self, num_open: int, workers: int) -> Iterator[Sequence[SweepTask]]:
        one_each = self._plan.kind is SweepKind.SIMULATE
        size = 1 if one_each else min(max(num_open // (workers * _TASKS_PER_JOB), 1), _MOST_POINTS_PER_TASK)
        points = ((key, settings) for key, settings in self._points() if key not in self._finished)
        while some := list(islice(points, size)):
            yield [SweepTask(key=key, kind=self._plan.kind, settings=settings, profiles=self._profiles, folder=self._folder)
                   for key, settings in some]
