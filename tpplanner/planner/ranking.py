"""Which degree is best: the score of every grid point, ties, and the second-best answers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.plan import TIE_PROB_FRAC
from tpplanner.domain.workload import LoadMode
from tpplanner.planner.cluster import ClusterState


def scores(state: ClusterState, mode: LoadMode) -> NDArray[np.float64]:
    """Score per grid point, larger is better; minus infinity where infeasible.

    Throughput, except under an offered rate that is carried: there every degree that carries it has one
    throughput, so the shortest request wins and the score is 1 / e2e.
    """
    if mode is LoadMode.REQUEST_RATE:
        value = 1.0 / np.broadcast_to(np.asarray(state.latency.e2e_s, dtype=float), state.throughput_tok_s.shape)
        carried = state.feasible & ~state.saturated
        return np.where(carried, value, -np.inf)
    return np.where(state.feasible, state.throughput_tok_s, -np.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The best index, the runner-up, the lead of the one over the other, and the ties of the best."""

    best: int | None
    runner_up: int | None
    margin_frac: float | None
    tied: tuple[int, ...]


def rank(score: NDArray[np.float64], better_than: Callable[[int], NDArray[np.float64]]) -> Ranking:
    """Rank a vector of scores (ascending degree): of equal scores the smallest degree wins.

    Parameters
    ----------
    score
        Larger is better; minus infinity where infeasible.
    better_than
        Probabilities of every degree to be the better of itself and the one at the index given.

    Examples
    --------
    >>> rank(np.array([-np.inf, 100.0, 80.0, 50.0]), lambda best: np.array([0.0, 0.5, 0.24, 0.01]))
    Ranking(best=1, runner_up=2, margin_frac=0.25, tied=(1, 2))
    """
    order = [int(i) for i in np.argsort(-score, kind="stable") if np.isfinite(score[i])]
    if not order:
        return Ranking(best=None, runner_up=None, margin_frac=None, tied=())
    best = order[0]
    better = better_than(best)
    tied = tuple(sorted(i for i in order if i == best or better[i] >= TIE_PROB_FRAC))
    if len(order) == 1:
        return Ranking(best=best, runner_up=None, margin_frac=None, tied=tied)
    margin = float(score[best] / score[order[1]] - 1.0)
    return Ranking(best=best, runner_up=order[1], margin_frac=margin, tied=tied)
