"""Opening the file of a trace: what it is, what it is called in errors, and what is refused unread."""

from enum import StrEnum
from pathlib import Path
from typing import Final

from tpplanner.errors import WorkloadError, reject
from tpplanner.io.model_json import one_line

MAX_TRACE_BYTES: Final = 2 * 10**9
"""Azure's longest trace of 2024 has 1.1 GB, ShareGPT 0.7 GB."""

_PACKED: Final = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_ENDINGS: Final = {
    ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".pq": "parquet",
}


class TraceFormat(StrEnum):
    """Formats of traces.

    ``tpplanner``: our own CSV, JSON lines or Parquet. ``vidur``: processed CSV of microsoft/vidur and Sarathi-Serve.
    ``azure``: Azure LLM inference 2023 and 2024. ``burstgpt``: BurstGPT CSV. ``mooncake``: Mooncake JSON lines.
    ``sharegpt``: conversations in JSON.
    """

    TPPLANNER = "tpplanner"
    VIDUR = "vidur"
    AZURE = "azure"
    BURSTGPT = "burstgpt"
    MOONCAKE = "mooncake"
    SHAREGPT = "sharegpt"


def chosen_format(name: TraceFormat | str | None) -> TraceFormat | None:
    """Return the format called ``name``; ``None`` is to be detected."""
    if name is None or isinstance(name, TraceFormat):
        return name
    if name not in list(TraceFormat):
        reject(WorkloadError, "format", f"be among {', '.join(TraceFormat)}", name, "--trace-format")
    return TraceFormat(name)


def container_of(path: Path, trace_format: TraceFormat | None, place: str) -> str:
    """Return ``csv``, ``jsonl``, ``json`` or ``parquet``: by the format where it has but one, else by the name."""
    match trace_format:
        case TraceFormat.VIDUR | TraceFormat.AZURE | TraceFormat.BURSTGPT:
            return "csv"
        case TraceFormat.MOONCAKE:
            return "jsonl"
        case TraceFormat.SHAREGPT:
            return "json"
        case _:
            known = {end: kind for end, kind in _ENDINGS.items() if trace_format is None or kind != "json"}
            ending = path.suffix.lower()
            if ending not in known:
                hint = ", or --trace-format be given" if trace_format is None else f" for {trace_format}"
                reject(WorkloadError, "file name", f"end in {', '.join(known)}{hint}", ending, place)
            return known[ending]


def check_trace_file(path: Path, place: str) -> None:
    """Refuse what is no regular file, is too large, empty or compressed.

    Raises
    ------
    WorkloadError
        With the reason.
    """
    try:
        if path.exists() and not path.is_file():  # pipes and devices would block or never end
            raise WorkloadError(f"{place}: is no regular file")
        num_bytes = path.stat().st_size
        with open(path, "rb") as handle:
            start = handle.read(6)
    except (OSError, ValueError) as error:
        raise unreadable(error, place) from None
    if num_bytes > MAX_TRACE_BYTES:
        raise WorkloadError(f"{place}: is larger than {MAX_TRACE_BYTES // 10**9} GB")
    if not num_bytes:
        raise WorkloadError(f"{place}: is empty")
    for mark, packer in _PACKED.items():
        if start.startswith(mark):
            raise WorkloadError(f"{place}: is compressed ({packer}); unpack it first")


def unreadable(error: Exception, place: str) -> WorkloadError:
    """Return the error that says why a file cannot be read."""
    return WorkloadError(f"{place}: {one_line(getattr(error, 'strerror', None) or error).lower()}")
