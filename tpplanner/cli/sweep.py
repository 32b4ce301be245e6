"""``tpplanner sweep``."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tpplanner.domain.sweep import SweepSummary

EXIT_NO_ANSWER = 1


@click.command()
@click.argument("plan", metavar="PLAN.TOML")
@click.option("--out", "out_path", required=True, metavar="FILE",
              help="Rows, one per point and degree: .parquet (needs pyarrow) or .csv.")
@click.option("--jobs", type=int, metavar="N", help="Processes. Default: one per core; 1 starts none.")
@click.option("--ray", "ray_address", metavar="ADDRESS",
              help="Run on a Ray cluster: auto, ray://HOST:PORT, or local to start one on this machine.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output file.")
def sweep(plan: str, out_path: str, jobs: int | None, ray_address: str | None, overwrite: bool) -> int:
    """Answer every point of a grid of models, machines, engines, loads and workloads (docs/sweeps.md).

    A point that cannot be answered is a row with its error. After an interrupt the same command goes on where it stopped.
    """
    from tpplanner.api.sweeping import parts_folder, sweep_file

    try:
        with _progress() as progress:
            summary = sweep_file(plan, out_path, jobs=jobs, ray_address=ray_address, overwrite=overwrite, progress=progress)
    except KeyboardInterrupt:
        folder = parts_folder(out_path)
        if folder.is_dir():
            click.echo(f"finished points are kept in {folder}; the same command goes on from there", err=True)
        raise
    click.echo(_summary_line(summary, out_path), err=True)
    if summary.num_failed:
        rest = "" if summary.num_failed == summary.num_points else f", and takes the others from {parts_folder(out_path)}"
        click.echo(f"failed points say why in the column status; the same command with --overwrite tries them again{rest}",
                   err=True)
    return EXIT_NO_ANSWER if summary.num_failed == summary.num_points else 0


def _summary_line(summary: "SweepSummary", out_path: str) -> str:
    done = summary.num_run - summary.num_failed
    points = "1 point" if summary.num_points == 1 else f"{summary.num_points} points"
    return (f"{points}: {done} done, {summary.num_skipped} skipped (finished before), {summary.num_failed} failed, "
            f"{summary.wall_s:.1f} s -> {out_path}")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar with the time left on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
               TimeRemainingColumn(elapsed_when_finished=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = None

        def tell(done: int, total: int) -> None:
            nonlocal shown
            if shown is None:  # points that were finished before say nothing about the speed
                shown = bar.add_task("sweep", total=total, completed=done)
            bar.update(shown, completed=done)

        yield tell
