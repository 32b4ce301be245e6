"""The two pools, by hand and against a list that is searched from the front (style.md, Tests, 4)."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tpplanner.errors import WorkloadError
from tpplanner.serving.blocks import PlainPool, PrefixPool

POOLS = pytest.mark.parametrize("kind", [PlainPool, PrefixPool])


@POOLS
def test_no_pool_without_blocks(kind):
    with pytest.raises(WorkloadError, match="block pool: num_kv_blocks must be >= 1, got 0"):
        kind(0)


@POOLS
def test_more_than_there_is_cannot_be_taken(kind):
    pool = kind(3)
    pool.take(2)
    with pytest.raises(AssertionError, match="2 blocks taken, 1 free"):
        pool.take(2)
    assert pool.num_free == 1


@POOLS
def test_taking_none_takes_none(kind):
    pool = kind(3)
    held = pool.take(1)
    assert pool.take(0) == []
    pool.give_back([])
    pool.give_back(held)
    assert pool.take(0) == []
    assert pool.num_free == 3


def test_a_plain_pool_gives_what_came_back_last():
    pool = PlainPool(5)
    assert pool.take(3) == [0, 1, 2]
    pool.give_back([1, 2])
    assert pool.num_free == 4
    assert pool.take(1) == [2]
    # 1 has come back, 3 and 4 were never used.
    assert pool.take(3) == [1, 3, 4]
    assert pool.num_free == 0


def test_a_plain_pool_knows_nothing():
    pool = PlainPool(2)
    [block] = pool.take(1)
    pool.remember(block, 7)
    assert pool.find((7,)) == pool.num_idle((7,)) == 0
    assert pool.share(()) == []
    assert pool.forgets_last_first((7,))


def keyed(pool, *keys):
    """Take a block per key and let it be found."""
    blocks = pool.take(len(keys))
    for block, key in zip(blocks, keys, strict=True):
        pool.remember(block, key)
    return blocks


def test_a_prefix_is_forgotten_from_its_end():
    pool = PrefixPool(4)
    pool.give_back(keyed(pool, 11, 12, 13))  # blocks 0, 1, 2: free in the order 2, 1, 0, behind 3, never used
    assert pool.find((11, 12, 13)) == 3
    assert pool.take(1) == [3]
    assert pool.find((11, 12, 13)) == 3
    assert pool.take(1) == [2]
    assert pool.find((11, 12, 13)) == 2
    assert pool.take(2) == [1, 0]
    assert pool.find((11, 12, 13)) == 0


def test_the_blocks_free_for_longest_are_taken_first():
    pool = PrefixPool(4)
    first, second = keyed(pool, 1, 2), keyed(pool, 3, 4)
    pool.give_back(second)
    pool.give_back(first)
    assert pool.take(3) == [3, 2, 1]
    assert (pool.find((1, 2)), pool.find((3, 4))) == (1, 0)


def test_a_block_found_and_given_back_is_as_new():
    pool = PrefixPool(3)
    pool.give_back(keyed(pool, 1))
    pool.give_back(keyed(pool, 2))
    pool.give_back(keyed(pool, 3))  # the order of the free: 0, 1, 2
    pool.give_back(pool.share((1,)))
    assert pool.take(2) == [1, 2]
    assert pool.find((1,)) == 1


def test_shared_blocks_are_free_when_the_last_holder_lets_go():
    pool = PrefixPool(3)
    first = keyed(pool, 1, 2)
    assert pool.num_idle((1, 2)) == 0
    assert pool.share((1, 2)) == first
    assert pool.num_free == 1
    pool.give_back(first)
    assert pool.num_free == 1
    assert pool.num_idle((1, 2)) == 0
    pool.give_back(first)
    assert pool.num_free == 3
    assert pool.num_idle((1, 2)) == 2
    # Nobody holds them, so that finding them uses up what is free.
    assert pool.share((1,)) == first[:1]
    assert pool.num_free == 2


def test_finding_stops_at_the_first_unknown():
    pool = PrefixPool(4)
    keyed(pool, 1, 2)
    assert pool.find(()) == 0
    assert pool.find((1, 9, 2)) == 1
    assert pool.find((2, 1)) == 2
    assert pool.find((9, 1)) == 0


def test_the_first_block_of_a_key_stays_and_a_block_has_one_key():
    pool = PrefixPool(4)
    first, second = keyed(pool, 1), keyed(pool, 1)
    assert pool.share((1,)) == first
    pool.remember(second[0], 2)  # its key was refused: it is without one still
    assert pool.share((2,)) == second
    pool.remember(second[0], 3)
    assert pool.find((3,)) == 0


def test_a_key_is_free_again_when_its_block_is_taken():
    pool = PrefixPool(1)
    pool.give_back(keyed(pool, 1))
    block = pool.take(1)
    assert pool.find((1,)) == 0
    pool.remember(block[0], 1)
    assert pool.find((1,)) == 1


def test_the_end_of_a_prefix_may_outlive_a_beginning_that_another_computed():
    pool = PrefixPool(3)
    short, long = keyed(pool, 1), keyed(pool, 1, 2)  # at once: key 1 is block 0 of the short one, key 2 block 2
    assert pool.forgets_last_first((1, 2))  # held, both
    pool.give_back(short)
    assert pool.forgets_last_first((1, 2))  # one of them held
    pool.give_back(long)
    assert not pool.forgets_last_first((1, 2))
    assert pool.take(1) == short
    assert pool.find((1, 2)) == 0


class PlainMachine(RuleBasedStateMachine):
    """Blocks in groups, as sequences hold them."""

    kind = PlainPool

    @initialize(num_blocks=st.integers(1, 12))
    def start(self, num_blocks):
        self.pool, self.held = self.kind(num_blocks), []
        self.order, self.key_of = list(range(num_blocks)), {}

    @property
    def num_holders(self):
        count = dict.fromkeys(range(self.pool.num_blocks), 0)
        for blocks in self.held:
            for block in blocks:
                count[block] += 1
        return count

    @rule(data=st.data())
    def take(self, data):
        count = data.draw(st.integers(0, self.pool.num_free))
        self.took(self.pool.take(count), count)

    def took(self, blocks, count):
        assert len(set(blocks)) == len(blocks) == count
        assert all(self.num_holders[block] == 0 for block in blocks)
        self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data):
        blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.give_back(list(blocks))
        self.order += [b for b in reversed(blocks) if not self.num_holders[b]]

    @invariant()
    def nothing_is_lost(self):
        if hasattr(self, "pool"):
            assert self.pool.num_free == sum(not count for count in self.num_holders.values())

    def teardown(self):
        if hasattr(self, "pool"):
            for blocks in self.held:
                self.pool.give_back(blocks)
            assert sorted(self.pool.take(self.pool.num_blocks)) == list(range(self.pool.num_blocks))


class PrefixMachine(PlainMachine):
    """``order`` lists the free blocks from the next to be taken on; ``key_of`` says what is in whichever block."""

    kind = PrefixPool

    def took(self, blocks, count):
        super().took(blocks, count)
        assert blocks == self.order[:count]
        del self.order[:count]
        for block in blocks:
            self.key_of.pop(block, None)

    @precondition(lambda self: any(self.held))
    @rule(data=st.data(), key=st.integers(0, 6))
    def remember(self, data, key):
        block = data.draw(st.sampled_from([b for blocks in self.held for b in blocks]))
        self.pool.remember(block, key)
        if key not in self.key_of.values():
            self.key_of.setdefault(block, key)

    @rule(keys=st.lists(st.integers(0, 6), unique=True))
    def find_and_share(self, keys):
        block_of = {key: block for block, key in self.key_of.items()}
        known = []
        while len(known) < len(keys) and keys[len(known)] in block_of:
            known.append(keys[len(known)])
        assert self.pool.find(tuple(keys)) == len(known)
        blocks = [block_of[key] for key in known]
        idle = [b for b in blocks if not self.num_holders[b]]
        places = [self.order.index(b) for b in idle]
        assert self.pool.num_idle(tuple(known)) == len(idle)
        assert self.pool.forgets_last_first(tuple(known)) is (places == sorted(places, reverse=True))
        assert self.pool.share(tuple(known)) == blocks
        self.held.append(blocks)
        self.order = [b for b in self.order if b not in blocks]


TestPlainPool = PlainMachine.TestCase
TestPlainPool.settings = settings(max_examples=60)
TestPrefixPool = PrefixMachine.TestCase
TestPrefixPool.settings = settings(max_examples=150)
