"""One rank of t on one device: its own share of the model, and a delay in place of each collective.

On a GPU the delay is a kernel on the current stream that does nothing for so long; CUDA graphs capture it like any other. It
takes no bandwidth of the memory, and neither the host nor the SMs have NCCL's own work. What a rank does with what came (the
rows of an exchange put side by side) is done besides. On a CPU the delay is a spin of the thread, which counts from the call
on: there curves are of the whole call.

What comes back has the shape of the real answer and is made of what the rank has itself: the tokens mean nothing.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tpplanner.domain.hardware import CollectiveOp
from tpplanner.engine.config import Emulation
from tpplanner.engine.parallel import Ranks

_WARM_CYCLES: Final = 200_000_000
"""A tenth of a second at 2 GHz, in which a GPU leaves its idle clock."""
_AHEAD_CYCLES: Final = 4_000_000
_CYCLES: Final = (20_000, 200_000)
"""10 and 100 us at 2 GHz: what collectives of a decode step take."""
_NUM_COPIES: Final = 32
_NUM_ROUNDS: Final = 7


@dataclass(frozen=True, slots=True)
class SleepPace:
    """How long ``torch.cuda._sleep`` takes: ``fixed_s + cycles / cycles_per_s``."""

    fixed_s: float
    cycles_per_s: float

    def cycles(self, delay_s: float) -> int:
        """Cycles of a kernel that takes ``delay_s`` with its launch; at least one.

        Examples
        --------
        >>> SleepPace(fixed_s=1e-6, cycles_per_s=2e9).cycles(11e-6)
        20000
        """
        return max(round((delay_s - self.fixed_s) * self.cycles_per_s), 1)


def _sleep(cycles: int) -> None:
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]


def _sleep_s(cycles: int) -> float:
    """Time of one sleep in a CUDA graph of many [s], as they lie between the kernels of a decode step."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_NUM_COPIES):
            _sleep(cycles)
    times = []
    for _ in range(_NUM_ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        _sleep(_AHEAD_CYCLES)  # the host runs ahead: what is timed is the device, not the launch
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)) * 1e-3 / _NUM_COPIES)
    return statistics.median(times)


def measured_pace() -> SleepPace:
    """Time sleeps of two lengths on the current CUDA device, and return the line through them.

    Cycles are those of the SMs' clock: a GPU that lowers it under load sleeps longer, in the same proportion.
    """
    _sleep(_WARM_CYCLES)
    torch.cuda.synchronize()
    (few, few_s), (many, many_s) = ((cycles, _sleep_s(cycles)) for cycles in _CYCLES)
    cycles_per_s = (many - few) / max(many_s - few_s, 1e-9)
    return SleepPace(fixed_s=max(few_s - few / cycles_per_s, 0.0), cycles_per_s=cycles_per_s)


class EmulatedRanks(Ranks):
    """Rank 0 of t, alone; collectives as those of `Ranks`, in shape and in time."""

    def __init__(self, emulation: Emulation, num_tokens: int) -> None:
        super().__init__(0, emulation.tp, num_tokens)
        self._emulation = emulation
        self._pace: SleepPace | None = None

    def connect(self, device: torch.device, store: str) -> None:
        """Meet nobody; on a GPU learn how long a cycle takes."""
        if device.type == "cuda":
            self._pace = measured_pace()

    def _wait(self, op: CollectiveOp, size_bytes: int, begin_s: float) -> None:
        """Let the device wait, on a CPU until the collective that began at ``begin_s`` would be over."""
        delay_s = self._emulation.delay_s(op, size_bytes)
        if delay_s <= 0:
            return
        if self._pace is not None:
            _sleep(self._pace.cycles(delay_s))
            return
        # A thread that sleeps comes back 50 us late, and finds its core in a lower clock.
        while time.perf_counter() - begin_s < delay_s:
            pass

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the rank's own part of the sum."""
        self._wait(CollectiveOp.ALL_REDUCE, x.nbytes, time.perf_counter())
        return x

    def gather_rows(self, logits_SV: Tensor) -> Tensor | None:
        """Rows of the whole vocabulary, in each the own part t times."""
        begin_s = time.perf_counter()
        whole = logits_SV.repeat(1, self.tp)[:, : self.num_tokens]
        self._wait(CollectiveOp.ALL_GATHER, logits_SV.nbytes * self.tp, begin_s)
        return whole

    def tell(self, ids_S: Tensor) -> Tensor:
        """Return the ids; a broadcast of so few bytes takes what gathering them does."""
        self._wait(CollectiveOp.ALL_GATHER, ids_S.nbytes, time.perf_counter())
        return ids_S

    def scatter_rows(self, logits_SV: Tensor) -> Tensor:
        """Rows of the whole vocabulary for the first t-th part of the rows; rows are a multiple of t."""
        begin_s = time.perf_counter()
        own = logits_SV[: logits_SV.shape[0] // self.tp].repeat(1, self.tp)[:, : self.num_tokens]
        self._wait(CollectiveOp.ALL_TO_ALL, logits_SV.nbytes * self.tp, begin_s)
        return own

    def gather_ids(self, ids: Tensor) -> Tensor:
        """Ids of all rows: the own ones t times."""
        begin_s = time.perf_counter()
        every = ids.repeat(self.tp)
        self._wait(CollectiveOp.ALL_GATHER, every.nbytes, begin_s)
        return every
