"""Drawing the lengths of requests, in whole tokens."""

import math

import numpy as np

from tpplanner.domain.checks import check_count
from tpplanner.domain.traffic import (
    MAX_REQUEST_TOK,
    FixedLength,
    FloatArray,
    HistogramLength,
    IntArray,
    Length,
    SpreadLength,
)
from tpplanner.errors import WorkloadError, reject

MAX_DRAWN_REQUESTS = 10**8
"""Two arrays of as many lengths are 1.6 GB; a larger number is a typing error."""


def draw_lengths(length: Length, num_requests: int, rng: np.random.Generator) -> IntArray:
    """Return the lengths of ``num_requests`` requests [tok], each at least 1.

    Parameters
    ----------
    length
        Fixed, spread (lognormal or gamma), or a histogram.
    num_requests
        How many. A longer draw from the same state of ``rng`` begins with the shorter one.
    rng
        Where the randomness comes from; a fixed length takes nothing from it.

    Notes
    -----
    With mean m and coefficient of variation c the lognormal has ``sigma**2 = ln(1 + c**2)`` and
    ``mu = ln m - sigma**2 / 2``; the gamma has shape ``1 / c**2`` and scale ``m c**2``. Draws are rounded to the
    nearest token and raised to 1, so the mean of the drawn lengths exceeds m where much of the distribution lies
    below half a token (a gamma with c above 2, or a mean of a few tokens).

    Raises
    ------
    WorkloadError
        ``num_requests`` is below 1 or above 1e8.

    Examples
    --------
    >>> draw_lengths(FixedLength(tok=7), 3, np.random.default_rng(0)).tolist()
    [7, 7, 7]
    """
    check_requests(num_requests)
    match length:
        case FixedLength():
            return np.full(num_requests, length.tok, dtype=np.int64)
        case SpreadLength():
            return whole_tok(_spread_tok(length, num_requests, rng))
        case HistogramLength():
            return _observed_tok(length, num_requests, rng)


def mean_tok(length: Length) -> float:
    """Mean length of the distribution [tok], before draws are rounded to whole tokens.

    Examples
    --------
    >>> mean_tok(HistogramLength(tok=np.array([10, 40]), weight=np.array([2.0, 1.0]), name="two"))
    20.0
    """
    match length:
        case FixedLength():
            return float(length.tok)
        case SpreadLength():
            return length.mean_tok
        case HistogramLength():
            return float(np.average(length.tok, weights=length.weight))


def whole_tok(tok: FloatArray) -> IntArray:
    """Round to whole tokens between 1 and 1e8 [tok].

    Examples
    --------
    >>> whole_tok(np.array([0.2, 3.7, 1e12])).tolist()
    [1, 4, 100000000]
    """
    return np.clip(np.rint(tok), 1, MAX_REQUEST_TOK).astype(np.int64)


def check_requests(num_requests: int) -> None:
    """Refuse a number of requests outside [1, 1e8]."""
    check_count(WorkloadError, "requests", num_requests=num_requests)
    if num_requests > MAX_DRAWN_REQUESTS:
        reject(WorkloadError, "num_requests", f"be at most {MAX_DRAWN_REQUESTS:.0e}", num_requests, "requests")


def _spread_tok(length: SpreadLength, num_requests: int, rng: np.random.Generator) -> FloatArray:
    if length.kind == "gamma":
        shape = length.cv**-2
        return rng.standard_gamma(shape, num_requests) * (length.mean_tok / shape)
    sigma = math.sqrt(math.log1p(length.cv**2))
    return np.exp(rng.standard_normal(num_requests) * sigma + (math.log(length.mean_tok) - sigma**2 / 2))


def _observed_tok(length: HistogramLength, num_requests: int, rng: np.random.Generator) -> IntArray:
    """Draw by inverting the cumulative weights; a value of weight 0 is never drawn."""
    below = np.cumsum(length.weight / length.weight.max())
    drawn = rng.random(num_requests) * below[-1]
    # Rounding may lift a draw to the very end, past the last value that has weight.
    last = int(np.flatnonzero(length.weight)[-1])
    picks = np.minimum(np.searchsorted(below, drawn, side="right"), last)
    return np.asarray(length.tok[picks], dtype=np.int64)
