"""Numbers as tables print them: SI in, ms, GiB and percent out."""

import math

from tpplanner.units import MS

MISSING = "-"
"""What a table prints where there is no number."""


def grouped(value: float | None, digits: int = 3) -> str:
    """Format a count or rate: whole from 100 up, ``digits`` significant digits below.

    Examples
    --------
    >>> grouped(4321.4), grouped(41.25), grouped(0.01234), grouped(0), grouped(None)
    ('4,321', '41.2', '0.0123', '0', '-')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def count(value: float | None) -> str:
    """Format a number of whole things.

    Examples
    --------
    >>> count(667216), count(31.97)
    ('667,216', '32')
    """
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def milliseconds(seconds: float | None) -> str:
    """Format a time [ms], without its unit.

    Examples
    --------
    >>> milliseconds(0.0412), milliseconds(1.5), milliseconds(0.00025), milliseconds(None)
    ('41.2', '1,500', '0.25', '-')
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    value = seconds / MS
    size = abs(value)
    return f"{value:,.{2 if size < 9.995 else 1 if size < 99.95 else 0}f}"


def percent(frac: float | None) -> str:
    """Format a share in percent, with its sign.

    Examples
    --------
    >>> percent(0.12), percent(0.031), percent(0.06), percent(None)
    ('12 %', '3.1 %', '6 %', '-')
    """
    if frac is None or not math.isfinite(frac):
        return MISSING
    value = 100 * frac
    shown = f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.1f}".removesuffix(".0")
    return f"{shown} %"


def probability(frac: float | None) -> str:
    """Format a probability in whole percent; what only rounds to none or to certain says so.

    Examples
    --------
    >>> probability(0.834), probability(0.9991), probability(0.002), probability(1.0), probability(0.0)
    ('83 %', '>99 %', '<1 %', '>99 %', '<1 %')
    """
    if frac is None or not math.isfinite(frac):
        return MISSING
    value = 100 * frac
    return "<1 %" if value < 0.5 else ">99 %" if value > 99.5 else f"{value:.0f} %"


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """Format a rate and the ends of its interval, which is left out where there is none to see.

    Examples
    --------
    >>> with_interval(706.2, 650.1, 770.0), with_interval(706.2, 706.1, 706.3), with_interval(706.2, None, None)
    ('706 (650-770)', '706', '706')
    """
    if low is None or high is None or grouped(low) == grouped(high):
        return grouped(value)
    return f"{grouped(value)} ({grouped(low)}-{grouped(high)})"


def per_user_tok_s(tpot_s: float | None) -> float | None:
    """Output tokens per second that one user sees while tokens stream: 1 / TPOT [tok/s].

    Examples
    --------
    >>> per_user_tok_s(0.02)
    50.0
    """
    return 1.0 / tpot_s if tpot_s else None


def plural(number: int, noun: str) -> str:
    """Format a number of things.

    Examples
    --------
    >>> plural(1, "replica"), plural(4, "replica")
    ('1 replica', '4 replicas')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def degrees(tps: tuple[int, ...] | list[int]) -> str:
    """Name degrees in a sentence.

    Examples
    --------
    >>> degrees([4]), degrees([4, 8]), degrees([2, 4, 8])
    ('TP 4', 'TP 4 and TP 8', 'TP 2, TP 4 and TP 8')
    """
    names = [f"TP {tp}" for tp in tps]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
