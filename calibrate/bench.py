"""What every benchmark is given, and what it gives back."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from calibrate.machine import Nvml, last_level_cache_bytes
from calibrate.samples import Case
from calibrate.timing import Call, event_times_s, graph_times_s, host_times_s
from tpplanner.engine.model_config import EngineModel
from tpplanner.io.calibration_samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured: models whose shapes are taken, degrees, sizes, and the time that one case may take [s]."""

    models: tuple[EngineModel, ...]
    degrees: tuple[int, ...]
    num_tok: tuple[int, ...]
    context_tok: tuple[int, ...]
    dtypes: tuple[str, ...]
    budget_s: float


class WrongAnswerError(Exception):
    """A benchmark's operation gives what it should not; its time would mean nothing."""


@dataclass(slots=True, kw_only=True)
class Prepared:
    """Inputs are made: what to time, and what to check before."""

    call: Call
    check: Callable[[], None]
    values: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Bench:
    """The device that is measured."""

    device: torch.device
    nvml: Nvml
    in_graphs: bool = False

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def rotation(self, num_bytes: float) -> int:
        """How many copies of an input of so many bytes exceed the last cache twice: what a step finds is not in it."""
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size if self.is_cuda else last_level_cache_bytes()
        return max(1, math.ceil(2 * cache / max(num_bytes, 1.0)))

    def time(self, name: str, case: Case, prepared: Prepared, *, budget_s: float) -> Sample:
        """Check the answer, then time every iteration."""
        prepared.check()
        if not self.is_cuda:
            timer, times = "host", host_times_s(prepared.call, budget_s=budget_s)
        elif self.in_graphs:
            timer, times = "graph", graph_times_s(prepared.call, budget_s=budget_s)
        else:
            timer, times = "event", event_times_s(prepared.call, budget_s=budget_s)
        return self.sample(name, case, times, timer, values=prepared.values)

    def sample(self, name: str, case: Case, times_s: Iterable[float], timer: str, *, values: dict[str, float] | None = None,
               note: str = "") -> Sample:
        """Return a sample with what the device says of itself now."""
        reasons = self.nvml.throttle_reasons
        if reasons:
            note = f"{note}; clocks are held down (NVML reasons {reasons:#x})".removeprefix("; ")
        return Sample(
            bench=name, case=dict(case), times_s=[float(f"{t:.4g}") for t in times_s], timer=timer, values=values or {},
            clock_mhz=self.nvml.clock_mhz, power_w=self.nvml.power_w, temperature_c=self.nvml.temperature_c, note=note)


def close_to(got: torch.Tensor, expected: torch.Tensor, *, tolerance: float, what: str) -> None:
    """Raise `WrongAnswerError` where two results differ by more than ``tolerance`` of the largest value."""
    scale = float(expected.abs().max()) or 1.0
    error = float((got.double() - expected.double()).abs().max()) / scale
    if not error <= tolerance:
        raise WrongAnswerError(f"{what}: differs from the plain computation by {error:.2g} of the largest value")
