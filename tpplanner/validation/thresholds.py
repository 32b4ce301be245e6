"""Figures against their limits."""

from collections.abc import Mapping

from tpplanner.domain.scores import Broken, Limits
from tpplanner.errors import WorkloadError, nearest, reject


def broken_limits(
    scores_name: str, named: Mapping[str, float], limits: Limits, place: str
) -> tuple[Broken, ...]:
    """Return every limit that a figure breaks, in the order of the file: all of them, not the first.

    Parameters
    ----------
    scores_name
        `Scores.name` of the figures.
    named
        Figures by name, as of `tpplanner.validation.score.figures`.
    limits
        On some of them.
    place
        The file of the limits, for messages.

    Raises
    ------
    WorkloadError
        If a limit is on a figure that there is none of: a check that cannot fail is no check.

    Examples
    --------
    >>> limits = Limits(maxima={"dense.tpot.mean": 0.2, "dense.c.regret": 0.01}, minima={"dense.c.hit": 0.9})
    >>> named = {"dense.tpot.mean": 0.25, "dense.c.regret": 0.01, "dense.c.hit": 0.5}
    >>> [(one.figure, one.value, one.limit) for one in broken_limits("packaged", named, limits, "file")]
    [('dense.tpot.mean', 0.25, 0.2), ('dense.c.hit', 0.5, 0.9)]
    """
    broken = []
    for is_maximum, side in ((True, limits.maxima), (False, limits.minima)):
        for figure, limit in side.items():
            if figure not in named:
                hint = nearest(figure, named)
                rule = "name a figure of these runs" + (f" ({hint})" if hint else "")
                reject(WorkloadError, f"{scores_name}.{'max' if is_maximum else 'min'}", rule, figure, place)
            value = named[figure]
            if value > limit if is_maximum else value < limit:
                broken.append(Broken(scores=scores_name, figure=figure, value=value, limit=limit,
                                     is_maximum=is_maximum))
    return tuple(broken)
