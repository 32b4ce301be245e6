"""How long a simulated run goes on, whose clients ask in it, and which arguments its load has no use for."""

import math
from collections.abc import Mapping, Sequence

from tpplanner.domain.plan import DegreePlan, Question
from tpplanner.domain.workload import LoadMode
from tpplanner.errors import WorkloadError, reject

_LEAST_REQUESTS = 1000
_TRAFFIC_S, _SEARCHED_TRAFFIC_S = 300.0, 60.0
_LIFETIMES, _SEARCHED_LIFETIMES = 20.0, 12.0
"""Traffic that a run at a rate serves, and each run of a search for a rate: both so many seconds and so many times what a
request takes, as batches fill during the first of these times. Capacities found in runs of 1 to 3 of these times lie 10 to
30 % over those of runs of 50, in runs of 10 of them 3 % (Llama-3.1-70B, 500 in, 2,000 out; Qwen2.5-7B, 500 in, 200 out)."""

_FEW_LIFETIMES = 3.0
_LEAST_SEARCHED = 20
"""Fewer arrivals show no growing queue."""

_WAVES = 20
"""Requests per client of a closed loop, and per place in the batch where all are queued at once."""
_MOST_DEFAULT_REQUESTS = 50_000

_OPEN = (LoadMode.REQUEST_RATE, LoadMode.SLO_CAPACITY)


def default_requests(question: Question, plans: Sequence[DegreePlan]) -> int:
    """Requests of a run that was not told how many: enough waves that its start and end weigh little."""
    match question.load.mode:
        case LoadMode.REQUEST_RATE:
            wanted = [_TRAFFIC_S * (question.load.value or 0.0), *(_LIFETIMES * num for num in _in_flight(plans))]
        case LoadMode.SLO_CAPACITY:
            rates = [plan.outcome.request_rate_req_s for plan in plans if plan.outcome is not None]
            wanted = [*(_SEARCHED_TRAFFIC_S * rate for rate in rates), *(_SEARCHED_LIFETIMES * n for n in _in_flight(plans))]
        case _:
            wanted = [_WAVES * p.num_replicas * p.outcome.concurrency_per_replica for p in plans if p.outcome is not None]
    return int(min(max([_LEAST_REQUESTS, *wanted]), _MOST_DEFAULT_REQUESTS))


def _in_flight(plans: Sequence[DegreePlan]) -> list[float]:
    """Requests in flight at the rates of the closed form, where they have an end: rate times the time of one."""
    return [plan.outcome.request_rate_req_s * plan.outcome.e2e_s for plan in plans
            if plan.outcome is not None and plan.outcome.e2e_s is not None]


def few_requests(question: Question, plans: Sequence[DegreePlan], num_requests: int) -> tuple[str, ...]:
    """Return a warning where a run is over before its batches have filled, or its clients have asked a few times."""
    if question.load.mode not in (*_OPEN, LoadMode.OFFLINE):
        clients = max((sum(clients_of(question, plan)) for plan in plans if plan.outcome is not None), default=0)
        if num_requests >= _FEW_LIFETIMES * clients:
            return ()
        return (f"few requests: {num_requests:,} for {clients:,} clients: most of the run is its start and its end",)
    most = max(_in_flight(plans), default=0.0)
    if question.load.mode not in _OPEN or num_requests >= _FEW_LIFETIMES * most:
        return ()
    searched = "; higher rates cannot be told from so few" if question.load.mode is LoadMode.SLO_CAPACITY else ""
    return (f"few requests: {num_requests:,}, where the closed form has up to {most:,.0f} in flight at a time: "
            f"batches hardly fill before the last one arrives{searched}",)


def clients_of(question: Question, plan: DegreePlan) -> list[int]:
    """Clients of each replica in a closed loop."""
    value = question.load.value or 0.0
    match question.load.mode:
        case LoadMode.CONCURRENCY:
            total = value
        case LoadMode.BATCH_PER_GPU:
            total = value * plan.tp * plan.num_replicas
        case _:
            total = max(math.floor(value + 0.5), 1) * plan.num_replicas
    # Clients are whole, and so is their number in the cluster before that of a replica: every degree has the same.
    each, rest = divmod(max(math.floor(total + 0.5), 1), plan.num_replicas)
    return [each + (i < rest) for i in range(plan.num_replicas)]


def check_load(question: Question, asked: Mapping[str, object], *, num_requests: int | None) -> None:
    """Refuse arguments of traffic and run that the load has no use for, and a search over a handful of requests.

    Raises
    ------
    WorkloadError
        Naming the argument and the load that it goes with.
    """
    mode = question.load.mode
    is_open, is_closed = mode in _OPEN, mode not in (*_OPEN, LoadMode.OFFLINE)
    own_times = mode is LoadMode.REQUEST_RATE and asked.get("request_rate") is None
    for name, fits, wanted in (
        ("arrivals", is_open, "a request rate, a trace with times, or targets without a load"),
        ("burstiness", is_open, "a request rate, a trace with times, or targets without a load"),
        ("scale_rate", own_times, "the times of the trace, not with another load"),
        ("ramp_s", is_closed, "the clients of a closed loop"),
        ("router", not is_closed, "requests that arrive, not with clients, each of which has its replica"),
        ("slo_quantile", question.targets.any_set, "targets"),
    ):
        if asked.get(name) is not None and not fits:
            reject(WorkloadError, name, f"be given with {wanted}", asked[name], "simulation")
    if mode is LoadMode.SLO_CAPACITY and num_requests is not None and num_requests < _LEAST_SEARCHED:
        reject(WorkloadError, "requests", f"be at least {_LEAST_SEARCHED} for a search of the highest rate", num_requests,
               "simulation")
