"""The simulated answer in one line, and why a degree is none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tpplanner.domain.plan import Reason
from tpplanner.domain.simulation import SimulatedDegree, SimulatedOutcome, Simulation
from tpplanner.domain.statistic import compared_s, statistic
from tpplanner.domain.workload import LoadMode
from tpplanner.report.headline import NEARNESS, no_degree_sentence, no_plan_sentence, serve_words
from tpplanner.report.numbers import grouped, milliseconds, percent, plural


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a degree is no answer.

    ``overshoot`` is the largest factor by which a run exceeds a target or its load what is served; infinite where the
    degree does not run.
    """

    word: str
    detail: str
    overshoot: float


def simulation_headline(sim: Simulation) -> str:
    """Return the simulated answer as one sentence, or why there is none.

    Parameters
    ----------
    sim
        The answer of the simulator.

    Returns
    -------
    str
        One line without a line break, for example ``Serve M at TP 4 (2 replicas of 4 x h100-sxm): 3,910 tok/s (489
        tok/s/GPU), goodput 3.79 req/s (96 % of the requests), TTFT p99 1,240 ms, TPOT p99 41.3 ms; best of 2 feasible
        degrees by throughput of all GPUs.``
    """
    best = sim.best
    if best is None or best.outcome is None:
        return _no_plan(sim)
    return f"{serve_words(sim.question, best)}: {_figures(sim, best.outcome)}; {_rank(sim)}."


def verdict(sim: Simulation, degree: SimulatedDegree) -> Verdict | None:
    """Return why a degree is no answer; ``None`` where it is one.

    A run that is saturated says so before any target that it misses: its latencies grow with the length of the run.
    """
    outcome = degree.outcome
    if outcome is None:
        word = degree.reason.value if degree.reason is not None else "unknown"
        return Verdict(word, degree.reason_detail, math.inf)
    if degree.meets_targets:
        return None
    misses = sorted(_misses(sim, degree), key=lambda miss: -miss.overshoot)
    if outcome.saturated:
        return _saturated(outcome, misses)
    if not outcome.num_completed:
        return Verdict(Reason.KV_CACHE.value, f"none of {plural(outcome.num_requests, 'request')} fits into the KV cache",
                       math.inf)
    detail = degree.reason_detail or "; ".join(miss.detail for miss in misses)
    if degree.reason is None and not misses:
        return Verdict("unknown", detail, math.inf)
    word = degree.reason.value if degree.reason is not None else misses[0].word
    return Verdict(word, detail, misses[0].overshoot if misses else math.inf)


def compared(sim: Simulation, degree: SimulatedDegree) -> tuple[float | None, float | None]:
    """Return TTFT and TPOT of a degree as they are compared with the targets [s]; ``None`` where there is none."""
    outcome, quantile = degree.outcome, sim.options.slo_quantile
    if outcome is None:
        return None, None
    # Only quantiles that the outcome does not hold need the log.
    times = None if degree.detail is None or quantile in (None, 0.5, 0.9, 0.99) else degree.detail.requests
    return (compared_s(outcome.ttft, None if times is None else times.ttft_s, quantile),
            compared_s(outcome.tpot, None if times is None else times.tpot_s, quantile))


def nearest_degree(sim: Simulation) -> tuple[SimulatedDegree, Verdict] | None:
    """Return the degree that comes nearest to an answer, and why it is none; ``None`` where none was tried.

    A run that exceeds its limits by the smallest factor comes first, then what lacks memory, then what cannot exist.
    """
    found = [(degree, why) for degree in sim.degrees if (why := verdict(sim, degree)) is not None]

    def distance(pair: tuple[SimulatedDegree, Verdict]) -> tuple[int, float, int]:
        degree, why = pair
        kind = 0 if degree.outcome is not None else 9 if degree.reason is None else NEARNESS[degree.reason]
        return kind, why.overshoot, -degree.tp

    return min(found, key=distance, default=None)


def unservable_words(outcome: SimulatedOutcome) -> str:
    """Say how many requests no KV cache of the degree can hold."""
    return f"{outcome.num_unservable:,} of {plural(outcome.num_requests, 'request')} never fit into the KV cache"


def _saturated(outcome: SimulatedOutcome, misses: Sequence[Verdict]) -> Verdict:
    offered, served = outcome.offered_rate_req_s, outcome.request_rate_req_s
    rates = "" if offered is None else f": {grouped(offered)} offered, {grouped(served)} served per second"
    overshoot = max([offered / served if offered is not None and served > 0 else math.inf,
                     *(miss.overshoot for miss in misses)])
    return Verdict(Reason.LOAD.value, f"saturated: requests arrive faster than they are served{rates}", overshoot)


def _misses(sim: Simulation, degree: SimulatedDegree) -> list[Verdict]:
    targets, name = sim.question.targets, statistic(sim.options.slo_quantile)
    pairs = zip((Reason.TTFT, Reason.TPOT), compared(sim, degree), (targets.ttft_s, targets.tpot_s), strict=True)
    rate = degree.outcome.offered_rate_req_s if degree.outcome is not None else None
    # Of a search that found no rate the run at the lowest one is shown.
    at = f" even at {grouped(rate)} req/s" if rate is not None and sim.question.load.mode is LoadMode.SLO_CAPACITY else ""
    return [
        Verdict(reason.value, f"{reason.value.upper()} {name} {milliseconds(actual)} ms exceeds the target of "
                f"{milliseconds(limit)} ms{at}", actual / limit)
        for reason, actual, limit in pairs if actual is not None and limit is not None and actual > limit
    ]


def _no_plan(sim: Simulation) -> str:
    nearest = nearest_degree(sim)
    if nearest is None:
        return no_degree_sentence(sim.question)
    degree, why = nearest
    return no_plan_sentence(sim.question, tp=degree.tp, reason=why.word, detail=why.detail)


def _figures(sim: Simulation, outcome: SimulatedOutcome) -> str:
    parts = [f"{grouped(outcome.throughput_tok_s)} tok/s ({grouped(outcome.throughput_per_gpu_tok_s)} tok/s/GPU)"]
    if sim.question.load.mode is LoadMode.SLO_CAPACITY:
        parts.append(f"up to {grouped(outcome.offered_rate_req_s or outcome.request_rate_req_s)} req/s")
    if outcome.goodput_req_s is not None:
        which = "of the requests that fit" if outcome.num_unservable else "of the requests"
        parts.append(f"goodput {grouped(outcome.goodput_req_s)} req/s ({percent(outcome.goodput_frac)} {which})")
    parts += [f"{name} p99 {milliseconds(quantiles.p99_s)} ms"
              for name, quantiles in (("TTFT", outcome.ttft), ("TPOT", outcome.tpot)) if quantiles is not None]
    if outcome.num_unservable:
        parts.append(unservable_words(outcome))
    return ", ".join(parts)


def _rank(sim: Simulation) -> str:
    feasible = sum(degree.meets_targets for degree in sim.degrees)
    if len(sim.degrees) == 1:
        return "the only degree simulated"
    return f"best of {feasible} feasible degrees by {sim.ranked_by}" if feasible > 1 else "the only feasible degree"
