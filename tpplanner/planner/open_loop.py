"""Steady state under an offered request rate, and capacity under latency targets: searches over the batch."""

from dataclasses import dataclass, replace

import numpy as np

from tpplanner.cost.latency import Latency, latency_of
from tpplanner.cost.replica import KvRoom, ReplicaGrid
from tpplanner.cost.steady_state import SteadyState, batch_state, closed_loop, full_state, running_limit
from tpplanner.domain.matrix import BoolOrArray, FloatOrArray
from tpplanner.domain.workload import Targets

_NUM_BISECTIONS = 36
"""Halvings of the batch size; 2**-36 of a batch of 1,000 sequences is below 1e-7 sequences."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenLoopState:
    """Steady state at the offered rate, the rate that saturates the replica, and whether it does."""

    state: SteadyState
    capacity_req_s: FloatOrArray
    saturated: BoolOrArray


def _queue_wait_s(
    *, utilisation: FloatOrArray, num_servers: FloatOrArray, service_s: FloatOrArray
) -> FloatOrArray:
    """Mean wait for a place in the batch: M/D/c by Sakasegawa's approximation (1977) [s].

    (1/2) rho**(sqrt(2 (c + 1)) - 1) / (c (1 - rho)) * service.
    """
    rho = np.minimum(utilisation, 0.999999)
    return 0.5 * rho ** (np.sqrt(2.0 * (num_servers + 1.0)) - 1.0) / (num_servers * (1.0 - rho)) * service_s


def open_loop(grid: ReplicaGrid, room: KvRoom, rate_req_s: FloatOrArray) -> OpenLoopState:
    """Steady state of replicas that are each offered ``rate_req_s`` requests per second.

    The finishing rate grows with the batch, so the batch that finishes as much as arrives is found by
    bisection. A replica that cannot is saturated: it runs at capacity, which is that of a full batch with a
    queue (preemption included), and its queue grows without end.
    """
    limit = running_limit(grid, room)
    nothing = 0.0 * limit
    full = full_state(grid, room)
    saturated = np.greater_equal(rate_req_s, full.rate_req_s)
    low, high = nothing + 0.0 * rate_req_s, limit + 0.0 * rate_req_s
    for _ in range(_NUM_BISECTIONS):
        middle = 0.5 * (low + high)
        rate = batch_state(grid, num_seqs=middle).rate_req_s
        enough = np.greater_equal(rate, rate_req_s)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    kv_full: BoolOrArray = saturated & np.less_equal(room.num_seqs, grid.max_num_seqs)
    running = np.where(saturated, limit, high)
    state = batch_state(grid, num_seqs=running, num_waiting=np.inf, kv_full=kv_full)
    wait = _queue_wait_s(utilisation=rate_req_s / full.rate_req_s, num_servers=np.maximum(limit, 1.0),
                         service_s=running / state.rate_req_s)
    admission = np.where(saturated, np.inf, wait)
    queued = np.where(saturated, np.inf, state.rate_req_s * wait)
    return OpenLoopState(
        state=replace(state, admission_s=admission, num_queued_seqs=queued),
        capacity_req_s=full.rate_req_s + nothing, saturated=saturated,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SloCapacity:
    """Largest whole concurrency per replica at which the targets hold, its state and latency.

    Where not even one request meets them, ``meets`` is false and the state is that of one request.
    """

    concurrency: FloatOrArray
    meets: BoolOrArray
    state: SteadyState
    latency: Latency


def _meets(latency: Latency, targets: Targets) -> BoolOrArray:
    ttft = np.inf if targets.ttft_s is None else targets.ttft_s
    tpot = np.inf if targets.tpot_s is None else targets.tpot_s
    with np.errstate(invalid="ignore"):
        good: BoolOrArray = np.less_equal(latency.ttft_s, ttft) & ~np.greater(latency.tpot_s, tpot)
    return good


def slo_capacity(grid: ReplicaGrid, room: KvRoom, targets: Targets) -> SloCapacity:
    """Highest concurrency per replica at which mean TTFT and mean TPOT stay within the targets.

    Bisection over whole requests between 1 and what the batch holds; latency grows with the batch. A
    queue in front of a full batch adds latency and no throughput, so it is never the answer.
    """
    limit = np.maximum(np.floor(running_limit(grid, room)), 1.0) + 0.0 * grid.isl_tok
    low, high = np.ones_like(limit), limit

    def meets(concurrency: FloatOrArray) -> BoolOrArray:
        return _meets(latency_of(grid, closed_loop(grid, room, concurrency)), targets)

    first = meets(low)
    all_of_it = meets(limit)
    low = np.where(all_of_it, limit, low)
    while np.any(high - low > 1):
        middle = np.floor(0.5 * (low + high))
        good = meets(middle)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    state = closed_loop(grid, room, low)
    return SloCapacity(concurrency=low, meets=first, state=state, latency=latency_of(grid, state))
