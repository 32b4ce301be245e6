"""The sequences in decode, each one token further with every step."""

from collections.abc import Collection, Iterator

from tpplanner.serving.blocks import BlockPool
from tpplanner.serving.sequence import Sequence


class DecodeSet:
    """Sequences in decode, oldest first, sorted by the steps in which they need a new block.

    A step moves all of them by one token. Only those that begin a block in it, one in ``block_size_tok`` of them, are
    touched: the others' counts follow from the step's index.

    Attributes
    ----------
    context_tok
        Sum over the sequences of their tokens in the cache after the last step.
    """

    __slots__ = ("_block_size_tok", "_due", "_members", "context_tok")

    def __init__(self, block_size_tok: int) -> None:
        self._block_size_tok = block_size_tok
        self._members: dict[Sequence, None] = {}
        self._due: tuple[dict[Sequence, None], ...] = tuple({} for _ in range(block_size_tok))
        self.context_tok = 0

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._members)

    def _slot(self, sequence: Sequence) -> int:
        # Step m writes the token at position base + m - 1, the first of a block where the block size divides it.
        return (1 - sequence.base) % self._block_size_tok

    def enter(self, sequence: Sequence, index: int) -> None:
        """Take in a sequence whose cache holds ``target_tok`` tokens after step ``index``."""
        sequence.base = sequence.target_tok - index
        self._members[sequence] = None
        self._due[self._slot(sequence)][sequence] = None
        self.context_tok += sequence.target_tok

    def leave(self, sequence: Sequence, index: int) -> None:
        """Let go of a sequence after step ``index``, the last one so far."""
        del self._members[sequence]
        del self._due[self._slot(sequence)][sequence]
        self.context_tok -= sequence.base + index

    def newest(self) -> Sequence:
        """Return the sequence that came in last."""
        return next(reversed(self._members))

    def due(self, index: int) -> Collection[Sequence]:
        """Sequences that begin a block in step ``index``."""
        return self._due[index % self._block_size_tok]

    def advance(self, num_steps: int = 1) -> None:
        """Move every sequence by ``num_steps`` tokens."""
        self.context_tok += num_steps * len(self._members)

    def num_blocks_needed(self, after_index: int, num_steps: int) -> int:
        """Blocks that ``num_steps`` steps after step ``after_index`` begin."""
        rounds, rest = divmod(num_steps, self._block_size_tok)
        return rounds * len(self._members) + sum(len(self.due(after_index + 1 + i)) for i in range(rest))

    def begin_blocks(self, pool: BlockPool, after_index: int, num_steps: int) -> None:
        """Give the sequences the blocks that they begin in ``num_steps`` steps after step ``after_index``."""
        rounds, rest = divmod(num_steps, self._block_size_tok)
        if rounds:
            for sequence in self._members:
                sequence.blocks.extend(pool.take(rounds))
        for i in range(rest):
            for sequence in self.due(after_index + 1 + i):
                sequence.blocks.extend(pool.take(1))
