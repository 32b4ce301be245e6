"""CUDA graphs of decode steps: one launch in place of hundreds."""

from bisect import bisect_left

import torch
from torch import Tensor

from tpplanner.engine.attention import AttentionPlan, PagedAttention
from tpplanner.engine.model import Decoder


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Batches that are captured: small ones each, larger ones in steps of a multiple of eight."""
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, 257, 16), *range(288, 1025, 32)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


class DecodeGraphs:
    """A captured forward per batch size; a batch in between runs with rows of no length."""

    def __init__(self, decoder: Decoder, attention: PagedAttention, *, max_num_seqs: int, max_blocks: int) -> None:
        device = decoder.norm.device
        self._sizes = graph_sizes(max_num_seqs)
        self._ids = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        # Rows that fill up write into the cache's last slot, which belongs to no block.
        self._spare_slot = attention.cache.shape[3] - 1
        zeros = torch.zeros_like(self._ids)
        self._plan = AttentionPlan(
            positions_N=zeros, kv_slots_N=zeros + self._spare_slot, num_decode=0, lens_B=zeros.int(),
            tables_BM=torch.zeros(max_num_seqs, max_blocks, dtype=torch.int32, device=device), gathers=[], chunks=[])
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        pool = None
        for size in reversed(self._sizes):  # the largest first: the others fit into its memory
            graph, plan = torch.cuda.CUDAGraph(), self._part(size)
            with torch.inference_mode():
                decoder.forward(self._ids[:size], attention, plan)
                torch.cuda.synchronize()
                with torch.cuda.graph(graph, pool=pool):
                    hidden_BE = decoder.forward(self._ids[:size], attention, plan)
            pool = graph.pool()
            self._graphs[size] = graph, hidden_BE

    def _part(self, size: int) -> AttentionPlan:
        whole = self._plan
        return AttentionPlan(
            positions_N=whole.positions_N[:size], kv_slots_N=whole.kv_slots_N[:size], num_decode=size,
            lens_B=whole.lens_B[:size], tables_BM=whole.tables_BM[:size], gathers=[], chunks=[])

    def fits(self, batch: int) -> bool:
        """Whether a graph holds that many rows."""
        return 0 < batch <= self._sizes[-1]

    def forward(self, token_ids_B: Tensor, plan: AttentionPlan) -> Tensor:
        """Hidden states of a decode step; [B, E]."""
        batch = token_ids_B.shape[0]
        size = self._sizes[bisect_left(self._sizes, batch)]
        whole = self._plan
        self._ids[:batch] = token_ids_B
        whole.positions_N[:batch] = plan.positions_N
        whole.kv_slots_N[:batch] = plan.kv_slots_N
        whole.kv_slots_N[batch:size] = self._spare_slot
        whole.lens_B[:batch] = plan.lens_B
        whole.lens_B[batch:size] = 0
        whole.tables_BM[:batch, : plan.tables_BM.shape[1]] = plan.tables_BM
        graph, hidden_BE = self._graphs[size]
        graph.replay()
        return hidden_BE[:batch]
