"""``tpplanner models``."""

import click


@click.command()
@click.argument("name", required=False)
def models(name: str | None) -> None:
    """List the packaged models, or show one (NAME or path)."""
    from tpplanner.io.model_config import load_model, packaged_models
    from tpplanner.report.models_text import model_text

    if name is None:
        click.echo("\n".join(packaged_models()))
    else:
        click.echo(model_text(load_model(name)))
