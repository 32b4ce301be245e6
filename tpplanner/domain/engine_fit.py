"""What microbenchmarks on a machine said of the engine of this package: its host tasks, its sampler, its small kernels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tpplanner.domain.engine import EngineProfile, SamplingPolicy, TaskCost
from tpplanner.domain.quantity import Quantity
from tpplanner.errors import ProfileError, reject


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
    """Return the engine with its measured terms; what stays exposed counts where it schedules asynchronously."""
    overhead = engine.overlap_overhead_s
    return replace(
        engine, schedule=fit.schedule, prepare_input=fit.prepare_input, process_output=fit.process_output,
        sampling=fit.sampling, layer_overhead_s=fit.layer_overhead_s, step_overhead=fit.step_overhead,
        exposed=fit.exposed if engine.switches.async_sched else None,
        overlap_overhead_s=replace(overhead, value=0.0, source=f"measured as a part of what stays exposed: {fit.source}"))
