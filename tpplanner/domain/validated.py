"""A validation as a whole: which runs, what was left out, every set of predictions with its scores."""

from collections.abc import Mapping
from dataclasses import dataclass

from tpplanner.domain.run_prediction import ScoredRun
from tpplanner.domain.scores import Scores


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Validated:
    """Measured runs against one or more sets of predictions.

    Attributes
    ----------
    source
        Where the runs come from.
    dropped
        Why rows of the source are no runs to judge by -> number of rows.
    left_out
        Filter -> number of runs that it left out.
    scores
        The set that was asked for first; in-sample scores beside held-out ones never share a row.
    points
        `Scores.name` -> the runs with their predictions.
    """

    source: str
    dropped: Mapping[str, int]
    left_out: Mapping[str, int]
    scores: tuple[Scores, ...]
    points: Mapping[str, tuple[ScoredRun, ...]]
