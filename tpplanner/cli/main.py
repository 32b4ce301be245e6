"""``tpplanner``: exit 0 with an answer, 1 where no plan is feasible or a limit is broken or the engine ended, 2 on bad input."""

import sys
from collections.abc import Sequence

import click

from tpplanner import __version__
from tpplanner.cli.calibrate import calibrate
from tpplanner.cli.engine import engine
from tpplanner.cli.explain import explain
from tpplanner.cli.models import models
from tpplanner.cli.predict import predict
from tpplanner.cli.profiles import profiles
from tpplanner.cli.recommend import recommend
from tpplanner.cli.simulate import simulate
from tpplanner.cli.sweep import sweep
from tpplanner.cli.validate import validate
from tpplanner.errors import EngineError, TpplannerError

EXIT_BAD_INPUT = 2
EXIT_ENGINE = 1
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
             invoke_without_command=True)
@click.version_option(__version__, prog_name="tpplanner")
@click.pass_context
def cli(context: click.Context) -> None:
    """Choose the tensor-parallel degree of LLM serving replicas, and say why."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (recommend, simulate, sweep, explain, predict, validate, calibrate, engine, profiles, models):
    cli.add_command(_command)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit; every error of the user's is one line on stderr."""
    try:
        code = cli.main(args=None if argv is None else list(argv), prog_name="tpplanner", standalone_mode=False)
    except click.ClickException as error:
        fail(error.format_message())
    except EngineError as error:
        fail(str(error), EXIT_ENGINE)
    except TpplannerError as error:
        fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("tpplanner: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away: not an error of the user's.
        sys.stderr.close()
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def fail(message: str, code: int = EXIT_BAD_INPUT) -> None:
    """Print one line on stderr and exit."""
    click.echo("tpplanner: error: " + " ".join(message.split()), err=True)
    sys.exit(code)
