"""Reading one JSON file of a model, within limits, with one clear error."""

import os
from pathlib import Path
from typing import Final

import msgspec

from tpplanner.errors import ModelError

MAX_FILE_BYTES: Final = 10_000_000
"""Published config.json files hold 1 to 100 kB; a file of weights given by mistake holds gigabytes."""


def one_line(text: object, limit: int = 200) -> str:
    """Return ``text`` with every run of blanks and line breaks as one space, cut at ``limit``."""
    line = " ".join(str(text).split())
    printable = "".join(char if char.isprintable() else "?" for char in line)
    return printable if len(printable) <= limit else printable[: limit - 3] + "..."


def read_json_object(path: Path) -> dict[str, object]:
    """Return the JSON object in the file ``path``.

    Raises
    ------
    ModelError
        If the file is missing, unreadable, larger than 10 MB, no JSON (NaN and Infinity are none), nested
        too deeply, or no object.
    """
    return parse_json_object(_read_bytes(path), one_line(path))


def parse_json_object(content: bytes, place: str) -> dict[str, object]:
    """Return the JSON object in ``content``; ``place`` names it in errors.

    Examples
    --------
    >>> parse_json_object(b'{"hidden_size": 64}', "config.json")
    {'hidden_size': 64}
    """
    try:
        found = msgspec.json.decode(content)
    except RecursionError:
        raise ModelError(f"{place}: the JSON is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise ModelError(f"{place}: no valid JSON: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{place}: must hold a JSON object, got {type(found).__name__}")
    return found


def _read_bytes(path: Path) -> bytes:
    place = one_line(path)
    # isfile refuses pipes and devices, which would block or never end.
    if not os.path.isfile(path):
        raise ModelError(f"{place}: no such file")
    try:
        with open(path, "rb") as handle:
            content = handle.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{place}: cannot be read: {one_line(error.strerror)}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ModelError(f"{place}: is larger than {MAX_FILE_BYTES // 10**6} MB, so it is no config.json")
    return content
