"""``tpplanner profiles import``."""

from pathlib import Path

import click


@click.command("import")
@click.option("--system", metavar="NAME", help="Machine, by our name or the package's: h200 is h200_sxm.")
@click.option("--engine", metavar="NAME", help="vllm, sglang or trtllm.")
@click.option("--engine-version", metavar="V", help="Only this version; default: the newest that has a curve.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Folder of profiles to write to; files go to DIR/<machine>/. Default: ./profiles.")
@click.option("--overwrite", is_flag=True, help="Replace existing files; a serving fit in them is kept.")
@click.option("--all", "every", is_flag=True, help="Every measured machine and engine of those left open.")
def import_command(
    *, system: str | None, engine: str | None, engine_version: str | None, out: Path | None, overwrite: bool, every: bool
) -> None:
    """Fit measured operator tables (pip install 'tpplanner[silicon]') and write the fitted profile.

    Writes fitted-ENGINE.json and its report, fit_report-ENGINE.md and .png.
    """
    from tpplanner.api.profiles_import import import_profiles

    def report(line: str) -> None:
        click.echo(line, err=True)

    folders = set()
    for imported in import_profiles(system, engine, version=engine_version, out=out, overwrite=overwrite, every=every,
                                    report=report):
        for warning in imported.evidence.warnings:
            click.echo(f"warning: {warning}", err=True)
        kernels = len(imported.evidence.residuals)
        click.echo(f"{imported.paths[0]}: {kernels} kernels, {len(imported.profile.collectives)} collectives")
        folders.add(imported.paths[0].parent.parent)
    for folder in sorted(folders):
        click.echo(f"To use it: TPPLANNER_PROFILES={folder} tpplanner ...")
