"""Figures of a run from its logs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpplanner.cost.energy import cost_usd_per_mtok, gpu_power_w
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.model import ModelSpec
from tpplanner.domain.simulation import Quantiles, RequestLog, SimulatedOutcome
from tpplanner.domain.traffic import Traffic
from tpplanner.domain.workload import Targets
from tpplanner.sim.record import GapHistogram, Meter

FloatArray = NDArray[np.float64]

_GROWTH_FRAC = 0.05
"""A queue that takes this share of all arrivals of the second half of a run, and grows throughout, has no end."""

_LEAST_ARRIVALS = 20
"""Fewer say nothing of a queue that grows."""

_CHANCE = 4.0
"""Standard deviations by which what is in flight has to grow; a batch that slows down as it fills makes chance larger. With
3, 4, 5: 21, 0, 0 % of runs of 1,000 Poisson requests at 0.8 of the capacity are called saturated, and 96, 88, 75 % of
runs of 3,000 at 1.1 of it (QwQ-32B, 80 in, 512 out, 24 runs each)."""

_LEAST_WINDOW_FRAC = 0.3
"""Of the requests have to finish under full load, and of the time between first and last arrival, for rates to be theirs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedBy:
    """What served the requests, and what is asked of it."""

    model: ModelSpec
    hardware: HardwareProfile
    tp: int
    num_gpus: int
    kv_capacity_tok: int
    num_kv_blocks: int
    kv_block_bytes: float
    targets: Targets
    price_usd_h: float | None


def quantiles_of(values_s: FloatArray) -> Quantiles | None:
    """Mean and quantiles of latencies; ``None`` where there are none."""
    if not values_s.size:
        return None
    p50, p90, p99 = (float(q) for q in np.quantile(values_s, (0.5, 0.9, 0.99)))
    return Quantiles(mean_s=float(values_s.mean()), p50_s=p50, p90_s=p90, p99_s=p99)


def meets(log: RequestLog, targets: Targets) -> NDArray[np.bool_]:
    """Which requests finished within every target; an output of one token has no TPOT to miss."""
    good = log.completed
    if targets.ttft_s is not None:
        good = good & (log.ttft_s <= targets.ttft_s)
    if targets.tpot_s is not None:
        good = good & ~(log.tpot_s > targets.tpot_s)
    return good


def is_saturated(log: RequestLog) -> bool:
    """Whether requests arrive faster than they are served: their number grows through the second half of the arrivals.

    Either those that wait, that is, arrived and no step has carried them; or, where a batch that is never full takes them
    all in, those in flight, once requests are short beside the run (:func:`has_settled`). Their number, averaged over the
    third, fourth and fifth sixth of the arrivals' time and so on, has to rise each time, and by a twentieth of what arrives;
    in flight also by more than chance makes of it. A queue that is as long as that throughout the last third is one too.
    """
    asked = log.replica >= 0
    arrival = np.sort(log.arrival_s[asked])
    if arrival.size < _LEAST_ARRIVALS or arrival[-1] <= arrival[0]:
        return False
    at = np.linspace(arrival[0], arrival[-1], 241)[121:]
    arrived = np.searchsorted(arrival, at, side="right")
    waiting, in_flight = (arrived - np.searchsorted(np.sort(until[asked]), at, side="right")
                          for until in (log.start_s, log.finish_s))
    gaps = np.diff(arrival)
    dispersion = max(float(gaps.var() / gaps.mean() ** 2), 1.0)
    # A queue that only just keeps up wanders about as a random walk does, the more so the burstier arrivals are.
    least = max(2.0 / 3.0 * _GROWTH_FRAC * arrival.size / 2.0, (dispersion * arrival.size / 3.0) ** 0.5)
    # A queue that is long throughout the last third does not drain either, however the rate of a trace goes up and down.
    if _grows(waiting, least) or waiting[-80:].min() > least:
        return True
    chance = _CHANCE * (dispersion * float(in_flight.mean())) ** 0.5
    return has_settled(log) and _grows(in_flight, max(least, chance))


def _grows(numbers: NDArray[np.int64], least: float) -> bool:
    third, fourth, last = (float(part.mean()) for part in np.split(numbers, 3))
    return third < fourth < last and last - third > least


def has_settled(log: RequestLog) -> bool:
    """Whether nine in ten requests take less than half of the arrivals' time, so that what is in flight can be steady."""
    done = log.completed
    if not done.any():
        return False
    arrival = log.arrival_s[log.replica >= 0]
    return bool(np.quantile(log.e2e_s[done], 0.9) <= 0.5 * (arrival.max() - arrival.min()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What finished per second, over ``window_s`` of the run."""

    window_s: float
    throughput_tok_s: float
    request_rate_req_s: float
    good_req_s: float


def rates_of(log: RequestLog, targets: Targets, *, full_load_from_s: float | None, keeps_up: bool = False) -> Rates:
    """Rates under full load: without the time in which the replicas fill, and that after the last arrival.

    Replicas that keep up with arrivals serve what arrives: all requests in the time in which they come, whatever the
    degree. Otherwise:

    As the requests that are under way when that time begins are as far on as those at its end, what finishes in it is
    what is served in it. Runs that leave too little of it, and those in which all requests arrive at once, are counted
    whole, first arrival to last token.

    Parameters
    ----------
    full_load_from_s
        When the last client of a closed loop has started, infinity where all start at once, as a benchmark that counts
        whole runs does [s]; ``None`` for an open loop, whose replicas are taken to be
        full when nine in ten of the requests would have been served that arrive first.
    keeps_up
        Whether an open loop was found not to be saturated.
    """
    done = log.completed
    if not done.any():
        return Rates(window_s=0.0, throughput_tok_s=0.0, request_rate_req_s=0.0, good_req_s=0.0)
    arrival_s = log.arrival_s[log.replica >= 0]
    start_s, end_s, last_s = float(arrival_s.min()), float(log.finish_s[done].max()), float(arrival_s.max())
    if keeps_up:
        # n arrivals have n - 1 gaps between them; the last one lasts as long as the others in the mean.
        end_s, full_load_from_s = start_s + (last_s - start_s) * arrival_s.size / (arrival_s.size - 1), np.inf
    elif full_load_from_s is None:
        full_load_from_s = start_s + float(np.quantile((log.finish_s - log.start_s + log.outside_s)[done], 0.9))
    within = done & (log.finish_s > full_load_from_s) & (log.finish_s <= last_s)
    long_enough = last_s - full_load_from_s >= _LEAST_WINDOW_FRAC * (last_s - start_s)
    if long_enough and within.sum() >= _LEAST_WINDOW_FRAC * done.sum():
        done, start_s, end_s = within, full_load_from_s, last_s
    window_s = end_s - start_s
    return Rates(window_s=window_s, throughput_tok_s=float(log.osl_tok[done].sum()) / window_s,
                 request_rate_req_s=float(done.sum()) / window_s, good_req_s=float((meets(log, targets) & done).sum()) / window_s)


def outcome_of(log: RequestLog, meters: list[Meter], served_by: ServedBy, traffic: Traffic, *, prefix_hit_tok: int,
               recomputed_tok: int, full_load_from_s: float | None = None) -> SimulatedOutcome:
    """Figures of a run.

    Parameters
    ----------
    log, meters
        Times of the requests, and what each replica did.
    full_load_from_s
        See :func:`rates_of`.
    prefix_hit_tok, recomputed_tok
        Prompt tokens found in the prefix cache, and tokens computed again after an eviction.
    """
    done = log.completed
    asked = log.replica >= 0
    start_s = float(log.arrival_s[asked].min()) if asked.any() else 0.0
    duration_s = float(log.finish_s[done].max()) - start_s if done.any() else 0.0
    is_open = traffic.rate_req_s is not None
    saturated = is_open and is_saturated(log)
    rates = rates_of(log, served_by.targets, full_load_from_s=full_load_from_s,
                     keeps_up=is_open and not saturated and int(asked.sum()) >= _LEAST_ARRIVALS and has_settled(log))
    throughput, output_tok = rates.throughput_tok_s, int(log.osl_tok[done].sum())
    good = meets(log, served_by.targets) if served_by.targets.any_set else None
    seqs_s = sum(m.running_s for m in meters)
    waited_s = np.nansum(log.queue_s[asked])
    replica_s = max(len(meters) * duration_s, 1e-30)
    power_w, busy = _power(meters, served_by, duration_s)
    tpot = log.tpot_s[done]
    return SimulatedOutcome(
        num_requests=int(done.size), num_completed=int(done.sum()), num_unservable=int(done.size - asked.sum()),
        duration_s=duration_s, num_steps=sum(m.num_steps for m in meters),
        ttft=quantiles_of(log.ttft_s[done]), tpot=quantiles_of(tpot[~np.isnan(tpot)]),
        itl=GapHistogram.quantiles(m.gaps for m in meters), e2e=quantiles_of(log.e2e_s[done]),
        queue=quantiles_of(log.queue_s[done]),
        window_s=rates.window_s, throughput_tok_s=throughput, throughput_per_gpu_tok_s=throughput / served_by.num_gpus,
        request_rate_req_s=rates.request_rate_req_s,
        goodput_req_s=None if good is None else rates.good_req_s,
        goodput_frac=None if good is None else float(good.sum()) / max(int(asked.sum()), 1),
        offered_rate_req_s=traffic.rate_req_s, saturated=saturated,
        num_preemptions=int(log.num_preemptions.sum()), recomputed_tok=recomputed_tok,
        swap_bytes=sum(m.swapped_blocks for m in meters) * served_by.kv_block_bytes * served_by.tp,
        prefix_hit_frac=prefix_hit_tok / max(int(log.isl_tok[asked].sum()), 1),
        mean_running_seqs=seqs_s / replica_s, mean_waiting_seqs=float(waited_s) / replica_s,
        kv_used_frac=sum(m.tok_s for m in meters) / replica_s / served_by.kv_capacity_tok,
        kv_peak_frac=max((m.kv_peak_blocks for m in meters), default=0) / served_by.num_kv_blocks,
        num_unused_rows=sum(m.num_unused_rows for m in meters), busy_frac=busy, power_w=power_w,
        energy_j_per_tok=power_w * duration_s / output_tok if output_tok else None,
        cost_usd_per_mtok=_cost(served_by, throughput),
    )


def _cost(served_by: ServedBy, throughput_tok_s: float) -> float | None:
    if served_by.price_usd_h is None or not throughput_tok_s:
        return None
    return float(cost_usd_per_mtok(num_gpus=served_by.num_gpus, price_usd_h=served_by.price_usd_h,
                                   throughput_tok_s=throughput_tok_s))


def _power(meters: list[Meter], served_by: ServedBy, duration_s: float) -> tuple[float, float]:
    """Mean power of all GPUs, those without a replica idle [w], and the busy share of those with one."""
    hardware = served_by.hardware
    replica_s = max(len(meters) * duration_s, 1e-30)
    busy = sum(m.busy_s for m in meters) / replica_s
    mbu = sum(m.read_bytes for m in meters) / replica_s / hardware.hbm_bytes_s.value
    mfu = sum(m.flop for m in meters) / replica_s / hardware.peak_for(served_by.model.precision.activation.name).value
    per_gpu_w = float(gpu_power_w(hardware.power, busy_frac=busy, mbu_frac=mbu, mfu_frac=mfu))
    working = min(served_by.tp * len(meters), served_by.num_gpus)
    return working * per_gpu_w + (served_by.num_gpus - working) * hardware.power.idle_w.value, min(busy, 1.0)
