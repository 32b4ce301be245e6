"""Validation shared by the dataclasses' ``__post_init__``."""

import math

from tpplanner.errors import TpplannerError, reject

MAX_COUNT = 10**13
"""No count in this field (parameters of one matrix, tokens, layers) is larger; 1e30 layers are a typing error."""


def check_count(
    error: type[TpplannerError], place: str, *, minimum: int = 1, **fields: int | None
) -> None:
    """Refuse fields that are not integers in [minimum, MAX_COUNT]; ``None`` passes."""
    for field, value in fields.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            reject(error, field, "be an integer", value, place)
        if not minimum <= value <= MAX_COUNT:
            reject(error, field, f"be between {minimum} and {MAX_COUNT:.0e}", value, place)


def check_real(
    error: type[TpplannerError],
    place: str,
    *,
    minimum: float = 0.0,
    maximum: float = math.inf,
    **fields: float | None,
) -> None:
    """Refuse fields that are not finite numbers in [minimum, maximum]; ``None`` passes."""
    for field, value in fields.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            reject(error, field, "be a finite number", value, place)
        if not minimum <= value <= maximum:
            rule = f"be >= {minimum:g}" if maximum == math.inf else f"be between {minimum:g} and {maximum:g}"
            reject(error, field, rule, value, place)
