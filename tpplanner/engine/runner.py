"""One rank's side of a step: tensors from the message, forward, sampling."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tpplanner.engine.attention import AttentionPlan, ChunkPlan, PagedAttention
from tpplanner.engine.graphs import DecodeGraphs
from tpplanner.engine.messages import ChunkInput, Copy, Enter, StepInput
from tpplanner.engine.model import Decoder
from tpplanner.engine.parallel import Ranks
from tpplanner.engine.sampler import PolicyTable, TokenCounts, sample
from tpplanner.engine.stopwatch import Laps, Stopwatch


@dataclass(slots=True)
class StepTensors:
    """A step's inputs on the device, and what the host knows of its sampling."""

    token_ids_N: Tensor
    patch_slots_B: Tensor | None
    plan: AttentionPlan
    sample_rows_S: Tensor
    sample_slots_S: Tensor
    slots: list[int]
    uniforms_S: Tensor

    def all(self) -> Iterator[Tensor]:
        """Every tensor on the device."""
        plan = self.plan
        yield from (self.token_ids_N, self.sample_rows_S, self.sample_slots_S, self.uniforms_S, plan.positions_N,
                    plan.kv_slots_N, plan.lens_B, plan.tables_BM)
        yield from (t for t in (self.patch_slots_B, *(chunk.context_S for chunk in plan.chunks)) if t is not None)


class Runner:
    """Runs the steps that the driver sends, in their order."""

    def __init__(self, decoder: Decoder, attention: PagedAttention, ranks: Ranks, *, max_num_seqs: int, sp_sampling: bool,
                 graphs: DecodeGraphs | None) -> None:
        self._decoder, self._attention, self._ranks, self._graphs = decoder, attention, ranks, graphs
        self._sp_sampling = sp_sampling and ranks.tp > 1
        self._device = decoder.norm.device
        self._last_ids = torch.zeros(max_num_seqs, dtype=torch.int64, device=self._device)
        self._policies = PolicyTable(max_num_seqs, self._device)
        self._counts = TokenCounts(max_num_seqs, decoder.model.vocab_size, self._device)
        self._host: dict[int, Tensor] = {}
        is_cuda = self._device.type == "cuda"
        self._copies = torch.cuda.Stream(self._device) if is_cuda else None  # type: ignore[no-untyped-call]
        self.stopwatch = Stopwatch(self._device)

    @torch.inference_mode()
    def run(self, step: StepInput) -> tuple[Tensor, Laps]:
        """Take one step; return the sampled ids on the device, and the times, which a GPU still has to reach."""
        tensors = self._upload(step)
        laps = self.stopwatch.start()
        for copy in step.swap_out:
            self._swap_out(copy)
        for copy in step.swap_in:
            self._swap_in(copy)
        self._enter(step.enters)
        token_ids_N = tensors.token_ids_N
        if tensors.patch_slots_B is not None:
            # Early feedback: what the step before sampled never passes through the host.
            token_ids_N[: step.num_decode] = self._last_ids.index_select(0, tensors.patch_slots_B)
        if self._graphs is not None and self._graphs.fits(step.num_decode) and not step.chunks:
            hidden_NE = self._graphs.forward(token_ids_N, tensors.plan)
        else:
            hidden_NE = self._decoder.forward(token_ids_N, self._attention, tensors.plan)
        logits_SV = self._decoder.logits(hidden_NE.index_select(0, tensors.sample_rows_S))
        self.stopwatch.lap(laps)
        ids_S = self._sample(logits_SV, tensors)
        self._last_ids.index_copy_(0, tensors.sample_slots_S, ids_S)
        self._counts.count(tensors.sample_slots_S, ids_S)
        self.stopwatch.lap(laps)
        return ids_S, laps

    def _tensor(self, data: bytes, dtype: type[np.generic] = np.int32) -> Tensor:
        """Array of the message on the device; indices as 64 bits."""
        array = np.frombuffer(data, dtype=dtype)
        host = torch.from_numpy(array.astype(np.int64 if dtype is np.int32 else dtype))
        if self._copies is None:
            return host
        return host.pin_memory().to(self._device, non_blocking=True)

    def _upload(self, step: StepInput) -> StepTensors:
        """Copy the inputs to the device; on a GPU beside the step that runs."""
        if self._copies is None:
            return self._build(step)
        with torch.cuda.stream(self._copies):
            tensors = self._build(step)
        main = torch.cuda.current_stream()
        main.wait_stream(self._copies)
        for tensor in tensors.all():
            # Their memory must not go to the next step's inputs while this step reads it.
            tensor.record_stream(main)
        return tensors

    def _build(self, step: StepInput) -> StepTensors:
        positions_N = self._tensor(step.positions)
        lens_B = positions_N[: step.num_decode] + 1
        tables = self._tensor(step.decode_tables).view(step.num_decode, -1) if step.num_decode else lens_B.view(0, 0)
        gathers = self._attention.gathers(tables, lens_B)
        chunks, row = [], step.num_decode
        for chunk in step.chunks:
            chunks.append(self._chunk(chunk, row))
            row += chunk.num_tok
        plan = AttentionPlan(
            positions_N=positions_N, kv_slots_N=self._tensor(step.kv_slots), num_decode=step.num_decode,
            lens_B=lens_B.int(), tables_BM=tables.int(), gathers=gathers,
            chunks=chunks)
        return StepTensors(
            token_ids_N=self._tensor(step.token_ids), plan=plan, sample_rows_S=self._tensor(step.sample_rows),
            patch_slots_B=self._tensor(step.patch_slots) if step.patch_slots else None,
            sample_slots_S=self._tensor(step.sample_slots), slots=np.frombuffer(step.sample_slots, np.int32).tolist(),
            uniforms_S=self._tensor(step.uniforms, np.float64))

    def _chunk(self, chunk: ChunkInput, row: int) -> ChunkPlan:
        context = None
        if chunk.start_tok:
            blocks, size = np.frombuffer(chunk.table, np.int32), self._attention.block_size
            slots = (blocks[:, None] * size + np.arange(size, dtype=np.int32)).ravel()[: chunk.start_tok + chunk.num_tok]
            context = self._tensor(np.ascontiguousarray(slots, dtype=np.int32).tobytes())
        return ChunkPlan(rows=slice(row, row + chunk.num_tok), start_tok=chunk.start_tok, context_S=context)

    def _enter(self, enters: list[Enter]) -> None:
        for enter in enters:
            self._policies.set(enter.slot, enter.params)
            if enter.params.penalises:
                tokens = np.frombuffer(enter.tokens, np.int32).tolist()
                self._counts.enter(enter.slot, tokens[: enter.num_prompt_tok], tokens[enter.num_prompt_tok:])
            if enter.last_id >= 0:
                self._last_ids[enter.slot] = enter.last_id

    def _blocks(self) -> Tensor:
        """The cache block by block, [layer, 2, K, block, block_size * D]."""
        cache, size = self._attention.cache, self._attention.block_size
        return cache.view(*cache.shape[:3], cache.shape[3] // size, size * cache.shape[4])

    def _swap_out(self, copy: Copy) -> None:
        blocks = self._blocks()
        for device_block, host_block in zip(copy.device_blocks, copy.host_blocks, strict=True):
            block = blocks[:, :, :, device_block].contiguous()
            if host_block not in self._host:
                self._host[host_block] = torch.empty(block.shape, dtype=block.dtype, pin_memory=self._copies is not None)
            self._host[host_block].copy_(block, non_blocking=True)

    def _swap_in(self, copy: Copy) -> None:
        blocks = self._blocks()
        for device_block, host_block in zip(copy.device_blocks, copy.host_blocks, strict=True):
            blocks[:, :, :, device_block] = self._host[host_block].to(self._device, non_blocking=True)

    def _sample(self, logits_SV: Tensor, tensors: StepTensors) -> Tensor:
        """Ids of the sampled rows, the same on every rank."""
        num_rows = logits_SV.shape[0]
        if not self._sp_sampling:
            whole = self._ranks.gather_rows(logits_SV)
            if whole is None:
                return self._ranks.tell(tensors.sample_slots_S.new_zeros(num_rows))
            ids = sample(whole, self._policies.select(tensors.slots), tensors.uniforms_S, self._counts, tensors.sample_slots_S)
            return self._ranks.tell(ids)
        each = -(-num_rows // self._ranks.tp)
        missing = each * self._ranks.tp - num_rows
        own = slice(self._ranks.rank * each, (self._ranks.rank + 1) * each)
        rows_SV = self._ranks.scatter_rows(torch.nn.functional.pad(logits_SV, (0, 0, 0, missing)))
        # Rows that only fill up take the policy of the first slot; what they sample is dropped.
        slots = (tensors.slots + [0] * missing)[own]
        pad = torch.nn.functional.pad
        ids = sample(rows_SV, self._policies.select(slots), pad(tensors.uniforms_S, (0, missing))[own], self._counts,
                     pad(tensors.sample_slots_S, (0, missing))[own])
        return self._ranks.gather_ids(ids)[:num_rows]


