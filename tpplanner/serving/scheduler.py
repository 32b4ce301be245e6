"""Continuous batching: which sequences run in the next step of the engine.

As vLLM v1 does it: first come first served; sequences in the batch before sequences in the queue; one budget of tokens
for decode rows and prompt chunks alike; when KV blocks run out, the newest sequence gives its own up.

:meth:`Scheduler.schedule` picks a step and :meth:`Scheduler.commit` takes its outcome. An engine that runs one step at a
time calls them in turn. One that prepares step n + 1 while step n runs calls ``schedule`` before the ``commit`` of step n:
the scheduler then counts on every sequence to go on, and one that stopped in step n has one row too many in step n + 1
and keeps its blocks until that step is committed.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Row

from tpplanner.domain.engine import Preemption
from tpplanner.errors import WorkloadError, reject
from tpplanner.serving.blocks import BlockPool, PlainPool, PrefixPool
from tpplanner.serving.config import SchedulerConfig
from tpplanner.serving.decoding import DecodeSet
from tpplanner.serving.sequence import Sequence, Status
from tpplanner.serving.step import Chunk, Step


class Scheduler:
    """Queue, batch and KV blocks of one replica."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.pool: BlockPool = (PrefixPool if config.prefix_caching else PlainPool)(config.num_kv_blocks)
        self.waiting: deque[Sequence] = deque()
        self.swapped: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []
        self.decoding = DecodeSet(config.kv_block_size_tok)
        self._watermark = int(config.watermark_frac * config.num_kv_blocks)
        self._index = self._committed = 0
        self._reserved = 0
        self._held: deque[tuple[int, Sequence]] = deque()
        self._settled = False
        self.num_found_tok = self.num_recomputed_tok = 0

    @property
    def longest_tok(self) -> int:
        """Longest request, prompt and output, that can be served at all [tok]."""
        return (self.config.num_kv_blocks - self._watermark) * self.config.kv_block_size_tok

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence at the end of the queue.

        Raises
        ------
        WorkloadError
            If the whole KV cache cannot hold it.
        """
        if sequence.prompt_tok + sequence.max_tokens > self.longest_tok:
            reject(WorkloadError, "prompt and output", f"fit into {self.config.num_kv_blocks} KV blocks",
                   sequence.prompt_tok + sequence.max_tokens, f"request {sequence.request_id}")
        # Behind others that wait, or without a seat, it changes nothing yet.
        self._settled = self._settled and not self.can_admit
        self.waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; blocks that a step in flight writes come back with its commit."""
        self._remove(sequence)
        self._let_go(sequence)

    @property
    def num_running_seqs(self) -> int:
        """Sequences in the batch."""
        return len(self.decoding) + len(self.prefilling)

    @property
    def has_work(self) -> bool:
        """Whether anybody waits or runs."""
        return bool(self.waiting or self.swapped or self.prefilling or len(self.decoding))

    @property
    def can_admit(self) -> bool:
        """Whether a sequence that came now might enter the batch with the next step: a seat is free and no queue."""
        return not self.waiting and not self.swapped and self.num_running_seqs < self.config.max_num_seqs

    def schedule(self) -> Step | None:
        """Pick the next step; ``None`` where nothing can run (now, or until the step in flight is committed)."""
        index = self._index + 1
        if self._held and len(self.decoding.due(index)) > self.pool.num_free:
            return None  # blocks are on their way back: nobody is evicted for want of them
        evicted: list[Sequence] = []
        num_out = self._make_room_for_decodes(index, evicted)
        chunks: list[Chunk] = []
        budget = self._continue_prompt(chunks, evicted, self.config.max_num_batched_tokens - len(self.decoding))
        back: list[Sequence] = []
        if not evicted:
            back = self._swap_in()
            if not self.swapped:
                self._admit(chunks, budget - len(back), self.config.max_num_seqs - self.num_running_seqs - len(back))
        if not (len(self.decoding) or back or chunks):
            return None
        return self._begin(index, chunks, evicted, back, num_out)

    def _begin(self, index: int, chunks: list[Chunk], evicted: list[Sequence], back: list[Sequence], num_out: int) -> Step:
        """Count the batch and move every sequence in it."""
        decoding = self.decoding
        decoding.advance()
        for sequence in back:
            decoding.enter(sequence, index)
        step = Step(index, len(decoding), decoding.context_tok, tuple(chunks), sum(c.num_tok for c in chunks),
                    tuple(evicted), tuple(back), num_out, sum(self._num_blocks(s.cached_tok) for s in back))
        for chunk in chunks:
            sequence = chunk.sequence
            if chunk.ends:
                if sequence.status is Status.PREFILL:
                    self.prefilling.remove(sequence)
                sequence.status = Status.DECODE
                decoding.enter(sequence, index)
            elif sequence.status is Status.WAITING:
                sequence.status = Status.PREFILL
                self.prefilling.append(sequence)
        self._index = index
        self._settled = step.is_decode_only and not self._held
        return step

    def commit(self, step: Step, finished: Iterable[Sequence] = ()) -> int:
        """Take the outcome of a step: who ``finished`` with it. Return how many rows of a step in flight are for nobody."""
        if self.config.prefix_caching:
            for chunk in step.chunks:
                self.remember(chunk.sequence, chunk.start_tok + chunk.num_tok)
        self._committed = step.step_index
        while self._held and self._held[0][0] <= step.step_index:
            self._release(self._held.popleft()[1])
        unused = 0
        for sequence in finished:
            was_decoding = self._remove(sequence)
            unused += was_decoding and self._index > step.step_index
            self._let_go(sequence)
        return unused

    def _let_go(self, sequence: Sequence) -> None:
        """Give back blocks: at once, or with the commit of a step in flight, which may still write them."""
        if self._index > self._committed:
            self._held.append((self._index, sequence))
        else:
            self._release(sequence)

    def num_steady_steps(self, limit: int) -> int:
        """How many steps after the one just scheduled are bound to repeat it, up to ``limit``: nobody comes, goes or stops.

        The caller knows of arrivals and of sequences that stop; this is what queue and blocks allow.
        """
        if not self._settled:
            return 0
        # The first in the queue finds no room by the blocks that decodes use up, but where they break up its known prefix.
        if self.waiting and not self.pool.forgets_last_first(self._known_keys(self.waiting[0])):
            return 0
        free = self.pool.num_free
        if self.decoding.num_blocks_needed(self._index, limit) <= free:
            return limit
        return bisect_right(range(limit), free, key=lambda n: self.decoding.num_blocks_needed(self._index, n)) - 1

    def repeat(self, step: Step, num_steps: int) -> Step:
        """Schedule ``num_steps`` more steps like ``step``, which :meth:`num_steady_steps` allows, and return the last."""
        self.decoding.begin_blocks(self.pool, self._index, num_steps)
        self.decoding.advance(num_steps)
        self._index += num_steps
        return step._replace(step_index=self._index, context_tok=self.decoding.context_tok)

    def _num_blocks(self, num_tok: int) -> int:
        return -(-num_tok // self.config.kv_block_size_tok)

    def remember(self, sequence: Sequence, num_tok: int) -> None:
        """Let full blocks among the first ``num_tok`` cached tokens be found by their keys."""
        full = min(num_tok // self.config.kv_block_size_tok, len(sequence.keys), len(sequence.blocks))
        while sequence.num_remembered < full:
            self.pool.remember(sequence.blocks[sequence.num_remembered], sequence.keys[sequence.num_remembered])
            sequence.num_remembered += 1
            self._settled = False  # who waits may need fewer blocks now

    def _make_room_for_decodes(self, index: int, evicted: list[Sequence]) -> int:
        """Give a block to each sequence that begins one, evicting the newest where there are too few."""
        due, num_out = self.decoding.due(index), 0
        while len(due) > self.pool.num_free:
            num_out += self._evict_newest(evicted)
        self.decoding.begin_blocks(self.pool, self._index, 1)
        return num_out

    def _continue_prompt(self, chunks: list[Chunk], evicted: list[Sequence], budget: int) -> int:
        """Compute more of the prompt that took all the budget of the step before; return what is left of this step's."""
        if not self.prefilling:
            return budget
        [sequence] = self.prefilling
        num_tok = min(sequence.target_tok - sequence.cached_tok, budget)
        missing = self._num_blocks(sequence.cached_tok + num_tok) - len(sequence.blocks)
        if missing > self.pool.num_free:
            if not self._held:
                self._evict_newest(evicted)
            return 0
        sequence.blocks.extend(self.pool.take(missing))
        chunks.append(self._chunk(sequence, num_tok))
        return budget - num_tok

    def _chunk(self, sequence: Sequence, num_tok: int) -> Chunk:
        start = sequence.cached_tok
        sequence.cached_tok += num_tok
        return Chunk(sequence, start, num_tok, sequence.cached_tok == sequence.target_tok)

    def _swap_in(self) -> list[Sequence]:
        """Take back sequences while there are seats and blocks; a seat has its token. No prompt is half done beside them."""
        back: list[Sequence] = []
        while self.swapped and self.num_running_seqs + len(back) < self.config.max_num_seqs:
            sequence = self.swapped[0]
            needed = self._num_blocks(sequence.target_tok)
            if needed + self._watermark > self.pool.num_free:
                break
            self.swapped.popleft()
            sequence.blocks = self.pool.take(needed)
            sequence.status = Status.DECODE
            back.append(sequence)
        return back

    def _admit(self, chunks: list[Chunk], budget: int, seats: int) -> None:
        """Take sequences from the queue while there are seats, tokens and blocks; the first that fails ends it."""
        while self.waiting and seats > 0 and budget > 0:
            num_tok = self._place(self.waiting[0], budget)
            if not num_tok:
                break
            chunks.append(self._chunk(self.waiting.popleft(), num_tok))
            budget -= num_tok
            seats -= 1

    def _known_keys(self, sequence: Sequence) -> Row[int]:
        """Keys of the blocks that it need not compute; at least one token it must, which samples the next one."""
        keys = sequence.keys[: (sequence.target_tok - 1) // self.config.kv_block_size_tok]
        return keys[: self.pool.find(keys)]

    def _place(self, sequence: Sequence, budget: int) -> int:
        """Give the sequence the blocks of its first chunk; return the chunk's tokens, 0 where there is no room."""
        pool, size = self.pool, self.config.kv_block_size_tok
        known = self._known_keys(sequence)
        found_tok = len(known) * size
        num_tok = min(sequence.target_tok - found_tok, budget)
        needed = self._num_blocks(found_tok + num_tok) - len(known)
        if needed + (pool.num_idle(known) if known else 0) + self._watermark > pool.num_free:
            return 0
        if self.config.preemption is Preemption.RESERVE:
            full = self._num_blocks(sequence.prompt_tok + sequence.max_tokens)
            if self._reserved + full + self._watermark > self.config.num_kv_blocks:
                return 0
            self._reserved += full
        sequence.blocks = [*pool.share(known), *pool.take(needed)] if known else pool.take(needed)
        sequence.cached_tok = found_tok
        sequence.num_remembered = len(known)
        if not sequence.num_preemptions:  # one that finds its own prompt again was asked for once
            self.num_found_tok += found_tok
        return num_tok

    def _evict_newest(self, evicted: list[Sequence]) -> int:
        """Take the blocks of the newest sequence in the batch; return how many are copied to the host."""
        if self.prefilling:
            sequence = self.prefilling.pop()
        else:
            sequence = self.decoding.newest()
            self.decoding.leave(sequence, self._index)
            sequence.cached_tok = sequence.cached_after(self._index)
            sequence.target_tok = sequence.cached_tok + 1
        evicted.append(sequence)
        sequence.num_preemptions += 1
        num_out = 0
        if sequence.status is Status.DECODE and self.config.preemption is Preemption.SWAP:
            sequence.status, num_out = Status.SWAPPED, len(sequence.blocks)
            self.swapped.appendleft(sequence)
        else:
            self.num_recomputed_tok += sequence.cached_tok
            sequence.status, sequence.cached_tok = Status.WAITING, 0
            self.waiting.appendleft(sequence)
        self._return_blocks(sequence)
        return num_out

    def _remove(self, sequence: Sequence) -> bool:
        """Take the sequence out of queue or batch; return whether it was in decode."""
        before, sequence.status = sequence.status, Status.DONE
        self._settled = False
        if before is Status.DECODE:
            self.decoding.leave(sequence, self._index)
        elif before is Status.PREFILL:
            self.prefilling.remove(sequence)
        elif before is Status.DONE:
            reject(WorkloadError, "sequence", "be unfinished", sequence, "scheduler")
        else:
            (self.waiting if before is Status.WAITING else self.swapped).remove(sequence)
        return before is Status.DECODE

    def _release(self, sequence: Sequence) -> None:
        if self.config.preemption is Preemption.RESERVE and sequence.blocks:
            self._reserved -= self._num_blocks(sequence.prompt_tok + sequence.max_tokens)
        self._return_blocks(sequence)

    def _return_blocks(self, sequence: Sequence) -> None:
        self.pool.give_back(sequence.blocks)
        sequence.blocks = []
