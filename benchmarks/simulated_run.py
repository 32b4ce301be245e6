"""One measured serving run, simulated request by request as its benchmark loaded it, beside the closed form."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np

from tpplanner.api.loaded import engine_of, hardware_of, model_of, with_kernels, with_runs
from tpplanner.cost.replica import ReplicaGrid
from tpplanner.domain.run_prediction import OUT_OF_MEMORY, RunPrediction
from tpplanner.domain.serving_run import ServingRun
from tpplanner.domain.simulation import SimulatedOutcome, SimulationOptions
from tpplanner.domain.traffic import Traffic
from tpplanner.domain.workload import LoadMode
from tpplanner.planner.cluster import evaluate
from tpplanner.sim.run import Deployment, clock_of, kv_pool, simulate
from tpplanner.sim.step_cost import Clock

CLOSED, AT_ONCE, SPREAD = "closed form", "simulated, all at once", "simulated, one after the other"
TEN_EACH = "simulated, ten prompts each"
"""As `AT_ONCE`, where the benchmark's recipe says another number of prompts per client."""

TEN = 10.0
SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """What a simulated run says beside its latencies; waits are means over the requests [s]."""

    queue_s: float
    outside_s: float
    running_seqs: float
    preemptions_per_req: float
    kv_peak_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Predictions of one run by method, and what the simulated ones say beside."""

    run: ServingRun
    predictions: dict[str, RunPrediction]
    pressure: dict[str, Pressure]


class _Replica(NamedTuple):
    """Runs that agree in this are served by equal replicas, whose step times are computed once."""

    served: tuple[str, str, str]
    machine: str
    engine: str
    family: str
    cut: tuple[int, int]
    lengths: tuple[int, int, float]
    limits: tuple[float, float, float]
    wait_steps: float


def _limits(run: ServingRun) -> tuple[float, float, float]:
    """As ``tpplanner validate`` takes them: recipes of benchmarks raise the limit to the clients that they start."""
    engine = engine_of(run.engine)
    num_seqs = run.max_num_seqs or max(engine.max_num_seqs, run.concurrency)
    # A token budget below the number of sequences is refused by the engines too.
    num_tok = max(run.max_num_batched_tokens or engine.max_num_batched_tokens, num_seqs)
    return float(num_seqs), float(num_tok), run.gpu_memory_utilization or engine.gpu_memory_utilization


def _replica_of(run: ServingRun) -> _Replica:
    return _Replica(
        served=(run.checkpoint, run.dtype or "", run.kv_cache_dtype or ""), machine=run.machine, engine=run.engine,
        family=run.family, cut=(run.tp, run.ep), lengths=(run.isl_tok, run.osl_tok, run.load.length_frac), limits=_limits(run),
        wait_steps=float(np.asarray(run.load.batch_wait_steps)))


def grid_of_run(run: ServingRun, *, with_residuals: bool = True) -> ReplicaGrid:
    """Return the replica that served the run, with mean lengths, the terms of its family of benchmarks and their residuals."""
    model, engine = model_of(run.checkpoint, run.dtype, run.kv_cache_dtype), engine_of(run.engine)
    hardware = with_kernels(hardware_of(run.machine), engine)
    engine = with_runs(engine, hardware, model, family=run.family)
    if not with_residuals:
        engine = replace(engine, tpot_residual=None, ttft_residual=None)
    num_seqs, num_tok, memory_frac = _limits(run)
    frac = run.load.length_frac
    return ReplicaGrid(
        model=model, hardware=hardware, engine=engine, sampling=engine.default_sampling, tp=float(run.tp), ep=float(run.ep),
        isl_tok=frac * run.isl_tok, osl_tok=max(frac * run.osl_tok, 1.0), max_num_seqs=num_seqs,
        max_num_batched_tokens=num_tok, gpu_memory_utilization=memory_frac, load=run.load)


def requests_of(run: ServingRun) -> Traffic:
    """Return the prompts of all clients: lengths uniform in [(2 f - 1) L, L], f being ``length_frac``; at 1 all are L."""
    num = int(run.load.prompts_per_client * run.concurrency)
    rng = np.random.default_rng(SEED)
    low = 2.0 * run.load.length_frac - 1.0

    def lengths(nominal_tok: int) -> np.ndarray:
        return np.maximum(rng.integers(int(low * nominal_tok), nominal_tok + 1, num), 1)

    return Traffic(name="benchmark", isl_tok=lengths(run.isl_tok), osl_tok=lengths(run.osl_tok))


def closed_form(run: ServingRun, grid: ReplicaGrid) -> RunPrediction:
    """Predict by the closed form, for the same replica under the same load."""
    state = evaluate(grid, num_gpus=grid.tp, mode=LoadMode.CONCURRENCY_PER_REPLICA, value=float(run.concurrency))
    if not state.runs.all():
        return RunPrediction(run_id=run.run_id, status=OUT_OF_MEMORY)
    return RunPrediction(run_id=run.run_id, ttft_s=float(state.latency.ttft_s), tpot_s=float(state.latency.tpot_s))


def _pressure(outcome: SimulatedOutcome, outside_s: np.ndarray) -> Pressure:
    assert outcome.queue is not None  # something finished
    return Pressure(queue_s=outcome.queue.mean_s, outside_s=float(outside_s.mean()), running_seqs=outcome.mean_running_seqs,
                    preemptions_per_req=outcome.num_preemptions / outcome.num_requests, kv_peak_frac=outcome.kv_peak_frac)


def simulated(run: ServingRun, grid: ReplicaGrid, clock: Clock | None, *, ramp_s: float) -> tuple[RunPrediction, Pressure | None]:
    """Predict by simulation, the clients starting within ``ramp_s`` [s]; means over all requests, as benchmarks take them."""
    if kv_pool(grid).num_blocks < 1:
        return RunPrediction(run_id=run.run_id, status=OUT_OF_MEMORY), None
    outcome, detail = simulate(Deployment(grid=grid, num_replicas=1, num_gpus=run.tp), requests_of(run),
                               options=SimulationOptions(), clients=[run.concurrency], ramp_s=ramp_s, clock=clock)
    if outcome.num_unservable or outcome.ttft is None or outcome.tpot is None:
        return RunPrediction(run_id=run.run_id, status=OUT_OF_MEMORY), None
    return (RunPrediction(run_id=run.run_id, ttft_s=outcome.ttft.mean_s, tpot_s=outcome.tpot.mean_s),
            _pressure(outcome, detail.requests.outside_s))


def _compared(run: ServingRun, clock: Clock | None, *, with_residuals: bool, starts: Sequence[str]) -> Compared:
    grid = grid_of_run(run, with_residuals=with_residuals)
    closed = closed_form(run, grid)
    predictions = {CLOSED: closed}
    pressure: dict[str, Pressure] = {}
    if closed.ttft_s is None or closed.tpot_s is None:
        return Compared(run=run, predictions=predictions, pressure=pressure)
    e2e_s = closed.ttft_s + closed.tpot_s * (float(grid.osl_tok) - 1.0)
    for start in starts:
        if start == TEN_EACH and run.load.prompts_per_client == TEN:
            continue
        loaded = replace(run, load=replace(run.load, prompts_per_client=TEN)) if start == TEN_EACH else run
        predictions[start], told = simulated(loaded, grid, clock, ramp_s=e2e_s if start == SPREAD else 0.0)
        if told is not None:
            pressure[start] = told
    return Compared(run=run, predictions=predictions, pressure=pressure)


def compare(runs: Sequence[ServingRun], *, with_residuals: bool, starts: Sequence[str]) -> list[Compared]:
    """Compare runs that one replica served."""
    grid = grid_of_run(runs[0], with_residuals=with_residuals)
    clock = clock_of(grid, SimulationOptions())
    return [_compared(run, clock, with_residuals=with_residuals, starts=starts) for run in runs]


def by_replica(runs: Iterable[ServingRun]) -> Iterator[list[ServingRun]]:
    """Yield the runs in groups that one replica served."""
    for _, own in groupby(sorted(runs, key=_replica_of), key=_replica_of):
        yield list(own)
