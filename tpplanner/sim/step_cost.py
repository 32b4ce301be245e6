"""What a step costs, and the clock that calls the cost functions once for every step."""

from typing import NamedTuple, Protocol

import numpy as np

from tpplanner.cost.energy import step_bytes_flop
from tpplanner.cost.outside import corrections_at
from tpplanner.cost.replica import ReplicaGrid
from tpplanner.cost.step_time import with_interference
from tpplanner.domain.step import Batch


class Shape(NamedTuple):
    """A batch in whole numbers; ``prefill_context2_tok`` is twice the mean context of the prompt tokens."""

    num_decode_seqs: int
    decode_context_tok: int
    num_prefill_tok: int = 0
    prefill_context2_tok: int = 0
    num_prefill_seqs: int = 0
    num_prefill_ends: int = 0

    def batch(self) -> Batch:
        """Return the batch that the cost functions know."""
        return Batch(num_decode_seqs=float(self.num_decode_seqs), decode_context_tok=float(self.decode_context_tok),
                     num_prefill_tok=float(self.num_prefill_tok), prefill_context_tok=0.5 * self.prefill_context2_tok,
                     num_prefill_seqs=float(self.num_prefill_seqs), num_prefill_ends=float(self.num_prefill_ends))

    def without_prompts(self) -> "Shape":
        """Return its decode rows alone."""
        return Shape(self.num_decode_seqs, self.decode_context_tok)


class StepCost(NamedTuple):
    """Wall time and time that the device works [s], bytes that a rank reads, and its arithmetic [flop]."""

    total_s: float
    device_s: float
    read_bytes: float
    flop: float


class DecodeRun(NamedTuple):
    """Decode steps in a row: how many, their sums, and the durations of the first and last; ``context_s`` is sum(context t)."""

    num_steps: int
    total_s: float
    device_s: float
    read_bytes: float
    flop: float
    context_s: float
    duration_s: list[float]


class Clock(Protocol):
    """What a replica asks for."""

    measured: list[float]
    ttft_factor: list[float]

    def cost(self, shape: Shape) -> StepCost:
        """Cost of one step."""
        ...

    def decode_run(self, num_seqs: int, context_tok: int, max_steps: int, max_s: float) -> DecodeRun:
        """Decode steps from a mean context on, those that start before ``max_s`` and at least one."""
        ...


def measured_factors(grid: ReplicaGrid) -> tuple[list[float], list[float]]:
    """What measured runs of the model multiply step times and TTFT by, for 0, 1, ... sequences in the batch."""
    seqs = np.arange(1.0, float(grid.max_num_seqs) + 1.0)
    corrections = corrections_at(grid, seqs)
    step, ttft = (np.broadcast_to(c, seqs.shape) for c in (corrections.step, corrections.ttft))
    return [float(step[0]), *step.tolist()], [float(ttft[0]), *ttft.tolist()]


class DirectClock:
    """The cost functions, called for every step."""

    def __init__(self, grid: ReplicaGrid) -> None:
        self._grid = grid
        self.measured, self.ttft_factor = measured_factors(grid)

    def cost(self, shape: Shape) -> StepCost:
        """Cost of one step by ``cost.step_time``."""
        grid, batch = self._grid, shape.batch()
        step = grid.step(batch)
        total = float(step.total_s)
        inside = total
        if shape.num_prefill_tok:
            decode_s = float(grid.step(shape.without_prompts().batch()).total_s)
            inside = float(with_interference(grid.engine, decode_s=decode_s, mixed_s=total))
        wall = self.measured[in_batch(shape, self.measured)] * inside
        read, flop = step_bytes_flop(grid.model, tp=grid.tp, batch=batch)
        return StepCost(wall, float(step.device_s) * wall / total, float(read), float(flop))

    def decode_run(self, num_seqs: int, context_tok: int, max_steps: int, max_s: float) -> DecodeRun:
        """One step."""
        one = self.cost(Shape(num_seqs, context_tok))
        return DecodeRun(1, *one, context_tok * one.total_s, [one.total_s])


def in_batch(shape: Shape, factors: list[float]) -> int:
    """Index of a step's sequences in the factors of measured runs; sequences that have stopped may exceed the limit."""
    return min(shape.num_decode_seqs + shape.num_prefill_seqs, len(factors) - 1)
