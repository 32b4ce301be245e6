"""Measured runs in groups that share everything a coefficient may depend on, with what no coefficient changes computed once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tpplanner.cost.batches import BatchPlan, plan_batches
from tpplanner.cost.latency import latency_of
from tpplanner.cost.operators import OperatorTimes, operator_times
from tpplanner.cost.outside import Corrections
from tpplanner.cost.replica import KvRoom, ReplicaGrid, kv_room
from tpplanner.cost.serving import bind_terms
from tpplanner.cost.steady_state import closed_loop, running_limit, state_of
from tpplanner.cost.step_time import step_of
from tpplanner.domain.engine import EngineProfile
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.model import ModelSpec
from tpplanner.domain.serving_fit import LoadGenerator, ServingTerms, model_class
from tpplanner.domain.serving_run import ServingRun
from tpplanner.domain.step import Batch, StepTime

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """A measured run and the model, machine and engine that it ran on, before any serving fit is bound to them."""

    run: ServingRun
    model: ModelSpec
    hardware: HardwareProfile
    engine: EngineProfile


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Runs of one model in one format on one machine and engine by one family of benchmarks.

    ``where`` are their positions in the sequence of all runs, ``levels`` the names that they share.
    """

    where: NDArray[np.intp]
    levels: dict[str, str]
    grid: ReplicaGrid
    room: KvRoom
    concurrency: FloatArray
    tpot_s: FloatArray
    ttft_s: FloatArray
    fits: BoolArray

    @property
    def has_tpot(self) -> BoolArray:
        """Runs with more than one output token."""
        return np.broadcast_to(np.greater(self.grid.osl_tok, 1.0), self.fits.shape)


def levels_of(served: Served) -> dict[str, str]:
    """Names of the levels (:data:`tpplanner.fit.serving_spec.LEVELS`) that a run belongs to."""
    run, cell = served.run, f"{served.hardware.name}/{served.engine.name}"
    return {
        "machine": served.hardware.name, "engine": served.engine.name, "cell": cell,
        "build": f"{served.engine.name}/{run.family}", "family": run.family, "cell_family": f"{cell}/{run.family}",
        "attention": model_class(served.model),
    }


def _load(runs: Sequence[ServingRun]) -> LoadGenerator:
    """Load of a group: one for all but the steps that the engine waits, which is an array."""
    waits = np.asarray([float(run.load.batch_wait_steps) for run in runs])
    return replace(runs[0].load, batch_wait_steps=waits)


def _grid(served: Sequence[Served]) -> ReplicaGrid:
    first = served[0]
    engine, runs = first.engine, [s.run for s in served]
    load = _load(runs)

    def column(name: str, default: float | None = None) -> FloatArray:
        values = [getattr(run, name) for run in runs]
        return np.asarray([default if v is None else v for v in values], dtype=float)

    return ReplicaGrid(
        model=first.model, hardware=first.hardware, engine=engine, sampling=engine.default_sampling,
        tp=column("tp"), ep=column("ep"), isl_tok=column("isl_tok") * load.length_frac,
        osl_tok=np.maximum(column("osl_tok") * load.length_frac, 1.0), load=load,
        # Recipes of benchmarks raise the limit to the clients that they start.
        max_num_seqs=np.asarray([run.max_num_seqs or max(engine.max_num_seqs, run.concurrency) for run in runs], dtype=float),
        max_num_batched_tokens=column("max_num_batched_tokens", engine.max_num_batched_tokens),
        gpu_memory_utilization=column("gpu_memory_utilization", engine.gpu_memory_utilization),
    )


def groups_of(served: Sequence[Served]) -> tuple[Group, ...]:
    """Split runs into groups, the order of the runs kept within each."""
    keyed: dict[tuple[object, ...], list[int]] = {}
    for i, one in enumerate(served):
        key = (id(one.model), one.hardware.name, one.engine.name, one.run.family, one.run.load.prompts_per_client,
               one.run.load.length_frac)
        keyed.setdefault(key, []).append(i)
    groups = []
    for where in keyed.values():
        members = [served[i] for i in where]
        grid = _grid(members)
        room = kv_room(grid)
        groups.append(Group(
            where=np.asarray(where), levels=levels_of(members[0]), grid=grid, room=room,
            concurrency=np.asarray([m.run.concurrency for m in members], dtype=float),
            tpot_s=np.asarray([m.run.tpot_s for m in members]), ttft_s=np.asarray([m.run.ttft_s for m in members]),
            fits=np.broadcast_to(room.fits_one & room.fits_weights, len(where)).astype(bool),
        ))
    return tuple(groups)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A group with its batches and the times of its operators alone: what a fit need not compute again.

    ``in_batch`` are the requests of each run that its batch can hold: where corrections are looked up.
    """

    group: Group
    plan: BatchPlan
    decode: OperatorTimes
    mixed: OperatorTimes
    in_batch: FloatArray
    queued: BoolArray


def prepare(group: Group, terms: ServingTerms) -> Prepared:
    """Find the batches of the closed loop under ``terms`` and time their operators."""
    grid = replace(group.grid, engine=bind_terms(group.grid.engine, terms))
    state = closed_loop(grid, group.room, group.concurrency)
    plan = plan_batches(group.grid, num_seqs=state.num_running_seqs)
    model, hardware = grid.model, grid.hardware
    queued = np.broadcast_to(np.greater(state.num_queued_seqs, 0.0), group.concurrency.shape)
    decode, mixed = (
        operator_times(model, hardware, tp=grid.tp, ep=grid.ep, batch=batch,
                       seq_parallel_sampling=grid.engine.switches.seq_parallel_sampling)
        for batch in (plan.decode, plan.mixed)
    )
    return Prepared(
        group=group, plan=plan, decode=decode, mixed=mixed, queued=queued,
        in_batch=np.minimum(group.concurrency, running_limit(grid, group.room)),
    )


def latencies(
    prepared: Prepared, terms: ServingTerms, *, step_factor: FloatOrArray = 1.0
) -> tuple[FloatArray, FloatArray]:
    """TPOT and TTFT of the group's runs under ``terms``, their batches held fixed [s]; no TPOT of one output token.

    ``step_factor`` is what runs of the model correct of every step.
    """
    group, plan = prepared.group, prepared.plan
    grid = replace(group.grid, engine=bind_terms(group.grid.engine, terms))

    def step(alone: OperatorTimes, batch: Batch) -> StepTime:
        return step_of(alone, grid.model, grid.engine, tp=grid.tp, batch=batch, sampling=grid.sampling)

    state = state_of(grid, plan, step(prepared.decode, plan.decode), step(prepared.mixed, plan.mixed),
                     Corrections(step=step_factor, ttft=1.0))
    latency = latency_of(grid, state)
    return np.asarray(latency.tpot_s, dtype=float), np.asarray(latency.ttft_s, dtype=float)
