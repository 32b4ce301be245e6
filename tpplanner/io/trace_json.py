"""Traces in JSON lines (our own and Mooncake's), one request a line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from tpplanner.errors import WorkloadError, reject
from tpplanner.io.model_json import one_line
from tpplanner.io.trace_build import PrefixIds, ReadTrace, TraceBuilder
from tpplanner.io.trace_columns import Column, plain
from tpplanner.io.trace_file import TraceFormat, unreadable
from tpplanner.units import MS

CHUNK_LINES: Final = 4_096
MAX_LINE_BYTES: Final = 2**24
"""A request with a million prefix ids has 8 MB."""

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesForm:
    """Keys of one format, as `tpplanner.io.trace_csv.CsvForm` has columns; ``ids`` may be missing."""

    isl: str
    osl: str
    arrival: str
    needs_arrival: bool
    unit_s: float
    ids: str | None = None
    block_tok: int | None = None
    is_ours: bool = False

    @property
    def required(self) -> tuple[str, ...]:
        """Keys that every line has."""
        return (*((self.arrival,) if self.needs_arrival else ()), self.isl, self.osl)


LINES_FORMS: Final = {
    TraceFormat.TPPLANNER: LinesForm(
        isl="isl_tok", osl="osl_tok", arrival="arrival_s", needs_arrival=False, unit_s=1.0, is_ours=True,
    ),
    TraceFormat.MOONCAKE: LinesForm(
        isl="input_length", osl="output_length", arrival="timestamp", needs_arrival=True, unit_s=MS, ids="hash_ids",
        block_tok=512,  # Mooncake, arXiv 2407.00079, section 4
    ),
}

_Record = Mapping[str, object]


def read_lines_trace(path: Path, trace_format: TraceFormat | None, place: str) -> ReadTrace:
    """Return the trace in a file of JSON lines; the format is found by the keys of its first line where it is ``None``.

    Raises
    ------
    WorkloadError
        If a line is no JSON object, lacks a key, or has a value that makes no sense.
    """
    form: LinesForm | None = None if trace_format is None else LINES_FORMS[trace_format]
    builder: TraceBuilder | None = None
    optional: frozenset[str] = frozenset()
    for rows, records in _chunks(path, place):
        where = f"{place}: row {rows[0]}"
        if form is None:
            form = _form(records[0], where)
        if builder is None:
            builder = TraceBuilder(place, one_line(path.name), drops_zeros=not form.is_ours, prefix_block_tok=form.block_tok)
            optional = frozenset(key for key in (form.arrival, form.ids) if key is not None and key in records[0])
        _check_keys(records, rows, form, optional, place)
        _add(builder, form, optional, records, rows)
    if builder is None:
        reject(WorkloadError, "requests", "be at least one", 0, place)
    return builder.trace()


def decode_json(text: bytes, place: str) -> object:
    """Return what the JSON ``text`` holds.

    Raises
    ------
    WorkloadError
        ``text`` is no JSON, or is nested too deeply.
    """
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise WorkloadError(f"{place}: the JSON is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise WorkloadError(f"{place}: is no JSON ({one_line(error)})") from None


def _chunks(path: Path, place: str) -> Iterator[tuple[list[int], list[_Record]]]:
    """Yield lines as objects, with their numbers from 1; blank lines are skipped."""
    rows: list[int] = []
    records: list[_Record] = []
    number = 0
    try:
        with open(path, "rb") as handle:
            while line := handle.readline(MAX_LINE_BYTES + 1):
                number += 1
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                if len(line) > MAX_LINE_BYTES:
                    raise WorkloadError(f"{place}: row {number}: is longer than {MAX_LINE_BYTES // 2**20} MiB")
                if not line.strip():
                    continue
                record = decode_json(line, f"{place}: row {number}")
                if not isinstance(record, dict):
                    reject(WorkloadError, "line", "be a JSON object", plain(record), f"{place}: row {number}")
                rows.append(number)
                records.append(record)
                if len(rows) == CHUNK_LINES:
                    yield rows, records
                    rows, records = [], []
            if rows:
                yield rows, records
    except OSError as error:
        raise unreadable(error, place) from None


def _form(record: _Record, where: str) -> LinesForm:
    found = [form for form in LINES_FORMS.values() if set(form.required) <= record.keys()]
    if len(found) != 1:
        known = "; ".join(f"{name}: {', '.join(form.required)}" for name, form in LINES_FORMS.items())
        rule = "be those of one format" if found else f"include those of a known format ({known})"
        reject(WorkloadError, "keys", rule, one_line(", ".join(record)), where)
    return found[0]


def _check_keys(
    records: Sequence[_Record], rows: Sequence[int], form: LinesForm, optional: frozenset[str], place: str
) -> None:
    """Every line has the keys of the first; our own have no others."""
    needed = {*form.required, *optional}
    for row, record in zip(rows, records, strict=True):
        keys = record.keys()
        if not needed <= keys:
            missing = ", ".join(sorted(needed - keys))
            reject(WorkloadError, "keys", f"include {missing}", one_line(", ".join(record)), f"{place}: row {row}")
        if form.ids is not None and form.ids in keys and form.ids not in optional:
            reject(WorkloadError, form.ids, "be on the first line where any line has it", form.ids, f"{place}: row {row}")
        if form.is_ours and keys != needed:
            extra = next(key for key in record if key not in needed)
            reject(WorkloadError, "keys", f"be {', '.join(sorted(needed))}, as on the first line", extra, f"{place}: row {row}")


def _add(
    builder: TraceBuilder, form: LinesForm, optional: frozenset[str], records: Sequence[_Record], rows: Sequence[int]
) -> None:
    def column(key: str) -> Column:
        return builder.column(key, [record[key] for record in records], rows)

    arrival = column(form.arrival) if form.needs_arrival or form.arrival in optional else None
    prefix_ids = _prefix_ids(column(form.ids)) if form.ids is not None and form.ids in optional else None
    builder.add(isl=column(form.isl), osl=column(form.osl), arrival=arrival, unit_s=form.unit_s, prefix_ids=prefix_ids)


def _prefix_ids(column: Column) -> list[PrefixIds]:
    found: list[PrefixIds] = []
    for index, ids in enumerate(column.raw):
        if not isinstance(ids, list) or not set(map(type, ids)) <= {int}:
            column.refuse(index, "be a list of whole numbers")
        found.append(tuple(ids))
    return found
