"""``tpplanner recommend``."""

from collections.abc import Sequence
from typing import Any

import click

from tpplanner import api
from tpplanner.api import Answer
from tpplanner.cli.options import asked, deployment_options

EXIT_NO_PLAN = 1


def print_table(answer: Answer) -> None:
    """Print headline, table and launch lines on stdout, notes on stderr."""
    import shutil
    import sys

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
@deployment_options
@click.option("--compare-engines", metavar="A,B[,...]",
              help="Engine profiles side by side: throughput per degree, and where t_e moves.")
@click.option("--format", "output_format", type=click.Choice(["table", "json", "csv"]), default="table",
              show_default=True)
@click.option("--save-dir", metavar="DIR", help="Also write plan.json, plan.csv, launch.sh and three plots.")
@click.option("--overwrite", is_flag=True, help="Let --save-dir replace existing files.")
@click.pass_context
def recommend(
    context: click.Context, /, compare_engines: str | None, output_format: str, save_dir: str | None,
    overwrite: bool, **given: Any,
) -> int:
    """Recommend a tensor-parallel degree for a model, GPUs and traffic.

    With --gpus NxPROFILE: the degree at which N GPUs serve best. With a machine and a load
    but no number of GPUs: the fewest GPUs that carry the load, and their degree.

    P(best) is the probability that a degree is the best; another one ties with the best where it is the better of the
    two with a probability of 20 % or more.
    """
    arguments = asked(**given)
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
