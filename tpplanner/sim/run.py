"""One simulated run: traffic on the replicas of one degree."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tpplanner.cost.replica import ReplicaGrid
from tpplanner.domain.simulation import RequestLog, RunDetail, SimulatedOutcome, SimulationOptions, StepLog
from tpplanner.domain.traffic import Traffic
from tpplanner.domain.workload import Targets
from tpplanner.serving.config import SchedulerConfig
from tpplanner.sim.clock import StepClock
from tpplanner.sim.cluster import Cluster, Progress
from tpplanner.sim.metrics import ServedBy, outcome_of
from tpplanner.sim.replica import ReplicaPlan
from tpplanner.sim.step_cost import Clock, DirectClock

_MOST_BLOCKS = 2**40
"""Of a model whose cache does not grow with its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deployment:
    """Replicas of one degree.

    Attributes
    ----------
    grid
        A grid of one point with scalars; its lengths are the means of the traffic.
    num_replicas, num_gpus
        Replicas of degree ``grid.tp``, and GPUs of the whole cluster, those left over included.
    """

    grid: ReplicaGrid
    num_replicas: int
    num_gpus: int
    price_usd_h: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KvPool:
    """KV blocks of one rank, and what each takes of its memory [bytes]."""

    num_blocks: int
    block_bytes: float


def kv_pool(grid: ReplicaGrid) -> KvPool:
    """Blocks of a replica.

    A block is counted by what a sequence of mean full length takes per token: for full attention that is exact; windows
    and recurrent states, whose growth ends, are spread evenly over its tokens.
    """
    memory = grid.memory()
    size = grid.engine.kv_block_size_tok
    length = grid.isl_tok + grid.osl_tok
    waste = (size - 1) / 2.0
    block_bytes = float(np.asarray(grid.seq_kv_bytes(length) / (length + waste) * size))
    if grid.num_gpu_blocks is not None:
        return KvPool(num_blocks=int(np.asarray(grid.num_gpu_blocks)), block_bytes=block_bytes)
    kv_bytes = float(np.asarray(memory.kv_bytes))
    if block_bytes <= 0:
        return KvPool(num_blocks=_MOST_BLOCKS if kv_bytes > 0 else 0, block_bytes=0.0)
    # Where windows save nothing this is the engine's own count; a hair more keeps the division from losing a block.
    return KvPool(num_blocks=max(int(kv_bytes / block_bytes * (1.0 + 1e-12)), 0), block_bytes=block_bytes)


def clock_of(grid: ReplicaGrid, options: SimulationOptions) -> Clock:
    """Return the clock of a replica: tables, or every step on its own. Runs of one degree may share it."""
    return DirectClock(grid) if options.step_by_step else StepClock(grid)


def _keys_of(traffic: Traffic, block_size_tok: int) -> Callable[[int], tuple[int, ...]] | None:
    """Keys of a request's full prompt blocks: the traffic's block that ends them, and where in it they end."""
    ids, span = traffic.prefix_ids, traffic.prefix_block_tok
    if ids is None or span is None:
        return None

    def keys_of(request: int) -> tuple[int, ...]:
        own = ids[request]
        num = min(int(traffic.isl_tok[request]), len(own) * span) // block_size_tok
        ends = ((j + 1) * block_size_tok - 1 for j in range(num))
        # One integer per id and place: a hash would let two prefixes meet by chance.
        return tuple(own[end // span] * span + end % span for end in ends)

    return keys_of


def _config(grid: ReplicaGrid, pool: KvPool, options: SimulationOptions) -> SchedulerConfig:
    return SchedulerConfig(
        num_kv_blocks=pool.num_blocks, kv_block_size_tok=grid.engine.kv_block_size_tok,
        max_num_seqs=int(np.asarray(grid.max_num_seqs)), max_num_batched_tokens=int(np.asarray(grid.max_num_batched_tokens)),
        preemption=grid.engine.preemption, watermark_frac=options.watermark_frac, prefix_caching=options.prefix_caching)


def simulate(
    deployment: Deployment, traffic: Traffic, *, options: SimulationOptions, clients: list[int] | None = None,
    ramp_s: float = 0.0, targets: Targets | None = None, clock: Clock | None = None, progress: Progress | None = None,
) -> tuple[SimulatedOutcome, RunDetail]:
    """Serve ``traffic`` on the replicas.

    Parameters
    ----------
    clients
        Of each replica, in a closed loop; ``None`` serves the requests when they arrive.
    ramp_s
        Time within which these clients start, evenly spaced [s].
    targets
        For goodput.
    clock
        Of an earlier run of the same replicas.
    progress
        Called now and then with the number of finished requests.

    Notes
    -----
    Deterministic: the same traffic gives the same run.
    """
    grid = deployment.grid
    pool = kv_pool(grid)
    plan = ReplicaPlan(
        grid=grid, clock=clock or clock_of(grid, options), traffic=traffic, kv_block_bytes=pool.block_bytes,
        isl_tok=traffic.isl_tok.tolist(), osl_tok=traffic.osl_tok.tolist(),
        num_timeline_steps=options.num_timeline_steps, fast_forward=not options.step_by_step,
        keys_of=_keys_of(traffic, grid.engine.kv_block_size_tok) if options.prefix_caching else None)
    cluster = Cluster(plan, _config(grid, pool, options), deployment.num_replicas, progress)
    if clients is None:
        cluster.serve_open(options.router)
    else:
        cluster.serve_closed(clients, ramp_s=ramp_s)
    served_by = ServedBy(
        model=grid.model, hardware=grid.hardware, tp=int(np.asarray(grid.tp)), num_gpus=deployment.num_gpus,
        kv_capacity_tok=pool.num_blocks * grid.engine.kv_block_size_tok, num_kv_blocks=pool.num_blocks,
        kv_block_bytes=pool.block_bytes, targets=targets or Targets(), price_usd_h=deployment.price_usd_h)
    log = _request_log(cluster, traffic)
    schedulers = [replica.scheduler for replica in cluster.replicas]
    outcome = outcome_of(log, [r.meter for r in cluster.replicas], served_by, traffic,
                         prefix_hit_tok=sum(s.num_found_tok for s in schedulers),
                         recomputed_tok=sum(s.num_recomputed_tok for s in schedulers),
                         full_load_from_s=None if clients is None else ramp_s or math.inf)
    series = tuple(r.meter.series.log(r.number, end_s=r.now_s) for r in cluster.replicas)
    return outcome, RunDetail(requests=log, series=series, steps=_step_log(cluster))


def _request_log(cluster: Cluster, traffic: Traffic) -> RequestLog:
    times = cluster.times
    return RequestLog(
        arrival_s=times.arrival_s, start_s=times.start_s, first_token_s=times.first_token_s, finish_s=times.finish_s,
        isl_tok=traffic.isl_tok, osl_tok=traffic.osl_tok, replica=times.replica, num_preemptions=times.num_preemptions,
        outside_s=times.outside_s)


def _step_log(cluster: Cluster) -> StepLog:
    rows = [(replica.number, *step) for replica in cluster.replicas for step in replica.meter.steps]
    columns = np.asarray(rows, dtype=float).reshape(-1, 9).T
    counts = columns.astype(np.int64)
    return StepLog(
        replica=counts[0], start_s=columns[1], duration_s=columns[2], num_steps=counts[3], num_decode_seqs=counts[4],
        num_prefill_tok=counts[5], num_waiting_seqs=counts[6], num_preempted=counts[7], kv_used_frac=columns[8],
        complete=all(len(r.meter.steps) < max(r.meter.timeline, 1) for r in cluster.replicas))
