"""Measured operator tables to fitted profiles: what ``tpplanner profiles import`` does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import pandas as pd

from tpplanner.domain.fit_evidence import FitEvidence
from tpplanner.domain.fitted_profile import FittedProfile, MadeFrom
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.errors import ProfileError, reject
from tpplanner.io.fitted_files import encode_fitted, fitted_name
from tpplanner.io.fitted_write import check_output, kept_serving, output_folder, write_profile
from tpplanner.io.profile_files import lookup_engine, lookup_machine
from tpplanner.io.profile_hardware import load_hardware
from tpplanner.io.silicon_package import (
    find_silicon_engine,
    find_system,
    find_version,
    known_engines,
    known_systems,
    package_version,
    silicon_root,
    table_files,
)
from tpplanner.io.silicon_tables import read_operator_tables

Report = Callable[[str], None]
FRAMES: Final = ("gemm", "prefill_attention", "decode_attention", "moe", "collective")
ENGINES: Final = ("vllm", "sglang", "trtllm")
DONORS: Final = ("sglang", "trtllm", "vllm")
"""Engines in the order in which another's tables are replaced where they timed the host."""
PACKAGE: Final = "aiconfigurator-core"
NOTICE: Final = (
    "Fitted from the measured operator tables of aiconfigurator-core, Copyright (c) 2025-2026 NVIDIA CORPORATION & "
    "AFFILIATES, licensed under the Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0). Coefficients and "
    "thinned curves only: no rows of the tables are copied."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A measured machine and engine, in the package's spelling, and the machine's name here."""

    system: str
    engine: str
    machine: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imported:
    """A fitted profile, its evidence, and where they were written."""

    profile: FittedProfile
    evidence: FitEvidence
    paths: tuple[Path, ...]


def measured_pairs(system: str | None, engine: str | None, *, every: bool) -> tuple[Pair, ...]:
    """Return the pairs to import: the one that is named, or with ``every`` all that fit what is named.

    Raises
    ------
    ProfileError
        The package is missing, a name is unknown, or the machine has no profile here.
    """
    root = silicon_root()
    if not every:
        if system is None or engine is None:
            reject(ProfileError, "--system and --engine", "be given, or --all", (system, engine))
        found = find_system(root, system)
        return (Pair(system=found, engine=find_silicon_engine(root, found, engine), machine=_machine(found)),)
    systems = known_systems(root) if system is None else (find_system(root, system),)
    path = None if engine is None else lookup_engine(engine)
    wanted = ENGINES if engine is None else (engine if path is None else path.stem,)
    pairs = []
    for one in systems:
        if system is None and lookup_machine(one) is None:
            continue
        pairs += [Pair(system=one, engine=e, machine=_machine(one)) for e in known_engines(root, one) if e in wanted]
    if not pairs:
        reject(ProfileError, "--all", "match a machine and engine that was measured", (system, engine))
    return tuple(pairs)


def _machine(system: str) -> str:
    return load_hardware(system).name


def import_profiles(
    system: str | None, engine: str | None, *, version: str | None = None, out: Path | None = None,
    overwrite: bool = False, every: bool = False, report: Report = lambda line: None,
) -> Iterator[Imported]:
    """Fit measured pairs and write their files, one pair after the other.

    Parameters
    ----------
    system, engine
        A machine and an engine, by the package's names or ours; with ``every`` either may be left open.
    version
        Only this version of the engine; by default every curve from the newest one that has it.
    out
        Folder of profiles; ``profiles`` here by default.
    overwrite
        Whether existing files may be replaced. A serving fit in them is kept.
    report
        Is told what is being done.

    Raises
    ------
    ProfileError
        The package is missing, a name is unknown, a table is damaged, or a machine has no profile here.
    OutputError
        A file exists and ``overwrite`` is false, or cannot be written: before anything is fitted.
    """
    folder = output_folder(out)
    pairs = measured_pairs(system, engine, every=every)
    for pair in pairs:
        if version is not None:
            find_version(silicon_root(), pair.system, pair.engine, version)
        check_output(folder, pair.machine, _names(pair.engine), overwrite=overwrite)
        kept_serving(folder, pair.machine, pair.engine)
    for pair in pairs:
        yield _import_pair(pair, version, folder, overwrite=overwrite, report=report)


def _names(engine: str) -> tuple[str, str, str]:
    return fitted_name(engine), f"fit_report-{engine}.md", f"fit_report-{engine}.png"


def _import_pair(pair: Pair, version: str | None, folder: Path, *, overwrite: bool, report: Report) -> Imported:
    """Fit one pair and write its files."""
    from tpplanner.report.fit_plots import fit_plot_png
    from tpplanner.report.fit_report import fit_report_markdown

    profile, evidence = fit_pair(pair, version=version, report=report)
    serving = kept_serving(folder, pair.machine, pair.engine)
    if serving is not None:
        report("the serving fit of the old file is kept")
        profile = replace(profile, serving=serving)
    json_name, text_name, plot_name = _names(pair.engine)
    text = fit_report_markdown(profile, evidence, system=pair.system, engine_version=version, plot_name=plot_name)
    plot = fit_plot_png(evidence.residuals, title=f"{pair.engine} on {pair.machine}")
    files = {json_name: encode_fitted(profile), text_name: text.encode(), plot_name: plot}
    paths = write_profile(folder, pair.machine, files, overwrite=overwrite)
    return Imported(profile=profile, evidence=evidence, paths=paths)


def fit_pair(
    pair: Pair, *, version: str | None = None, report: Report = lambda line: None
) -> tuple[FittedProfile, FitEvidence]:
    """Fit the tables of one machine and engine; nothing is written.

    Raises
    ------
    ProfileError
        As `import_profiles`.
    """
    from tpplanner.fit.operator_profile import fit_operator_tables
    from tpplanner.fit.operator_rows import OperatorFrames

    hardware: HardwareProfile = load_hardware(pair.system)
    report(f"{pair.machine} {pair.engine}: reading {pair.system}")
    tables = read_operator_tables(pair.system, pair.engine, version=version)
    others = {other: partial(_gemms, pair.system, other) for other in DONORS
              if other != pair.engine and table_files(silicon_root(), pair.system, "gemm", other, "gemm")}
    fit = fit_operator_tables(
        OperatorFrames(**{name: getattr(tables, name) for name in FRAMES}), hardware=hardware, engine=pair.engine,
        other_gemms=others, report=lambda line: report(f"{pair.machine} {pair.engine}: {line}"),
    )
    if not fit.evidence.residuals:
        reject(ProfileError, "kernels", f"be measured for {pair.engine} {version or ''}".rstrip(), "none", pair.system)
    made_from = MadeFrom(package=PACKAGE, version=package_version(silicon_root()), tables=fit.tables, notice=NOTICE)
    return FittedProfile(machine=hardware.name, engine=pair.engine, kernels=fit.kernels, collectives=fit.collectives,
                         serving=None, made_from=made_from), fit.evidence


def _gemms(system: str, engine: str) -> pd.DataFrame:
    return read_operator_tables(system, engine, families=["gemm"]).gemm
