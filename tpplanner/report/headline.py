"""The answer in one line."""

import math

from tpplanner.domain.plan import DegreePlan, Outcome, Question, Reason, Recommendation
from tpplanner.domain.simulation import SimulatedDegree
from tpplanner.domain.workload import LoadMode
from tpplanner.report.numbers import grouped, milliseconds, percent, plural, probability

NEARNESS = {
    Reason.TPOT: 0, Reason.TTFT: 0, Reason.LOAD: 0, Reason.KV_CACHE: 1, Reason.WEIGHTS: 2,
    Reason.GPUS: 3, Reason.HEADS: 4,
}
"""How far a degree is from being a plan: it runs but misses a target, lacks memory, cannot exist."""

_CERTAIN_FRAC = 0.995
"""A probability above this is printed as certain."""


def headline(rec: Recommendation) -> str:
    """Return the recommendation as one sentence, or why there is none.

    Parameters
    ----------
    rec
        The answer of the planner.

    Returns
    -------
    str
        One line without a line break, for example ``Serve M at TP 8 (1 replica of 8 x h100-sxm): 4,321 tok/s (540
        tok/s/GPU), TPOT 41 ms, TTFT 310 ms; 12 % over TP 4, best with 96 % probability.``
    """
    best = rec.best
    if best is None or best.outcome is None:
        return _no_plan(rec)
    lead = serve_words(rec.question, best)
    return f"{lead}: {_figures(rec, best.outcome)}; {_margin(rec)}{_doubt(rec, best)}{_other_optima(rec)}."


def tied_degrees(rec: Recommendation) -> tuple[int, ...]:
    """Return the degrees that tie for the best, the best among them; empty where there is no tie."""
    if rec.best_tp is None:
        return ()
    tied = tuple(sorted({rec.best_tp, *rec.tied_tps}))
    return tied if len(tied) > 1 else ()


def tie_sentence(rec: Recommendation) -> str:
    """Name the tied degrees and the probability of each to be the best, the most probable first."""
    def chance(tp: int) -> float:
        doubt = rec.plan(tp).uncertainty
        return 0.0 if doubt is None else doubt.best_prob_frac

    tied = sorted(tied_degrees(rec), key=lambda tp: (-chance(tp), tp))
    return ", ".join(f"TP {tp} ({probability(chance(tp))})" for tp in tied)


def nearest_plan(rec: Recommendation) -> DegreePlan | None:
    """Return the infeasible degree that comes nearest to a plan, ``None`` where none was tried.

    A degree that runs and misses a target by the smallest factor comes first, then the largest
    degree whose memory does not suffice.
    """
    def distance(plan: DegreePlan) -> tuple[int, float, int]:
        kind = 9 if plan.reason is None else NEARNESS[plan.reason]
        return kind, _overshoot(rec, plan), -plan.tp

    return min(rec.plans, key=distance, default=None)


def _overshoot(rec: Recommendation, plan: DegreePlan) -> float:
    """Return the largest factor by which the plan exceeds a target or falls short of the load."""
    outcome, question = plan.outcome, rec.question
    if outcome is None:
        return math.inf
    factors = [1.0]
    pairs = [(outcome.ttft_s, question.targets.ttft_s), (outcome.tpot_s, question.targets.tpot_s)]
    if question.load.mode is LoadMode.REQUEST_RATE:
        pairs.append((question.load.value, outcome.capacity_req_s))
    for actual, allowed in pairs:
        if actual is not None and allowed:
            factors.append(actual / allowed)
    return max(factors)


def _no_plan(rec: Recommendation) -> str:
    plan = nearest_plan(rec)
    if plan is None:
        return no_degree_sentence(rec.question)
    return no_plan_sentence(rec.question, tp=plan.tp, reason=plan.reason.value if plan.reason is not None else "unknown",
                            detail=plan.reason_detail)


def no_degree_sentence(question: Question) -> str:
    """Say that there was no degree to look at."""
    return (f"No feasible plan: no degree of {question.model.name} can be tried on "
            f"{question.num_gpus} x {question.hardware.name}.")


def no_plan_sentence(question: Question, *, tp: int, reason: str, detail: str) -> str:
    """Say that no degree answers the question, and what the nearest one fails on."""
    gpus = f"{question.num_gpus} x {question.hardware.name}"
    on = f"on {gpus}" if question.num_gpus_given else f"on up to {gpus}"
    inside = f" ({detail.rstrip('.')})" if detail else ""
    return f"No feasible plan: {question.model.name} {on} fails on {reason} at TP {tp}, the nearest degree{inside}."


def serve_words(question: Question, best: DegreePlan | SimulatedDegree) -> str:
    """Say what to serve and at which degree, or how many GPUs that needs where their number was asked for."""
    gpu = question.hardware.name
    if not question.num_gpus_given:
        return (f"{question.model.name} needs at least {best.tp * best.num_replicas} x {gpu}: "
                f"serve it at TP {best.tp} ({plural(best.num_replicas, 'replica')} of {best.tp} x {gpu})")
    idle = f", {plural(best.num_gpus_idle, 'GPU')} idle" if best.num_gpus_idle else ""
    return (f"Serve {question.model.name} at TP {best.tp} "
            f"({plural(best.num_replicas, 'replica')} of {best.tp} x {gpu}{idle})")


def _figures(rec: Recommendation, outcome: Outcome) -> str:
    parts = [f"{grouped(outcome.throughput_tok_s)} tok/s "
             f"({grouped(outcome.throughput_per_gpu_tok_s)} tok/s/GPU)"]
    if rec.question.load.mode is LoadMode.SLO_CAPACITY:
        parts.append(f"up to {grouped(outcome.request_rate_req_s)} req/s "
                     f"({grouped(outcome.concurrency_total)} requests in flight)")
    if outcome.tpot_s is not None:
        parts.append(f"TPOT {milliseconds(outcome.tpot_s)} ms")
    if outcome.ttft_s is not None:
        parts.append(f"TTFT {milliseconds(outcome.ttft_s)} ms")
    return ", ".join(parts)


def _margin(rec: Recommendation) -> str:
    if tied_degrees(rec):
        return f"a tie: {tie_sentence(rec)}"
    chance = rec.best_prob_frac
    if rec.runner_up_tp is None or rec.margin_frac is None:
        sure = chance is None or chance > _CERTAIN_FRAC
        return "the only feasible degree" + ("" if sure else f", best with {probability(chance)} probability")
    by = "" if rec.ranked_by.startswith("throughput") else f" (by {rec.ranked_by})"
    return f"{percent(rec.margin_frac)} over TP {rec.runner_up_tp}{by}, best with {probability(chance)} probability"


def _doubt(rec: Recommendation, best: DegreePlan) -> str:
    """Say so where targets or a rate may be missed; a capacity meets its targets by construction."""
    doubt = best.uncertainty
    if doubt is None or rec.question.load.mode is LoadMode.SLO_CAPACITY or doubt.meets_targets_prob_frac > _CERTAIN_FRAC:
        return ""
    what = "the targets are met" if rec.question.targets.any_set else "the rate is carried"
    return f"; {what} with {probability(doubt.meets_targets_prob_frac)} probability"


def _other_optima(rec: Recommendation) -> str:
    named = [
        f"least {what} at TP {tp}"
        for what, tp in (("energy per token", rec.best_energy_tp), ("cost per token", rec.best_cost_tp))
        if tp is not None and tp != rec.best_tp
    ]
    return f"; {' and '.join(named)}" if named else ""
