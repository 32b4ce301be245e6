"""Every degree under single requests: what the closed form cannot see."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np

from tpplanner.api.question import LOADS, question
from tpplanner.api.simulated import Simulated
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
    compared_s,
    statistic,
)
from tpplanner.domain.traffic import Traffic
from tpplanner.domain.workload import LoadMode
from tpplanner.errors import WorkloadError, nearest, reject
from tpplanner.planner.plans import grid_of, price_of
from tpplanner.planner.predict import plan_one
from tpplanner.planner.recommend import recommend as recommend_question
from tpplanner.sim.capacity import highest_rate
from tpplanner.sim.run import Deployment, clock_of, kv_pool, simulate

Progress = Callable[[int, int, int], None]
"""Called with a degree, its finished requests, and how many it has in all."""

_LEAST_REQUESTS = 1000
_TRAFFIC_S, _SEARCHED_TRAFFIC_S = 300.0, 60.0
"""Traffic that a run at a rate serves, and each run of a search for a rate: the time after its last arrival weighs little."""

_WAVES = 20
"""Requests per client of a closed loop, and per place in the batch where all are queued at once."""
_MOST_DEFAULT_REQUESTS = 50_000

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


def default_requests(question: Question, plans: Sequence[DegreePlan]) -> int:
    """Requests of a run that was not told how many: enough waves that its start and end weigh little."""
    ran = [(p.num_replicas, p.outcome) for p in plans if p.outcome is not None]
    match question.load.mode:
        case LoadMode.REQUEST_RATE:
            wanted = [_TRAFFIC_S * (question.load.value or 0.0)]
        case LoadMode.SLO_CAPACITY:
            wanted = [_SEARCHED_TRAFFIC_S * outcome.request_rate_req_s for _, outcome in ran]
        case _:
            wanted = [_WAVES * replicas * outcome.concurrency_per_replica for replicas, outcome in ran]
    return int(min(max([_LEAST_REQUESTS, *wanted]), _MOST_DEFAULT_REQUESTS))


def _clients(question: Question, plan: DegreePlan) -> list[int]:
    """Clients of each replica."""
    value = question.load.value or 0.0
    match question.load.mode:
        case LoadMode.CONCURRENCY:
            each, rest = divmod(max(round(value), 1), plan.num_replicas)
            return [each + (i < rest) for i in range(plan.num_replicas)]
        case LoadMode.BATCH_PER_GPU:
            return [max(round(value * plan.tp), 1)] * plan.num_replicas
        case _:
            return [max(round(value), 1)] * plan.num_replicas


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

    def run(self) -> _Ran | None:
        """Serve the load of the question; ``None`` where no rate holds the targets."""
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
                return self._serve(source.requests(count), clients=_clients(self._setting.question, self._plan))

    def _ramp_s(self) -> float:
        given, outcome = self._setting.ramp_s, self._plan.outcome
        if given is not None:
            return given
        return 0.0 if outcome is None or outcome.e2e_s is None else outcome.e2e_s

    def _serve(self, traffic: Traffic, *, clients: list[int] | None = None) -> _Ran:
        progress, tp, count = self._setting.progress, self._plan.tp, traffic.num_requests

        def tell(done: int) -> None:
            if progress is not None:
                progress(tp, done, count)

        outcome, detail = simulate(
            self._deployment, traffic, options=self._setting.options, clients=clients, targets=self._setting.question.targets,
            ramp_s=0.0 if clients is None else self._ramp_s(), clock=self._clock, progress=tell)
        return _Ran(traffic=traffic, outcome=outcome, detail=detail)

    def _at_capacity(self) -> _Ran | None:
        question, options = self._setting.question, self._setting.options

        def at(rate_req_s: float) -> tuple[_Ran, bool]:
            ran = self._serve(self._setting.source.at_rate(rate_req_s, self._num_requests))
            return ran, meets_targets(question, ran.outcome, ran.detail.requests, options.slo_quantile)

        expected = self._plan.outcome.request_rate_req_s if self._plan.outcome is not None else 1.0
        found = highest_rate(at, start_req_s=max(expected, 1e-3))
        return None if found is None else found[1]


def _simulated(setting: Setting, plan: DegreePlan, num_requests: int) -> tuple[SimulatedDegree, Traffic | None]:
    nothing = SimulatedDegree(
        tp=plan.tp, num_replicas=plan.num_replicas, num_gpus_idle=plan.num_gpus_idle, reason=plan.reason,
        reason_detail=plan.reason_detail, memory=plan.memory, outcome=None, meets_targets=False, detail=None)
    if plan.reason in _NO_RUN:
        return nothing, None
    runs = _DegreeRuns(setting, plan, num_requests)
    if kv_pool(runs.grid).num_blocks < 1:
        return replace(nothing, reason=Reason.KV_CACHE, reason_detail="not one KV block fits"), None
    ran = runs.run()
    if ran is None:
        targets = setting.question.targets
        reason = Reason.TPOT if targets.tpot_s is not None and targets.ttft_s is None else Reason.TTFT
        return replace(nothing, reason=reason, reason_detail="the targets hold at no rate that was tried"), None
    good = meets_targets(setting.question, ran.outcome, ran.detail.requests, setting.options.slo_quantile)
    done = replace(nothing, reason=None, reason_detail="", outcome=ran.outcome, meets_targets=good, detail=ran.detail)
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


def run_setting(setting: Setting, rec: Recommendation, plans: Sequence[DegreePlan]) -> Simulated:
    """Simulate ``plans`` of a closed-form answer and rank them."""
    count = default_requests(setting.question, plans)
    runs = [_simulated(setting, plan, count) for plan in plans]
    degrees = tuple(degree for degree, _ in runs)
    good = [d for d in degrees if d.meets_targets and d.outcome is not None]
    best = max(good, key=lambda d: (*_score(setting, d), -d.tp), default=None)
    served = [traffic for _, traffic in runs if traffic is not None]
    rates = [t.rate_req_s or 0.0 for t in served]
    traffic = served[int(np.argmax(rates))] if served else setting.source.requests(count)
    simulation = Simulation(
        question=setting.question, traffic=traffic, options=setting.options, degrees=degrees,
        best_tp=None if best is None else best.tp, seed=setting.source.seed,
        ranked_by=_ranked_by(setting.question.load.mode, setting.options.slo_quantile),
        warnings=(*setting.source.notes, *rec.warnings))
    return Simulated(simulation=simulation, recommendation=rec)


def _options(asked: OptionsAsked) -> SimulationOptions:
    router = asked.get("router") or Router.ROUND_ROBIN
    known = [r.value for r in Router]
    if router not in known:
        raise WorkloadError(f"--router: unknown {router!r}; known: {', '.join(known)}. {nearest(router, known)}".rstrip())
    return SimulationOptions(
        router=Router(router), prefix_caching=bool(asked.get("prefix_caching")), slo_quantile=asked.get("slo_quantile"),
        watermark_frac=float(asked.get("watermark_frac") or 0.0), step_by_step=bool(asked.get("step_by_step")),
        num_timeline_steps=asked.get("num_timeline_steps") or 0)


def _plans(rec: Recommendation, tp: str | int | Sequence[int] | None) -> list[DegreePlan]:
    """Plans of the degrees asked for: those of the table, or those named, in the table or not."""
    if tp is None or tp == "all":
        return list(rec.plans)
    named = [tp] if isinstance(tp, int) else tp
    if isinstance(named, str) or not named:
        reject(WorkloadError, "tp", "be all, a degree, or degrees", tp, "--tp")
    for degree in named:
        check_count(WorkloadError, "--tp", tp=degree)
    return [next((p for p in rec.plans if p.tp == t), None) or plan_one(rec.question, t) for t in sorted(set(named))]


def _question(asked: dict[str, Any], source: Source) -> Question:
    """Build the question of the mean request; the load is the one given, else the source's own."""
    given = {**asked, "isl": max(round(source.mean_isl_tok), 1), "osl": max(round(source.mean_osl_tok), 1)}
    if given.get("sampling") is None and source.sampling is not None:
        given["sampling"] = source.sampling.value
    built = question(**given)
    own = source.own_load()
    if own is None or any(given.get(name) is not None for name in LOADS) or given.get("offline"):
        return built
    if built.load.mode is LoadMode.SLO_CAPACITY and not source.replays:
        return built
    return replace(built, load=own)


def simulate_question(
    *, tp: str | int | Sequence[int] | None, traffic: TrafficAsked, options: OptionsAsked, asked: dict[str, Any],
    progress: Progress | None = None,
) -> Simulated:
    """Answer by simulation; :func:`tpplanner.simulate` documents the arguments."""
    source, chosen = source_of(traffic), _options(options)
    ramp_s = options.get("ramp_s")
    check_real(WorkloadError, "--ramp", maximum=1e9, ramp_s=ramp_s)
    rec = recommend_question(_question(asked, source), with_flip_points=False)
    setting = Setting(question=rec.question, source=source, options=chosen, ramp_s=ramp_s, progress=progress)
    return run_setting(setting, rec, _plans(rec, tp))
