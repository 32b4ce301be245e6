"""Raw samples: one JSON line per case, appended when it is measured, so that an interrupted run goes on."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tpplanner.errors import OutputError
from tpplanner.io.calibration_samples import MACHINE_FILE, Sample, read_samples

Case = Mapping[str, str | int]
"""Sizes and names that say what is timed; a case is timed once in each pass."""


def key_of(case: Case) -> str:
    """Text that is equal for equal cases, whichever ``task`` of them a sample is of: these are written together."""
    return msgspec.json.encode({k: v for k, v in sorted(case.items()) if k != "task"}).decode()


_ENCODER = msgspec.json.Encoder()


class SampleLog:
    """The files of one run: ``<bench>.jsonl`` beside ``machine.json``.

    Raises
    ------
    OutputError
        If the folder cannot be written to, or holds samples of another machine.
    """

    def __init__(self, folder: Path, machine: Mapping[str, object]) -> None:
        self.folder = folder
        place = folder / MACHINE_FILE
        text = msgspec.json.format(msgspec.json.encode(machine), indent=2)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                temporary = place.with_suffix(".part")
                temporary.write_bytes(text)
                temporary.replace(place)
            before = msgspec.json.decode(place.read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            raise OutputError(f"{place}: {error}") from None
        now = msgspec.json.decode(text)
        # A fact that an older version did not write cannot tell machines apart.
        other = [name for name in sorted(before) if before[name] != now.get(name)]
        if other:
            raise OutputError(f"{folder}: holds samples of another machine or software ({', '.join(other)} differ); give "
                              "another --out")

    def path(self, bench: str) -> Path:
        """File of a benchmark."""
        return self.folder / f"{bench}.jsonl"

    def done(self, bench: str) -> set[tuple[int, str]]:
        """Passes and keys of the cases that are there; half a line at the end, of a run that was killed, is cut off."""
        path = self.path(bench)
        if not path.exists():
            return set()
        whole = path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            os.truncate(path, end)
        return {(sample.round, key_of(sample.case)) for sample in read_samples(path)}

    def append(self, *samples: Sample) -> None:
        """Write the samples of one case of one benchmark, all of them or none.

        Raises
        ------
        OutputError
            If it cannot be written, as where the disk is full; what was written before stays.
        """
        path = self.path(samples[0].bench)
        before = path.stat().st_size if path.exists() else 0
        try:
            with path.open("ab") as file:
                file.write(b"".join(_ENCODER.encode(sample) + b"\n" for sample in samples))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if path.exists():
                os.truncate(path, before)
            raise OutputError(f"{path}: {error.strerror}; the samples before are kept, and the next run goes on") from None
