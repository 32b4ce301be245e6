"""Finished points of a sweep: kept as whole files in a folder beside the output, so that an interrupt loses none.

A part holds the points of one task: a line of JSON with the digest of the rest, then a line per point. A part that is
damaged, or of another form, counts as absent.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, Self

from tpplanner.domain.sweep import PointResult
from tpplanner.errors import OutputError
from tpplanner.io.files import write_bytes_whole

PARTS_SUFFIX: Final = ".parts"
_FORM: Final = 1
_PART: Final = "*.part"
_TEMPORARY: Final = ".tpplanner-*.tmp"


class Finished(Protocol):
    """Where the answers of points are kept."""

    def __contains__(self, key: str, /) -> bool:
        """Whether a point is finished."""

    def add(self, results: Sequence[PointResult], /) -> None:
        """Keep the answers of points."""

    def result(self, key: str, /) -> PointResult:
        """Return the answer of a finished point."""


class MemoryParts:
    """Answers that are kept in memory alone: a sweep without an output file."""

    def __init__(self) -> None:
        self._results: dict[str, PointResult] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def add(self, results: Sequence[PointResult]) -> None:
        """Keep the answers of points."""
        self._results.update((result.key, result) for result in results)

    def result(self, key: str) -> PointResult:
        """Return the answer of a finished point."""
        return self._results[key]


class FolderParts:
    """Answers that are kept in a folder, by one process at a time.

    Entering it makes the folder, or reads what an earlier run left there; leaving it takes an empty folder away.

    Raises
    ------
    OutputError
        The folder cannot be made or written to, or another process uses it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._last: tuple[Path, Mapping[str, PointResult]] | None = None
        self._held: int | None = None

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(exist_ok=True)
            self._held = _locked(self._folder)
            for stray in self._folder.glob(_TEMPORARY):  # of a process that was killed while it wrote
                stray.unlink(missing_ok=True)
            for path in sorted(self._folder.glob(_PART)):
                self._files.update(dict.fromkeys(_read_part(path), path))
        except OSError as error:
            self._release()
            raise OutputError(f"{self._folder}: {(error.strerror or str(error)).lower()}") from error
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):  # it is not empty: the next run goes on from there
            self._folder.rmdir()
        self._release()

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def add(self, results: Sequence[PointResult]) -> None:
        """Keep the answers of the points of one task in one file."""
        if results:
            path = self._folder / f"{results[0].key}.part"
            write_bytes_whole(path, _part_bytes(results), overwrite=True)
            self._files.update(dict.fromkeys((result.key for result in results), path))

    def result(self, key: str) -> PointResult:
        """Return the answer of a finished point."""
        path = self._files[key]
        if self._last is None or self._last[0] != path:
            self._last = path, _read_part(path)
        if key not in self._last[1]:
            raise OutputError(f"{path}: was changed or removed while the sweep ran; the next run computes it again")
        return self._last[1][key]

    def discard(self) -> None:
        """Remove every part; files of other names stay."""
        for path in self._folder.glob(_PART):
            with contextlib.suppress(OSError):
                path.unlink()
        self._files.clear()

    def _release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _locked(folder: Path) -> int | None:
    """Return the open folder, held until it is closed or the process ends; ``None`` where the system has no such lock."""
    try:
        import fcntl
    except ImportError:
        return None
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise OutputError(f"{folder}: another sweep to the same output is running") from None
    except OSError:  # some network file systems lock nothing
        os.close(held)
        return None
    return held


def _part_bytes(results: Sequence[PointResult]) -> bytes:
    lines = []
    for result in results:
        columns = list(result.rows[0]) if result.rows else []
        cells = [[row[name] for name in columns] for row in result.rows]
        lines.append(json.dumps({"key": result.key, "wall_s": result.wall_s, "columns": columns, "rows": cells}, allow_nan=False))
    body = "".join(line + "\n" for line in lines).encode()
    head = {"sweep_part": _FORM, "sha256": hashlib.sha256(body).hexdigest()}
    return json.dumps(head).encode() + b"\n" + body


def _read_part(path: Path) -> dict[str, PointResult]:
    """Return the answers in a part by key; none where the file is damaged."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        if json.loads(head) != {"sweep_part": _FORM, "sha256": hashlib.sha256(body).hexdigest()}:
            return {}
        return {result.key: result for result in _results(body)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _results(body: bytes) -> Iterator[PointResult]:
    for line in body.splitlines():
        point = json.loads(line)
        rows = tuple(dict(zip(point["columns"], cells, strict=True)) for cells in point["rows"])
        yield PointResult(key=str(point["key"]), rows=rows, error=None, wall_s=float(point["wall_s"]))
