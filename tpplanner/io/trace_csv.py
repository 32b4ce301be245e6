"""Traces in CSV files, read some thousand rows at a time."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tpplanner.errors import WorkloadError, reject
from tpplanner.io.model_json import one_line
from tpplanner.io.trace_build import ReadTrace, TraceBuilder
from tpplanner.io.trace_file import TraceFormat, unreadable

CHUNK_ROWS: Final = 4_096
"""Rows held as text at a time: as many as fit a processor's cache; 65,536 take a third longer in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvForm:
    """Columns of one format.

    Attributes
    ----------
    isl, osl, arrival
        Columns of prompt tokens, output tokens and times.
    needs_arrival
        Whether a file without times is refused.
    unit_s
        Unit of the times [s]; ``None`` for dates.
    is_ours
        Whether unknown columns and rows without tokens are refused rather than left out.
    """

    isl: str
    osl: str
    arrival: str
    needs_arrival: bool
    unit_s: float | None
    is_ours: bool = False

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that a file of this format has."""
        return (*((self.arrival,) if self.needs_arrival else ()), self.isl, self.osl)


CSV_FORMS: Final = {
    TraceFormat.TPPLANNER: CsvForm(
        isl="isl_tok", osl="osl_tok", arrival="arrival_s", needs_arrival=False, unit_s=1.0, is_ours=True,
    ),
    TraceFormat.VIDUR: CsvForm(
        isl="num_prefill_tokens", osl="num_decode_tokens", arrival="arrived_at", needs_arrival=False, unit_s=1.0,
    ),
    TraceFormat.AZURE: CsvForm(
        isl="ContextTokens", osl="GeneratedTokens", arrival="TIMESTAMP", needs_arrival=True, unit_s=None,
    ),
    TraceFormat.BURSTGPT: CsvForm(
        isl="Request tokens", osl="Response tokens", arrival="Timestamp", needs_arrival=True, unit_s=1.0,
    ),
}


def read_csv_trace(path: Path, trace_format: TraceFormat | None, place: str) -> ReadTrace:
    """Return the trace in a CSV file; the format is found by its columns where it is ``None``.

    Raises
    ------
    WorkloadError
        If the file is no CSV in UTF-8, lacks a column, or has a value that makes no sense.
    """
    chunks = _chunks(path, place)
    header = next(chunks, None)
    columns = [] if header is None else header[1][0]
    form = _form(columns, trace_format, place)
    check_columns(columns, form, place)
    builder = TraceBuilder(place, one_line(path.name), drops_zeros=not form.is_ours)
    for rows, cells in chunks:
        raw = dict(zip(columns, zip(*cells, strict=True), strict=True))
        found = {name: builder.column(name, values, rows, is_text=True) for name, values in raw.items()}
        builder.add(isl=found[form.isl], osl=found[form.osl], arrival=found.get(form.arrival), unit_s=form.unit_s)
    return builder.trace()


def _chunks(path: Path, place: str) -> Iterator[tuple[list[int], list[list[str]]]]:
    """Yield the header alone, then the rows with their numbers; blank lines are skipped, the header is row 1."""
    number, width = 1, 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            rows: list[int] = []
            cells: list[list[str]] = []
            for row in reader:
                if not row:
                    continue
                number = reader.line_num
                if not width:
                    width = len(row)
                    yield [number], [[cell.strip() for cell in row]]
                    continue
                if len(row) != width:
                    reject(WorkloadError, "cells", f"be {width}, as in the header", len(row), f"{place}: row {number}")
                rows.append(number)
                cells.append(row)
                if len(rows) == CHUNK_ROWS:
                    yield rows, cells
                    rows, cells = [], []
            if rows:
                yield rows, cells
    except csv.Error as error:
        raise WorkloadError(f"{place}: row {number + 1}: is no CSV ({one_line(error)})") from None
    except UnicodeDecodeError:
        raise WorkloadError(f"{place}: is not UTF-8 text") from None
    except OSError as error:
        raise unreadable(error, place) from None


def _form(columns: Sequence[str], trace_format: TraceFormat | None, place: str) -> CsvForm:
    if trace_format is not None:
        return CSV_FORMS[trace_format]
    found = [form for form in CSV_FORMS.values() if set(form.required) <= set(columns)]
    if len(found) != 1:
        known = "; ".join(f"{name}: {', '.join(form.required)}" for name, form in CSV_FORMS.items())
        rule = "be those of one format" if found else f"include those of a known format ({known})"
        reject(WorkloadError, "columns", rule, one_line(", ".join(columns)), place)
    return found[0]


def check_columns(columns: Sequence[str], form: CsvForm, place: str) -> None:
    """Refuse columns that miss one, have one twice, or, in our own format, have an unknown one."""
    missing = [name for name in form.required if name not in columns]
    if missing:
        reject(WorkloadError, "columns", f"include {', '.join(missing)}", one_line(", ".join(columns)), place)
    for name in columns:
        if columns.count(name) > 1 and name in (*form.required, form.arrival):
            reject(WorkloadError, "columns", "differ from each other", name, place)
        if form.is_ours and name not in (*form.required, form.arrival):
            reject(WorkloadError, "columns", f"be among {form.arrival}, {', '.join(form.required)}", name, place)
