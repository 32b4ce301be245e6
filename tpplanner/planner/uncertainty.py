"""How sure the answer is: drawn errors of all degrees at once, and what they do to targets and ranking.

What all degrees of a question share cancels in their comparison; only what each has of its own can turn it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.plan import Question, Uncertainty
from tpplanner.domain.workload import LoadMode
from tpplanner.planner.capacity_draws import capacity_curves, log_capacity
from tpplanner.planner.cluster import ClusterState
from tpplanner.planner.log_errors import SEED, LogErrors, log_errors

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
Errors = tuple[FloatArray, FloatArray]
"""Log errors of TPOT and TTFT, (draws, degrees) each."""

NORMAL_80 = 1.2816
"""Standard deviations on either side of the median that hold 80 % of a normal distribution."""

_SAME = 1e-9
"""Log scores nearer than this are one score: rounding decides nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Interval:
    """Ends of 80 % intervals, per degree; NaN where there is no figure."""

    low: FloatArray
    high: FloatArray

    @classmethod
    def of(cls, point: FloatArray, variance: FloatArray) -> "Interval":
        """Interval of a log-normal with median ``point`` and the variance of its log."""
        with np.errstate(over="ignore", invalid="ignore"):
            factor = np.exp(NORMAL_80 * np.sqrt(variance))
            return cls(low=point / factor, high=point * factor)

    def at(self, i: int) -> tuple[float | None, float | None]:
        """Both ends for degree ``i``, ``None`` where there is no finite figure."""
        ends = float(self.low[i]), float(self.high[i])
        return ends if np.isfinite(ends).all() else (None, None)


def best_frac_of(log_scores: FloatArray) -> FloatArray:
    """Probability of each degree to be the best, given that any can answer; degrees that are equal share it.

    The sum is 1, or 0 where no draw has a degree that can answer.

    Examples
    --------
    Two draws: the first degree wins one of them and shares the other.

    >>> best_frac_of(np.array([[1.0, 0.5, -np.inf], [0.5, 0.5, -np.inf]]))
    array([0.75, 0.25, 0.  ])
    """
    top = log_scores.max(axis=1, keepdims=True)
    wins = (log_scores >= top - _SAME) & np.isfinite(log_scores)
    num_wins = wins.sum(axis=1, keepdims=True)
    shares: FloatArray = wins / np.maximum(num_wins, 1)
    return np.asarray(shares.sum(axis=0) / max(int((num_wins > 0).sum()), 1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spread:
    """What drawn errors do to every degree of a question.

    Attributes
    ----------
    log_scores
        (draws, degrees), larger is better; minus infinity where the degree cannot answer the question.
    best_frac
        Of these, see :func:`best_frac_of`.
    meets_frac
        Share of the draws in which targets are met and an offered rate is carried.
    tpot_s, ttft_s, throughput_tok_s
        80 % intervals of a single run.
    """

    log_scores: FloatArray
    best_frac: FloatArray
    meets_frac: FloatArray
    tpot_s: Interval
    ttft_s: Interval
    throughput_tok_s: Interval

    def better_than(self, rival: int) -> FloatArray:
        """Probability of each degree to be the better of itself and ``rival``, given that either can answer."""
        scores, other = self.log_scores, self.log_scores[:, [rival]]
        either = np.isfinite(scores) | np.isfinite(other)
        with np.errstate(invalid="ignore"):
            lead = scores - other
        won = (lead > _SAME) + 0.5 * (np.abs(lead) <= _SAME)
        return np.asarray((won * either).sum(axis=0) / np.maximum(either.sum(axis=0), 1), dtype=float)

    def of(self, i: int) -> Uncertainty:
        """Return the figures of degree ``i``."""
        tpot, ttft, throughput = self.tpot_s.at(i), self.ttft_s.at(i), self.throughput_tok_s.at(i)
        return Uncertainty(
            best_prob_frac=float(self.best_frac[i]), meets_targets_prob_frac=float(self.meets_frac[i]),
            tpot_low_s=tpot[0], tpot_high_s=tpot[1], ttft_low_s=ttft[0], ttft_high_s=ttft[1],
            throughput_low_tok_s=throughput[0], throughput_high_tok_s=throughput[1],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Points:
    """Predicted figures per degree as plain arrays, and which error moves them.

    Attributes
    ----------
    wait_frac
        Share of TTFT that is the wait for a place in the batch: others' decoding, so TPOT's error moves it.
    ttft_share
        Weight of TTFT's error in the score, TPOT's having the rest.
    """

    tpot_s: FloatArray
    ttft_s: FloatArray
    throughput_tok_s: FloatArray
    capacity_tok_s: FloatArray
    log_score: FloatArray
    wait_frac: FloatArray
    ttft_share: FloatArray

    def ttft_error(self, tpot: FloatArray, ttft: FloatArray) -> FloatArray:
        """Log error of the whole TTFT, wait for a place included."""
        return (1.0 - self.wait_frac) * ttft + self.wait_frac * tpot

    def score_error(self, tpot: FloatArray, ttft: FloatArray) -> FloatArray:
        """Log error of the time that the score is the inverse of."""
        return self.ttft_share * ttft + (1.0 - self.ttft_share) * tpot


def _points(question: Question, state: ClusterState) -> _Points:
    shape = state.throughput_tok_s.shape

    def full(value: object) -> FloatArray:
        return np.broadcast_to(np.asarray(value, dtype=float), shape)

    by_rate = question.load.mode is LoadMode.REQUEST_RATE
    ttft, e2e, wait = full(state.latency.ttft_s), full(state.latency.e2e_s), full(state.state.admission_s)
    with np.errstate(invalid="ignore", divide="ignore"):
        # A full batch turns over at the pace of its steps, whatever waits in front of it.
        share = (ttft - wait) / (e2e if by_rate else e2e - wait)
        return _Points(
            tpot_s=full(state.latency.tpot_s), ttft_s=ttft, throughput_tok_s=state.throughput_tok_s,
            capacity_tok_s=state.capacity_req_s * question.workload.osl_tok,
            log_score=-np.log(e2e) if by_rate else np.log(state.throughput_tok_s),
            wait_frac=np.nan_to_num(np.where(np.isinf(wait), 1.0, wait / ttft)), ttft_share=np.nan_to_num(share),
        )


def _meets(question: Question, points: _Points, tpot_error: FloatArray, ttft_error: FloatArray) -> BoolArray:
    """Whether targets are met and an offered rate is carried where latencies are exp(error) times the predicted ones.

    A latency that does not exist meets its target.
    """
    targets, load = question.targets, question.load
    met = np.ones(tpot_error.shape, dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):
        if targets.tpot_s is not None:
            met &= ~(points.tpot_s * np.exp(tpot_error) > targets.tpot_s)
        if targets.ttft_s is not None:
            met &= ~(points.ttft_s * np.exp(points.ttft_error(tpot_error, ttft_error)) > targets.ttft_s)
        if load.mode is LoadMode.REQUEST_RATE:
            met &= points.capacity_tok_s * np.exp(-tpot_error) > (load.value or 0.0) * question.workload.osl_tok
    return met


def _throughput(question: Question, points: _Points, errors: LogErrors) -> Interval:
    """Interval of the throughput: of an offered rate what the replicas carry of it."""
    if question.load.mode is LoadMode.REQUEST_RATE:
        capacity = Interval.of(points.capacity_tok_s, errors.tpot_var)
        offered = (question.load.value or 0.0) * question.workload.osl_tok
        return Interval(low=np.minimum(points.throughput_tok_s, capacity.low),
                        high=np.maximum(points.throughput_tok_s, np.minimum(offered, capacity.high)))
    share = points.ttft_share
    return Interval.of(points.throughput_tok_s, share**2 * errors.ttft_var + (1.0 - share) ** 2 * errors.tpot_var)


def _capacity_spread(
    question: Question, tps: Sequence[int], state: ClusterState, *, drawn: Errors, noisy: Errors
) -> tuple[FloatArray, Interval]:
    """Log scores per draw, and the interval of the throughput, at the load that meets the targets in each draw."""
    curves = capacity_curves(question, tps)
    log_scale = np.log(state.num_active_replicas * question.workload.osl_tok)
    run = np.exp(log_capacity(curves, question.targets, *noisy) + log_scale)
    low, high = np.quantile(run, [0.1, 0.9], axis=0)
    point = state.throughput_tok_s
    scores = log_capacity(curves, question.targets, *drawn) + log_scale
    return scores, Interval(low=np.minimum(low, point), high=np.maximum(high, point))


def _in_batch(question: Question, state: ClusterState) -> FloatArray:
    """Requests per replica, or as many as its batch holds: where corrections by runs are looked up."""
    limit = np.minimum(question.max_num_seqs, state.room.num_seqs)
    return np.maximum(np.minimum(state.concurrency_per_replica, limit), 1.0)


def spread_of(question: Question, tps: Sequence[int], state: ClusterState, allowed: BoolArray) -> Spread:
    """Draw the errors of all degrees of a question together.

    Parameters
    ----------
    tps, state
        The degrees, and what they were evaluated to.
    allowed
        Degrees that may be the answer if they meet the targets; the others never are.

    Notes
    -----
    With e the log errors and a the share of TTFT in a request's time, the wait for a place left out,

        throughput ~ exp(-(a e_ttft + (1 - a) e_tpot)),

    and 1/e2e likewise where a rate is carried. Offline a = 0. Under targets alone the load is found anew in each draw.
    Memory, and with it the size of a full batch, is taken as exact.
    """
    rng = np.random.default_rng(SEED)
    points = _points(question, state)
    errors = log_errors(question, tps, _in_batch(question, state))
    drawn = errors.draw(rng)
    meets = _meets(question, points, *drawn)
    if question.load.mode is LoadMode.SLO_CAPACITY:
        scores, throughput = _capacity_spread(question, tps, state, drawn=drawn, noisy=errors.with_noise(drawn, rng))
    else:
        scores = np.where(meets, points.log_score - points.score_error(*drawn), -np.inf)
        throughput = _throughput(question, points, errors)
    scores, wait = np.where(allowed, scores, -np.inf), points.wait_frac
    return Spread(
        log_scores=scores, best_frac=best_frac_of(scores), meets_frac=np.mean(meets, axis=0),
        tpot_s=Interval.of(points.tpot_s, errors.tpot_var),
        ttft_s=Interval.of(points.ttft_s, (1.0 - wait) ** 2 * errors.ttft_var + wait**2 * errors.tpot_var),
        throughput_tok_s=throughput,
    )
