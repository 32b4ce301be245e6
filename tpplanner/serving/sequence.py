"""A request inside the scheduler."""

from collections.abc import Sequence as Row
from enum import Enum

from tpplanner.domain.checks import check_count
from tpplanner.errors import WorkloadError


class Status(Enum):
    """Where a sequence is: in the queue, in the batch, its cache on the host, or gone."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    SWAPPED = "swapped"
    DONE = "done"


class Sequence:
    """One request: its prompt, what is in the cache, and its blocks.

    While a sequence decodes its counts follow from the index of the step: nothing in it changes but its blocks, and
    these only every ``kv_block_size_tok`` steps.

    Attributes
    ----------
    request_id
        The caller's name for it.
    prompt_tok, max_tokens
        Length of the prompt, and the most tokens that it may generate.
    keys
        A key per full block of the prompt, equal where the prefix up to the block's end is; empty without.
    target_tok
        Tokens that the cache must hold before the next new token: the prompt, and what was generated before an eviction.
    cached_tok
        Tokens in the cache; of a decoding sequence those at its last prefill or swap, see :meth:`cached_after`.
    blocks
        Ids of its blocks, in the order of its tokens.
    num_preemptions
        How often it lost them.
    """

    __slots__ = ("base", "blocks", "cached_tok", "keys", "max_tokens", "num_preemptions", "num_remembered", "prompt_tok",
                 "request_id", "status", "target_tok")

    def __init__(self, request_id: int, *, prompt_tok: int, max_tokens: int, keys: Row[int] = ()) -> None:
        check_count(WorkloadError, f"request {request_id}", prompt_tok=prompt_tok, max_tokens=max_tokens)
        self.request_id = request_id
        self.prompt_tok = self.target_tok = prompt_tok
        self.max_tokens = max_tokens
        self.keys = keys
        self.status = Status.WAITING
        self.cached_tok = 0
        self.num_remembered = self.num_preemptions = 0
        self.base = 0
        self.blocks: list[int] = []

    def cached_after(self, step_index: int) -> int:
        """Tokens in the cache after step ``step_index``, which decodes it."""
        return self.base + step_index

    def __repr__(self) -> str:
        return f"Sequence({self.request_id}, {self.status.value}, {self.cached_tok} of {self.target_tok} tok)"
