"""What tells the points of sweeps apart: a digest of all that an answer depends on, files by their content."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

from tpplanner.domain.sweep import Settings, SweepKind
from tpplanner.io.profile_files import DATASHEET, profile_roots

MISSING: Final = "missing"
"""Digest of a file that cannot be read: the point itself says why."""

_PROFILE_PATTERNS: Final = ("*.toml", "*/*.toml", "*/*.json")
_PACKAGE_PATTERNS: Final = ("*.py", "*/*.py", "models/*.json")
_BLOCK_BYTES: Final = 1 << 20

DigestOf = Callable[[Path], str]


def point_key(kind: SweepKind, settings: Settings, *, version: str, profiles: str, digest_of: DigestOf) -> str:
    """Return the key of a point, 40 hexadecimal digits.

    Parameters
    ----------
    kind, settings
        The point; the order of its settings does not count.
    version
        Of the package, with `source_digest`.
    profiles
        What `profiles_digest` says.
    digest_of
        `file_digest`, or what remembers its answers.
    """
    files = {name: [[part, digest_of(path)] for part, path in named_files(name, value)]
             for name, value in settings.items() if isinstance(value, str)}
    content = {"kind": kind.value, "settings": dict(settings), "files": {k: v for k, v in files.items() if v},
               "profiles": profiles, "version": version}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:40]


def named_files(name: str, value: str) -> Iterator[tuple[str, Path]]:
    """Yield what a setting reads: a part, and the file. Names of packaged models and profiles yield nothing."""
    match name:
        case "trace" | "tokenizer":
            yield "", Path(value)
        case "isl" | "osl" if value.strip().startswith("histogram:"):
            yield "", Path(value.strip().removeprefix("histogram:"))
        case "model" if os.path.isdir(value):
            # The second file lies beside the first where the weights are quantised.
            yield from ((part, Path(value) / part) for part in ("config.json", "hf_quant_config.json"))
        case "model" if os.path.isfile(value):
            yield "", Path(value)
            yield "quant", Path(value).with_name("hf_quant_config.json")
        case "engine" if "/" in value or value.endswith(".toml"):
            yield "", Path(value)
        case "gpus" if "/" in value or value.endswith(".toml"):
            # 8x./machines/mine, or the same with :8 behind it
            path = Path(value.partition("x")[2] if value.lstrip()[:1].isdigit() else value.partition(":")[0])
            yield "", path if path.suffix == ".toml" else path / DATASHEET


def file_digest(path: Path) -> str:
    """Return the digest of a file's content, `MISSING` where it cannot be read."""
    try:
        status = path.stat()
        return _digest(path.absolute(), status.st_mtime_ns, status.st_size)
    except (OSError, ValueError):
        return MISSING


@lru_cache(maxsize=4096)
def _digest(path: Path, changed_ns: int, size_bytes: int) -> str:
    """Return the digest of a file as it was at a time: traces are large, and named by many points."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            found.update(block)
    return found.hexdigest()


def profiles_digest() -> str:
    """Return the digest of every profile that can be named, wherever the folders lie."""
    return " ".join(_tree_digest(root, _PROFILE_PATTERNS) for root in profile_roots())


@cache
def source_digest() -> str:
    """Return the digest of the package's files: in a checkout they change under one version."""
    return _tree_digest(Path(__file__).resolve().parent.parent, _PACKAGE_PATTERNS)


def _tree_digest(root: Path, patterns: Iterable[str]) -> str:
    found = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        found.update(f"{path.relative_to(root)} {file_digest(path)}\n".encode("utf-8", "backslashreplace"))
    return found.hexdigest()
