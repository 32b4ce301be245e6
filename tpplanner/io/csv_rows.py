"""Rows of a CSV file with a header: every failure is one line that names file, row, column, rule and value."""

import csv
import io
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tpplanner.errors import WorkloadError, nearest, reject
from tpplanner.io.cases import MAX_BYTES
from tpplanner.io.model_json import one_line

_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvRow:
    """Cells of one row (column -> text); ``place`` is the file and the row, as errors name them.

    Rows are counted by lines of the file: the header is row 1.
    """

    cells: Mapping[str, str]
    place: str

    def text(self, column: str) -> str:
        """Return the text of ``column``: something, on one line."""
        text = self.cells[column]
        if not text or not text.isprintable():
            reject(WorkloadError, column, "be printable on one line" if text else "be given", text, self.place)
        return text

    def optional_text(self, column: str) -> str | None:
        """Return the text of ``column``, ``None`` where it is empty or the file has no such column."""
        return self.text(column) if self.cells.get(column) else None

    def number(self, column: str) -> float:
        """Return the finite number in ``column``."""
        text = self.cells[column]
        if not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
            reject(WorkloadError, column, "be a number", text, self.place)
        return float(text)

    def optional_number(self, column: str) -> float | None:
        """Return the finite number in ``column``, ``None`` where it is empty or the file has no such column."""
        return self.number(column) if self.cells.get(column) else None

    def positive(self, column: str) -> float:
        """Return the number > 0 in ``column``."""
        number = self.number(column)
        if number <= 0:
            reject(WorkloadError, column, "be > 0", self.cells[column], self.place)
        return number

    def optional_positive(self, column: str) -> float | None:
        """Return the number > 0 in ``column``, ``None`` where it is empty or the file has no such column."""
        return self.positive(column) if self.cells.get(column) else None

    def count(self, column: str, *, minimum: int = 1) -> int:
        """Return the whole number >= ``minimum`` in ``column``; ``4.0`` is one."""
        number = self.number(column)
        if not number.is_integer() or number < minimum:
            reject(WorkloadError, column, f"be a whole number >= {minimum}", self.cells[column], self.place)
        return int(number)

    def optional_count(self, column: str, *, minimum: int = 1) -> int | None:
        """Return the whole number in ``column``, ``None`` where it is empty or the file has no such column."""
        return self.count(column, minimum=minimum) if self.cells.get(column) else None


def read_rows(
    path: Path, required: Sequence[str], optional: Collection[str] | None = None
) -> tuple[CsvRow, ...]:
    """Return the rows of a CSV file in UTF-8.

    Parameters
    ----------
    path
        A regular file of at most 256 MiB.
    required
        Columns that the header must have.
    optional
        The other columns that it may have; ``None`` for any.

    Raises
    ------
    WorkloadError
        If the file cannot be read, is no CSV, lacks a column, has an unknown one or one twice, or if a row has more
        or fewer cells than the header or the ``id`` of another row.
    """
    place = one_line(path)
    lines = _lines(_text(path, place), place)
    _, columns = next(lines, (1, []))
    _check_columns(columns, required, optional, place)
    rows: list[CsvRow] = []
    first: dict[str, int] = {}
    for number, cells in lines:
        where = f"{place}: row {number}"
        if len(cells) != len(columns):
            reject(WorkloadError, "cells", f"be {len(columns)}, as in the header", len(cells), where)
        rows.append(CsvRow(cells=dict(zip(columns, cells, strict=True)), place=where))
        name = rows[-1].cells.get("id")
        if name and first.setdefault(name, number) != number:
            reject(WorkloadError, "id", f"differ from that of row {first[name]}", name, where)
    if not rows:
        reject(WorkloadError, "rows", "be at least one", 0, place)
    return tuple(rows)


def _lines(text: str, place: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of every line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise WorkloadError(f"{place}: row {reader.line_num}: is no CSV ({one_line(error)})") from None


def _check_columns(
    columns: list[str], required: Sequence[str], optional: Collection[str] | None, place: str
) -> None:
    missing = [column for column in required if column not in columns]
    if missing:
        reject(WorkloadError, "columns", f"include {', '.join(missing)}", one_line(", ".join(columns)), place)
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        reject(WorkloadError, "columns", "differ from each other", twice, place)
    if optional is None:
        return
    known = (*required, *optional)
    for column in columns:
        if column not in known:
            hint = nearest(column[:100], known)
            rule = f"be among {', '.join(known)}" + (f" ({hint})" if hint else "")
            reject(WorkloadError, "columns", rule, column, place)


def _text(path: Path, place: str) -> str:
    try:
        if path.exists() and not path.is_file():  # pipes and devices would block or never end
            raise WorkloadError(f"{place}: is no regular file")
        with open(path, "rb") as handle:
            content = handle.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise WorkloadError(f"{place}: {one_line(getattr(error, 'strerror', None) or error).lower()}") from None
    if len(content) > MAX_BYTES:
        raise WorkloadError(f"{place}: is larger than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise WorkloadError(f"{place}: is not UTF-8 text") from None
