"""Collectives of CPU ranks on one machine, through memory that they share.

Gloo takes 0.4 to 4 ms for a few kilobytes, as its threads wait for a core; this takes some 50 us. Every operation: write one's
part, raise one's counter, wait until all counters are there, read the others' parts. Two buffers take turns: who has seen all
counters of one operation knows that the one before has been read. Stores become visible in order on x86 only.
"""

import mmap
import os
import platform
import time
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tpplanner.engine.parallel import Ranks
from tpplanner.errors import EngineError

LEAST_SLOT_BYTES: Final = 2**20
"""Of one part, and at least a row of logits; longer messages go piece by piece."""
_LINE: Final = 64
_POLLS: Final = 2000
_YIELD_S: Final = 2e-3


def can_share(store: str) -> bool:
    """Whether ranks that meet at ``store`` are processes of one machine whose memory keeps the order of stores."""
    return store.startswith("file://") and platform.machine() == "x86_64" and Path("/dev/shm").is_dir()


class SharedRanks(Ranks):
    """Ranks that share memory; collectives as those of `Ranks`."""

    def connect(self, device: torch.device, store: str) -> None:
        """Map the memory that is called as the folder of ``store``; rank 0 takes its name away once all have it."""
        assert device.type == "cpu"
        path = Path("/dev/shm") / Path(store.removeprefix("file://")).parent.name
        row_bytes = 4 * (self.num_tokens + self.tp)
        self._slot_bytes = max(LEAST_SLOT_BYTES, -(-row_bytes // _LINE) * _LINE)
        size = self.tp * (_LINE + 2 * self._slot_bytes)
        # New memory is zeros: the counters of all ranks start at 0, whoever makes it.
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(file, 0, size)  # now, and not as a signal at the first write
            self._memory = mmap.mmap(file, size)
        except OSError as error:
            raise EngineError(f"engine: {size} bytes of shared memory in /dev/shm: {error.strerror}") from None
        finally:
            os.close(file)
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._slots = whole[self.tp * _LINE:].view(2, self.tp, self._slot_bytes)
        self._counters = memoryview(self._memory).cast("q")
        self._turn = 0
        self._together()
        if self.rank == 0:
            path.unlink()
        self._together()

    def _together(self) -> None:
        """Raise the own counter, and wait for those of the others."""
        self._turn += 1
        self._counters[self.rank * _LINE // 8] = self._turn
        for rank in range(self.tp):
            place, polls = rank * _LINE // 8, 0
            begin_s = 0.0
            while self._counters[place] < self._turn:
                polls += 1
                if polls == _POLLS:
                    begin_s = time.monotonic()
                elif polls > _POLLS:
                    # A rank that is not there yet may need this core.
                    os.sched_yield() if time.monotonic() - begin_s < _YIELD_S else time.sleep(5e-5)

    def _parts(self, like: Tensor) -> list[Tensor]:
        """Parts of all ranks in the buffer whose turn it is, each as ``like``."""
        num_bytes = like.numel() * like.element_size()
        return [slot[:num_bytes].view(like.dtype).view(like.shape) for slot in self._slots[(self._turn + 1) % 2]]

    def _exchange(self, own: Tensor) -> list[Tensor]:
        """Show the own part; return the parts of all ranks, valid until the operation after the next."""
        parts = self._parts(own)
        parts[self.rank].copy_(own)
        self._together()
        return parts

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the ranks in their order, in place."""
        flat = x.view(-1)
        for piece in flat.split(self._slot_bytes // x.element_size()):  # type: ignore[no-untyped-call]
            parts = self._exchange(piece)
            torch.add(parts[0], parts[1], out=piece)
            for part in parts[2:]:
                piece.add_(part)
        return x

    def gather_rows(self, logits_SV: Tensor) -> Tensor | None:
        """Whole logits of all rows on rank 0, ``None`` elsewhere."""
        rows, width = logits_SV.shape
        whole = logits_SV.new_empty(rows, self.tp * width) if self.rank == 0 else None
        each = max(self._slot_bytes // (width * logits_SV.element_size()), 1)
        for first in range(0, rows, each):
            parts = self._exchange(logits_SV[first : first + each])
            if whole is not None:
                torch.cat(parts, dim=1, out=whole[first : first + each])
        return None if whole is None else whole[:, : self.num_tokens]

    def tell(self, ids_S: Tensor) -> Tensor:
        """Ids of rank 0 on every rank."""
        return ids_S.copy_(self._exchange(ids_S)[0])

    def scatter_rows(self, logits_SV: Tensor) -> Tensor:
        """Whole logits of every t-th part of the rows; rows are a multiple of t."""
        rows, width = logits_SV.shape[0] // self.tp, logits_SV.shape[1]
        by_rank = logits_SV.view(self.tp, rows, width)
        own = logits_SV.new_empty(rows, self.tp * width)
        each = max(self._slot_bytes // (self.tp * width * logits_SV.element_size()), 1)
        for first in range(0, rows, each):
            parts = self._exchange(by_rank[:, first : first + each])
            torch.cat([part[self.rank] for part in parts], dim=1, out=own[first : first + each])
        return own[:, : self.num_tokens]

    def gather_ids(self, ids: Tensor) -> Tensor:
        """Ids of all rows on every rank, from those of each rank's part."""
        return torch.cat(self._exchange(ids))
