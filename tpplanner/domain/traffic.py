"""Requests one by one: lengths and, for an open loop, the time at which each arrives."""

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.checks import check_count, check_real
from tpplanner.errors import WorkloadError, reject

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MAX_REQUEST_TOK = 10**8
MAX_ARRIVAL_S = 1e9
"""Thirty years: later arrivals are milliseconds taken for seconds."""


class Arrivals(StrEnum):
    """How requests arrive in an open loop.

    ``poisson``: independent of each other. ``gamma``: gaps of a gamma distribution with a given coefficient of variation
    (above 1 is burstier than Poisson). ``constant``: evenly spaced.
    """

    POISSON = "poisson"
    GAMMA = "gamma"
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedLength:
    """Every request has ``tok`` tokens."""

    tok: int

    def __post_init__(self) -> None:
        check_count(WorkloadError, "length", tok=self.tok)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadLength:
    """Tokens drawn from a ``lognormal`` or ``gamma`` distribution with a mean and a coefficient of variation."""

    kind: str
    mean_tok: float
    cv: float

    def __post_init__(self) -> None:
        if self.kind not in ("lognormal", "gamma"):
            reject(WorkloadError, "kind", "be lognormal or gamma", self.kind, "length")
        check_real(WorkloadError, "length", minimum=1.0, maximum=float(MAX_REQUEST_TOK), mean_tok=self.mean_tok)
        check_real(WorkloadError, "length", minimum=1e-6, maximum=100.0, cv=self.cv)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HistogramLength:
    """Tokens drawn from observed values, each with a weight >= 0."""

    tok: IntArray
    weight: FloatArray
    name: str

    def __post_init__(self) -> None:
        if self.tok.shape != self.weight.shape or self.tok.ndim != 1 or not self.tok.size:
            reject(WorkloadError, "histogram", "have one weight per length, and at least one", self.tok.shape, self.name)
        outside = self.tok[(self.tok < 1) | (self.tok > MAX_REQUEST_TOK)]
        if outside.size:
            reject(WorkloadError, "lengths", f"be between 1 and {MAX_REQUEST_TOK}", int(outside[0]), self.name)
        if not np.all(np.isfinite(self.weight)) or self.weight.min() < 0 or self.weight.max() <= 0:
            reject(WorkloadError, "weights", "be finite, >= 0 and not all 0", float(self.weight.min()), self.name)


Length = FixedLength | SpreadLength | HistogramLength


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traffic:
    """Requests in order.

    Attributes
    ----------
    name
        Where they come from, for people.
    isl_tok, osl_tok
        Prompt and output tokens of each, shape (num_requests,).
    arrival_s
        When each arrives, ascending from >= 0 [s]; ``None`` where the clients of a closed loop draw them in this order.
    prefix_ids
        Per request the ids of its prompt's blocks of ``prefix_block_tok`` tokens: two prompts that begin with the same
        ids share that prefix. ``None`` where nothing is known of prefixes.
    """

    name: str
    isl_tok: IntArray
    osl_tok: IntArray
    arrival_s: FloatArray | None = None
    prefix_ids: tuple[tuple[int, ...], ...] | None = None
    prefix_block_tok: int | None = None

    def __post_init__(self) -> None:
        count = self.isl_tok.size
        if not count:
            reject(WorkloadError, "requests", "be at least one", 0, self.name)
        for name, tok in (("isl_tok", self.isl_tok), ("osl_tok", self.osl_tok)):
            if tok.shape != (count,):
                reject(WorkloadError, name, f"have one value for each of {count} requests", tok.shape, self.name)
            outside = np.flatnonzero((tok < 1) | (tok > MAX_REQUEST_TOK))
            if outside.size:
                reject(WorkloadError, name, f"be between 1 and {MAX_REQUEST_TOK:.0e}", int(tok[outside[0]]),
                       f"{self.name}: request {int(outside[0]) + 1}")
        if self.arrival_s is not None:
            self._check_arrivals(self.arrival_s, count)
        if (self.prefix_ids is None) != (self.prefix_block_tok is None):
            reject(WorkloadError, "prefix_block_tok", "be given with prefix_ids", self.prefix_block_tok, self.name)
        check_count(WorkloadError, self.name, prefix_block_tok=self.prefix_block_tok)

    def _check_arrivals(self, arrival_s: FloatArray, count: int) -> None:
        if arrival_s.shape != (count,):
            reject(WorkloadError, "arrival_s", f"have one value for each of {count} requests", arrival_s.shape, self.name)
        wrong = np.flatnonzero(~((arrival_s >= 0.0) & (arrival_s <= MAX_ARRIVAL_S)))
        if wrong.size:
            reject(WorkloadError, "arrival_s", f"be between 0 and {MAX_ARRIVAL_S:g} s", float(arrival_s[wrong[0]]),
                   f"{self.name}: request {int(wrong[0]) + 1}")
        falls = np.flatnonzero(np.diff(arrival_s) < 0)
        if falls.size:
            reject(WorkloadError, "arrival_s", "not fall from one request to the next", float(arrival_s[falls[0] + 1]),
                   f"{self.name}: request {int(falls[0]) + 2}")

    @property
    def num_requests(self) -> int:
        """Requests."""
        return int(self.isl_tok.size)

    @property
    def rate_req_s(self) -> float | None:
        """Mean arrival rate [req/s]; ``None`` for a closed loop, or where all arrive at once."""
        if self.arrival_s is None or self.num_requests < 2:
            return None
        span_s = float(self.arrival_s[-1] - self.arrival_s[0])
        return (self.num_requests - 1) / span_s if span_s > 0 else None

    def taken(self, start: int, stop: int) -> "Traffic":
        """Return requests ``start`` to ``stop``; their times keep."""
        part = slice(start, stop)
        return replace(self, isl_tok=self.isl_tok[part], osl_tok=self.osl_tok[part],
                       arrival_s=None if self.arrival_s is None else self.arrival_s[part],
                       prefix_ids=None if self.prefix_ids is None else self.prefix_ids[part])
