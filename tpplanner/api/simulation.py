"""Every degree under single requests: what the closed form cannot see."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np

from tpplanner.api.question import LOADS, question
from tpplanner.api.simulated import Simulated
from tpplanner.api.simulation_load import check_load, clients_of, default_requests, few_requests
from tpplanner.api.traffic import Source, TrafficAsked, source_of
from tpplanner.cost.replica import ReplicaGrid
from tpplanner.domain.checks import check_count, check_real
from tpplanner.domain.plan import DegreePlan, Question, Reason, Recommendation
from tpplanner.domain.simulation import (
    RequestLog,
    Router,
    RunDetail,
    SimulatedDegree,
    SimulatedOutcome,
    Simulation,
    SimulationOptions,
)
from tpplanner.domain.statistic import compared_s, statistic
from tpplanner.domain.traffic import MAX_ARRIVAL_S, Traffic
from tpplanner.domain.workload import LoadMode
from tpplanner.errors import WorkloadError, nearest, reject
from tpplanner.planner.plans import grid_of, price_of
from tpplanner.planner.predict import plan_one
from tpplanner.planner.recommend import recommend as recommend_question
from tpplanner.sim.capacity import highest_rate
from tpplanner.sim.metrics import has_settled
from tpplanner.sim.run import Deployment, clock_of, kv_pool, simulate

Progress = Callable[[int, int, int], None]
"""Called with a degree, its finished requests, and how many it has in all."""

_NO_RUN = (Reason.HEADS, Reason.GPUS, Reason.WEIGHTS)


class OptionsAsked(TypedDict, total=False):
    """Arguments of a simulation beside question and traffic."""

    router: str
    prefix_caching: bool
    watermark_frac: float
    step_by_step: bool
    slo_quantile: float | None
    num_timeline_steps: int
    ramp_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setting:
    """A question, its requests and how to simulate them. ``ramp_s`` is ``None`` for one request's time."""

    question: Question
    source: Source
    options: SimulationOptions
    ramp_s: float | None
    progress: Progress | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ran:
    traffic: Traffic
    outcome: SimulatedOutcome
    detail: RunDetail
    holds: bool


def meets_targets(question: Question, outcome: SimulatedOutcome, log: RequestLog, quantile: float | None) -> bool:
    """Whether a run kept up with its arrivals, finished something, and held every target."""
    if not outcome.num_completed or (outcome.saturated and question.load.mode is not LoadMode.OFFLINE):
        return False
    targets = question.targets
    for target, usual, times_s in ((targets.ttft_s, outcome.ttft, log.ttft_s), (targets.tpot_s, outcome.tpot, log.tpot_s)):
        value = compared_s(usual, times_s, quantile)
        if target is not None and value is not None and value > target:
            return False
    return True


class _DegreeRuns:
    """Runs of one degree."""

    def __init__(self, setting: Setting, plan: DegreePlan, num_requests: int) -> None:
        question = setting.question
        self._setting, self._plan, self._num_requests = setting, plan, num_requests
        grid = replace(grid_of(question, [plan.tp]), tp=float(plan.tp), isl_tok=setting.source.mean_isl_tok,
                       osl_tok=setting.source.mean_osl_tok)
        self.grid: ReplicaGrid = grid
        self._deployment = Deployment(grid=grid, num_replicas=plan.num_replicas, num_gpus=question.num_gpus,
                                      price_usd_h=price_of(question))
        self._clock = clock_of(grid, setting.options)

    def run(self) -> _Ran:
        """Serve the load of the question, or the highest rate that holds the targets: the lowest one tried where none does."""
        source, load, count = self._setting.source, self._setting.question.load, self._num_requests
        match load.mode:
            case LoadMode.REQUEST_RATE:
                assert load.value is not None
                return self._serve(source.at_rate(load.value, count))
            case LoadMode.OFFLINE:
                return self._serve(source.at_once(count))
            case LoadMode.SLO_CAPACITY:
                return self._at_capacity()
            case _:
                return self._serve(source.requests(count), clients=clients_of(self._setting.question, self._plan))

    def _ramp_s(self) -> float:
        given, outcome = self._setting.ramp_s, self._plan.outcome
        if given is not None:
            return given
        return 0.0 if outcome is None or outcome.e2e_s is None else outcome.e2e_s

    def _requests_at(self, rate_req_s: float, expected_req_s: float) -> int:
        """Requests of a run of the search: more at higher rates, so that it takes as long as at the rate first tried."""
        return math.ceil(self._num_requests * max(rate_req_s / expected_req_s, 1.0))

    def _serve(self, traffic: Traffic, *, clients: list[int] | None = None) -> _Ran:
        progress, tp, count = self._setting.progress, self._plan.tp, traffic.num_requests

        def tell(done: int) -> None:
            if progress is not None:
                progress(tp, done, count)

        question, options = self._setting.question, self._setting.options
        outcome, detail = simulate(
            self._deployment, traffic, options=options, clients=clients, targets=question.targets,
            ramp_s=0.0 if clients is None else self._ramp_s(), clock=self._clock, progress=tell)
        return _Ran(traffic=traffic, outcome=outcome, detail=detail,
                    holds=meets_targets(question, outcome, detail.requests, options.slo_quantile))

    def _at_capacity(self) -> _Ran:
        lowest: tuple[float, _Ran] | None = None
        outcome = self._plan.outcome
        expected = max(1e-3, 1.0 if outcome is None else outcome.request_rate_req_s)

        def at(rate_req_s: float) -> tuple[_Ran, bool]:
            nonlocal lowest
            if lowest is not None and self._num_requests > 0.1 * MAX_ARRIVAL_S * rate_req_s:
                return lowest[1], False  # a request in years: no rate at all
            ran = self._serve(self._setting.source.at_rate(rate_req_s, self._requests_at(rate_req_s, expected)))
            ran = replace(ran, holds=ran.holds and has_settled(ran.detail.requests))
            if lowest is None or rate_req_s < lowest[0]:
                lowest = rate_req_s, ran
            return ran, ran.holds

        found = highest_rate(at, start_req_s=expected)
        assert lowest is not None  # the first rate was served
        return lowest[1] if found is None else found[1]


def _simulated(setting: Setting, plan: DegreePlan, num_requests: int) -> tuple[SimulatedDegree, Traffic | None]:
    nothing = SimulatedDegree(
        tp=plan.tp, num_replicas=plan.num_replicas, num_gpus_idle=plan.num_gpus_idle, reason=plan.reason,
        reason_detail=plan.reason_detail, memory=plan.memory, outcome=None, meets_targets=False, detail=None)
    if plan.reason in _NO_RUN:
        return nothing, None
    runs = _DegreeRuns(setting, plan, num_requests)
    pool = kv_pool(runs.grid)
    if pool.num_blocks < 1:
        return replace(nothing, reason=Reason.KV_CACHE, reason_detail="not one KV block fits"), None
    ran = runs.run()
    # Windows and recurrent states make the simulated pool another than the engine's count of it.
    memory = None if plan.memory is None else replace(
        plan.memory, num_kv_blocks=pool.num_blocks, kv_capacity_tok=pool.num_blocks * setting.question.engine.kv_block_size_tok)
    done = replace(nothing, reason=None, reason_detail="", memory=memory, outcome=ran.outcome, meets_targets=ran.holds,
                   detail=ran.detail)
    return done, ran.traffic


def _score(setting: Setting, degree: SimulatedDegree) -> tuple[float, float]:
    """Larger is better: fewest requests that no replica can hold, then what the load mode ranks by."""
    outcome = degree.outcome
    assert outcome is not None  # only degrees that ran are ranked
    served = -float(outcome.num_unservable)
    if setting.question.load.mode is LoadMode.REQUEST_RATE:
        return served, -(outcome.e2e.mean_s if outcome.e2e is not None else np.inf)
    return served, outcome.throughput_tok_s


def _ranked_by(mode: LoadMode, quantile: float | None) -> str:
    if mode is LoadMode.REQUEST_RATE:
        return "shortest mean request among the degrees that keep up with the arrivals"
    if mode is LoadMode.SLO_CAPACITY:
        return f"throughput at the highest rate whose {statistic(quantile)} meets the targets"
    return "throughput of all GPUs"


def _not_served(setting: Setting, num_requests: int) -> Traffic:
    """Requests that no degree could serve at all."""
    load, source = setting.question.load, setting.source
    match load.mode:
        case LoadMode.REQUEST_RATE if load.value is not None:
            return source.at_rate(load.value, num_requests)
        case LoadMode.OFFLINE:
            return source.at_once(num_requests)
        case _:
            return source.requests(num_requests)


def _warnings(setting: Setting, traffic: Traffic, plans: Sequence[DegreePlan]) -> Iterator[str]:
    yield from few_requests(setting.question, plans, traffic.num_requests)
    limit = setting.question.model.max_context_tok
    too_long = int((traffic.isl_tok + traffic.osl_tok > limit).sum())
    if too_long:
        yield f"{too_long:,} requests exceed the context limit of {limit:,} tokens; they are served, engines refuse or cut them"
    if setting.options.prefix_caching and traffic.prefix_ids is None:
        yield "prefix caching finds nothing: the traffic names no prefixes that prompts share"


def run_setting(setting: Setting, rec: Recommendation, plans: Sequence[DegreePlan]) -> Simulated:
    """Simulate ``plans`` of a closed-form answer and rank them."""
    question, source = setting.question, setting.source
    searched = question.load.mode is LoadMode.SLO_CAPACITY
    counts = [default_requests(question, [plan] if searched else plans) for plan in plans]
    runs = [_simulated(setting, plan, count) for plan, count in zip(plans, counts, strict=True)]
    degrees = tuple(degree for degree, _ in runs)
    good = [d for d in degrees if d.meets_targets and d.outcome is not None]
    best = max(good, key=lambda d: (*_score(setting, d), -d.tp), default=None)
    served = [traffic for _, traffic in runs if traffic is not None]
    rates = [t.rate_req_s or 0.0 for t in served]
    traffic = served[int(np.argmax(rates))] if served else _not_served(setting, min(counts, default=1))
    simulation = Simulation(
        question=question, traffic=traffic, options=setting.options, degrees=degrees,
        best_tp=None if best is None else best.tp, seed=source.seed,
        ranked_by=_ranked_by(question.load.mode, setting.options.slo_quantile),
        warnings=(*source.notes, *_warnings(setting, traffic, plans), *rec.warnings))
    return Simulated(simulation=simulation, recommendation=rec)


def _options(asked: OptionsAsked) -> SimulationOptions:
    given = {name: value for name, value in asked.items() if value is not None and name != "ramp_s"}
    for name in ("prefix_caching", "step_by_step"):
        if not isinstance(given.get(name, False), bool):
            reject(WorkloadError, name, "be True or False", given[name], "simulation")
    if "router" in given:
        given["router"] = _router(given["router"])
    return SimulationOptions(**given)  # type: ignore[arg-type]


def _router(name: object) -> Router:
    known = [r.value for r in Router]
    if not isinstance(name, str) or name not in known:
        hint = nearest(name[:100], known) if isinstance(name, str) else ""
        reject(WorkloadError, "router", f"be among {', '.join(known)}" + (f" ({hint})" if hint else ""), name, "--router")
    return Router(name)


def _degrees(tp: object) -> list[int] | None:
    """Degrees that were named, ascending; ``None`` for those of the table."""
    if tp is None or (isinstance(tp, str) and tp == "all"):
        return None
    named: list[Any] = list(tp) if isinstance(tp, Iterable) and not isinstance(tp, str | bytes | Mapping) else [tp]
    if not named or isinstance(tp, str | Mapping):
        reject(WorkloadError, "tp", "be all, a degree, or degrees", tp, "--tp")
    for degree in named:
        if degree is None:
            reject(WorkloadError, "tp", "be an integer", degree, "--tp")
        check_count(WorkloadError, "--tp", tp=degree)
    return sorted(set(named))


def _plans(rec: Recommendation, degrees: list[int] | None) -> list[DegreePlan]:
    """Plans of the degrees asked for: those of the table, or those named, in the table or not."""
    if degrees is None:
        return list(rec.plans)
    return [next((p for p in rec.plans if p.tp == t), None) or plan_one(rec.question, t) for t in degrees]


def _question(asked: dict[str, Any], source: Source) -> Question:
    """Build the question of the mean request; the load is the one given, else the source's own."""
    given = {**asked, "isl": max(round(source.mean_isl_tok), 1), "osl": max(round(source.mean_osl_tok), 1)}
    if given.get("sampling") is None and source.sampling is not None:
        given["sampling"] = source.sampling.value
    own, named = source.own_load(), any(given.get(name) is not None for name in LOADS) or given.get("offline")
    searched = given.get("ttft_ms") is not None or given.get("tpot_ms") is not None
    if own is not None and not named and (source.replays or not searched):
        given[own.mode.value] = own.value
    return question(**given)


def simulate_question(
    *, tp: str | int | Sequence[int] | None, traffic: TrafficAsked, options: OptionsAsked, asked: dict[str, Any],
    progress: Progress | None = None,
) -> Simulated:
    """Answer by simulation; :func:`tpplanner.simulate` documents the arguments."""
    chosen, degrees, ramp_s = _options(options), _degrees(tp), options.get("ramp_s")
    check_real(WorkloadError, "--ramp", maximum=1e9, ramp_s=ramp_s)
    source = source_of(traffic)
    built = _question(asked, source)
    known = source.num_requests or (None if source.trace is None else source.trace.num_requests)
    check_load(built, {**asked, **traffic, **options}, num_requests=known)
    rec = recommend_question(built, with_flip_points=False)
    setting = Setting(question=rec.question, source=source, options=chosen, ramp_s=ramp_s, progress=progress)
    return run_setting(setting, rec, _plans(rec, degrees))
