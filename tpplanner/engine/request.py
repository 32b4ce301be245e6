"""A request inside the engine, and what the caller gets of it."""

import hashlib
from collections.abc import Callable
from collections.abc import Sequence as Row
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.engine.text import TextStream
from tpplanner.serving.sequence import Sequence


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What one step added to a request."""

    request_id: int
    new_ids: list[int]
    text: str
    finish_reason: FinishReason | None
    num_prompt_tok: int
    num_output_tok: int
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished request; times on the clock of ``time.perf_counter`` [s]."""

    request_id: int
    prompt_ids: list[int]
    output_ids: list[int]
    text: str
    finish_reason: FinishReason
    arrival_s: float
    start_s: float
    first_token_s: float
    finish_s: float
    num_preemptions: int


def block_keys(prompt_ids: Row[int], block_size: int) -> tuple[int, ...]:
    """Key of each full block of a prompt: equal where everything up to the block's end is."""
    ids, keys, digest = np.asarray(prompt_ids, dtype=np.int32), [], b""
    for begin in range(0, len(ids) - block_size + 1, block_size):
        digest = hashlib.blake2b(digest + ids[begin:begin + block_size].tobytes(), digest_size=16).digest()
        keys.append(int.from_bytes(digest, "big"))
    return tuple(keys)


class Request(Sequence):
    """A sequence of the scheduler with its tokens, its policy and its listener."""

    __slots__ = ("arrival_s", "finish_reason", "first_token_s", "on_output", "output_ids", "params", "prompt_ids", "slot",
                 "start_s", "text", "told_tok")

    def __init__(self, request_id: int, prompt_ids: list[int], params: SamplingParams, *, keys: tuple[int, ...],
                 text: TextStream, on_output: Callable[[Output], None], arrival_s: float) -> None:
        super().__init__(request_id, prompt_tok=len(prompt_ids), max_tokens=params.max_tokens, keys=keys)
        self.prompt_ids, self.params, self.text, self.on_output = prompt_ids, params, text, on_output
        self.output_ids: list[int] = []
        self.slot: int | None = None
        self.finish_reason: FinishReason | None = None
        self.arrival_s, self.start_s, self.first_token_s = arrival_s, 0.0, 0.0
        self.told_tok = 0

    def tokens(self, begin: int, end: int) -> list[int]:
        """Tokens ``begin`` to ``end`` of prompt and output."""
        num_prompt = len(self.prompt_ids)
        if end <= num_prompt:
            return self.prompt_ids[begin:end]
        return self.prompt_ids[begin:] + self.output_ids[max(begin - num_prompt, 0):end - num_prompt]

    def tell(self, text: str, error: str | None = None) -> None:
        """Give the listener what is new."""
        new = self.output_ids[self.told_tok:]
        self.told_tok = len(self.output_ids)
        self.on_output(Output(
            request_id=self.request_id, new_ids=new, text=text, finish_reason=self.finish_reason,
            num_prompt_tok=len(self.prompt_ids), num_output_tok=len(self.output_ids), error=error))
