"""Columns of some rows of a trace, and the checks that turn them into numbers.

The checks run on whole columns; only where one fails is the row looked for that the error names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.traffic import MAX_REQUEST_TOK, FloatArray, IntArray
from tpplanner.errors import WorkloadError, reject

MAX_CLOCK_S: Final = 1e10
"""Seconds since 1970 stay below until 2286; milliseconds taken for seconds do not."""

_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_STAMP: Final = re.compile(
    r"((?:19|20)\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?)(?:Z|([+-])(\d\d):?([0-5]\d))?", re.ASCII
)
"""Date and time, and the offset of its zone."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Column:
    """Some values of one column: ``raw`` as read (texts of a CSV file, objects of JSON, an array of Parquet).

    ``rows`` are the numbers of their rows in the file ``place``. Numbers are written as texts where ``is_text`` is true,
    and nowhere else.
    """

    name: str
    raw: Sequence[object] | NDArray[np.generic]
    rows: Sequence[int]
    place: str
    is_text: bool = False

    def require(self, good: NDArray[np.bool_], rule: str) -> None:
        """Refuse the first value that is not good."""
        wrong = np.flatnonzero(~good)
        if wrong.size:
            self.refuse(int(wrong[0]), rule)

    def refuse(self, index: int, rule: str) -> None:
        """Refuse the value at ``index``."""
        reject(WorkloadError, self.name, rule, plain(self.raw[index]), f"{self.place}: row {self.rows[index]}")


def plain(value: object) -> object:
    """Return ``value`` as errors show it; printing what is nested may take long, or more stack than there is.

    Examples
    --------
    >>> plain("text"), plain([[1], [2]]), plain(np.float64(0.5))
    ('text', 'a list', 0.5)
    """
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return value.item() if isinstance(value, np.generic) else value


def seconds(column: Column, unit_s: float = 1.0) -> FloatArray:
    """Return the times in ``column``, which are in units of ``unit_s`` [s]."""
    times_s = _numbers(column) * unit_s
    column.require((times_s >= 0.0) & (times_s <= MAX_CLOCK_S), f"be between 0 and {MAX_CLOCK_S:.0e} s")
    return times_s


def stamps_ns(column: Column) -> IntArray:
    """Return the dates and times in ``column`` since 1970 [ns].

    ``2023-11-16 18:15:46.6805900`` and ``2024-05-10 00:00:00.009930+00:00`` are two; one without a zone is in UTC.
    """
    texts = [str(value) for value in column.raw]
    found = [_STAMP.fullmatch(text) for text in texts]
    rule = "be a date and time (2023-11-16 18:15:46.6805900)"
    column.require(np.array([match is not None for match in found], dtype=bool), rule)
    parts = [match.groups() for match in found if match is not None]
    try:
        times_ns = np.array([part[0] for part in parts], dtype="datetime64[ns]").astype(np.int64)
    except ValueError:  # a thirteenth month, a 25th hour
        column.require(np.array([_is_date(part[0]) for part in parts], dtype=bool), rule)
        raise
    if any(part[1] for part in parts):
        offset_min = [0 if not sign else int(f"{sign}1") * (60 * int(hour) + int(minute)) for _, sign, hour, minute in parts]
        times_ns -= np.array(offset_min, dtype=np.int64) * 60 * 10**9
    return times_ns


def token_counts(column: Column, *, minimum: int) -> IntArray:
    """Return the numbers of tokens in ``column``: whole, and at least ``minimum``; ``4.0`` is one."""
    tok = _numbers(column)
    good = (tok >= minimum) & (tok <= MAX_REQUEST_TOK) & (tok == np.floor(tok))
    column.require(good, f"be a whole number between {minimum} and {MAX_REQUEST_TOK:.0e}")
    return tok.astype(np.int64)


def _numbers(column: Column) -> FloatArray:
    """Return the finite numbers in ``column``."""
    raw = column.raw
    numbers = raw.astype(np.float64) if isinstance(raw, np.ndarray) else _parsed(raw, is_text=column.is_text)
    column.require(np.isfinite(numbers), "be a number")
    return numbers


def _parsed(raw: Sequence[object], *, is_text: bool) -> FloatArray:
    """Return the numbers in ``raw``, NaN where a value is none."""
    try:
        if is_text and _is_plain("".join(map(str, raw))):
            return np.fromiter(map(float, map(str, raw)), np.float64, len(raw))
        if not is_text and set(map(type, raw)) <= {int, float}:
            return np.array(raw, dtype=np.float64)
    except (ValueError, OverflowError):
        pass  # the loop below finds out which values are no numbers
    number = _number_in_text if is_text else _number_in_json
    return np.array([number(value) for value in raw], dtype=np.float64)


def _is_plain(text: str) -> bool:
    """Whether `float` reads digits as we do: it also takes ``1_000`` and digits of other scripts."""
    return "_" not in text and text.isascii()


def _number_in_text(value: object) -> float:
    text = str(value).strip()
    return float(text) if _NUMBER.fullmatch(text) else np.nan


def _number_in_json(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return np.nan
    try:
        return float(value)
    except OverflowError:
        return np.inf


def _is_date(text: str) -> bool:
    try:
        np.datetime64(text, "ns")
    except ValueError:
        return False
    return True
