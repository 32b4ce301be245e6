"""``tpplanner explain``."""

from typing import Any

import click

from tpplanner import api
from tpplanner.cli.options import asked, deployment_options
from tpplanner.cli.recommend import EXIT_NO_PLAN


@click.command()
@deployment_options
@click.option("--tp", type=click.IntRange(min=1), metavar="T", help="Degree to explain. Default: the recommended one.")
def explain(tp: int | None, **given: Any) -> int:
    """Print one degree's mean step, term by term: equation, numbers put in, provenance."""
    from tpplanner.report.explain_text import explain_text

    answer = api.recommend(**asked(**given), flip_points=False)
    lines = answer.explain(tp)
    if not lines:
        wanted = "No degree is feasible" if tp is None else f"TP {tp} has no step to explain"
        plan = answer.recommendation.plans[0] if tp is None else answer.plan(tp)
        click.echo(f"{wanted}: {plan.reason_detail}", err=True)
        return EXIT_NO_PLAN
    question = answer.recommendation.question
    title = (f"{question.model.name} at TP {answer.best_tp if tp is None else tp} on {question.hardware.name}, "
             f"engine {question.engine.name}")
    click.echo(explain_text(title, lines))
    return 0
