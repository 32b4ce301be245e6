"""Simulations made by hand: what the simulator would answer, without the simulator."""

import heapq
from dataclasses import replace

import numpy as np
from plan_factory import make_memory, make_question

from tpplanner.domain.plan import Reason
from tpplanner.domain.simulation import (
    LoadSeries,
    Quantiles,
    RequestLog,
    RunDetail,
    SimulatedDegree,
    SimulatedOutcome,
    Simulation,
    SimulationOptions,
    StepLog,
)
from tpplanner.domain.traffic import Traffic
from tpplanner.domain.workload import Load, LoadMode, Targets

NO_FLOAT, NO_INT = np.zeros(0), np.zeros(0, dtype=np.int64)


def make_traffic(num_requests: int = 300, *, rate_req_s: float | None = 4.0, seed: int = 0,
                 osl_tok: int | None = None) -> Traffic:
    """Lognormal lengths around 1,000 in and 500 out, Poisson arrivals; a closed loop where there is no rate."""
    rng = np.random.default_rng(seed)

    def lengths(mean: float) -> np.ndarray:
        return np.maximum(1, rng.lognormal(np.log(mean), 0.6, num_requests).round()).astype(np.int64)

    isl, osl = lengths(1000), lengths(500)
    if osl_tok is not None:
        osl = np.full(num_requests, osl_tok, dtype=np.int64)
    gaps = rng.exponential(1.0 / (rate_req_s or 1.0), num_requests)
    return Traffic(name="chat, lognormal", isl_tok=isl, osl_tok=osl,
                   arrival_s=None if rate_req_s is None else np.cumsum(gaps) - gaps[0])


def make_requests(traffic: Traffic, *, num_replicas: int = 2, places: int = 16, tpot_s: float = 0.03,
                  unservable: int = 0) -> RequestLog:
    """First come first served on ``places`` per replica; a token takes 1 +- 0.1 times ``tpot_s``, the last never fit."""
    count = traffic.num_requests
    rng = np.random.default_rng(1)
    arrival = np.zeros(count) if traffic.arrival_s is None else traffic.arrival_s
    own_tpot = tpot_s * rng.uniform(0.9, 1.1, count)
    free = [[0.0] * places for _ in range(num_replicas)]
    replica = np.arange(count, dtype=np.int64) % num_replicas
    start, first, finish = (np.full(count, np.nan) for _ in range(3))
    for i in range(count - unservable):
        start[i] = max(arrival[i], heapq.heappop(free[replica[i]]))
        first[i] = start[i] + 0.05 + 1e-4 * traffic.isl_tok[i]
        finish[i] = first[i] + (traffic.osl_tok[i] - 1) * own_tpot[i]
        heapq.heappush(free[replica[i]], finish[i])
    replica[count - unservable:] = -1
    return RequestLog(arrival_s=arrival, start_s=start, first_token_s=first, finish_s=finish, isl_tok=traffic.isl_tok,
                      osl_tok=traffic.osl_tok, replica=replica, num_preemptions=np.zeros(count, dtype=np.int64),
                      outside_s=np.zeros(count))


def make_series(log: RequestLog, replica: int, places: int = 16) -> LoadSeries:
    """Running and waiting counted from the log; a running sequence takes its share of the cache."""
    own = (log.replica == replica) & log.completed
    times = np.unique(np.concatenate([log.arrival_s[own], log.start_s[own], log.finish_s[own]]))

    def until(moments: np.ndarray) -> np.ndarray:
        return np.searchsorted(np.sort(moments[own]), times, side="right").astype(float)

    running = until(log.start_s) - until(log.finish_s)
    return LoadSeries(replica=replica, time_s=times, num_running_seqs=running,
                      num_waiting_seqs=until(log.arrival_s) - until(log.start_s), kv_used_frac=0.9 * running / places)


def make_steps(num_steps: int = 6, num_replicas: int = 2, *, complete: bool = True) -> StepLog:
    """Per replica a prompt, a mixed step, then decode steps of 10 ms without a gap; the third entry holds 5."""
    replica = np.repeat(np.arange(num_replicas, dtype=np.int64), num_steps)
    number = np.tile(np.arange(num_steps, dtype=np.int64), num_replicas)
    steps = np.where(number == 2, 5, 1)
    duration = 0.01 * steps
    start = np.concatenate([np.cumsum(part) - part for part in np.split(duration, num_replicas)])
    return StepLog(replica=replica, start_s=start, duration_s=duration, num_steps=steps,
                   num_decode_seqs=np.where(number == 0, 0, 4), num_prefill_tok=np.where(number < 2, 512, 0),
                   num_waiting_seqs=np.maximum(0, 2 - number), num_preempted=np.zeros_like(number),
                   kv_used_frac=0.1 + 0.01 * number, complete=complete)


def make_detail(traffic: Traffic, *, num_replicas: int = 2, places: int = 16, **changes: object) -> RunDetail:
    log = make_requests(traffic, num_replicas=num_replicas, places=places, **changes)
    return RunDetail(requests=log, series=tuple(make_series(log, r, places) for r in range(num_replicas)),
                     steps=make_steps(num_replicas=num_replicas))


def quantiles(times_s: np.ndarray) -> Quantiles | None:
    known = times_s[np.isfinite(times_s)]
    if not known.size:
        return None
    p50, p90, p99 = (float(x) for x in np.quantile(known, [0.5, 0.9, 0.99]))
    return Quantiles(mean_s=float(known.mean()), p50_s=p50, p90_s=p90, p99_s=p99)


def outcome_of(log: RequestLog, traffic: Traffic, targets: Targets, *, num_gpus: int = 8, **changes: object) -> SimulatedOutcome:
    """Figures from the log, energy and load made up."""
    done, ttft = log.completed, log.first_token_s - log.arrival_s
    tpot = (log.finish_s - log.first_token_s) / np.where(log.osl_tok > 1, log.osl_tok - 1, np.nan)
    duration = float(np.nanmax(log.finish_s)) if done.any() else 0.0
    met = done & ~(ttft > (targets.ttft_s or np.inf)) & ~(tpot > (targets.tpot_s or np.inf))
    per_s = 1.0 / duration if duration else 0.0
    tok_s = float(log.osl_tok[done].sum()) * per_s
    outcome = SimulatedOutcome(
        num_requests=done.size, num_completed=int(done.sum()), num_unservable=int((log.replica < 0).sum()),
        duration_s=duration, num_steps=12_345, ttft=quantiles(ttft), tpot=quantiles(tpot), itl=quantiles(tpot),
        e2e=quantiles(log.finish_s - log.arrival_s), queue=quantiles(log.start_s - log.arrival_s), window_s=duration,
        throughput_tok_s=tok_s,
        throughput_per_gpu_tok_s=tok_s / num_gpus, request_rate_req_s=float(done.sum()) * per_s,
        goodput_req_s=float(met.sum()) * per_s if targets.any_set else None,
        goodput_frac=float(met.sum()) / max(1, int(done.sum())) if targets.any_set else None,
        offered_rate_req_s=traffic.rate_req_s, saturated=False, num_preemptions=0, recomputed_tok=0, swap_bytes=0.0,
        prefix_hit_frac=0.0, mean_running_seqs=11.5, mean_waiting_seqs=0.25, kv_used_frac=0.31, kv_peak_frac=0.57,
        num_unused_rows=0, busy_frac=0.83, power_w=4800.0, energy_j_per_tok=1.2, cost_usd_per_mtok=1.39,
    )
    return replace(outcome, **changes)


def make_degree(tp: int, traffic: Traffic, targets: Targets, *, places: int = 16, tpot_s: float = 0.03, unservable: int = 0,
                meets_targets: bool = True, num_gpus: int = 8, **changes: object) -> SimulatedDegree:
    num_replicas = num_gpus // tp
    detail = make_detail(traffic, num_replicas=num_replicas, places=places, tpot_s=tpot_s, unservable=unservable)
    return SimulatedDegree(tp=tp, num_replicas=num_replicas, num_gpus_idle=num_gpus % tp, reason=None, reason_detail="",
                           memory=make_memory(), meets_targets=meets_targets, detail=detail,
                           outcome=outcome_of(detail.requests, traffic, targets, num_gpus=num_gpus, **changes))


def out_degree(tp: int, reason: Reason = Reason.WEIGHTS, num_gpus: int = 8) -> SimulatedDegree:
    return SimulatedDegree(tp=tp, num_replicas=num_gpus // tp, num_gpus_idle=0, reason=reason,
                           reason_detail="weights need 131 GiB per GPU, 72 GiB are usable", memory=None, outcome=None,
                           meets_targets=False, detail=None)


TARGETS = Targets(ttft_s=1.0, tpot_s=0.04)
OPTIONS = SimulationOptions(slo_quantile=0.99)


def make_sim(*, targets: Targets = TARGETS, traffic: Traffic | None = None, **changes: object) -> Simulation:
    """TP 1 does not fit, TP 2 is saturated, TP 4 wins over TP 8."""
    traffic = make_traffic() if traffic is None else traffic
    rate = traffic.rate_req_s
    load = Load(mode=LoadMode.OFFLINE) if rate is None else Load(mode=LoadMode.REQUEST_RATE, value=4.0)
    sim = Simulation(
        question=make_question(targets=targets, load=load), traffic=traffic, options=OPTIONS,
        degrees=(out_degree(1), make_degree(2, traffic, targets, places=8, tpot_s=0.05, saturated=True, meets_targets=False),
                 make_degree(4, traffic, targets, places=48, tpot_s=0.03),
                 make_degree(8, traffic, targets, places=96, tpot_s=0.02)),
        best_tp=4, ranked_by="throughput of all GPUs", seed=0, warnings=(),
    )
    return replace(sim, **changes)


def make_hopeless() -> Simulation:
    """TP 1 does not fit, TP 2 is saturated, TP 4 and 8 miss the TTFT target of 100 ms."""
    targets = Targets(ttft_s=0.1)
    sim = make_sim(targets=targets)
    return replace(sim, best_tp=None, degrees=tuple(replace(degree, meets_targets=False) for degree in sim.degrees))
