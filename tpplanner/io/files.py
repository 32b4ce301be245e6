"""Writing results: whole files or none, and nothing written over unasked."""

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tpplanner.errors import OutputError, reject


def write_text_whole(path: Path | str, text: str, *, overwrite: bool) -> Path:
    """Write ``text`` in UTF-8 to ``path``, whole or not at all; see `write_bytes_whole`."""
    return write_bytes_whole(path, text.encode(), overwrite=overwrite)


def write_bytes_whole(path: Path | str, content: bytes, *, overwrite: bool) -> Path:
    """Write ``content`` to a temporary file beside ``path`` and move it into place.

    Parameters
    ----------
    path
        The file. A symbolic link is followed, so that the link survives.
    content
        All of it.
    overwrite
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    OutputError
        If the file exists and ``overwrite`` is false, if its folder is missing or cannot be
        written to, or if ``path`` is no regular file.
    """
    target = _checked_target(Path(path), overwrite=overwrite)
    _write_all({target: content})
    return Path(path)


def check_writable(path: Path | str, *, overwrite: bool) -> None:
    """Raise `OutputError` if a later write to ``path`` would be refused. Writes nothing.

    Commands call it before they compute, so that a typing error costs no time.
    """
    _checked_target(Path(path), overwrite=overwrite)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """The folder of ``--save-dir``: created on the first write, its files written together.

    Attributes
    ----------
    path
        The folder; its parent must exist.
    overwrite
        Whether existing files may be replaced. Files of other names are never touched.
    """

    path: Path
    overwrite: bool = False

    def check(self, names: Iterable[str]) -> None:
        """Raise `OutputError` if any of the files ``names`` could not be written. Writes nothing."""
        self._targets(names)

    def write(self, files: Mapping[str, str | bytes]) -> tuple[Path, ...]:
        """Write ``files`` (name -> content), and return their paths.

        Every target is checked before the first is written, and every file is complete on disk
        before the first is moved into place: a full disk or Ctrl-C leaves complete files only.

        Raises
        ------
        OutputError
            If any file exists and ``overwrite`` is false, or the folder cannot be made or written to.
        """
        targets = self._targets(files)
        with _removed_if_unused(self.path):
            _write_all({
                target: content.encode() if isinstance(content, str) else content
                for target, content in zip(targets, files.values(), strict=True)
            })
        return tuple(self.path / name for name in files)

    def _targets(self, names: Iterable[str]) -> list[Path]:
        names = list(names)
        for name in names:
            if name in ("", ".", "..") or Path(name).name != name:
                reject(OutputError, "file name", "be a plain name", name, str(self.path))
        if self.path.is_dir():
            _check_folder(self.path)
            taken = [name for name in names if os.path.lexists(self.path / name)]
            if taken and not self.overwrite:
                raise OutputError(
                    f"{self.path}: {', '.join(taken)} already exist{'s' if len(taken) == 1 else ''}; "
                    "nothing was written (--overwrite replaces)"
                )
            return [_checked_target(self.path / name, overwrite=self.overwrite) for name in names]
        if os.path.lexists(self.path):
            raise OutputError(f"{self.path}: is no folder")
        _check_folder(self.path.absolute().parent)
        return [self.path / name for name in names]


def _checked_target(path: Path, *, overwrite: bool) -> Path:
    """Return where ``path`` leads, if it can be written to."""
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise OutputError(f"{path}: is a folder, not a file")
        if target.exists() and not target.is_file():
            raise OutputError(f"{path}: is no regular file")
        if target.exists() and not overwrite:
            raise OutputError(f"{path}: already exists; nothing was written (--overwrite replaces it)")
        _check_folder(target.parent)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path!s}: {_why(error)}") from error
    return target


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise OutputError(f"{folder}: the folder does not exist")
    if not folder.is_dir():
        raise OutputError(f"{folder}: is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: the folder is not writable")


@contextlib.contextmanager
def _removed_if_unused(folder: Path) -> Iterator[None]:
    """Make ``folder`` if it is missing; take it away again if the writing fails and it is empty."""
    made = not folder.is_dir()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {_why(error)}") from error
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _write_all(files: Mapping[Path, bytes]) -> None:
    """Write every file beside its target, then move each into place; on failure leave no temporary."""
    staged: dict[Path, Path] = {}
    try:
        for target, content in files.items():
            temporary = target.with_name(f".tpplanner-{secrets.token_hex(8)}.tmp")
            staged[temporary] = target
            with open(temporary, "xb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
        for temporary, target in staged.items():
            os.replace(temporary, target)
    except OSError as error:
        raise OutputError(f"{error.filename or next(iter(files))}: {_why(error)}") from error
    finally:
        for temporary in staged:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _why(error: Exception) -> str:
    """Return the operating system's reason, on one line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()).lower() or type(error).__name__
