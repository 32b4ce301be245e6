"""``tpplanner profiles``."""

from pathlib import Path

import click

from tpplanner.cli.profiles_import import import_command


@click.group(invoke_without_command=True)
@click.pass_context
def profiles(context: click.Context) -> None:
    """List, show, check and import hardware and engine profiles."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@profiles.command("list")
def list_profiles() -> None:
    """List the machines and the engines that are known."""
    from tpplanner.io.profile_engine import known_engines, load_engine
    from tpplanner.io.profile_hardware import known_hardware, load_hardware
    from tpplanner.report.profiles_text import engine_list_text, hardware_list_text

    click.echo(hardware_list_text([load_hardware(name) for name in known_hardware()]))
    click.echo()
    click.echo(engine_list_text([load_engine(name) for name in known_engines()]))


@profiles.command()
@click.argument("name")
def show(name: str) -> None:
    """Show every number of a profile: value, unit, provenance, source; of a machine also the engines fitted on it."""
    from tpplanner.domain.hardware import HardwareProfile
    from tpplanner.io.fitted_files import fitted_files, read_fitted
    from tpplanner.io.profile_check import load_profile
    from tpplanner.report.profiles_text import fitted_text, profile_show_text

    profile = load_profile(name)
    click.echo(profile_show_text(profile))
    if isinstance(profile, HardwareProfile):
        click.echo()
        click.echo(fitted_text([read_fitted(path) for path in fitted_files(name).values()]))


@profiles.command()
@click.argument("name")
def check(name: str) -> None:
    """Check a profile (NAME or path): errors end with exit 2, doubts are listed."""
    from tpplanner.io.profile_check import check_profile

    doubts = check_profile(name)
    for doubt in doubts:
        click.echo(doubt)
    click.echo(f"{name}: valid, {len(doubts)} {'doubt' if len(doubts) == 1 else 'doubts'}")


@profiles.command()
@click.argument("first", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("second", type=click.Path(path_type=Path, dir_okay=False))
def diff(first: Path, second: Path) -> None:
    """Compare two fitted-<engine>.json files: which coefficients moved by more than their errors."""
    from tpplanner.domain.fitted_drift import drift
    from tpplanner.io.fitted_files import read_fitted
    from tpplanner.report.drift_text import drift_text

    click.echo(drift_text(drift(read_fitted(first), read_fitted(second)), first=str(first), second=str(second)))


profiles.add_command(import_command)
