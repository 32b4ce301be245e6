"""Where the measured operator tables lie, and which machines, engines and versions they cover.

The tables come with the optional package ``aiconfigurator-core`` (``pip install 'tpplanner[silicon]'``), which
is found and never imported. ``TPPLANNER_SILICON`` names another folder: the package, its ``systems`` or its
``systems/data``. One table is ``<system>/<family>/<engine>/<version>/<table>_perf.parquet``.
"""

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from tpplanner.errors import ProfileError, nearest
from tpplanner.io.profile_files import fold, lookup_engine, lookup_machine, shown
from tpplanner.io.profile_hardware import read_hardware

ENV_FOLDER: Final = "TPPLANNER_SILICON"
PACKAGE: Final = "aiconfigurator_core"
INSTALL: Final = "pip install 'tpplanner[silicon]'"
LIBRARIES: Final = frozenset({"nccl", "oneccl"})
"""Folders beside the engines' that hold what every engine shares."""

_INSIDE: Final = ("", "data", "systems/data", f"{PACKAGE}/systems/data")
_VERSION: Final = re.compile(r"v?(\d+(?:\.\d+)*)(?:[.-]?(dev|rc|post)(\d+))?.*", re.ASCII)
_STAGES: Final = {"dev": -2, "rc": -1, None: 0, "post": 1}


def silicon_root() -> Path:
    """Return the folder ``systems/data`` of the measured tables.

    Raises
    ------
    ProfileError
        The package is not installed, or the folder of ``TPPLANNER_SILICON`` holds no table.
    """
    named = os.environ.get(ENV_FOLDER, "").strip()
    if named:
        return _data_folder(Path(named), ENV_FOLDER)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ProfileError(
            f"the measured operator tables must be installed, found none: {INSTALL}, or set {ENV_FOLDER} to their folder"
        )
    return _data_folder(Path(next(iter(spec.submodule_search_locations))), PACKAGE)


def _data_folder(folder: Path, place: str) -> Path:
    for inside in _INSIDE:
        if next((folder / inside).glob("*/*/*/*/*_perf.parquet"), None) is not None:
            return folder / inside
    raise ProfileError(
        f"{place}: {shown(folder)} must hold <system>/<family>/<engine>/<version>/*_perf.parquet, found none"
    )


def package_version(root: Path) -> str:
    """Return the version of the package whose ``systems/data`` is ``root``; ``unknown`` where it is a bare folder."""
    found = sorted(root.absolute().parents[2].glob(f"{PACKAGE}-*.dist-info"))
    return found[-1].name.removeprefix(f"{PACKAGE}-").removesuffix(".dist-info") if found else "unknown"


def version_key(version: str) -> tuple[tuple[int, ...], int, int]:
    """Return a key under which versions sort by age; text that is no version sorts first.

    Examples
    --------
    >>> sorted(["0.14.0", "0.9.1", "0.9.1rc2", "0.9.1rc10", "0.9.1.post1", "odd"], key=version_key)
    ['odd', '0.9.1rc2', '0.9.1rc10', '0.9.1', '0.9.1.post1', '0.14.0']
    """
    match = _VERSION.fullmatch(version)
    if not match:
        return (), 0, 0
    numbers = tuple(int(part[:18]) for part in match.group(1).split("."))
    return numbers, _STAGES[match.group(2)], int((match.group(3) or "0")[:18])


def known_systems(root: Path) -> tuple[str, ...]:
    """Return the machines that have measured tables, in the package's spelling."""
    return tuple(sorted({path.relative_to(root).parts[0] for path in root.glob("*/*/*/*/*_perf.parquet")}))


def known_engines(root: Path, system: str) -> tuple[str, ...]:
    """Return the engines measured on ``system``; NCCL and oneCCL belong to all of them."""
    found = {path.parts[-3] for path in (root / system).glob("*/*/*/*_perf.parquet")}
    return tuple(sorted(found - LIBRARIES))


def known_versions(root: Path, system: str, engine: str) -> tuple[str, ...]:
    """Return the versions of ``engine`` measured on ``system`` by any family, oldest first."""
    found = {path.parts[-2] for path in (root / system).glob(f"*/{engine}/*/*_perf.parquet")}
    return tuple(sorted(found, key=lambda version: (version_key(version), version)))


def find_system(root: Path, name: str) -> str:
    """Return the package's name of a machine: ``h200`` and ``H200-SXM`` are ``h200_sxm``.

    Our machine profiles tell which names mean one machine.

    Raises
    ------
    ProfileError
        No such machine was measured; the message lists those that were and the nearest.
    """
    systems = known_systems(root)
    return _find(name, systems, _machine_names) or _reject_unknown("measured operator tables", "system", name, systems)


def find_silicon_engine(root: Path, system: str, name: str) -> str:
    """Return the package's name of an engine: ``TensorRT-LLM`` is ``trtllm``.

    Raises
    ------
    ProfileError
        It was not measured on ``system``; the message lists those that were and the nearest.
    """
    engines = known_engines(root, system)
    return _find(name, engines, _engine_names) or _reject_unknown(system, "engine", name, engines)


def find_version(root: Path, system: str, engine: str, version: str) -> str:
    """Return ``version`` if some family of ``engine`` was measured with it on ``system``.

    Raises
    ------
    ProfileError
        None was; the message lists the versions there are and the nearest.
    """
    versions = known_versions(root, system, engine)
    if version in versions:
        return version
    _reject_unknown(f"{system}/{engine}", "version", version, versions)


def table_files(root: Path, system: str, family: str, engine: str, table: str) -> tuple[tuple[str, Path], ...]:
    """Return (version, file) of every version of one table, newest first."""
    found = [(path.parts[-2], path) for path in (root / system / family / engine).glob(f"*/{table}_perf.parquet")]
    return tuple(sorted(found, key=lambda pair: (version_key(pair[0]), pair[0]), reverse=True))


def _find(name: str, known: Sequence[str], other_names: Callable[[str], Iterable[str]]) -> str | None:
    by_fold = {fold(one): one for one in known}
    direct = by_fold.get(fold(name))
    if direct is not None:
        return direct
    return next((by_fold[fold(other)] for other in other_names(name) if fold(other) in by_fold), None)


def _machine_names(name: str) -> Iterable[str]:
    """Return the names of the machine profile that ``name`` stands for; none if there is no such profile."""
    path = lookup_machine(name)
    if path is None or not path.is_file():
        return ()
    return (path.parent.name, *read_hardware(path).aliases)


def _engine_names(name: str) -> Iterable[str]:
    path = lookup_engine(name)
    return () if path is None else (path.stem,)


def _reject_unknown(place: str, kind: str, name: str, known: Sequence[str]) -> NoReturn:
    short = repr(name if len(name) <= 60 else name[:57] + "...")
    hint = nearest(name[:100], known)
    raise ProfileError(f"{place}: unknown {kind} {short}; measured: {', '.join(known) or 'none'}. {hint}".rstrip())
