"""Deployments to predict, one row of a CSV file each, and the predictions that come back."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpplanner.errors import WorkloadError, reject

REQUIRED = ("id", "model", "system", "engine", "tp", "isl", "osl")
LOADS = ("concurrency", "request_rate", "batch", "offline")
OPTIONAL = ("dtype", "kv_cache_dtype", "gpu_memory_utilization", "max_num_seqs", "ep")
PREDICTION_COLUMNS = ("id", "status", "pred_ttft_ms", "pred_tpot_ms", "pred_throughput_tok_s", "kv_capacity_tok")

EXTRA_CELLS = "\x00extra"
"""Key of a row, no column's name, that counts the cells it has beyond the header."""

MAX_BYTES = 256 * 2**20
"""No more than this is read of a file; a larger one is refused."""

_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"", "0", "false", "no", "off"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One deployment: the loads are per replica, and exactly one of them is set."""

    case_id: str
    model: str
    system: str
    engine: str
    tp: int
    isl_tok: int
    osl_tok: int
    concurrency: float | None
    request_rate: float | None
    offline: bool
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    ep: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFile:
    """Rows as they stand (column -> text), and the columns that mean nothing here."""

    rows: tuple[Mapping[str, str], ...]
    ignored_columns: tuple[str, ...]


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise WorkloadError(f"{path}: is no regular file")
        with open(path, "rb") as handle:
            content = handle.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise WorkloadError(f"{path}: is larger than {MAX_BYTES} bytes")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        why = "is not UTF-8 text" if isinstance(error, ValueError) else (getattr(error, "strerror", "") or str(error))
        raise WorkloadError(f"{path}: {why}") from error


def read_cases(path: str | Path) -> CaseFile:
    """Read the rows of a cases file; the rows themselves are checked one by one later.

    Raises
    ------
    WorkloadError
        If the file cannot be read, is no CSV, lacks a column or holds no row.
    """
    place = Path(path)
    try:
        reader = csv.DictReader(io.StringIO(_text(place), newline=""), strict=True, restkey=EXTRA_CELLS)
        columns = [c.strip() for c in reader.fieldnames or ()]
        rows = [{k.strip(): str(len(v)) if isinstance(v, list) else (v or "").strip() for k, v in row.items()}
                for row in reader]
    except csv.Error as error:
        raise WorkloadError(f"{place}: is no CSV file ({error})") from error
    missing = [c for c in REQUIRED if c not in columns]
    if missing:
        reject(WorkloadError, "columns", f"include {', '.join(REQUIRED)}", f"none called {', '.join(missing)}", str(place))
    if len(set(columns)) < len(columns):
        reject(WorkloadError, "columns", "differ from each other", columns, str(place))
    if not any(c in columns for c in LOADS):
        reject(WorkloadError, "columns", f"include one of {', '.join(LOADS)}", columns, str(place))
    if not rows:
        reject(WorkloadError, "rows", "be at least one", 0, str(place))
    known = {*REQUIRED, *LOADS, *OPTIONAL}
    return CaseFile(rows=tuple(rows), ignored_columns=tuple(c for c in columns if c and c not in known))


def duplicate_ids(cases: CaseFile) -> tuple[str, ...]:
    """Return the ids that more than one row has, in the order of the file."""
    return tuple(name for name, num in Counter(row.get("id", "") for row in cases.rows).items() if num > 1 and name)


def _number(row: Mapping[str, str], column: str) -> float | None:
    text = row.get(column, "")
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        reject(WorkloadError, column, "be a number", text)


def _count(row: Mapping[str, str], column: str) -> int | None:
    number = _number(row, column)
    if number is None:
        return None
    if not number.is_integer() or number < 1:
        reject(WorkloadError, column, "be an integer >= 1", row[column])
    return int(number)


def _needed(row: Mapping[str, str], column: str) -> int:
    number = _count(row, column)
    if number is None:
        reject(WorkloadError, column, "be given", "nothing")
    return number


def _flag(row: Mapping[str, str], column: str) -> bool:
    text = row.get(column, "").lower()
    if text not in _YES | _NO:
        reject(WorkloadError, column, "be true or false", text)
    return text in _YES


def parse_case(row: Mapping[str, str]) -> Case:
    """Check one row.

    Raises
    ------
    WorkloadError
        Naming the column, the rule and the value.
    """
    if EXTRA_CELLS in row:
        raise WorkloadError(f"cells must be as many as the columns of the header, got {row[EXTRA_CELLS]} more")
    for column in ("id", "model", "system", "engine"):
        if not row.get(column):
            reject(WorkloadError, column, "be given", "nothing")
    tp, ep = _needed(row, "tp"), _count(row, "ep")
    if ep is not None and tp % ep:
        reject(WorkloadError, "ep", f"divide tp {tp}", ep)
    concurrency, batch = _number(row, "concurrency"), _number(row, "batch")
    rate, offline = _number(row, "request_rate"), _flag(row, "offline")
    given = [n for n, v in (("concurrency", concurrency), ("request_rate", rate), ("batch", batch)) if v is not None]
    if len(given) + offline != 1:
        reject(WorkloadError, "load", f"be exactly one of {', '.join(LOADS)}", [*given, *(["offline"] * offline)])
    return Case(
        case_id=row["id"], model=row["model"], system=row["system"], engine=row["engine"], tp=tp,
        isl_tok=_needed(row, "isl"), osl_tok=_needed(row, "osl"),
        concurrency=concurrency if concurrency is not None else batch, request_rate=rate, offline=offline,
        dtype=row.get("dtype") or None, kv_cache_dtype=row.get("kv_cache_dtype") or None,
        gpu_memory_utilization=_number(row, "gpu_memory_utilization"), max_num_seqs=_count(row, "max_num_seqs"), ep=ep,
    )


def predictions_csv(rows: Sequence[Mapping[str, object]] | Iterator[Mapping[str, object]]) -> str:
    """Return predictions as CSV text with the documented columns, other keys left out; None is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, PREDICTION_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({c: "" if row.get(c) is None else row[c] for c in PREDICTION_COLUMNS})
    return out.getvalue()
