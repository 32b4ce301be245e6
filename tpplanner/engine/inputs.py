"""T2: a step's inputs as arrays, made from the schedule alone where feedback comes early."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpplanner.engine.messages import ChunkInput, Copy, Enter, StepInput
from tpplanner.engine.request import Request
from tpplanner.engine.sampling_params import uniforms
from tpplanner.serving.config import SchedulerConfig
from tpplanner.serving.sequence import Status
from tpplanner.serving.step import Step

IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Planned:
    """A step as it was scheduled: its decode rows, and the sequences that sample in it, row by row."""

    step: Step
    rows: list[Request]
    samples: list[Request]
    swap_out: list[Copy]


def _ints(values: object) -> bytes:
    return np.asarray(values, dtype=np.int32).tobytes()


def _slot(request: Request) -> int:
    if request.slot is None:
        raise AssertionError(f"{request!r} has no slot")
    return request.slot


class InputBuilder:
    """Slots of the batch and their block tables.

    A sequence has a slot while it is in the batch. A slot may have a new owner while a step of the old one is in flight:
    the device takes steps in order.
    """

    def __init__(self, config: SchedulerConfig, max_context_tok: int) -> None:
        self._size = config.kv_block_size_tok
        self._tables: IntArray = np.zeros((config.max_num_seqs, -(-max_context_tok // self._size) + 1), dtype=np.int32)
        self._num_blocks = [0] * config.max_num_seqs
        self._free_slots = list(range(config.max_num_seqs))[::-1]
        self._free_host: list[int] = []
        self._num_host = 0
        self._on_host: dict[Request, list[int]] = {}

    def plan(self, step: Step, decoding: list[Request]) -> Planned:
        """Note who is in the step, before anything else is scheduled; evicted sequences give up their slots."""
        ends = {chunk.sequence for chunk in step.chunks if chunk.ends}
        rows = [request for request in decoding if request not in ends]
        samples = [*rows, *(c.sequence for c in step.chunks if c.ends and isinstance(c.sequence, Request))]
        copies = []
        for request in step.preempted:
            assert isinstance(request, Request)
            if request.status is Status.SWAPPED:
                copies.append(self._copy_out(request))
            self.leave(request)
        return Planned(step, rows, samples, copies)

    def _copy_out(self, request: Request) -> Copy:
        # The blocks that were written; one taken for the step it will not see has nothing in it.
        blocks = self._tables[_slot(request), : -(-request.cached_tok // self._size)].tolist()
        while len(self._free_host) < len(blocks):
            self._free_host.append(self._num_host)
            self._num_host += 1
        self._on_host[request] = [self._free_host.pop() for _ in blocks]
        return Copy(blocks, self._on_host[request])

    def leave(self, request: Request) -> None:
        """Take back the slot of a sequence that leaves the batch."""
        if request.slot is not None:
            self._free_slots.append(request.slot)
            request.slot = None

    def forget(self, request: Request) -> None:
        """Take back all that a finished sequence holds."""
        self.leave(request)
        self._free_host += self._on_host.pop(request, [])

    def build(self, planned: Planned, *, ids_on_device: bool) -> StepInput:
        """Make the message of a step.

        ``ids_on_device`` leaves the ids of decode rows to the device, which has sampled them or will have: the host need
        not know them.
        """
        step = planned.step
        enters: list[Enter] = []
        swap_in = [self._copy_in(request, enters) for request in step.swapped_in if isinstance(request, Request)]
        for request in planned.rows:
            self._update_table(request)
        slots = [_slot(request) for request in planned.rows]
        positions = np.array([r.base for r in planned.rows], dtype=np.int64) + (step.step_index - 1)
        widest = int(positions.max()) // self._size + 1 if slots else 0
        tables = self._tables[slots, :widest] if slots else self._tables[:0, :0]
        kv_slots = tables[np.arange(len(slots)), positions // self._size] * self._size + positions % self._size
        ids = [0 if ids_on_device else r.output_ids[-1] for r in planned.rows]
        return self._with_chunks(planned, ids, positions, kv_slots, StepInput(
            step_index=step.step_index, num_decode=len(slots), token_ids=b"", positions=b"", kv_slots=b"", chunks=[],
            patch_slots=_ints(slots) if ids_on_device else b"", decode_tables=np.ascontiguousarray(tables).tobytes(),
            sample_rows=b"", sample_slots=b"", uniforms=b"", enters=enters, swap_out=planned.swap_out, swap_in=swap_in))

    def _with_chunks(self, planned: Planned, ids: list[int], positions: NDArray[np.int64], kv_slots: NDArray[np.int64],
                     message: StepInput) -> StepInput:
        all_positions, all_slots, sample_rows = [positions], [kv_slots], list(range(len(planned.rows)))
        for chunk in planned.step.chunks:
            request = chunk.sequence
            assert isinstance(request, Request)
            if request.slot is None:
                self._enter(request, message.enters)
            self._update_table(request)
            end = chunk.start_tok + chunk.num_tok
            table = self._tables[_slot(request), : -(-end // self._size)]
            where = np.arange(chunk.start_tok, end)
            all_positions.append(where)
            all_slots.append(table[where // self._size] * self._size + where % self._size)
            ids += request.tokens(chunk.start_tok, end)
            message.chunks.append(ChunkInput(chunk.start_tok, chunk.num_tok, table.tobytes()))
            if chunk.ends:
                sample_rows.append(len(ids) - 1)
        joined = np.concatenate(all_positions)
        message.token_ids, message.positions = _ints(ids), _ints(joined)
        message.kv_slots, message.sample_rows = _ints(np.concatenate(all_slots)), _ints(sample_rows)
        message.sample_slots = _ints([_slot(request) for request in planned.samples])
        seeds = np.array([request.params.seed for request in planned.samples], dtype=np.uint64)
        # The sampled token's own position: a request draws the same numbers whenever it is scheduled.
        message.uniforms = uniforms(seeds, joined[sample_rows].astype(np.int64) + 1).astype(np.float64).tobytes()
        return message

    def _enter(self, request: Request, enters: list[Enter], last_id: int = -1) -> None:
        request.slot = self._free_slots.pop()
        self._num_blocks[request.slot] = 0
        tokens = b""
        if request.params.penalises:
            tokens = _ints(request.tokens(0, len(request.prompt_ids) + len(request.output_ids)))
        enters.append(Enter(request.slot, request.params, len(request.prompt_ids), tokens, last_id))

    def _copy_in(self, request: Request, enters: list[Enter]) -> Copy:
        self._enter(request, enters, request.output_ids[-1])
        host = self._on_host.pop(request)
        self._free_host += host
        return Copy(request.blocks[: len(host)], host)

    def _update_table(self, request: Request) -> None:
        slot, have = _slot(request), len(request.blocks)
        known = self._num_blocks[slot]
        if have > known:
            self._tables[slot, known:have] = request.blocks[known:]
            self._num_blocks[slot] = have
