"""The one family of errors. Each message names the place, the field, the rule and the value."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn


class TpplannerError(Exception):
    """Base of every error that a user can cause and can mend."""


class ModelError(TpplannerError):
    """A model configuration is missing, malformed or of an unknown architecture."""


class ProfileError(TpplannerError):
    """A hardware or engine profile is missing, malformed or inconsistent."""


class WorkloadError(TpplannerError):
    """A workload, a load or a target makes no sense."""


class OutputError(TpplannerError):
    """A result cannot be written where it was asked to go."""


class EngineError(TpplannerError):
    """The engine cannot start, or one of its processes ended."""



def reject(
    error: type[TpplannerError], field: str, rule: str, value: object, place: str | None = None
) -> NoReturn:
    """Raise ``error`` with the message ``place: field must rule, got value``.

    Examples
    --------
    >>> reject(WorkloadError, "isl_tok", "be >= 1", -3, "--isl")
    Traceback (most recent call last):
        ...
    tpplanner.errors.WorkloadError: --isl: isl_tok must be >= 1, got -3
    """
    try:
        shown = repr(value).replace("\n", " ")
    except ValueError:  # an integer of more digits than Python prints
        shown = type(value).__name__
    if len(shown) > 80:
        shown = shown[:77] + "..."
    prefix = f"{place}: " if place else ""
    raise error(f"{prefix}{field} must {rule}, got {shown}")


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return ``did you mean a, b?`` for the known names closest to ``name``, or an empty string."""
    choices = list(known)
    lowered = {choice.lower(): choice for choice in choices}
    hits = get_close_matches(name.lower(), list(lowered), n=limit, cutoff=0.5)
    return f"did you mean {', '.join(lowered[hit] for hit in hits)}?" if hits else ""
