"""Where imported profiles are written: ``<folder>/<machine>/``, all files of an engine together or none."""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tpplanner.domain.serving_fit import ServingFit
from tpplanner.errors import OutputError, ProfileError
from tpplanner.io.files import OutputFolder
from tpplanner.io.fitted_files import fitted_name, read_fitted
from tpplanner.io.profile_files import packaged_root, shown

USER_FOLDER: Final = Path("profiles")
"""Where an import goes unless told otherwise."""


def output_folder(named: Path | None) -> Path:
    """Return the folder of profiles to write to: the one that was named, else ``profiles`` here.

    Raises
    ------
    OutputError
        None was named and ``profiles`` here is the package's own folder, in a checkout.
    """
    if named is not None:
        return named
    if USER_FOLDER.is_dir() and USER_FOLDER.resolve() == packaged_root().resolve():
        raise OutputError(f"{USER_FOLDER}: is the package's own folder of profiles; --out {USER_FOLDER} writes into it")
    return USER_FOLDER


def check_output(folder: Path, machine: str, names: Iterable[str], *, overwrite: bool) -> None:
    """Raise `OutputError` if any of the files could not be written. Writes nothing."""
    if folder.is_dir():
        OutputFolder(path=folder / machine, overwrite=overwrite).check(names)
    else:
        OutputFolder(path=folder, overwrite=overwrite).check(())


def kept_serving(folder: Path, machine: str, engine: str) -> ServingFit | None:
    """Return the serving fit of a file that is going to be replaced, so that it is kept.

    Raises
    ------
    ProfileError
        The file is there and malformed.
    """
    path = folder / machine / fitted_name(engine)
    if not path.is_file():
        return None
    try:
        return read_fitted(path).serving
    except ProfileError as error:
        raise ProfileError(f"{error}; its serving fit cannot be kept: delete {shown(path)} to do without") from None


def write_profile(folder: Path, machine: str, files: Mapping[str, bytes], *, overwrite: bool) -> tuple[Path, ...]:
    """Write the files of one engine to ``folder/machine`` together, and return their paths.

    Raises
    ------
    OutputError
        A file exists and ``overwrite`` is false, or a folder cannot be made or written to.
    """
    made = not folder.is_dir()
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {(error.strerror or str(error)).lower()}") from error
    try:
        return OutputFolder(path=folder / machine, overwrite=overwrite).write(files)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
