"""The recommendation: every degree planned, ranked and explained by what would change it."""

from collections.abc import Sequence

import numpy as np

from tpplanner.cost.amdahl import rule_of_thumb_degree
from tpplanner.cost.memory import weight_bytes
from tpplanner.cost.work import work_of
from tpplanner.domain.plan import DegreePlan, Question, Reason, Recommendation
from tpplanner.domain.workload import LoadMode
from tpplanner.planner.degrees import Degree, candidate_degrees
from tpplanner.planner.flip_points import flip_points
from tpplanner.planner.plans import evaluate_question, plan_degree, price_of
from tpplanner.planner.ranking import Ranking, rank, scores
from tpplanner.planner.uncertainty import Spread, spread_of


def _rule_of_thumb(question: Question) -> int:
    weights = float(weight_bytes(work_of(question.model), tp=1.0, tied_embeddings=question.model.tied_embeddings))
    return rule_of_thumb_degree(weight_bytes=weights, hbm_bytes=question.hardware.hbm_bytes.value)


def _warnings(question: Question, plans: Sequence[DegreePlan]) -> tuple[str, ...]:
    found = []
    length = question.workload.isl_tok + question.workload.osl_tok
    if length > question.model.max_context_tok:
        found.append(f"isl + osl = {length:,} tokens exceed the context limit {question.model.max_context_tok:,} "
                     f"of {question.model.name}")
    outside = sorted({name for p in plans if p.outcome for name in p.outcome.extrapolated})
    if outside:
        found.append("extrapolated: the batch lies outside the samples of " + ", ".join(outside))
    queued = [p.tp for p in plans if p.outcome and p.feasible and p.outcome.saturated]
    if queued and question.load.mode not in (LoadMode.OFFLINE, LoadMode.SLO_CAPACITY):
        found.append("requests queue for a place in the batch at TP " + ", ".join(map(str, queued)))
    return tuple(found)


_ASSUMPTIONS = ("prefix caching off; every request has the mean lengths; latencies are means",)

_STEADY = "TTFT and its interval are those of the steady state; a benchmark that starts all clients at once measures a longer one"
"""Added where serving runs were fitted and a TTFT is shown: theirs includes such a start, the answer's does not."""


def _assumptions(question: Question) -> tuple[str, ...]:
    has_start = question.engine.terms is not None and question.load.mode is not LoadMode.OFFLINE
    return (*_ASSUMPTIONS, _STEADY) if has_start else _ASSUMPTIONS


def _ranked_by(mode: LoadMode) -> str:
    if mode is LoadMode.REQUEST_RATE:
        return "shortest request latency among the degrees that carry the rate"
    if mode is LoadMode.SLO_CAPACITY:
        return "throughput at the highest load that meets the targets"
    return "throughput of all GPUs"


def _best_by(plans: Sequence[DegreePlan], attribute: str) -> int | None:
    """Degree of the feasible plan with the least ``attribute``; None where it is unknown."""
    found = [(getattr(p.outcome, attribute), p.tp) for p in plans if p.feasible and p.outcome]
    known = [pair for pair in found if pair[0] is not None]
    return min(known)[1] if known else None


def recommend(question: Question, *, with_flip_points: bool = True) -> Recommendation:
    """Plan every degree of a question and rank them.

    Returns
    -------
    Recommendation
        With ``best_tp`` None where no degree is feasible: that is a result, not an error.
    """
    degrees = candidate_degrees(question.model, question.hardware, question.num_gpus, question.max_tp)
    tps = [degree.tp for degree in degrees]
    state = evaluate_question(question, tps)
    cut = np.asarray([not degree.obstacle for degree in degrees])
    # Asked for the fewest GPUs, a degree whose requests queue has not carried the load.
    allowed = cut & (question.num_gpus_given | ~state.saturated)
    spread = spread_of(question, tps, state, allowed & state.runs)
    plans = [plan_degree(question, degree, state, i, uncertainty=spread.of(i)) for i, degree in enumerate(degrees)]
    ranking = rank(np.where(allowed, scores(state, question.load.mode), -np.inf), spread.better_than)
    return _assemble(question, degrees, tuple(plans), ranking, spread, with_flip_points=with_flip_points)


def _assemble(
    question: Question, degrees: Sequence[Degree], plans: tuple[DegreePlan, ...], ranking: Ranking,
    spread: Spread, *, with_flip_points: bool,
) -> Recommendation:
    tps = [degree.tp for degree in degrees]
    usable = [p.tp for p in plans if p.reason not in (Reason.HEADS,)]
    return Recommendation(
        question=question, plans=plans,
        best_tp=None if ranking.best is None else tps[ranking.best],
        best_prob_frac=None if ranking.best is None else float(spread.best_frac[ranking.best]),
        runner_up_tp=None if ranking.runner_up is None else tps[ranking.runner_up],
        margin_frac=ranking.margin_frac, tied_tps=tuple(tps[i] for i in ranking.tied),
        best_energy_tp=_best_by(plans, "energy_j_per_tok"),
        best_cost_tp=None if price_of(question) is None else _best_by(plans, "cost_usd_per_mtok"),
        rule_of_thumb_tp=_rule_of_thumb(question),
        flip_points=flip_points(question, usable) if with_flip_points and ranking.best is not None else (),
        ranked_by=_ranked_by(question.load.mode), assumptions=_assumptions(question),
        warnings=_warnings(question, plans),
    )
