"""``tpplanner recommend``."""

import sys
from collections.abc import Sequence
from typing import Any

import click

from tpplanner import api
from tpplanner.api import Answer
from tpplanner.cli.options import asked, mean_length, traffic_options
from tpplanner.cli.simulate import (
    SIMULATION_NAMES,
    check_save_dir,
    flags_given,
    hidden_simulation_options,
    run_simulation,
    show_simulation,
)

EXIT_NO_PLAN = 1


def print_table(answer: Answer) -> None:
    """Print headline, table and launch lines on stdout, notes on stderr."""
    import shutil

    from tpplanner.report.headline import headline
    from tpplanner.report.launch import bench_command, shown_lines
    from tpplanner.report.notes import notes
    from tpplanner.report.table import table_text

    rec = answer.recommendation
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    click.echo(headline(rec) + "\n")
    click.echo(table_text(rec, width=width, terminal=terminal))
    if rec.best is not None:
        click.echo("\nLaunch:")
        for line in shown_lines(rec, rec.best):
            click.echo(f"  {line}")
        click.echo(f"Check:\n  {bench_command(rec, rec.best)}")
    for note in notes(rec):
        click.echo(note, err=True)


def print_comparison(answers: Sequence[Answer]) -> None:
    """Print the engines side by side on stdout, notes on stderr."""
    from tpplanner.report.comparison import comparison_text
    from tpplanner.report.notes import comparison_notes

    recs = [answer.recommendation for answer in answers]
    click.echo(comparison_text(recs))
    for note in comparison_notes(recs):
        click.echo(note, err=True)


def _show(answer: Answer, output_format: str) -> None:
    match output_format:
        case "json":
            click.echo(answer.to_json())
        case "csv":
            from tpplanner.report.frame import to_csv

            click.echo(to_csv(answer.recommendation), nl=False)
        case _:
            print_table(answer)


@click.command()
@traffic_options
@click.option("--simulate", "simulated", is_flag=True,
              help="Decide by simulation of single requests; takes the flags of `tpplanner simulate` too, --trace among them.")
@hidden_simulation_options
@click.option("--compare-engines", metavar="A,B[,...]",
              help="Engine profiles side by side: throughput per degree, and where t_e moves.")
@click.option("--format", "output_format", type=click.Choice(["table", "json", "csv"]), default="table",
              show_default=True)
@click.option("--save-dir", metavar="DIR",
              help="Also write plan.json, plan.csv, launch.sh and three plots; simulated, what `tpplanner simulate` writes.")
@click.option("--overwrite", is_flag=True, help="Let --save-dir replace existing files.")
@click.pass_context
def recommend(
    context: click.Context, /, *, simulated: bool, compare_engines: str | None, output_format: str, save_dir: str | None,
    overwrite: bool, **given: Any,
) -> int:
    """Recommend a tensor-parallel degree for a model, GPUs and traffic.

    With --gpus NxPROFILE: the degree at which N GPUs serve best. With a machine and a load
    but no number of GPUs: the fewest GPUs that carry the load, and their degree.

    P(best) is the probability that a degree is the best; another one ties with the best where it is the better of the
    two with a probability of 20 % or more.
    """
    if simulated:
        return _simulate(compare_engines, output_format, save_dir, overwrite, given)
    arguments = _closed_form(context, given)
    if compare_engines is not None:
        if context.get_parameter_source("engine") is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError("--compare-engines names all the engines: without --engine")
        return _compare(compare_engines, output_format, save_dir, arguments)
    if save_dir is not None:
        from tpplanner.api.answer import check_outputs

        check_outputs(save_dir, overwrite=overwrite)
    answer = api.recommend(**arguments)
    if save_dir is not None:
        from tpplanner.api.answer import write_outputs

        for path in write_outputs(answer, save_dir, overwrite=overwrite):
            click.echo(f"wrote {path}", err=True)
    _show(answer, output_format)
    return 0 if answer.best_tp is not None else EXIT_NO_PLAN


def _closed_form(context: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the closed form, which knows means and no single requests."""
    flags = flags_given(context)
    if flags:
        raise click.UsageError(f"{', '.join(flags)}: with --simulate only")
    plain = {name: value for name, value in given.items() if name not in SIMULATION_NAMES}
    lengths = {name: mean_length(context, name, given[name]) for name in ("isl", "osl")}
    return asked(**{**plain, **lengths})


def _simulate(
    compare_engines: str | None, output_format: str, save_dir: str | None, overwrite: bool, given: dict[str, Any]
) -> int:
    if compare_engines is not None:
        raise click.UsageError("--compare-engines compares closed forms: without --simulate")
    check_save_dir(save_dir, overwrite=overwrite)
    answer = run_simulation("all", given, save_dir=save_dir, overwrite=overwrite, show_progress=sys.stderr.isatty())
    code = show_simulation(answer, output_format)
    closed = answer.recommendation.best_tp
    click.echo(f"closed form: {'no degree' if closed is None else f'TP {closed}'}, for requests of the mean lengths", err=True)
    return code


def _compare(names: str, output_format: str, save_dir: str | None, arguments: dict[str, Any]) -> int:
    engines = [name.strip() for name in names.split(",") if name.strip()]
    if len(engines) < 2:
        raise click.UsageError(f"--compare-engines needs two engines or more, A,B; got {names!r}")
    if arguments["switches"]:
        raise click.UsageError("--compare-engines compares the profiles as they are: without --set")
    if save_dir is not None or output_format == "csv":
        raise click.UsageError("--compare-engines goes with --format table or json, without --save-dir")
    answers = api.compare_engines(engines, **arguments)
    if output_format == "json":
        click.echo("[" + ",\n".join(answer.to_json() for answer in answers) + "]")
    else:
        print_comparison(answers)
    return 0 if any(answer.best_tp is not None for answer in answers) else EXIT_NO_PLAN
