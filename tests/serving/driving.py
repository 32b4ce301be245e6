"""Runs a scheduler as an engine does, in turn or with one step in flight, and keeps its own books beside it."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import strategies as st

from tpplanner.domain.engine import Preemption
from tpplanner.serving.config import SchedulerConfig
from tpplanner.serving.scheduler import Scheduler
from tpplanner.serving.sequence import Sequence, Status
from tpplanner.serving.step import Step

EITHER = st.booleans()


@st.composite
def configs(draw, caching=EITHER):
    """Replicas so small that every limit is met: blocks, seats and tokens per step."""
    max_num_seqs = draw(st.integers(1, 5))
    return SchedulerConfig(
        num_kv_blocks=draw(st.integers(2, 14)), kv_block_size_tok=draw(st.integers(1, 4)), max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + draw(st.integers(0, 8)), preemption=draw(st.sampled_from(Preemption)),
        watermark_frac=draw(st.sampled_from([0.0, 0.0, 0.1, 0.3])), prefix_caching=draw(caching))


class Ask(NamedTuple):
    """A request: it stops after ``output_tok`` tokens; ``path`` has one digit (0 or 1) per block that may be shared."""

    at_turn: int
    prompt_tok: int
    output_tok: int
    max_tokens: int
    path: tuple[int, ...]

    def keys(self, request_id: int, size: int) -> tuple[int, ...]:
        """Keys of the full prompt blocks: equal where the digits up to the block are, nobody else's past the last digit."""
        keys, key = [], 1
        for i in range(self.prompt_tok // size):
            key = 2 * key + self.path[i] if i < len(self.path) else -(1000 * request_id + i + 1)
            keys.append(key)
        return tuple(keys)


@st.composite
def asks(draw, max_turn=12):
    max_tokens = draw(st.integers(1, 12))
    return Ask(draw(st.integers(0, max_turn)), draw(st.integers(1, 14)), draw(st.integers(1, max_tokens)), max_tokens,
               tuple(draw(st.lists(st.integers(0, 1), max_size=4))))


def make_sequences(config, requests):
    """Return (turn, sequence, output) of the requests that fit, numbered in the order in which they come."""
    scheduler, made = Scheduler(config), []
    for ask in sorted(requests, key=lambda ask: ask.at_turn):
        if ask.prompt_tok + ask.max_tokens <= scheduler.longest_tok:
            keys = ask.keys(len(made), config.kv_block_size_tok) if config.prefix_caching else ()
            sequence = Sequence(len(made), prompt_tok=ask.prompt_tok, max_tokens=ask.max_tokens, keys=keys)
            made.append((ask.at_turn, sequence, ask.output_tok))
    return made


@dataclass
class Flight:
    """A step not committed yet, the sequences that sample a token in it, and those of them in decode."""

    step: Step
    samples: tuple[Sequence, ...]
    rows: tuple[Sequence, ...]


@dataclass
class Driver:
    """An engine without a clock. ``outputs`` is the length at which each sequence stops, ``tokens`` what it has."""

    scheduler: Scheduler
    in_flight: bool
    outputs: dict[Sequence, int] = field(default_factory=dict)
    tokens: dict[Sequence, int] = field(default_factory=dict)
    flights: deque[Flight] = field(default_factory=deque)
    started: list[Sequence] = field(default_factory=list)
    preempted: Counter = field(default_factory=Counter)
    index: int = 0
    num_unused: int = 0

    def add(self, sequence: Sequence, output_tok: int) -> None:
        self.scheduler.add(sequence)
        self.outputs[sequence], self.tokens[sequence] = output_tok, 0

    @property
    def live(self) -> list[Sequence]:
        return [s for s in self.outputs if s.status is not Status.DONE]

    def turn(self, stop_early: frozenset[Sequence] = frozenset()) -> Step | None:
        """Pick a step and commit one: the same, or the one before."""
        step = self.schedule()
        if self.flights and (len(self.flights) > 1 or step is None or not self.in_flight):
            self.commit(stop_early)
        return step

    def schedule(self) -> Step | None:
        scheduler = self.scheduler
        step = scheduler.schedule()
        if step is None:
            assert self.flights or not self.live, "somebody waits, and nothing will ever change"
            return None
        self.index += 1
        assert step.step_index == self.index
        ends = {chunk.sequence for chunk in step.chunks if chunk.ends}
        samples = tuple(scheduler.decoding)
        rows = tuple(s for s in samples if s not in ends)
        check_step(scheduler, step, rows)
        self.started += [c.sequence for c in step.chunks if c.sequence not in self.started]
        self.preempted.update(step.preempted)
        assert self.preempted == Counter({s: s.num_preemptions for s in self.outputs if s.num_preemptions}), "lost evictions"
        self.flights.append(Flight(step, samples, rows))
        return step

    def commit(self, stop_early: frozenset[Sequence] = frozenset()) -> list[Sequence]:
        """Count the tokens of the oldest step not committed; return who stops with it."""
        flight = self.flights.popleft()
        finished = []
        for sequence in flight.samples:
            if sequence.status is Status.DONE:
                continue
            self.tokens[sequence] += 1
            if self.tokens[sequence] == self.outputs[sequence] or sequence in stop_early:
                finished.append(sequence)
        rows_in_flight = self.flights[0].rows if self.flights else ()
        unused = self.scheduler.commit(flight.step, finished)
        assert unused == len(set(finished) & set(rows_in_flight))
        self.num_unused += unused
        return finished

    def fast_forward(self, most: int) -> int:
        """Repeat the step just picked as often as scheduler and outputs allow; return how often."""
        if not self.flights:
            return 0
        flight = self.flights[-1]
        to_stop = [self.outputs[s] - generated_after(s, self.index) for s in flight.samples if s.status is Status.DECODE]
        num_steps = self.scheduler.num_steady_steps(min([most, *to_stop]))
        if num_steps > 0:
            assert set(flight.samples) == set(flight.rows) == set(self.scheduler.decoding)
            flight.step = self.scheduler.repeat(flight.step, num_steps)
            self.index += num_steps
            assert flight.step.step_index == self.index
            for sequence in flight.rows:
                self.tokens[sequence] += num_steps
            check_step(self.scheduler, flight.step, flight.rows)
        return num_steps

    def drain(self) -> None:
        """Run to the end. The oldest always gets on: its prompt twice at worst, and its output, bound the turns."""
        bound = sum(2 * (s.prompt_tok + s.max_tokens) + 6 for s in self.live) + 2
        while self.live or self.flights:
            assert bound, "no end"
            bound -= 1
            self.turn()

    def check(self) -> None:
        check_places(self.scheduler, self.live)
        check_blocks(self.scheduler, self.outputs, self.index)


def generated_after(sequence: Sequence, step_index: int) -> int:
    """Tokens of a sequence in decode after a step: the newest is not in the cache yet."""
    return sequence.cached_after(step_index) + 1 - sequence.prompt_tok


def check_step(scheduler: Scheduler, step: Step, rows: tuple[Sequence, ...]) -> None:
    """Within the limits, the rows of sequences that will turn out to have stopped included; counts as the books say."""
    config = scheduler.config
    assert len(rows) == step.num_decode_seqs
    assert step.num_decode_seqs + len(step.chunks) <= config.max_num_seqs
    assert 0 < step.num_decode_seqs + step.num_prefill_tok <= config.max_num_batched_tokens
    assert step.num_prefill_tok == sum(chunk.num_tok for chunk in step.chunks)
    assert step.context_tok == sum(s.cached_after(step.step_index) for s in rows)
    for chunk in step.chunks:
        done = chunk.start_tok + chunk.num_tok
        assert chunk.num_tok > 0
        assert chunk.ends is (done == chunk.sequence.target_tok)
        assert done == chunk.sequence.cached_tok
    if config.preemption is Preemption.RESERVE:
        assert not step.preempted


def check_places(scheduler: Scheduler, live: list[Sequence]) -> None:
    """Everybody is in one place, and the places are in the order in which the sequences came."""
    batch = [*scheduler.decoding, *scheduler.prefilling]
    places = [*batch, *scheduler.swapped, *scheduler.waiting]
    assert places == live
    for members, status in ((scheduler.decoding, Status.DECODE), (scheduler.prefilling, Status.PREFILL),
                            (scheduler.swapped, Status.SWAPPED), (scheduler.waiting, Status.WAITING)):
        assert all(s.status is status for s in members)
    assert scheduler.num_running_seqs == len(batch)
    assert scheduler.has_work is bool(live)
    assert len(scheduler.prefilling) <= 1
    if scheduler.swapped:
        assert not scheduler.prefilling


def check_blocks(scheduler: Scheduler, sequences: dict[Sequence, int], index: int) -> None:
    """Nothing lost, nothing given twice, and a table for exactly the tokens in the cache."""
    size, pool, caching = scheduler.config.kv_block_size_tok, scheduler.pool, scheduler.config.prefix_caching
    holders: Counter[int] = Counter()
    for sequence in sequences:
        holders.update(sequence.blocks)  # of one that is done: until the step in flight is committed
        assert len(set(sequence.blocks)) == len(sequence.blocks)
        cached = {Status.DECODE: sequence.base + index, Status.PREFILL: sequence.cached_tok}.get(sequence.status, 0)
        if sequence.status is not Status.DONE:
            assert len(sequence.blocks) == -(-cached // size)
        if sequence.status is Status.PREFILL:
            assert sequence.num_remembered * size <= cached
    assert pool.num_free + len(holders) == pool.num_blocks
    assert all(0 <= block < pool.num_blocks for block in holders)
    if caching:
        assert holders == Counter(pool._holders)
        assert not holders.keys() & pool._free.keys()
        assert pool.num_free == len(pool._free) + pool.num_blocks - pool._never_used
        assert {block: key for key, block in pool._block_of.items()} == pool._key_of
    else:
        assert all(count == 1 for count in holders.values())
        assert not holders.keys() & set(pool._returned)
        assert len(set(pool._returned)) == len(pool._returned) == pool.num_free - pool.num_blocks + pool._never_used


def check_empty(driver: Driver) -> None:
    """After the last commit: everybody has what was asked, nobody holds anything."""
    assert not driver.live
    assert not driver.scheduler.has_work
    assert all(not s.blocks for s in driver.outputs)
    assert driver.scheduler.pool.num_free == driver.scheduler.config.num_kv_blocks
    assert driver.scheduler.decoding.context_tok == 0


def scheduler_of(num_kv_blocks, block_tok, **limits):
    settings = {"max_num_seqs": 4, "max_num_batched_tokens": 8} | limits
    return Scheduler(SchedulerConfig(num_kv_blocks=num_kv_blocks, kv_block_size_tok=block_tok, **settings))


def add(scheduler, *lengths, keys=((),) * 9):
    """Add requests of (prompt, most tokens)."""
    made = [Sequence(i, prompt_tok=prompt, max_tokens=most, keys=keys[i]) for i, (prompt, most) in enumerate(lengths)]
    for sequence in made:
        scheduler.add(sequence)
    return made


def turn(scheduler, finished=(), times=1):
    """Pick and commit steps, one at a time; ``finished`` stop with the last. Return the last."""
    for _ in range(times - 1):
        scheduler.commit(scheduler.schedule())
    step = scheduler.schedule()
    assert scheduler.commit(step, finished) == 0
    return step


def chunks(step):
    return [(c.sequence.request_id, c.start_tok, c.num_tok, c.ends) for c in step.chunks]
