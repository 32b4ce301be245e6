"""The progress bar of a calibration, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from tpplanner.io.calibration_samples import Progress


@contextmanager
def shown_progress() -> Iterator[Callable[[Progress], None]]:
    """Yield what to tell after each case: a bar where stderr is a terminal, else a line per benchmark."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    seen: set[str] = set()

    def note(progress: Progress) -> None:
        if progress.note and progress.note not in seen:
            seen.add(progress.note)
            click.echo(f"{progress.bench}: {progress.note}", err=True)

    if not console.is_terminal:
        def line(progress: Progress) -> None:
            note(progress)
            if progress.bench not in seen:
                seen.add(progress.bench)
                click.echo(f"{progress.bench}: {progress.num_done} of {progress.num_cases}, "
                           f"{progress.left_s / 60:.1f} min left", err=True)

        yield line
        return
    with Bar(TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"),
             console=console, transient=True) as bar:
        task = bar.add_task("", total=None, left="")

        def draw(progress: Progress) -> None:
            note(progress)
            bar.update(task, description=progress.bench, completed=progress.num_done, total=progress.num_cases,
                       left=f"{progress.left_s / 60:.1f} min left")

        yield draw
