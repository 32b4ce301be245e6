"""What microbenchmarks on a machine said of the engine of this package: its host tasks, its sampler, its small kernels."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from tpplanner.domain.engine import EngineProfile, SamplingPolicy, TaskCost
from tpplanner.domain.quantity import Quantity
from tpplanner.errors import ProfileError, reject

TASKS: Final = ("schedule", "prepare_input", "process_output", "exposed", "step_overhead", "restart")
"""Fields of a fit that are costs over the sequences."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineFit:
    """Measured terms of the engine on one machine.

    Attributes
    ----------
    schedule, prepare_input, process_output
        T1, T2 with the way of the inputs to the device, T5 with the way of the ids back.
    exposed
        What the device waits for between two steps although every mechanism of overlap is on.
    sampling
        T4 per policy, on one rank.
    step_overhead
        What the device does in a step outside layers, LM head and sampling.
    restart
        What it takes longer where it waited for the host before the step: a core that sleeps loses its clock and its caches.
    layer_overhead_s
        Fixed cost of the small operations of one layer.
    elementwise_memory
        Share of the peak bandwidth at which these operations move their bytes.
    source
        Names the samples.
    """

    schedule: TaskCost
    prepare_input: TaskCost
    process_output: TaskCost
    exposed: TaskCost
    step_overhead: TaskCost
    restart: TaskCost
    sampling: Mapping[SamplingPolicy, TaskCost]
    layer_overhead_s: Quantity
    elementwise_memory: Quantity
    source: str

    def __post_init__(self) -> None:
        missing = [policy.value for policy in SamplingPolicy if policy not in self.sampling]
        if missing:
            reject(ProfileError, "sampling", "give every policy", f"none for {', '.join(missing)}", self.source)
        if not 0 < self.elementwise_memory.value <= 1:
            reject(ProfileError, "elementwise_memory", "be in (0, 1]", self.elementwise_memory.value, self.source)


def with_engine_fit(engine: EngineProfile, fit: EngineFit) -> EngineProfile:
    """Return the engine with its measured terms; what stays exposed counts where it schedules asynchronously.

    Where it does not, the device waits for the host in every step, and takes its time to get going again.
    """
    overhead = engine.overlap_overhead_s
    is_async = engine.switches.async_sched
    return replace(
        engine, schedule=fit.schedule, prepare_input=fit.prepare_input, process_output=fit.process_output,
        sampling=fit.sampling, layer_overhead_s=fit.layer_overhead_s, exposed=fit.exposed if is_async else None,
        step_overhead=fit.step_overhead if is_async else _sum(fit.step_overhead, fit.restart),
        overlap_overhead_s=replace(overhead, value=0.0, source=f"measured as a part of what stays exposed: {fit.source}"))


def _sum(one: TaskCost, two: TaskCost) -> TaskCost:
    """Add two costs over the sequences; errors are taken as independent."""
    def added(name: str) -> Quantity:
        first: Quantity = getattr(one, name)
        second: Quantity = getattr(two, name)
        error = None if first.std_error is None or second.std_error is None else math.hypot(first.std_error, second.std_error)
        return replace(first, value=first.value + second.value, std_error=error)

    return TaskCost(fixed_s=added("fixed_s"), per_seq_s=added("per_seq_s"))
