"""What the ranks of a replica say to each other."""

import datetime

import torch
import torch.distributed as dist
from torch import Tensor

_TIMEOUT = datetime.timedelta(seconds=600)


class Ranks:
    """Collectives of the t ranks; with one rank they do nothing.

    ``num_tokens`` is the whole vocabulary: each rank's logits cover an equal part of it, the last ones padded.
    """

    def __init__(self, rank: int, tp: int, num_tokens: int) -> None:
        self.rank, self.tp, self.num_tokens = rank, tp, num_tokens

    def connect(self, device: torch.device, store: str) -> None:
        """Meet the other ranks at ``store``, a URL that torch.distributed knows."""
        if self.tp > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", init_method=store, rank=self.rank,
                                    world_size=self.tp, timeout=_TIMEOUT)

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self.tp > 1:
            dist.all_reduce(x)
        return x

    def gather_rows(self, logits_SV: Tensor) -> Tensor | None:
        """Whole logits of all rows on rank 0, ``None`` elsewhere."""
        if self.tp == 1:
            return logits_SV[:, : self.num_tokens]
        parts = [torch.empty_like(logits_SV) for _ in range(self.tp)] if self.rank == 0 else None
        dist.gather(logits_SV, parts, dst=0)
        return None if parts is None else torch.cat(parts, dim=1)[:, : self.num_tokens]

    def tell(self, ids_S: Tensor) -> Tensor:
        """Ids of rank 0 on every rank."""
        if self.tp > 1:
            dist.broadcast(ids_S, src=0)
        return ids_S

    def scatter_rows(self, logits_SV: Tensor) -> Tensor:
        """Whole logits of every t-th part of the rows, by one all-to-all; rows are a multiple of t."""
        if self.tp == 1:
            return logits_SV[:, : self.num_tokens]
        own = torch.empty_like(logits_SV)
        dist.all_to_all_single(own, logits_SV.contiguous())
        return torch.cat(own.chunk(self.tp), dim=1)[:, : self.num_tokens]

    def gather_ids(self, ids: Tensor) -> Tensor:
        """Ids of all rows on every rank, from those of each rank's part."""
        if self.tp == 1:
            return ids
        out = ids.new_empty(ids.shape[0] * self.tp)
        dist.all_gather(list(out.chunk(self.tp)), ids)
        return out
