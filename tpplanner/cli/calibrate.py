"""``tpplanner calibrate``: microbenchmarks of the machine at hand, and fits to samples and to serving runs."""

import re
from pathlib import Path

import click
from click.core import ParameterSource

from tpplanner.errors import WorkloadError, reject

_OUT = click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                    help="Folder of profiles to write to; files go to DIR/<machine>/. Default: ./profiles.")
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace existing files.")


_MACHINE = click.option("--machine", metavar="NAME", help="Name of the machine's profile. Default: its GPU or processor, or the "
                        "only one that has samples.")


@click.group(invoke_without_command=True)
@click.option("--quick", "scope", flag_value="quick", help="About three minutes.")
@click.option("--full", "scope", flag_value="full", help="More sizes, longer times.")
@click.option("--model", "models", multiple=True, metavar="NAME",
              help="Directory or packaged model whose shapes are measured; may be given several times.")
@click.option("--tp", "degrees", metavar="T,T,...", help="Degrees whose shares are measured, on one device. Default: 1,2 on a "
              "CPU, 1,2,4,8 on a GPU.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@_MACHINE
@_OUT
@click.pass_context
def calibrate(context: click.Context, *, scope: str | None, models: tuple[str, ...], degrees: str | None, device: str,
              machine: str | None, out: Path | None) -> None:
    """Measure this machine with microbenchmarks (extra [engine]); then: calibrate fit, calibrate verify.

    Samples go to OUT/<machine>/samples as they are taken; an interrupted run goes on where it stopped. About ten minutes.
    """
    if context.invoked_subcommand is not None:
        given = [name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
        if given:
            reject(WorkloadError, "options of calibrate itself", f"not stand before {context.invoked_subcommand}",
                   ", ".join(sorted(given)))
        return
    from tpplanner.api.calibration import take_samples
    from tpplanner.cli.calibrate_progress import shown_progress
    from tpplanner.io.fitted_write import output_folder

    with shown_progress() as report:
        run = take_samples(output_folder(out), scope=scope or "default", machine=machine, models=models, device=device,
                           degrees=_numbers("--tp", degrees), report=report)
    for problem in run.problems:
        click.echo(f"warning: {problem}", err=True)
    click.echo(str(run.folder))
    click.echo(f"next: tpplanner calibrate fit --machine {run.machine}" + (f" --out {out}" if out else ""), err=True)


def _numbers(flag: str, text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[1-9][0-9]{0,3}\s*", part) for part in parts):
        reject(WorkloadError, flag, "be numbers from 1 to 9999 such as 1,2,4", text)
    return tuple(dict.fromkeys(int(part) for part in parts))


def _lengths(text: str) -> tuple[tuple[int, int], ...]:
    parts = [re.fullmatch(r"\s*([1-9][0-9]{0,6})/([1-9][0-9]{0,6})\s*", part) for part in text.split(",")]
    found = [(int(part[1]), int(part[2])) for part in parts if part is not None]
    if len(found) < len(parts):
        reject(WorkloadError, "--length", "be prompts and outputs such as 64/32,1024/128", text)
    return tuple(dict.fromkeys(found))


@calibrate.command("fit")
@_MACHINE
@_OUT
@_OVERWRITE
def fit_command(*, machine: str | None, out: Path | None, overwrite: bool) -> None:
    """Fit a profile to the samples of a machine: kernels, collectives, host tasks, sampling; with a report and plots."""
    from tpplanner.api.calibration import chosen_machine, fit_calibration
    from tpplanner.io.fitted_write import output_folder

    root = output_folder(out)
    fitted = fit_calibration(root, chosen_machine(root, machine), overwrite=overwrite)
    _report(fitted.paths)


@calibrate.command("verify")
@click.option("--model", "models", multiple=True, metavar="DIR",
              help="Directory with config.json, and weights or not; may be given several times. tiny, and the default: a small "
              "random model.")
@click.option("--tp", "degrees", metavar="T,T,...", default="1,2", show_default=True)
@click.option("--batch", "batches", metavar="N,N,...", default="1,8,32", show_default=True, help="Clients of the closed loop.")
@click.option("--length", "lengths", metavar="ISL/OSL,...", default="64/32", show_default=True, help="Prompt and output tokens.")
@click.option("--emulate-tp", "emulated", metavar="T,T,...", help="Also run one rank of T on one device, with dummy weights and "
              "delays for collectives; judged apart.")
@_MACHINE
@_OUT
@_OVERWRITE
def verify_command(*, models: tuple[str, ...], degrees: str, batches: str, lengths: str, emulated: str | None,
                   machine: str | None, out: Path | None, overwrite: bool) -> None:
    """Predict the engine of this package on this machine, run it, and compare.

    Tasks, step, throughput, latencies, KV blocks, energy where it is counted, overlap; both loops. Writes verify.csv (both
    sides) and runs.csv, which tpplanner validate reads, beside the profile. A case that fails is noted and left out.
    """
    from tpplanner.api.calibration import chosen_machine
    from tpplanner.api.calibration_cases import Asked
    from tpplanner.api.calibration_verify import verified
    from tpplanner.io.fitted_write import output_folder
    from tpplanner.report.verify_text import header, line, verdict_text

    heads = iter([header()])
    root = output_folder(out)
    asked = Asked(models=models, degrees=_numbers("--tp", degrees), batches=_numbers("--batch", batches),
                  lengths=_lengths(lengths), emulated=_numbers("--emulate-tp", emulated))
    verdict, paths = verified(root, chosen_machine(root, machine), asked, overwrite=overwrite,
                              report=lambda row: click.echo("\n".join([*heads, line(row)])))
    click.echo(verdict_text(verdict))
    _report(paths)


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
