"""Prompts that are found again, by hand. Steps are numbered from 1."""

from driving import add, chunks, scheduler_of, turn

from tpplanner.serving.sequence import Sequence


def test_the_same_prompt_is_found():
    # Blocks of 4, prompts of 10: two full blocks with keys. The second computes 2 tokens and shares 2 of its 3 blocks.
    scheduler = scheduler_of(20, 4, max_num_batched_tokens=16, prefix_caching=True)
    [first] = add(scheduler, (10, 9), keys=[(51, 52)])
    turn(scheduler)
    second, third = (Sequence(i, prompt_tok=10, max_tokens=9, keys=keys) for i, keys in ((1, (51, 52)), (2, (51, 62))))
    scheduler.add(second)
    scheduler.add(third)
    step = turn(scheduler)
    assert chunks(step) == [(1, 8, 2, True), (2, 4, 6, True)]
    assert second.blocks[:2] == first.blocks[:2]
    assert third.blocks[:1] == first.blocks[:1]
    assert len({*first.blocks, *second.blocks, *third.blocks}) == 3 + 1 + 2 == 20 - scheduler.pool.num_free
    assert scheduler.num_found_tok == 8 + 4
    # What they share is free when the last of them is gone.
    scheduler.abort(first)
    assert scheduler.pool.num_free == 20 - 5
    scheduler.abort(third)
    assert scheduler.pool.num_free == 20 - 3
    scheduler.abort(second)
    assert scheduler.pool.num_free == 20


def test_a_token_is_left_to_compute():
    # A prompt of exactly two blocks, both known: only the first may be found, for (8 - 1) // 4 = 1.
    scheduler = scheduler_of(20, 4, prefix_caching=True)
    [first] = add(scheduler, (8, 1), keys=[(51, 52)])
    turn(scheduler, [first])
    [second] = add(scheduler, (8, 1), keys=[(51, 52)])
    assert chunks(turn(scheduler, [second])) == [(0, 4, 4, True)]
    assert scheduler.num_found_tok == 4


def test_a_prompt_is_found_when_it_was_computed_not_when_it_was_picked():
    # With step 1 in flight nothing of it is in the cache yet: step 2 computes the same prompt again, step 3 does not.
    scheduler = scheduler_of(20, 4, prefix_caching=True)
    add(scheduler, (6, 9), (6, 9), (6, 9), keys=[(51,)] * 3)
    first = scheduler.schedule()  # 6, and 2 of 6
    second = scheduler.schedule()  # a row, the other 4 of 6, 3 of 6
    assert (chunks(first)[1], chunks(second)) == ((1, 0, 2, False), [(1, 2, 4, True), (2, 0, 3, False)])
    scheduler.commit(first)
    scheduler.commit(second)
    scheduler.add(Sequence(3, prompt_tok=6, max_tokens=9, keys=(51,)))
    assert chunks(scheduler.schedule()) == [(2, 3, 3, True), (3, 4, 2, True)]


def test_only_full_blocks_are_found():
    # 3 tokens a step of a prompt of two blocks of 4: 3, 6 and 8 tokens.
    scheduler = scheduler_of(20, 4, max_num_seqs=3, max_num_batched_tokens=3, prefix_caching=True)
    add(scheduler, (8, 1), keys=[(51, 52)])
    for known in (0, 1, 2):
        turn(scheduler)
        assert scheduler.pool.find((51, 52)) == known


def test_an_evicted_prompt_finds_itself():
    # 5 blocks of 2. The older has 1 block after step 1, the newer 2, with keys; step 2 begins two: none is left. Step 4
    # needs two: the newer one goes with 6 cached tokens, its blocks free from the last on, of which the older takes the
    # first. When that one has stopped with step 5, the newer has 2 + 2 tokens of its prompt again, and computes 3.
    scheduler = scheduler_of(5, 2, prefix_caching=True)
    older, newer = add(scheduler, (2, 6), (4, 4), keys=[(11,), (21, 22)])
    turn(scheduler, times=3)
    assert turn(scheduler).preempted == (newer,)
    assert (newer.target_tok, scheduler.num_recomputed_tok, scheduler.pool.num_free) == (7, 6, 2)
    assert chunks(turn(scheduler, [older])) == []  # 2 known but idle, 2 new: more than 2
    assert chunks(turn(scheduler)) == [(1, 4, 3, True)]
    assert scheduler.num_found_tok == 0  # of the prompts asked for, nothing: it is its own


def test_what_is_left_of_an_evicted_prompt_is_its_beginning():
    # The same, but the older one begins another block with step 6, which was the end of the newer one's prompt.
    scheduler = scheduler_of(5, 2, prefix_caching=True)
    older, newer = add(scheduler, (2, 6), (4, 4), keys=[(11,), (21, 22)])
    assert turn(scheduler, times=4).preempted == (newer,)
    turn(scheduler, [older], times=2)
    assert chunks(turn(scheduler)) == [(1, 2, 5, True)]


def test_what_a_commit_makes_known_may_let_somebody_in():
    # 4 blocks of 2, 4 tokens a step, one step in flight. Step 1 computes the first prompt, of 4. Step 2 is a plain decode: it
    # begins the third block, and for 3 tokens of the second prompt, of 5 with the same 4 at its beginning, there would have to
    # be 2 more. Then step 1 is committed, and 4 of the 5 are known: the fourth block is enough, in step 3 already.
    scheduler = scheduler_of(4, 2, max_num_batched_tokens=4, prefix_caching=True)
    add(scheduler, (4, 4), (5, 1), keys=[(51, 52)] * 2)
    first, second = scheduler.schedule(), scheduler.schedule()
    assert (chunks(first), second.is_decode_only, scheduler.pool.num_free) == ([(0, 0, 4, True)], True, 1)
    scheduler.commit(first)
    assert scheduler.num_steady_steps(9) == 0
    assert chunks(scheduler.schedule()) == [(1, 4, 1, True)]


def test_a_prefix_that_breaks_up_may_let_somebody_in():
    # 14 blocks of 2, 7 tokens a step. A prompt of 17 takes steps 1 to 3. Then 2 and 4 tokens with the same first block in one
    # step: that of the shorter is found by its key (51), and the second of the longer by 52. The shorter stops with step 4,
    # the longer, with another block, with step 5: free are, in this order, 51, one without a key, 52, one without.
    scheduler = scheduler_of(14, 2, max_num_batched_tokens=7, prefix_caching=True)
    add(scheduler, (17, 11))
    turn(scheduler, times=3)
    shorter, longer = add(scheduler, (2, 2), (4, 3), keys=[(51,), (51, 52)])
    assert chunks(turn(scheduler, [shorter])) == [(0, 0, 2, True), (1, 0, 4, True)]
    turn(scheduler, [longer])
    # One of 24 tokens knows 2 blocks that nobody holds, and needs 3 for the 6 tokens left in a step: 5, of 4.
    add(scheduler, (24, 2), keys=[(51, 52, *range(60, 70))])
    assert turn(scheduler).is_decode_only
    assert (scheduler.pool.num_free, scheduler.pool.find((51, 52))) == (4, 2)
    # Step 7 begins a block, for which 51 is forgotten: now it knows nothing, and needs 3, of 3.
    assert scheduler.num_steady_steps(9) == 0
    assert chunks(turn(scheduler)) == [(0, 0, 6, False)]
    assert scheduler.num_found_tok == 0
