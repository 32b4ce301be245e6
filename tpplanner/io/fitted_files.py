"""Fitted profiles: ``<machine>/fitted-<engine>.json`` in the folders of profiles, what measured tables and runs taught.

Looked for where machine profiles are: the folders of ``TPPLANNER_PROFILES``, ``extra_dirs``, the packaged ones; the first
file found counts, whole. The layout is that of ``io.fitted_records``.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from tpplanner.domain.fitted_profile import FittedProfile, MadeFrom, SourceTable
from tpplanner.errors import ProfileError, reject
from tpplanner.io.fitted_host import host_of, host_record
from tpplanner.io.fitted_kernels import curve_of, curve_record, kernels_of, kernels_record
from tpplanner.io.fitted_machine import machine_fit_of, machine_fit_record
from tpplanner.io.fitted_records import (
    SCHEMA_VERSION,
    FittedRecord,
    KernelsRecord,
    MadeFromRecord,
    Record,
    TableRecord,
)
from tpplanner.io.fitted_serving import serving_of, serving_record
from tpplanner.io.profile_files import MAX_FILE_BYTES, fold, lookup_engine, lookup_machine, profile_roots, shown

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.+-]{0,99}")
_FILE: Final = re.compile(r"fitted-([a-z0-9][a-z0-9.+-]{0,99})\.json")
_AT: Final = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)
_DECODER: Final = msgspec.json.Decoder(FittedRecord)


def fitted_name(engine: str) -> str:
    """Return the name of an engine's file in the folder of a machine."""
    return f"fitted-{fold(engine)}.json"


def load_fitted(machine_name: str, engine_name: str, extra_dirs: Sequence[Path] = ()) -> FittedProfile | None:
    """Return what was fitted for an engine on a machine; ``None`` where nothing was.

    Parameters
    ----------
    machine_name
        Name or alias, or the path of a machine's folder or datasheet.
    engine_name
        Name or alias; a plugin or version that has no file of its own has none.
    extra_dirs
        Folders of profiles, searched after ``TPPLANNER_PROFILES`` and before the packaged ones.

    Raises
    ------
    ProfileError
        The file is malformed: one line with the file, the field and the rule.

    Examples
    --------
    >>> load_fitted("h200", "no-such-engine") is None
    True
    """
    path = fitted_path(machine_name, engine_name, extra_dirs)
    return None if path is None else read_fitted(path)


def fitted_path(machine_name: str, engine_name: str, extra_dirs: Sequence[Path] = ()) -> Path | None:
    """Return the file of an engine on a machine; ``None`` where there is none."""
    direct = _first_file(profile_roots(extra_dirs), fold(machine_name), fold(engine_name))
    if direct is not None:
        return direct
    datasheet = lookup_machine(machine_name, extra_dirs)
    if datasheet is None:
        return None
    engine = lookup_engine(engine_name, extra_dirs)
    names = dict.fromkeys((fold(engine_name), *((fold(engine.stem),) if engine is not None and engine.is_file() else ())))
    folder = datasheet.absolute().parent
    roots = (folder.parent, *profile_roots(extra_dirs)) if _is_path(machine_name) else profile_roots(extra_dirs)
    return next((path for name in names if (path := _first_file(roots, folder.name, name)) is not None), None)


def fitted_files(machine_name: str, extra_dirs: Sequence[Path] = ()) -> dict[str, Path]:
    """Return ``{engine: file}`` of a machine, sorted; an earlier folder of profiles hides a later one."""
    datasheet = lookup_machine(machine_name, extra_dirs)
    folder = fold(machine_name) if datasheet is None else datasheet.absolute().parent.name
    found: dict[str, Path] = {}
    for root in profile_roots(extra_dirs):
        for path in sorted((root / folder).glob("fitted-*.json")):
            match = _FILE.fullmatch(path.name)
            if match:
                found.setdefault(match.group(1), path)
    return dict(sorted(found.items()))


def read_fitted(path: Path) -> FittedProfile:
    """Return the fitted profile of one file.

    Raises
    ------
    ProfileError
        The file cannot be read, is no such JSON, or names another machine or engine than its path.
    """
    place = shown(path)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ProfileError(f"{place}: must be a readable file, got {reason}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ProfileError(f"{place}: must be at most {MAX_FILE_BYTES} bytes, got more")
    profile = decode_fitted(content, place)
    folder = path.absolute().parent.name
    if fold(profile.machine) != fold(folder):
        reject(ProfileError, "machine", f"be {folder}, as the folder", profile.machine, place)
    if fitted_name(profile.engine) != path.name:
        reject(ProfileError, "engine", f"be that of {path.name}", profile.engine, place)
    return profile


def decode_fitted(content: bytes, place: str) -> FittedProfile:
    """Return the fitted profile of a file's content; ``place`` names it in messages.

    Raises
    ------
    ProfileError
        It is no such JSON, or a value makes no sense.
    """
    try:
        record = _DECODER.decode(content)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ProfileError(f"{place}: {_what(error)}") from None
    try:
        return _profile(record)
    except ProfileError as error:
        raise ProfileError(f"{place}: {error}") from None


def encode_fitted(profile: FittedProfile) -> bytes:
    """Return the content of the file: JSON with a line per kernel, curve and part of the serving fit.

    Numbers are rounded to 5 significant digits, standard errors to 2, surfaces to thousandths.
    """
    made = profile.made_from
    tables = tuple(TableRecord(path=t.path, framework_version=t.framework_version, num_rows=t.num_rows) for t in made.tables)
    source = MadeFromRecord(package=made.package, version=made.version, notice=made.notice, tables=tables)
    lines = [
        f'"schema_version":{SCHEMA_VERSION}',
        f'"machine":{_json(profile.machine)}',
        f'"engine":{_json(profile.engine)}',
        f'"made_from":{_json(source)}',
        f'"kernels":{_kernels_json(kernels_record(profile.kernels))}',
        f'"collectives":{_lines([_json(curve_record(curve)) for curve in profile.collectives])}',
    ]
    if profile.serving is not None:
        fields = msgspec.structs.asdict(serving_record(profile.serving))
        lines.append('"serving":{\n' + ",\n".join(f"{_json(k)}:{_json(v)}" for k, v in fields.items()) + "}")
    if profile.host is not None:
        lines.append(f'"host":{_json(host_record(profile.host))}')
    if profile.machine_fit is not None:
        lines.append(f'"machine_fit":{_json(machine_fit_record(profile.machine_fit))}')
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _kernels_json(record: KernelsRecord) -> str:
    tables = msgspec.structs.asdict(record)
    return "{\n" + ",\n".join(f"{_json(name)}:{_lines([_json(k) for k in table])}" for name, table in tables.items()) + "}"


def _json(item: Record | str | object) -> str:
    return msgspec.json.encode(item).decode()


def _lines(items: Sequence[str]) -> str:
    return "[" + ",".join(f"\n{item}" for item in items) + "]"


def _profile(record: FittedRecord) -> FittedProfile:
    made = record.made_from
    for name in (record.machine, record.engine):
        if not _NAME.fullmatch(fold(name)):
            reject(ProfileError, "machine and engine", "be plain names", name)
    return FittedProfile(
        machine=record.machine,
        engine=record.engine,
        kernels=kernels_of(record.kernels),
        collectives=tuple(curve_of(curve, f"collectives[{i}]") for i, curve in enumerate(record.collectives)),
        serving=None if record.serving is None else serving_of(record.serving, machine=record.machine, engine=record.engine),
        made_from=MadeFrom(
            package=made.package, version=made.version, notice=made.notice,
            tables=tuple(SourceTable(path=t.path, framework_version=t.framework_version, num_rows=t.num_rows)
                         for t in made.tables),
        ),
        host=None if record.host is None else host_of(record.host),
        machine_fit=None if record.machine_fit is None else machine_fit_of(record.machine_fit),
    )


def _first_file(roots: Sequence[Path], machine: str, engine: str) -> Path | None:
    if not (_NAME.fullmatch(machine) and _NAME.fullmatch(engine)):
        return None
    return next((path for root in roots if (path := root / machine / fitted_name(engine)).is_file()), None)


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(".toml")


def _what(error: Exception) -> str:
    """Return what is wrong on one line: the field first where the decoder names it."""
    text = " ".join(str(error).split()) or type(error).__name__
    match = _AT.fullmatch(text)
    text = f"{match.group(2)}: {match.group(1)}" if match and match.group(2) else text
    return text if text.isprintable() and len(text) <= 300 else repr(text)[:300]
