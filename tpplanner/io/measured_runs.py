"""Measured runs to validate against: closed loops, and maxima with everything queued, in one CSV file.

A row whose ``load`` is ``offline`` is a measured maximum: it has ``throughput_tok_s``, and no ``concurrency``,
``ttft_ms`` or ``tpot_ms``. Every other row (``load`` is ``closed``, empty, or no column) is a run as
`tpplanner.io.serving_runs` documents it; so are the other columns.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tpplanner.domain.offline_run import MeasuredRun, OfflineRun
from tpplanner.errors import TpplannerError, WorkloadError, reject
from tpplanner.io.csv_rows import CsvRow, read_rows
from tpplanner.io.model_json import one_line
from tpplanner.io.model_precision import chosen_cache, chosen_weights
from tpplanner.io.serving_runs import OPTIONAL, OWN_FAMILY, REQUIRED, run_of
from tpplanner.io.silicon_runs import SAMPLE_FILE, read_silicon_runs

LOAD: Final = "load"
CLOSED, OFFLINE = "closed", "offline"
CLOSED_ONLY: Final = ("concurrency", "ttft_ms", "tpot_ms")
ALWAYS: Final = tuple(column for column in REQUIRED if column not in CLOSED_ONLY)


def read_measured_runs(path: str | Path | None = None) -> tuple[tuple[MeasuredRun, ...], dict[str, int]]:
    """Return measured runs, in the order of the file, and how many rows were dropped for which reason.

    Parameters
    ----------
    path
        A CSV file of the columns above, in which nothing is dropped; a file called ``silicon_sample.csv``, or ``None``
        for that of the installed package, is cleaned as `read_silicon_runs` says.

    Raises
    ------
    TpplannerError
        If the file cannot be read, a column is missing or unknown, or a value makes no sense; or if the package is not
        installed.
    """
    if path is None or Path(path).name == SAMPLE_FILE:
        return read_silicon_runs(path)
    rows = read_rows(Path(path), ALWAYS, (*CLOSED_ONLY, *OPTIONAL, LOAD))
    _check_columns(rows, one_line(path))
    return tuple(_offline(row) if _is_offline(row) else run_of(row) for row in rows), {}


def _is_offline(row: CsvRow) -> bool:
    load = row.cells.get(LOAD, "")
    if load not in ("", CLOSED, OFFLINE):
        reject(WorkloadError, LOAD, f"be {CLOSED}, {OFFLINE} or empty", load, row.place)
    return load == OFFLINE


def _check_columns(rows: Sequence[CsvRow], place: str) -> None:
    """Refuse a file without the columns that its kinds of rows need."""
    are_offline = [_is_offline(row) for row in rows]
    needed = (() if all(are_offline) else CLOSED_ONLY) + (("throughput_tok_s",) if any(are_offline) else ())
    missing = [column for column in needed if column not in rows[0].cells]
    if missing:
        reject(WorkloadError, "columns", f"include {', '.join(missing)}", one_line(", ".join(rows[0].cells)), place)


def _offline(row: CsvRow) -> OfflineRun:
    for column in CLOSED_ONLY:
        if row.cells.get(column):
            reject(WorkloadError, column, f"be empty where {LOAD} is {OFFLINE}", row.cells[column], row.place)
    model, precision = row.text("model"), row.optional_text("dtype")
    try:
        return OfflineRun(
            run_id=row.text("id"), model=model, checkpoint=model, machine=row.text("system"),
            engine=row.text("engine"), engine_version=row.optional_text("engine_version"),
            precision=precision or "", dtype=chosen_weights(precision),
            kv_cache_dtype=chosen_cache(row.optional_text("kv_cache_dtype")),
            isl_tok=row.count("isl"), osl_tok=row.count("osl"), tp=row.count("tp"), ep=row.optional_count("ep") or 1,
            throughput_tok_s=row.positive("throughput_tok_s"), max_num_seqs=row.optional_count("max_num_seqs"),
            max_num_batched_tokens=row.optional_count("max_num_batched_tokens"),
            gpu_memory_utilization=row.optional_positive("gpu_memory_utilization"),
            family=OWN_FAMILY, source=one_line(row.cells.get("source", "")),
        )
    except TpplannerError as error:
        if str(error).startswith(row.place):
            raise
        # The run's own checks and those of number formats do not know the row.
        raise WorkloadError(f"{row.place}: {error}") from None
