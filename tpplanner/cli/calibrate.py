"""``tpplanner calibrate``: from measured serving runs to fitted profiles."""

from pathlib import Path

import click

_OUT = click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                    help="Folder of profiles to write to; files go to DIR/<machine>/. Default: ./profiles.")
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace existing files.")


@click.group()
def calibrate() -> None:
    """Fit profiles to measured serving runs."""


@calibrate.command("anchor")
@click.argument("runs", type=click.Path(path_type=Path, dir_okay=False))
@_OUT
@_OVERWRITE
def anchor_command(*, runs: Path, out: Path | None, overwrite: bool) -> None:
    """Correct predictions by a handful of one's own runs (CSV, columns as for validate).

    The coefficients stay; each run corrects its model near its own load, degree and lengths, and narrows the intervals
    there.
    """
    from tpplanner.api.serving_fit import anchored, save
    from tpplanner.io.serving_runs import read_serving_runs

    _report(save(anchored(read_serving_runs(runs)), out=out, overwrite=overwrite))


@calibrate.command("serving")
@click.argument("runs", required=False, type=click.Path(path_type=Path, dir_okay=False))
@_OUT
@_OVERWRITE
def serving_command(*, runs: Path | None, out: Path | None, overwrite: bool) -> None:
    """Fit the serving terms of every machine and engine that has fitted kernels.

    To RUNS (CSV, columns as for validate), by default the measured runs of the package that tpplanner[silicon] installs.
    """
    from tpplanner.api.serving_fit import bound_warnings, fitted_pairs, save, with_serving
    from tpplanner.io.serving_runs import read_serving_runs
    from tpplanner.io.silicon_runs import read_silicon_runs

    if runs is None:
        measured, source = read_silicon_runs()[0], "aiconfigurator-core 0.12 (Apache-2.0), silicon_sample.csv"
    else:
        measured, source = read_serving_runs(runs), str(runs)
    click.echo(f"fitting {len(measured):,} runs", err=True)
    profiles = with_serving(measured, fitted_pairs(), source=source)
    for warning in bound_warnings(profiles):
        click.echo(f"warning: {warning}", err=True)
    _report(save(profiles, out=out, overwrite=overwrite))


def _report(paths: tuple[Path, ...]) -> None:
    for path in paths:
        click.echo(str(path))
    for folder in sorted({path.parent.parent for path in paths}):
        click.echo(f"To use it: TPPLANNER_PROFILES={folder} tpplanner ...", err=True)
