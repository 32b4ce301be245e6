"""The KV blocks of one replica: who holds which, and which prompts' blocks are found again."""

from collections.abc import Sequence as Row
from itertools import pairwise
from typing import Protocol

from tpplanner.errors import WorkloadError, reject


class BlockPool(Protocol):
    """Blocks that are taken and given back. Ids are integers from 0 up, below ``num_blocks``."""

    num_blocks: int
    num_free: int

    def take(self, count: int) -> list[int]:
        """Take ``count`` blocks, of which there are at least as many free."""
        ...

    def give_back(self, blocks: list[int]) -> None:
        """Give back blocks in the order of their tokens."""
        ...

    def find(self, keys: Row[int]) -> int:
        """Count the leading ``keys`` whose blocks are in the pool with their contents."""
        ...

    def num_idle(self, keys: Row[int]) -> int:
        """Count the blocks of ``keys``, all of them found, that nobody holds: sharing them uses up free blocks."""
        ...

    def forgets_last_first(self, keys: Row[int]) -> bool:
        """Whether the blocks of ``keys``, all of them found, that nobody holds will be taken from the last to the first."""
        ...

    def share(self, keys: Row[int]) -> list[int]:
        """Take the blocks of ``keys``, all of them found, beside whoever holds them."""
        ...

    def remember(self, block: int, key: int) -> None:
        """Let ``block`` be found by ``key`` from now on."""
        ...


def _refuse_shortage(count: int, num_free: int) -> None:
    if count > num_free:
        raise AssertionError(f"{count} blocks taken, {num_free} free")  # the scheduler asks num_free first


class PlainPool:
    """Blocks without memory of their contents: a stack of returned ids above those never used."""

    __slots__ = ("_never_used", "_returned", "num_blocks", "num_free")

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            reject(WorkloadError, "num_kv_blocks", "be >= 1", num_blocks, "block pool")
        self.num_blocks = self.num_free = num_blocks
        self._never_used = 0
        self._returned: list[int] = []

    def take(self, count: int) -> list[int]:
        """Take the blocks returned last, then new ones."""
        _refuse_shortage(count, self.num_free)
        self.num_free -= count
        if count <= len(self._returned):
            if not count:
                return []
            taken = self._returned[-count:]
            del self._returned[-count:]
            return taken
        taken, missing = self._returned, count - len(self._returned)
        self._returned = []
        taken.extend(range(self._never_used, self._never_used + missing))
        self._never_used += missing
        return taken

    def give_back(self, blocks: list[int]) -> None:
        """Put the blocks on the stack."""
        self._returned.extend(blocks)
        self.num_free += len(blocks)

    def find(self, keys: Row[int]) -> int:
        """Find nothing."""
        return 0

    def num_idle(self, keys: Row[int]) -> int:
        """Count none."""
        return 0

    def forgets_last_first(self, keys: Row[int]) -> bool:
        """Say so of nothing."""
        return True

    def share(self, keys: Row[int]) -> list[int]:
        """Share nothing."""
        return []

    def remember(self, block: int, key: int) -> None:
        """Forget at once."""


class PrefixPool:
    """Blocks that keep their contents after they are given back, until they are taken for something else.

    Free blocks wait in the order in which they were given back; a sequence's last tokens are forgotten before its first,
    so that what is left of a prompt is a prefix. (Two that computed the same prefix at once have their own blocks of it, of
    which one is found: the end of one prompt may outlive its beginning, computed for the other. It is not found then.)
    """

    __slots__ = ("_block_of", "_free", "_holders", "_key_of", "_never_used", "_num_returned", "num_blocks", "num_free")

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            reject(WorkloadError, "num_kv_blocks", "be >= 1", num_blocks, "block pool")
        self.num_blocks = self.num_free = num_blocks
        self._never_used = self._num_returned = 0
        self._free: dict[int, int] = {}
        self._holders: dict[int, int] = {}
        self._key_of: dict[int, int] = {}
        self._block_of: dict[int, int] = {}

    def take(self, count: int) -> list[int]:
        """Take blocks never used, then those free for longest, and forget what they held."""
        _refuse_shortage(count, self.num_free)
        new = min(count, self.num_blocks - self._never_used)
        taken = list(range(self._never_used, self._never_used + new))
        self._never_used += new
        for _ in range(count - new):
            block = next(iter(self._free))
            del self._free[block]
            self._forget(block)
            taken.append(block)
        for block in taken:
            self._holders[block] = 1
        self.num_free -= count
        return taken

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]

    def give_back(self, blocks: list[int]) -> None:
        """Let go of the blocks; those that nobody else holds are free, the last token's first in line."""
        for block in reversed(blocks):
            holders = self._holders[block] - 1
            if holders:
                self._holders[block] = holders
            else:
                del self._holders[block]
                self._num_returned += 1
                self._free[block] = self._num_returned
                self.num_free += 1

    def find(self, keys: Row[int]) -> int:
        """Count the leading keys that are known."""
        known = 0
        for key in keys:
            if key not in self._block_of:
                break
            known += 1
        return known

    def num_idle(self, keys: Row[int]) -> int:
        """Count the blocks of ``keys`` that nobody holds."""
        return sum(self._block_of[key] not in self._holders for key in keys)

    def forgets_last_first(self, keys: Row[int]) -> bool:
        """Compare when the blocks were given back."""
        turns = [self._free[self._block_of[key]] for key in keys if self._block_of[key] in self._free]
        return all(second < first for first, second in pairwise(turns))

    def share(self, keys: Row[int]) -> list[int]:
        """Hold the blocks of ``keys`` too."""
        shared = [self._block_of[key] for key in keys]
        for block in shared:
            if block in self._holders:
                self._holders[block] += 1
            else:
                del self._free[block]
                self._holders[block] = 1
                self.num_free -= 1
        return shared

    def remember(self, block: int, key: int) -> None:
        """Let ``block`` be found by ``key``; the first block of a key stays."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key
