"""``tpplanner validate``: exit 0 where every limit holds, 1 where one is broken, 2 on bad input."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tpplanner.domain.serving_run import KINDS
from tpplanner.errors import WorkloadError

if TYPE_CHECKING:
    from tpplanner.api.validate import Validation
    from tpplanner.domain.scores import LimitFile

EXIT_BROKEN = 1
SPLITS = ("degree", "model", "machine", "load", "shape", "architecture")


@click.command()
@click.argument("runs_path", metavar="[RUNS.CSV]", required=False)
@click.option("--split", type=click.Choice(SPLITS),
              help="Hold runs out: each part is predicted by a fit that has not seen it. Default: the packaged profiles.")
@click.option("--only", type=click.Choice(KINDS), help="Only runs of dense or of MoE models.")
@click.option("--machine", "machines", multiple=True, metavar="NAME", help="Only runs on this machine. Repeatable.")
@click.option("--engine", "engines", multiple=True, metavar="NAME", help="Only runs on this engine. Repeatable.")
@click.option("--predictions", "given", metavar="CSV",
              help="Judge these instead: columns id, pred_ttft_ms, pred_tpot_ms; another tool's, for one.")
@click.option("--predictions-out", "out_path", metavar="CSV", help="Write the predictions, one row per id of every run.")
@click.option("--thresholds", "limits_path", metavar="TOML", help="Limits on figures; exit 1 where one is broken.")
@click.option("--accepted", "accepted_path", metavar="CSV",
              help="Predictions last accepted; exit 1 where one has changed by more than 0.1 % (or the limit in --thresholds).")
@click.option("--accept", is_flag=True, help="Write --accepted anew instead of comparing with it.")
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--save-dir", metavar="DIR",
              help="Also write validation.json, validation.txt, decisions.csv, accuracy.png and regret.png.")
@click.option("--overwrite", is_flag=True, help="Let --predictions-out and --save-dir replace existing files.")
def validate(
    *, runs_path: str | None, split: str | None, only: str | None, machines: tuple[str, ...], engines: tuple[str, ...],
    given: str | None, out_path: str | None, limits_path: str | None, accepted_path: str | None, accept: bool,
    output_format: str, save_dir: str | None, overwrite: bool,
) -> int:
    """Judge predictions by measured serving runs: errors, decisions, intervals.

    RUNS.CSV holds measured runs; without it, those in the package aiconfigurator-core (extra [silicon]).
    """
    from tpplanner import api
    from tpplanner.api.validate import load_limits

    if accept and accepted_path is None:
        raise click.UsageError("--accept writes --accepted CSV: name it")
    _check_outputs(out_path, save_dir, accepted_path if accept else None, overwrite=overwrite)
    limits = None if limits_path is None else load_limits(limits_path)
    validation = api.validate(runs_path, split=split, only=only, machines=machines, engines=engines, predictions=given,
                              limits=limits)
    # All checks before the first file is written or line printed: bad input leaves nothing behind.
    verdict, is_broken = _verdict(validation, limits, None if accept else accepted_path)
    _write(validation, out_path, save_dir, accepted_path if accept else None, overwrite=overwrite)
    _show(validation, output_format)
    for line in verdict:
        click.echo(line, err=True)
    return EXIT_BROKEN if is_broken else 0


def _check_outputs(out_path: str | None, save_dir: str | None, accepted_path: str | None, *, overwrite: bool) -> None:
    from tpplanner.api.validate import check_saved
    from tpplanner.io.files import check_writable

    if out_path is not None:
        check_writable(out_path, overwrite=overwrite)
    if save_dir is not None:
        check_saved(save_dir, overwrite=overwrite)
    if accepted_path is not None:
        check_writable(accepted_path, overwrite=True)


def _verdict(
    validation: "Validation", limits: "LimitFile | None", accepted_path: str | None
) -> tuple[list[str], bool]:
    """Return what limits and drift say, and whether anything is broken."""
    from tpplanner.report.validation_text import broken_lines, drift_lines

    lines, is_broken = [], False
    if limits is not None:
        broken = validation.broken(limits)
        lines += broken_lines(broken) or [f"every limit in {limits.place} holds"]
        is_broken = bool(broken)
    if accepted_path is not None:
        if not Path(accepted_path).exists():
            raise WorkloadError(f"{accepted_path}: does not exist; --accept writes it")
        drift = validation.drift(accepted_path, limits)
        lines += drift_lines(drift)
        is_broken = is_broken or drift.num_beyond > 0
    return lines, is_broken


def _write(
    validation: "Validation", out_path: str | None, save_dir: str | None, accepted_path: str | None, *, overwrite: bool
) -> None:
    from tpplanner.api.validate import save
    from tpplanner.io.files import write_text_whole

    written: list[Path] = []
    if out_path is not None:
        written.append(write_text_whole(out_path, validation.predictions_csv(), overwrite=overwrite))
    if save_dir is not None:
        written += save(validation, save_dir, overwrite=overwrite)
    if accepted_path is not None:
        # --accept is the permission: the file is there to be replaced.
        written.append(write_text_whole(accepted_path, validation.accepted_csv(), overwrite=True))
    for path in written:
        click.echo(f"wrote {path}", err=True)


def _show(validation: "Validation", output_format: str) -> None:
    import shutil
    import sys

    if output_format == "json":
        click.echo(validation.to_json())
        return
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    click.echo(validation.text(width=width, terminal=terminal))
