"""The decode kernel of a GPU with the memory that it works in; imports Triton only when it is made."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


class DecodeKernel:
    """Paged decode attention by :mod:`tpplanner.engine.paged_decode`."""

    def __init__(self, *, max_batch: int, num_heads: int, num_kv_heads: int, head_dim: int, max_context_tok: int,
                 block_size: int, device: torch.device) -> None:
        module: Any = import_module("tpplanner.engine.paged_decode")
        num_sms = torch.cuda.get_device_properties(device).multi_processor_count
        choose: Any = module.choose_num_splits
        self._choose: Callable[[int], int] = lambda batch: choose(batch, num_kv_heads, max_context_tok, num_sms)
        # Scratch is counted in parts: rows times splits.
        parts = max(batch * self._choose(batch) for batch in range(1, max_batch + 1))
        self._scratch: Any = module.DecodeScratch.allocate(batch=1, num_heads=num_heads, num_splits=parts,
                                                           head_dim=head_dim, device=device)
        self._decode: Any = module.paged_decode
        self._block_size = block_size

    def __call__(self, q_BHD: Tensor, k_KSD: Tensor, v_KSD: Tensor, tables_BM: Tensor, lens_B: Tensor) -> Tensor:
        """Attend to each row's context; [B, H, D]."""
        out: Tensor = self._decode(q_BHD, k_KSD, v_KSD, tables_BM, lens_B, block_size=self._block_size,
                                   scale=q_BHD.shape[2] ** -0.5,
                                   num_splits=self._choose(q_BHD.shape[0]), scratch=self._scratch)
        return out
