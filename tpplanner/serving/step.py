"""What the scheduler picks for one step of the engine."""

from typing import NamedTuple

from tpplanner.serving.sequence import Sequence


class Chunk(NamedTuple):
    """Prompt tokens of one sequence in one step: ``num_tok`` from ``start_tok`` on; ``ends`` the prompt and samples."""

    sequence: Sequence
    start_tok: int
    num_tok: int
    ends: bool


class Step(NamedTuple):
    """A batch: every sequence in decode one token further, and chunks of prompts.

    ``context_tok`` is the sum over the decode rows of the tokens they attend to, the new one included.
    ``preempted`` sequences lost their place before the step, ``swapped_in`` came back to decode in it; the blocks that
    were copied for either are counted.
    """

    step_index: int
    num_decode_seqs: int
    context_tok: int
    chunks: tuple[Chunk, ...]
    num_prefill_tok: int
    preempted: tuple[Sequence, ...]
    swapped_in: tuple[Sequence, ...]
    num_swapped_out_blocks: int
    num_swapped_in_blocks: int

    @property
    def is_decode_only(self) -> bool:
        """Whether the step holds no prompt, and nobody came or went."""
        return not self.chunks and not self.preempted and not self.swapped_in
