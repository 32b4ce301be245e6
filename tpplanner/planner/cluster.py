"""N GPUs as N/t replicas under one load: the outcome of every grid point, as arrays."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tpplanner.cost.energy import cost_usd_per_mtok, energy_j_per_tok, gpu_power_w, step_bytes_flop
from tpplanner.cost.latency import Latency, latency_of
from tpplanner.cost.replica import KvRoom, ReplicaGrid, kv_room
from tpplanner.cost.steady_state import SteadyState, closed_loop, full_state
from tpplanner.domain.matrix import BoolOrArray, FloatOrArray
from tpplanner.domain.workload import LoadMode, Targets
from tpplanner.planner.degrees import num_replicas_of
from tpplanner.planner.open_loop import open_loop, slo_capacity

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusterState:
    """Outcome per grid point. Rates and tokens of the cluster, sequences of one replica.

    ``runs`` says that the model fits and is served at all; ``meets_ttft`` and ``meets_tpot`` that the
    targets hold; ``saturated`` that requests queue for a place in the batch.
    """

    room: KvRoom
    state: SteadyState
    latency: Latency
    runs: BoolArray
    meets_ttft: BoolArray
    meets_tpot: BoolArray
    saturated: BoolArray
    num_replicas: FloatArray
    num_active_replicas: FloatArray
    concurrency_per_replica: FloatArray
    rate_req_s: FloatArray
    capacity_req_s: FloatArray
    throughput_tok_s: FloatArray
    busy_frac: FloatArray
    power_w: FloatArray
    energy_j_per_tok: FloatArray
    cost_usd_per_mtok: FloatArray | None

    @property
    def feasible(self) -> BoolArray:
        """Fits, and holds the targets."""
        return self.runs & self.meets_ttft & self.meets_tpot


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Served:
    """What a load mode decides: the state of a replica and how many replicas have work."""

    state: SteadyState
    latency: Latency
    concurrency: FloatOrArray
    num_active: FloatOrArray
    capacity_req_s: FloatOrArray
    saturated: BoolOrArray


def _serve_closed(
    grid: ReplicaGrid, room: KvRoom, concurrency: FloatOrArray, num_active: FloatOrArray
) -> _Served:
    state = closed_loop(grid, room, concurrency)
    return _Served(state=state, latency=latency_of(grid, state), concurrency=concurrency, num_active=num_active,
                   capacity_req_s=full_state(grid, room).rate_req_s, saturated=np.greater(state.num_queued_seqs, 0))


def _serve_open(grid: ReplicaGrid, room: KvRoom, rate: FloatOrArray, replicas: FloatOrArray) -> _Served:
    opened = open_loop(grid, room, rate)
    state = opened.state
    latency = latency_of(grid, state)
    return _Served(state=state, latency=latency, concurrency=state.rate_req_s * latency.e2e_s, num_active=replicas,
                   capacity_req_s=opened.capacity_req_s, saturated=opened.saturated)


def _serve_offline(grid: ReplicaGrid, room: KvRoom, replicas: FloatOrArray) -> _Served:
    state = full_state(grid, room)
    latency = latency_of(grid, state)
    # Everything is queued at once: a first token has no meaningful wait.
    latency = replace(latency, ttft_s=np.full_like(latency.tpot_s, np.nan), e2e_s=np.full_like(latency.tpot_s, np.nan))
    return _Served(state=state, latency=latency, concurrency=state.num_running_seqs, num_active=replicas,
                   capacity_req_s=state.rate_req_s, saturated=np.ones_like(latency.tpot_s, dtype=bool))


def _serve(
    grid: ReplicaGrid, room: KvRoom, *, mode: LoadMode, value: FloatOrArray, targets: Targets,
    replicas: FloatOrArray,
) -> _Served:
    match mode:
        case LoadMode.REQUEST_RATE:
            return _serve_open(grid, room, value / replicas, replicas)
        case LoadMode.CONCURRENCY:
            # Fewer requests than replicas: some replicas have one request, the others none.
            return _serve_closed(grid, room, np.maximum(value / replicas, 1.0), np.minimum(value, replicas))
        case LoadMode.BATCH_PER_GPU:
            return _serve_closed(grid, room, np.maximum(value * grid.tp, 1.0),
                                 replicas * np.minimum(value * grid.tp, 1.0))
        case LoadMode.CONCURRENCY_PER_REPLICA:
            return _serve_closed(grid, room, np.maximum(value, 1.0), replicas * np.minimum(value, 1.0))
        case LoadMode.SLO_CAPACITY:
            best = slo_capacity(grid, room, targets)
            return _Served(state=best.state, latency=best.latency, concurrency=best.concurrency,
                           num_active=replicas, capacity_req_s=full_state(grid, room).rate_req_s,
                           saturated=np.logical_not(best.meets))
        case LoadMode.OFFLINE:
            return _serve_offline(grid, room, replicas)


def _utilisation(grid: ReplicaGrid, state: SteadyState) -> tuple[FloatOrArray, FloatOrArray, FloatOrArray]:
    """Busy share, share of peak bandwidth and share of the dense peak of one GPU."""
    model, hardware = grid.model, grid.hardware
    read: FloatOrArray = 0.0
    flop: FloatOrArray = 0.0
    for batch, share in ((state.decode_batch, 1.0 - state.mixed_frac), (state.mixed_batch, state.mixed_frac)):
        step_bytes, step_flop = step_bytes_flop(model, tp=grid.tp, batch=batch)
        read, flop = read + share * step_bytes, flop + share * step_flop
    peak = hardware.peak_for(model.precision.activation.name).value
    # A replica whose mean batch is below one sequence stands still for the rest of the time.
    working = np.minimum(state.num_running_seqs, 1.0)
    busy = working * state.mean_of("device_s") / state.step_s
    return busy, working * read / state.step_s / hardware.hbm_bytes_s.value, working * flop / state.step_s / peak


def evaluate(
    grid: ReplicaGrid, *, num_gpus: FloatOrArray, mode: LoadMode, value: FloatOrArray = 0.0,
    targets: Targets | None = None, price_usd_h: float | None = None,
) -> ClusterState:
    """Evaluate every grid point under one load mode.

    Parameters
    ----------
    num_gpus
        GPUs of the cluster; the replicas that its nodes hold share the load.
    mode, value
        See :class:`tpplanner.domain.workload.LoadMode`; ``value`` is ignored where the mode has none.
    targets
        On mean TTFT and TPOT.
    price_usd_h
        Per GPU; ``None`` leaves cost out.

    Notes
    -----
    Energy and cost count every GPU of the cluster: those left over idle, and are paid for.
    """
    targets = targets or Targets()
    # A degree without a replica is evaluated all the same, as next to none, and marked as not running.
    replicas = np.maximum(num_replicas_of(num_gpus, tp=grid.tp, gpus_per_node=grid.hardware.gpus_per_node), 1e-9)
    room = kv_room(grid)
    served = _serve(grid, room, mode=mode, value=value, targets=targets, replicas=replicas)
    state, latency = served.state, served.latency
    shape = np.broadcast(replicas, state.rate_req_s, room.num_seqs).shape

    def full(x: FloatOrArray | BoolOrArray) -> FloatArray:
        return np.broadcast_to(np.asarray(x, dtype=float), shape)

    rate = full(served.num_active * state.rate_req_s)
    throughput = rate * grid.osl_tok
    busy, mbu, mfu = _utilisation(grid, state)
    per_gpu_w = gpu_power_w(grid.hardware.power, busy_frac=busy, mbu_frac=mbu, mfu_frac=mfu)
    working_gpus = np.minimum(grid.tp * served.num_active, num_gpus)
    power = full(working_gpus * per_gpu_w + (num_gpus - working_gpus) * grid.hardware.power.idle_w.value)
    cost = None
    if price_usd_h is not None:
        cost = full(cost_usd_per_mtok(num_gpus=num_gpus, price_usd_h=price_usd_h, throughput_tok_s=throughput))
    ttft_limit = np.inf if targets.ttft_s is None else targets.ttft_s
    tpot_limit = np.inf if targets.tpot_s is None else targets.tpot_s
    with np.errstate(invalid="ignore"):
        meets_ttft = ~np.greater(full(latency.ttft_s), ttft_limit)
        meets_tpot = ~np.greater(full(latency.tpot_s), tpot_limit)
    runs = np.greater(full(replicas), 0.5) & full(room.fits_weights).astype(bool) & full(room.fits_one).astype(bool)
    return ClusterState(
        room=room, state=state, latency=latency, runs=runs, meets_ttft=meets_ttft, meets_tpot=meets_tpot,
        saturated=full(served.saturated).astype(bool), num_replicas=full(replicas),
        num_active_replicas=full(served.num_active), concurrency_per_replica=full(served.concurrency),
        rate_req_s=rate, capacity_req_s=full(replicas * served.capacity_req_s), throughput_tok_s=throughput,
        busy_frac=full(busy), power_w=power,
        energy_j_per_tok=full(energy_j_per_tok(power_w=power, throughput_tok_s=throughput)),
        cost_usd_per_mtok=cost,
    )
