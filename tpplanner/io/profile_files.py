"""Where profiles lie, how they are found by name or alias, and how their files are read.

Search order: the folders of ``TPPLANNER_PROFILES``, ``extra_dirs``, then the packaged profiles. A folder
of profiles holds ``<machine>/datasheet.toml``, ``engines/<engine>.toml`` and, if it has defaults of its
own, ``defaults.toml``.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from tpplanner.errors import ProfileError, nearest, reject

ENV_DIRS: Final = "TPPLANNER_PROFILES"
DATASHEET: Final = "datasheet.toml"
FITTED: Final = "fitted.json"
DEFAULTS: Final = "defaults.toml"
MAX_FILE_BYTES: Final = 5 * 10**6
MAX_GPUS: Final = 10**6
"""No cluster in this field is larger; a larger count is a typing error."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_COUNT_FIRST: Final = re.compile(r"\s*([-+0-9][-+0-9.,_eE]*)?\s*[xX](.*)", re.DOTALL)
_COUNT_LAST: Final = re.compile(r"(.*):([^:/\\]*)", re.DOTALL)
_ALIASES: Final = re.compile(r"^aliases\s*=\s*\[(.*?)\]", re.DOTALL | re.MULTILINE)
_HUGE_NUMBER: Final = re.compile(r"\b0[xob][0-9a-fA-F_]{300}")
_QUOTED: Final = re.compile(r"[\"']([^\"'\n]+)[\"']")


def shown(path: Path | str) -> str:
    """Return a path as one line of text for a message."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def fold(name: str) -> str:
    """Return the spelling under which names are compared: ``H100_SXM`` is ``h100-sxm``."""
    return name.strip().lower().replace("_", "-")


def packaged_root() -> Path:
    """Return the folder of the profiles that come with the package (wheel) or checkout."""
    package = Path(__file__).resolve().parent.parent
    for root in (package / "_data" / "profiles", package.parent / "profiles"):
        if root.is_dir():
            return root
    raise ProfileError(f"{shown(package)}: the packaged profiles must be installed, found none")


def profile_roots(extra_dirs: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Return the folders that are searched for profiles, first match first."""
    listed = [Path(part) for part in os.environ.get(ENV_DIRS, "").split(os.pathsep) if part.strip()]
    return (*listed, *(Path(extra) for extra in extra_dirs), packaged_root())


def machine_files(extra_dirs: Sequence[Path] = ()) -> dict[str, Path]:
    """Return ``{machine: datasheet.toml}`` of every root; an earlier root hides a later one."""
    return _collect(extra_dirs, lambda root: root.glob(f"*/{DATASHEET}"), lambda path: path.parent.name)


def engine_files(extra_dirs: Sequence[Path] = ()) -> dict[str, Path]:
    """Return ``{engine: file}`` of every root; an earlier root hides a later one."""
    return _collect(extra_dirs, lambda root: root.glob("engines/*.toml"), lambda path: path.stem)


def _collect(
    extra_dirs: Sequence[Path], files: Callable[[Path], Iterable[Path]], name: Callable[[Path], str]
) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in profile_roots(extra_dirs):
        for path in sorted(files(root)):
            if _NAME.fullmatch(name(path)):
                found.setdefault(name(path), path)
    return dict(sorted(found.items()))


def find_machine(name: str, extra_dirs: Sequence[Path] = ()) -> Path:
    """Return the ``datasheet.toml`` of a machine given by name, alias or path.

    Raises
    ------
    ProfileError
        Nothing has that name; the message lists the known machines and the nearest.
    """
    return lookup_machine(name, extra_dirs) or reject_unknown("GPU", name, machine_files(extra_dirs))


def find_engine(name: str, extra_dirs: Sequence[Path] = ()) -> Path:
    """Return the file of an engine given by name, alias or path.

    Raises
    ------
    ProfileError
        Nothing has that name; the message lists the known engines and the nearest.
    """
    return lookup_engine(name, extra_dirs) or reject_unknown("engine", name, engine_files(extra_dirs))


def lookup_machine(name: str, extra_dirs: Sequence[Path] = ()) -> Path | None:
    """Return the ``datasheet.toml`` of a machine; ``None`` where nothing has that name."""
    path = _as_path(name)
    if path is not None:
        return path / DATASHEET if path.suffix != ".toml" else path
    return _by_name(name, "{}/" + DATASHEET, profile_roots(extra_dirs), lambda: machine_files(extra_dirs))


def lookup_engine(name: str, extra_dirs: Sequence[Path] = ()) -> Path | None:
    """Return the file of an engine; ``None`` where nothing has that name."""
    path = _as_path(name)
    if path is not None:
        return path
    return _by_name(name, "engines/{}.toml", profile_roots(extra_dirs), lambda: engine_files(extra_dirs))


def _as_path(name: str) -> Path | None:
    """Return what is written as a path; a bare word is a name."""
    return Path(name) if "/" in name or os.sep in name or name.endswith(".toml") else None


def _by_name(
    name: str, pattern: str, roots: Sequence[Path], files: Callable[[], dict[str, Path]]
) -> Path | None:
    """Look a name up as a path first; only if that fails, read the aliases of every profile."""
    folded = fold(name)
    if not _NAME.fullmatch(folded):
        return None
    for root in roots:
        path = root / pattern.format(folded)
        if path.is_file():
            return path
    for stem, path in files().items():
        if folded == fold(stem) or folded in map(fold, _quick_aliases(path)):
            return path
    return None


def reject_unknown(kind: str, name: str, known: dict[str, Path]) -> NoReturn:
    """Raise the error of an unknown name: the known ones, and those that are near to it."""
    names = {alias for path in known.values() for alias in _quick_aliases(path)} | set(known)
    short = repr(name if len(name) <= 60 else name[:57] + "...")
    hint = nearest(name[:100], sorted(names))
    raise ProfileError(f"unknown {kind} {short}; known: {', '.join(known)}. {hint}".rstrip())


def _quick_aliases(path: Path) -> list[str]:
    """Return the aliases of a profile by a look at its text: 20 times faster than parsing it."""
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return []
    match = _ALIASES.search(text)
    return [alias for alias in _QUOTED.findall(match.group(1)) if alias.isprintable()] if match else []


def parse_gpus(text: str, *, extra_dirs: Sequence[Path] = ()) -> tuple[int | None, str]:
    """Split ``8xh100-sxm`` or ``h100-sxm:8`` into a count and the name of a known machine.

    Returns
    -------
    tuple
        The count, ``None`` where the text has none, and the name as it was typed.

    Raises
    ------
    ProfileError
        The count is not a whole number of 1 or more, or the machine is unknown.

    Examples
    --------
    >>> parse_gpus("8xh100-sxm")
    (8, 'h100-sxm')
    >>> parse_gpus("b200:4"), parse_gpus("h200")
    ((4, 'b200'), (None, 'h200'))
    """
    count, name = _split_count(text)
    if not name.strip():
        reject(ProfileError, "gpus", "name a GPU, for example 8xh100-sxm", text)
    if count is not None and (not re.fullmatch("[0-9]{1,7}", count) or not 1 <= int(count) <= MAX_GPUS):
        reject(ProfileError, "gpus", f"have a whole number of GPUs from 1 to {MAX_GPUS}", text)
    find_machine(name.strip(), extra_dirs)
    return (None if count is None else int(count)), name.strip()


def _split_count(text: str) -> tuple[str | None, str]:
    first = _COUNT_FIRST.fullmatch(text)
    if first:
        return first.group(1) or "", first.group(2)
    last = _COUNT_LAST.fullmatch(text)
    if last:
        return last.group(2).strip(), last.group(1)
    return None, text


def read_toml(path: Path) -> dict[str, object]:
    """Return a TOML file's top table; whatever is wrong with the file is one ProfileError."""
    text = _read_text(path)
    if _HUGE_NUMBER.search(text):  # Python refuses to print what it would read here
        raise ProfileError(f"{shown(path)}: must have no number of over 300 digits, got one")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{shown(path)}: must be valid TOML, got {_first_line(error)}") from None


def read_json(path: Path) -> dict[str, object]:
    """Return a JSON file's top object; whatever is wrong with the file is one ProfileError."""
    text = _read_text(path)
    try:
        data = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{shown(path)}: must be valid JSON, got {_first_line(error)}") from None
    if not isinstance(data, dict):
        reject(ProfileError, "the file", "hold one JSON object", type(data).__name__, shown(path))
    return data


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key that is given twice in one object")
    return table


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ProfileError(f"{shown(path)}: must be a readable file, got {reason}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ProfileError(f"{shown(path)}: must be at most {MAX_FILE_BYTES} bytes, got more")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProfileError(f"{shown(path)}: must be UTF-8 text, got a wrong byte at {error.start}") from None


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.isprintable() and len(text) <= 160 else repr(text)[:160]
