"""Predictions against those last accepted: a change of a coefficient that nobody meant to make shows here."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from tpplanner.domain.run_prediction import QUANTITIES, RunPrediction, ScoredRun
from tpplanner.domain.scores import Change, Drift
from tpplanner.errors import WorkloadError, reject

DEFAULT_TOLERANCE_FRAC: Final = 1e-3
NUM_SHOWN: Final = 10

ROUNDING_FRAC: Final = 1e-5
"""Accepted figures are written with six digits: a change below this is none."""


def drift_of(
    points: Sequence[ScoredRun], accepted: Mapping[str, RunPrediction], *,
    tolerance_frac: float = DEFAULT_TOLERANCE_FRAC, limit: int = NUM_SHOWN,
) -> Drift:
    """Compare the figures of every run with those last accepted.

    Parameters
    ----------
    points
        Runs with their predictions.
    accepted
        ``run_id`` -> what was accepted. A run that only one side has is a change without bound, as is a figure.
    tolerance_frac
        Largest relative change that is let through.
    limit
        How many of the largest changes to return; those of rounding are left out.

    Raises
    ------
    WorkloadError
        If the tolerance is no number >= 0.
    """
    if not (math.isfinite(tolerance_frac) and tolerance_frac >= 0):
        reject(WorkloadError, "tolerance_frac", "be a number >= 0", tolerance_frac, "drift")
    changes = []
    now = {point.run.run_id: point for point in points}
    for name in dict.fromkeys((*now, *accepted)):
        before, after = accepted.get(name), now.get(name)
        changes += [_change(name, quantity, before, after) for quantity in QUANTITIES]
    moved = sorted((c for c in changes if c.relative_frac > ROUNDING_FRAC), key=lambda c: -c.relative_frac)
    return Drift(num_compared=len({*now, *accepted}), tolerance_frac=tolerance_frac, largest=tuple(moved[:limit]),
                 num_beyond=len({c.run_id for c in moved if c.relative_frac > tolerance_frac}))


def _change(name: str, quantity: str, before: RunPrediction | None, after: ScoredRun | None) -> Change:
    old = None if before is None else _accepted(before, quantity)
    new = None if after is None else after.predicted(quantity)
    if old is None and new is None:
        # Nothing to compare, unless the run itself came or went.
        relative = math.inf if quantity == QUANTITIES[0] and (before is None or after is None) else 0.0
    elif old is None or new is None:
        relative = math.inf
    else:
        relative = abs(new / old - 1.0) if old else math.inf
    return Change(run_id=name, quantity=quantity, before=old, after=new, relative_frac=relative)


def _accepted(prediction: RunPrediction, quantity: str) -> float | None:
    match quantity:
        case "tpot":
            return prediction.tpot_s
        case "ttft":
            return prediction.ttft_s
        case _:
            return prediction.throughput_tok_s
