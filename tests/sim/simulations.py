"""Replicas and traffic of the simulator's tests."""

from dataclasses import replace

import numpy as np
from builders import make_grid, round_engine, round_hardware, tiny_model

from tpplanner.cost.replica import ReplicaGrid
from tpplanner.domain.engine import Switches
from tpplanner.domain.simulation import RunDetail, SimulatedOutcome, SimulationOptions
from tpplanner.domain.traffic import Traffic
from tpplanner.sim.run import Deployment, simulate

OVERLAPPED = Switches(async_sched=True, early_feedback=True)


def small_grid(*, switches: Switches | None = None, **changes: object) -> ReplicaGrid:
    """A tiny model on the machine with round numbers; degree 1."""
    return make_grid(tiny_model(), round_hardware(), round_engine(switches), **changes)


def traffic(isl, osl, arrival_s=None, count: int | None = None) -> Traffic:
    """Requests of the lengths given; scalars stand for ``count`` equal ones."""
    size = count or np.size(isl)
    return Traffic(name="test", isl_tok=np.broadcast_to(np.asarray(isl), size).copy(),
                   osl_tok=np.broadcast_to(np.asarray(osl), size).copy(),
                   arrival_s=None if arrival_s is None else np.asarray(arrival_s, dtype=float))


def run(grid: ReplicaGrid, requests: Traffic, *, num_replicas: int = 1, step_by_step: bool = False, **changes
        ) -> tuple[SimulatedOutcome, RunDetail]:
    """Simulate on ``num_replicas`` replicas; the grid's mean lengths are those of the requests."""
    grid = replace(grid, isl_tok=float(requests.isl_tok.mean()), osl_tok=float(requests.osl_tok.mean()))
    options = changes.pop("options", SimulationOptions(step_by_step=step_by_step, num_timeline_steps=10**6))
    deployment = Deployment(grid=grid, num_replicas=num_replicas, num_gpus=num_replicas * int(grid.tp))
    return simulate(deployment, requests, options=options, **changes)
