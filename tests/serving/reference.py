"""Scheduling of vLLM v1 once more, in the plainest way: one list ``running``, every count kept per request, loops.

Blocks are only counted. A step is picked and its outcome is taken in one go. Nothing here is shared with the package but
its settings.
"""

from dataclasses import dataclass
from math import ceil, floor

from tpplanner.domain.engine import Preemption
from tpplanner.serving.config import SchedulerConfig


@dataclass
class Request:
    """``num_tokens`` are the tokens there are, prompt and output; ``num_computed`` of them are in the cache."""

    name: int
    prompt: int
    output: int
    max_tokens: int
    num_tokens: int = 0
    num_computed: int = 0
    num_blocks: int = 0
    decodes: bool = False  # has sampled a token since it came into the batch
    num_preemptions: int = 0

    def __post_init__(self) -> None:
        self.num_tokens = self.prompt


@dataclass
class ReferenceStep:
    """What one step does, in numbers and names."""

    num_decode_seqs: int
    context_tok: int
    chunks: list[tuple[int, int, int, bool]]
    preempted: list[int]
    swapped_in: list[int]
    num_swapped_out_blocks: int
    num_swapped_in_blocks: int
    num_free: int


class Reference:
    """Without prefix caching, and without a step in flight."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.num_free = config.num_kv_blocks
        self.watermark = floor(config.watermark_frac * config.num_kv_blocks)
        self.waiting: list[Request] = []
        self.swapped: list[Request] = []
        self.running: list[Request] = []
        self.recomputed = 0

    def blocks(self, tokens: int) -> int:
        return ceil(tokens / self.config.kv_block_size_tok)

    def step(self) -> ReferenceStep:
        """Pick a step; counts are moved on in :meth:`finish`."""
        self.scheduled: list[tuple[Request, int]] = []
        self.preempted: list[Request] = []
        self.budget = self.config.max_num_batched_tokens
        self.out = 0
        self.serve_running()
        back: list[Request] = []
        if not self.preempted:
            back = self.serve_swapped()
            if not self.swapped:
                self.serve_waiting()
        rows = [(r, n) for r, n in self.scheduled if r.decodes]
        chunks = [(r.name, r.num_computed, n, r.num_computed + n == r.num_tokens)
                  for r, n in self.scheduled if not r.decodes]
        return ReferenceStep(len(rows), sum(r.num_computed + n for r, n in rows), chunks, [r.name for r in self.preempted],
                             [r.name for r in back], self.out, sum(self.blocks(r.num_computed) for r in back), self.num_free)

    def serve_running(self) -> None:
        i = 0
        while i < len(self.running) and self.budget > 0:
            request = self.running[i]
            new = min(request.num_tokens - request.num_computed, self.budget)
            need = self.blocks(request.num_computed + new) - request.num_blocks
            while need > self.num_free and request in self.running:
                self.preempt(self.running.pop())
            if request not in self.running:
                break
            self.schedule(request, new)
            i += 1

    def preempt(self, request: Request) -> None:
        self.preempted.append(request)
        request.num_preemptions += 1
        if request.decodes and self.config.preemption is Preemption.SWAP:
            self.out += request.num_blocks
            self.swapped.insert(0, request)
        else:
            self.recomputed += request.num_computed
            request.num_computed, request.decodes = 0, False
            self.waiting.insert(0, request)
        self.num_free += request.num_blocks
        request.num_blocks = 0

    def schedule(self, request: Request, new: int) -> None:
        need = self.blocks(request.num_computed + new) - request.num_blocks
        assert need <= self.num_free
        request.num_blocks += need
        self.num_free -= need
        self.scheduled.append((request, new))
        self.budget -= new

    def serve_swapped(self) -> list[Request]:
        back = []
        while self.swapped and self.budget > 0 and len(self.running) < self.config.max_num_seqs:
            request = self.swapped[0]
            if self.blocks(request.num_computed + 1) + self.watermark > self.num_free:
                break
            self.running.append(self.swapped.pop(0))
            self.schedule(request, 1)
            back.append(request)
        return back

    def serve_waiting(self) -> None:
        while self.waiting and self.budget > 0 and len(self.running) < self.config.max_num_seqs:
            request = self.waiting[0]
            new = min(request.num_tokens, self.budget)
            if self.blocks(new) + self.watermark > self.num_free:
                break
            if self.config.preemption is Preemption.RESERVE:
                promised = sum(self.blocks(r.prompt + r.max_tokens) for r in [*self.running, request])
                if promised + self.watermark > self.config.num_kv_blocks:
                    break
            self.running.append(self.waiting.pop(0))
            self.schedule(request, new)

    def finish(self) -> list[int]:
        """Count the step's tokens; return who has all of its output."""
        done = []
        for request, new in self.scheduled:
            request.num_computed += new
            if request.num_computed < request.num_tokens:
                continue
            request.num_tokens += 1
            request.decodes = True
            if request.num_tokens - request.prompt == request.output:
                self.running.remove(request)
                self.num_free += request.num_blocks
                done.append(request.name)
        return done
