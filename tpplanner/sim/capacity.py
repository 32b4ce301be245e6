"""The highest rate at which targets hold: a search over whole runs."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_TOLERANCE_FRAC = 0.02
"""Two rates nearer than this are one: what a thousand requests can tell apart at best."""

_MAX_DOUBLINGS = 10
"""A thousandth of the rate at which the closed form sees the capacity is none; a thousandfold of it will not come."""


def highest_rate(run: Callable[[float], tuple[T, bool]], *, start_req_s: float) -> tuple[float, T] | None:
    """Return the highest rate found at which ``run`` says that the targets hold, and its result; ``None`` where none does.

    Parameters
    ----------
    run
        Of a rate [req/s]: its result, and whether the targets hold. Taken to hold below a rate at which they hold.
    start_req_s
        First rate tried.

    Notes
    -----
    Doubles or halves from the start until the targets hold on one side alone, then halves the gap in the logarithm down to
    2 %. Where they hold at every rate tried (a load that cannot saturate), the last one is returned.

    Examples
    --------
    >>> found = highest_rate(lambda rate: (rate, rate <= 10.0), start_req_s=3.0)
    >>> 9.8 < found[0] <= 10.0
    True
    """
    result, holds = run(start_req_s)
    low = high = start_req_s
    best = (start_req_s, result) if holds else None
    for _ in range(_MAX_DOUBLINGS):
        if holds:
            high = 2.0 * low
            result, good = run(high)
            if not good:
                break
            low, best = high, (high, result)
        else:
            low = 0.5 * high
            result, good = run(low)
            if good:
                best = (low, result)
                break
            high = low
    if best is None:
        return None
    while high > low * (1.0 + _TOLERANCE_FRAC):
        middle = (low * high) ** 0.5
        result, good = run(middle)
        if good:
            low, best = middle, (middle, result)
        else:
            high = middle
    return best
