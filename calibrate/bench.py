"""What every benchmark is given, and what it gives back."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from calibrate.machine import Nvml, last_level_cache_bytes
from calibrate.samples import Case
from calibrate.timing import Call, Piece, alone, event_times_s, graph_times_s, host_times_s
from tpplanner.engine.linear import Linear
from tpplanner.engine.model_config import EngineModel
from tpplanner.io.calibration_samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured: models whose shapes are taken, degrees, sizes, passes, and the time that a case may take in each [s]."""

    models: tuple[EngineModel, ...]
    degrees: tuple[int, ...]
    num_tok: tuple[int, ...]
    context_tok: tuple[int, ...]
    dtypes: tuple[str, ...]
    budget_s: float
    num_rounds: int = 1
    is_quick: bool = False


_KEPT_SHAPES = 6


class WrongAnswerError(Exception):
    """A benchmark's operation gives what it should not; its time would mean nothing."""


@dataclass(slots=True, kw_only=True)
class Prepared:
    """Inputs are made: what to time, and what to check before.

    ``pieces`` is the same work in the parts that run apart in the engine, each after what precedes it there. A CPU is timed by
    them: a product that streams its weights evicts code and data of all else, and what takes 10 us in a loop takes 40 after it.
    """

    call: Call
    check: Callable[[], None]
    pieces: Sequence[Piece] = ()
    values: dict[str, float] = field(default_factory=dict)

    @property
    def on_host(self) -> Sequence[Piece]:
        """What to time on a CPU."""
        return self.pieces or alone(self.call)


@dataclass(slots=True, kw_only=True)
class Bench:
    """The device that is measured; ``round`` counts the passes over all cases."""

    device: torch.device
    nvml: Nvml
    round: int = 0
    _linears: dict[tuple[int, int, str], list[Linear]] = field(default_factory=dict)

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def rotation(self, num_bytes: float) -> int:
        """How many copies of an input of so many bytes exceed the last cache twice: what a step finds is not in it."""
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size if self.is_cuda else last_level_cache_bytes()
        return max(1, math.ceil(2 * cache / max(num_bytes, 1.0)))

    def linears(self, out_features: int, in_features: int, dtype: torch.dtype) -> list[Linear]:
        """Return products with copies of one random weight that no cache holds together; those of the last shapes are kept."""
        key = (out_features, in_features, str(dtype))
        if key not in self._linears:
            while len(self._linears) >= _KEPT_SHAPES:
                del self._linears[next(iter(self._linears))]
            weight = (torch.randn(out_features, in_features, device=self.device) / in_features**0.5).to(dtype)
            copies = self.rotation(weight.numel() * weight.element_size())
            self._linears[key] = [Linear(weight.clone()) for _ in range(copies)]
            for linear in self._linears[key][1:]:
                linear.drop_plain()
        return self._linears[key]

    def product(self, out_features: int, in_features: int, rows: int, dtype: torch.dtype) -> Call:
        """Return a product of ``rows`` as the engine runs it, its weights new at each iteration."""
        linears = self.linears(out_features, in_features, dtype)
        x = torch.randn(rows, in_features, device=self.device).to(dtype)
        return lambda i: linears[i % len(linears)](x)

    def time(self, name: str, case: Case, prepared: Prepared, *, budget_s: float, in_graph: bool = False) -> Sample:
        """Check the answer, then time every iteration; on a GPU ``in_graph`` as the engine replays its decode steps."""
        prepared.check()
        if not self.is_cuda:
            timer, times = "host", host_times_s(prepared.on_host, budget_s=budget_s)
        elif in_graph:
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
            bench=name, case=dict(case), times_s=[float(f"{t:.4g}") for t in times_s], timer=timer, round=self.round,
            values=values or {}, clock_mhz=self.nvml.clock_mhz, power_w=self.nvml.power_w,
            temperature_c=self.nvml.temperature_c, note=note)


def close_to(got: torch.Tensor, expected: torch.Tensor, *, tolerance: float, what: str) -> None:
    """Raise `WrongAnswerError` where two results differ by more than ``tolerance`` of the largest value."""
    scale = float(expected.abs().max()) or 1.0
    error = float((got.double() - expected.double()).abs().max()) / scale
    if not error <= tolerance:
        raise WrongAnswerError(f"{what}: differs from the plain computation by {error:.2g} of the largest value")
