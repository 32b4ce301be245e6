"""Lengths as they are typed: ``1024``, ``lognormal:800:1.2``, ``gamma:300:0.9``, ``histogram:FILE``."""

import math
import re
from pathlib import Path
from typing import Final

import numpy as np

from tpplanner.domain.traffic import MAX_REQUEST_TOK, FixedLength, HistogramLength, Length, SpreadLength
from tpplanner.errors import WorkloadError, reject
from tpplanner.io.csv_rows import read_rows
from tpplanner.io.model_json import one_line

MAX_WEIGHT: Final = 1e18
"""Sums of as many weights as a file holds stay finite."""

FORMS: Final = "1024, lognormal:MEAN:CV, gamma:MEAN:CV or histogram:FILE"
_WHOLE: Final = re.compile(r"\d{1,18}", re.ASCII)
_REAL: Final = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def parse_length(text: str, place: str = "--isl") -> Length:
    """Return the length or the distribution of lengths that ``text`` names.

    Parameters
    ----------
    text
        A number of tokens; a distribution with its mean [tok] and its coefficient of variation; or a CSV file with
        the columns ``tok`` and ``weight``.
    place
        The flag, as errors name it.

    Raises
    ------
    WorkloadError
        ``text`` is none of these, a number is outside its range, or the file cannot be read.

    Examples
    --------
    >>> parse_length("1024")
    FixedLength(tok=1024)
    >>> parse_length("lognormal:800:1.2")
    SpreadLength(kind='lognormal', mean_tok=800.0, cv=1.2)
    """
    kind, _, rest = text.strip().partition(":")
    if _WHOLE.fullmatch(kind) and not rest:
        if not 1 <= int(kind) <= MAX_REQUEST_TOK:
            reject(WorkloadError, "length", f"be between 1 and {MAX_REQUEST_TOK:.0e} tokens", int(kind), place)
        return FixedLength(tok=int(kind))
    if kind == "histogram" and rest:
        return _histogram(Path(rest))
    numbers = rest.split(":")
    if kind not in ("lognormal", "gamma") or len(numbers) != 2 or not all(map(_REAL.fullmatch, numbers)):
        reject(WorkloadError, "length", f"be {FORMS}", text, place)
    mean_tok, cv = map(float, numbers)
    if not (math.isfinite(mean_tok) and 1.0 <= mean_tok <= MAX_REQUEST_TOK):
        reject(WorkloadError, "mean", f"be between 1 and {MAX_REQUEST_TOK:.0e} tokens", numbers[0], place)
    if not 1e-6 <= cv <= 100.0:
        reject(WorkloadError, "cv", "be between 1e-6 and 100", numbers[1], place)
    return SpreadLength(kind=kind, mean_tok=mean_tok, cv=cv)


def _histogram(path: Path) -> HistogramLength:
    rows = read_rows(path, ("tok", "weight"), ())
    tok, weight = [], []
    for row in rows:
        tok.append(row.count("tok"))
        weight.append(row.number("weight"))
        if tok[-1] > MAX_REQUEST_TOK:
            reject(WorkloadError, "tok", f"be at most {MAX_REQUEST_TOK:.0e}", row.cells["tok"], row.place)
        if not 0.0 <= weight[-1] <= MAX_WEIGHT:
            reject(WorkloadError, "weight", f"be between 0 and {MAX_WEIGHT:.0e}", row.cells["weight"], row.place)
    return HistogramLength(tok=np.array(tok, dtype=np.int64), weight=np.array(weight), name=one_line(path))
