"""How long each step of one replica takes: the cost functions, looked up.

Two decisions make a million requests affordable and change no equation. The mean context of a batch is rounded to a whole
token (half a token for prompts), so that a batch is described by integers. And the cost functions are called with arrays,
once per region of these integers that a run comes to: :func:`tpplanner.cost.step_time.step_of` adds the terms of every
step, here as there. :class:`tpplanner.sim.step_cost.DirectClock` calls them once per step and gives the same times.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from tpplanner.cost.energy import step_bytes_flop
from tpplanner.cost.operators import OperatorTimes, operator_times
from tpplanner.cost.replica import ReplicaGrid
from tpplanner.cost.step_time import step_of, with_interference
from tpplanner.domain.step import Batch
from tpplanner.sim.step_cost import DecodeRun, Shape, StepCost, in_batch, measured_factors

FloatArray = NDArray[np.float64]

_SEQS, _CONTEXTS = 16, 64
"""Sequences and context lengths that are evaluated in one call for decode steps: about a millisecond."""

_ROWS = 512
"""Numbers of rows, and lengths of prompts, that are evaluated in one call."""

_MAX_ROWS_KEPT = 20_000
"""Of decode times, 64 context lengths each: about 200 MB. Beyond, they are dropped and computed again."""


class _Row:
    """Decode steps of one number of sequences at 64 contexts: plain values, and running sums of the corrected ones."""

    __slots__ = ("attention_s", "context_s", "device_s", "duration_s", "flop", "flop_sum", "plain_s", "read_bytes", "read_sum",
                 "total_s")

    def __init__(self, first_context: int, factor: float, columns: Iterable[FloatArray]) -> None:
        total, device, attention, read, flop = columns
        contexts = np.arange(first_context, first_context + total.size)
        self.plain_s: list[float] = total.tolist()
        self.attention_s: list[float] = attention.tolist()
        self.read_bytes: list[float] = read.tolist()
        self.flop: list[float] = flop.tolist()
        wall = factor * total
        self.duration_s: list[float] = wall.tolist()
        sums = np.zeros((5, total.size + 1))
        np.cumsum([wall, factor * device, read, flop, contexts * wall], axis=1, out=sums[:, 1:])
        self.total_s, self.device_s, self.read_sum, self.flop_sum, self.context_s = sums.tolist()


class _Table:
    """Columns over the integers from 0 up, computed by ``fill`` in pieces as they are asked for."""

    __slots__ = ("_fill", "_pieces")

    def __init__(self, fill: Callable[[FloatArray], tuple[FloatArray, ...]]) -> None:
        self._fill = fill
        self._pieces: dict[int, list[tuple[float, ...]]] = {}

    def __getitem__(self, i: int) -> tuple[float, ...]:
        piece = self._pieces.get(i // _ROWS)
        if piece is None:
            start = i - i % _ROWS
            at = np.arange(start, start + _ROWS, dtype=float)
            columns = [np.broadcast_to(c, at.shape).tolist() for c in self._fill(at)]
            piece = self._pieces[i // _ROWS] = list(zip(*columns, strict=True))
        return piece[i % _ROWS]


class StepClock:
    """The cost functions in tables.

    A step's operators are sums of terms that each depend on one or two of the batch's integers: on its rows, on the rows
    that are sampled, on decode rows and their context, on prompt tokens and theirs. (Tested against ``DirectClock``.)
    """

    def __init__(self, grid: ReplicaGrid) -> None:
        self._grid = grid
        self.measured, self.ttft_factor = measured_factors(grid)
        self._tp = float(np.asarray(grid.tp))
        self._rows: dict[tuple[int, int], _Row] = {}
        self._blocks: dict[tuple[int, int], tuple[FloatArray, ...]] = {}
        self._by_rows, self._by_sampled, self._by_prompt = (
            _Table(f) for f in (self._fill_rows, self._fill_sampled, self._fill_prompt))
        self._floor_s = float(np.asarray(self._alone(Batch(num_decode_seqs=1.0, decode_context_tok=1.0)).gemm_floor_s))

    def _alone(self, batch: Batch) -> OperatorTimes:
        grid = self._grid
        return operator_times(grid.model, grid.hardware, tp=self._tp, ep=grid.ep, batch=batch,
                              seq_parallel_sampling=grid.engine.switches.seq_parallel_sampling)

    def _prompts(self, num_tok: FloatArray | float, context_tok: FloatArray | float, num_ends: FloatArray | float) -> Batch:
        return Batch(num_decode_seqs=0.0, decode_context_tok=0.0, num_prefill_tok=num_tok, prefill_context_tok=context_tok,
                     num_prefill_ends=num_ends)

    def _work(self, batch: Batch) -> tuple[FloatArray, FloatArray]:
        read, flop = step_bytes_flop(self._grid.model, tp=self._tp, batch=batch)
        return np.asarray(read, dtype=float), np.asarray(flop, dtype=float)

    def _fill_rows(self, rows: FloatArray) -> tuple[FloatArray, ...]:
        """GEMMs, experts, element-wise, communication, bytes, flop of ``rows`` of which none is sampled."""
        batch = self._prompts(rows, 0.0, 0.0)
        alone, (read, flop) = self._alone(batch), self._work(batch)
        return tuple(np.asarray(c, dtype=float) for c in (alone.gemm_s, alone.expert_s, alone.elementwise_s, alone.comm_s, read,
                                                          flop))

    def _fill_sampled(self, sampled: FloatArray) -> tuple[FloatArray, ...]:
        """What GEMMs, communication and flop gain by ``sampled`` rows."""
        batch, none = self._prompts(1.0, 0.0, sampled), self._prompts(1.0, 0.0, 0.0)
        some, zero = self._alone(batch), self._alone(none)
        return (np.asarray(some.gemm_s - zero.gemm_s, dtype=float), np.asarray(some.comm_s - zero.comm_s, dtype=float),
                self._work(batch)[1] - self._work(none)[1])

    def _fill_prompt(self, context2_tok: FloatArray) -> tuple[FloatArray, ...]:
        """Attention time and flop of one prompt token at a context."""
        batch = self._prompts(1.0, 0.5 * context2_tok, 0.0)
        return (np.asarray(self._alone(batch).prefill_attention_s, dtype=float),
                self._work(batch)[1] - self._work(self._prompts(1.0, 0.0, 0.0))[1])

    def _block(self, key: tuple[int, int]) -> tuple[FloatArray, ...]:
        """Decode steps of 16 numbers of sequences at 64 contexts."""
        grid = self._grid
        seqs = np.arange(key[0] * _SEQS, (key[0] + 1) * _SEQS, dtype=float)[:, None]
        context = np.arange(key[1] * _CONTEXTS, (key[1] + 1) * _CONTEXTS, dtype=float)[None, :]
        batch = Batch(num_decode_seqs=seqs, decode_context_tok=context)
        alone = self._alone(batch)
        step = step_of(alone, grid.model, grid.engine, tp=self._tp, batch=batch, sampling=grid.sampling)
        read, flop = self._work(batch)
        shape = (_SEQS, _CONTEXTS)
        return tuple(np.broadcast_to(c, shape) for c in (step.total_s, step.device_s, alone.decode_attention_s, read, flop))

    def _row(self, num_seqs: int, context_block: int) -> _Row:
        row = self._rows.get((num_seqs, context_block))
        if row is None:
            key = (num_seqs // _SEQS, context_block)
            block = self._blocks.get(key)
            if block is None:
                if len(self._rows) > _MAX_ROWS_KEPT:
                    self._rows.clear()
                    self._blocks.clear()
                block = self._blocks[key] = self._block(key)
            factor = self.measured[min(num_seqs, len(self.measured) - 1)]
            row = _Row(context_block * _CONTEXTS, factor, (column[num_seqs % _SEQS] for column in block))
            self._rows[num_seqs, context_block] = row
        return row

    def decode_run(self, num_seqs: int, context_tok: int, max_steps: int, max_s: float) -> DecodeRun:
        """Decode steps up to the end of a table; ask again for more."""
        row = self._row(num_seqs, context_tok // _CONTEXTS)
        i = context_tok % _CONTEXTS
        j = min(_CONTEXTS, i + max_steps)
        total = row.total_s
        if total[j - 1] - total[i] >= max_s:
            j = max(bisect_left(total, max_s + total[i], i, j), i + 1)
        return DecodeRun(j - i, total[j] - total[i], row.device_s[j] - row.device_s[i], row.read_sum[j] - row.read_sum[i],
                         row.flop_sum[j] - row.flop_sum[i], row.context_s[j] - row.context_s[i], row.duration_s[i:j])

    def cost(self, shape: Shape) -> StepCost:
        """Cost of one step from its operators' tables."""
        row = self._row(shape.num_decode_seqs, shape.decode_context_tok // _CONTEXTS)
        i = shape.decode_context_tok % _CONTEXTS
        if not shape.num_prefill_tok:
            wall = row.duration_s[i]
            return StepCost(wall, row.device_s[i + 1] - row.device_s[i], row.read_bytes[i], row.flop[i])
        return self._mixed(shape, row, i)

    def _mixed(self, shape: Shape, row: _Row, i: int) -> StepCost:
        grid, seqs, prompt_tok = self._grid, shape.num_decode_seqs, shape.num_prefill_tok
        gemm, expert, elementwise, comm, read, flop = self._by_rows[seqs + prompt_tok]
        gemm_head, comm_head, flop_head = self._by_sampled[seqs + shape.num_prefill_ends]
        attention, attention_flop = self._by_prompt[shape.prefill_context2_tok]
        alone = OperatorTimes(
            gemm_s=gemm + gemm_head, gemm_floor_s=self._floor_s, expert_s=expert, decode_attention_s=row.attention_s[i],
            prefill_attention_s=prompt_tok * attention, elementwise_s=elementwise, comm_s=comm + comm_head)
        step = step_of(alone, grid.model, grid.engine, tp=self._tp, batch=shape.batch(), sampling=grid.sampling)
        total = float(step.total_s)
        inside = with_interference(grid.engine, decode_s=row.plain_s[i], mixed_s=total)
        wall = self.measured[in_batch(shape, self.measured)] * float(inside)
        # The decode rows' attention is what their own step does beyond the linears.
        own = self._by_rows[seqs]
        return StepCost(wall, float(step.device_s) * wall / total, read + row.read_bytes[i] - own[4],
                        flop + flop_head + row.flop[i] - own[5] - self._by_sampled[seqs][2] + prompt_tok * attention_flop)
