"""Putting a trace together from its rows: what is left out, in which order, and where time starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.traffic import MAX_ARRIVAL_S, FloatArray, IntArray, Traffic
from tpplanner.errors import WorkloadError, reject
from tpplanner.io.trace_columns import Column, seconds, stamps_ns, token_counts

MAX_TRACE_REQUESTS: Final = 10**8
"""Azure's longest trace of 2024 has 27 million; arrays of 1e8 requests hold 2.4 GB."""

NO_WORK: Final = "no prompt or no output tokens, as failed and cancelled requests"

PrefixIds = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadTrace:
    """A trace as read: ``num_left_out`` rows of the file are no requests, for the reason ``why`` ("" where none is)."""

    traffic: Traffic
    num_left_out: int
    why: str

    @property
    def note(self) -> str | None:
        """One line about what was left out, or ``None``."""
        if not self.num_left_out:
            return None
        num_rows = self.traffic.num_requests + self.num_left_out
        return f"{self.traffic.name}: {self.num_left_out:,} of {num_rows:,} rows left out: {self.why}"


class TraceBuilder:
    """Requests of one file, added some rows at a time.

    Parameters
    ----------
    place, name
        The file as errors name it, and the name of the traffic.
    drops_zeros
        Whether rows with zero tokens are left out; otherwise they are refused.
    prefix_block_tok
        Tokens per prefix id, where the file has such ids.
    """

    def __init__(self, place: str, name: str, *, drops_zeros: bool, prefix_block_tok: int | None = None) -> None:
        self._place, self._name = place, name
        self._minimum = 0 if drops_zeros else 1
        self._prefix_block_tok = prefix_block_tok
        self._isl_tok: list[IntArray] = []
        self._osl_tok: list[IntArray] = []
        self._arrival_s: list[FloatArray] = []
        self._prefix_ids: list[PrefixIds] = []
        self._num_rows = 0
        self._last_s = -np.inf
        self._first_ns: int | None = None

    def column(
        self, name: str, raw: Sequence[object] | NDArray[np.generic], rows: Sequence[int], *, is_text: bool = False
    ) -> Column:
        """Return the values of a column, from the rows of those numbers."""
        return Column(name=name, raw=raw, rows=rows, place=self._place, is_text=is_text)

    def add(
        self, *, isl: Column, osl: Column, arrival: Column | None = None, unit_s: float | None = 1.0,
        prefix_ids: Sequence[PrefixIds] | None = None,
    ) -> None:
        """Add rows; ``arrival`` holds times in units of ``unit_s``, or dates where that is ``None``."""
        isl_tok, osl_tok = token_counts(isl, minimum=self._minimum), token_counts(osl, minimum=self._minimum)
        self._num_rows += isl_tok.size
        if self._num_rows > MAX_TRACE_REQUESTS:
            reject(WorkloadError, "rows", f"be at most {MAX_TRACE_REQUESTS:.0e}", self._num_rows, self._place)
        arrival_s = None if arrival is None else self._times_s(arrival, unit_s)
        if prefix_ids is not None and self._prefix_block_tok is not None:
            _check_blocks(isl, isl_tok, prefix_ids, self._prefix_block_tok)
        kept = (isl_tok > 0) & (osl_tok > 0)
        self._isl_tok.append(isl_tok[kept])
        self._osl_tok.append(osl_tok[kept])
        if arrival_s is not None:
            self._arrival_s.append(arrival_s[kept])
        if prefix_ids is not None:
            self._prefix_ids.extend(prefix_ids[index] for index in np.flatnonzero(kept).tolist())

    def trace(self) -> ReadTrace:
        """Return the trace; its first request arrives at 0."""
        num_left_out = self._num_rows - sum(tok.size for tok in self._isl_tok)
        if num_left_out == self._num_rows:
            rule = "be at least one" + (f" (left out: {num_left_out} rows with {NO_WORK})" if num_left_out else "")
            reject(WorkloadError, "requests", rule, 0, self._place)
        arrival_s = np.concatenate(self._arrival_s) if self._arrival_s else None
        if arrival_s is not None:
            arrival_s = arrival_s - arrival_s[0]
            if arrival_s[-1] > MAX_ARRIVAL_S:
                reject(WorkloadError, "arrivals", f"span at most {MAX_ARRIVAL_S:g} s", float(arrival_s[-1]), self._place)
        traffic = Traffic(
            name=self._name, isl_tok=np.concatenate(self._isl_tok), osl_tok=np.concatenate(self._osl_tok),
            arrival_s=arrival_s,
            prefix_ids=tuple(self._prefix_ids) if self._prefix_ids else None,
            prefix_block_tok=self._prefix_block_tok if self._prefix_ids else None,
        )
        return ReadTrace(traffic=traffic, num_left_out=num_left_out, why=NO_WORK if num_left_out else "")

    def _times_s(self, arrival: Column, unit_s: float | None) -> FloatArray:
        if unit_s is None:
            times_ns = stamps_ns(arrival)
            if self._first_ns is None:
                self._first_ns = int(times_ns[0])
            times_s = (times_ns - self._first_ns) / 1e9  # whole nanoseconds first: seconds since 1970 lose the last digits
        else:
            times_s = seconds(arrival, unit_s)
        arrival.require(np.diff(times_s, prepend=self._last_s) >= 0.0, "not fall from one row to the next")
        self._last_s = float(times_s[-1])
        return times_s


def _check_blocks(isl: Column, isl_tok: IntArray, prefix_ids: Sequence[PrefixIds], block_tok: int) -> None:
    """Refuse more ids than the prompt has blocks: the trace then has blocks of another size."""
    num_blocks = -(-isl_tok // block_tok)
    num_ids = np.fromiter(map(len, prefix_ids), np.int64, len(prefix_ids))
    wrong = np.flatnonzero(num_ids > num_blocks)
    if wrong.size:
        index = int(wrong[0])
        reject(WorkloadError, "hash_ids", f"be at most {num_blocks[index]} blocks of {block_tok} tokens",
               int(num_ids[index]), f"{isl.place}: row {isl.rows[index]}")
