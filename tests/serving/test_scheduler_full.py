"""What happens when the blocks run out, by hand. Steps are numbered from 1."""

from driving import add, check_blocks, chunks, generated_after, scheduler_of, turn

from tpplanner.domain.engine import Preemption
from tpplanner.serving.sequence import Sequence, Status


def test_eviction_by_recompute():
    # 4 blocks of 2. Cached after step 1: 2 and 2. Step 2 begins two blocks: none is left. Step 4 needs two more: the newer
    # one goes. It has 4 tokens in the cache, and 3 of its own: the next step for it computes 2 + 3 from the start.
    scheduler = scheduler_of(4, 2)
    older, newer = add(scheduler, (2, 6), (2, 6))
    turn(scheduler, times=3)
    assert scheduler.pool.num_free == 0
    scheduler.add(later := Sequence(2, prompt_tok=1, max_tokens=1))
    step = turn(scheduler)
    assert (step.preempted, step.num_decode_seqs, step.context_tok) == ((newer,), 1, 5)
    assert (newer.status, newer.target_tok, newer.cached_tok, newer.blocks) == (Status.WAITING, 5, 0, [])
    assert (newer.num_preemptions, scheduler.num_recomputed_tok, step.num_swapped_out_blocks) == (1, 4, 0)
    assert list(scheduler.waiting) == [newer, later]  # at the front
    # One block is free until step 6 takes it. The evicted one needs 3, and nobody passes it.
    assert chunks(turn(scheduler)) == []
    assert scheduler.pool.num_free == 1
    assert generated_after(older, 6) == 6
    assert chunks(turn(scheduler, [older])) == []
    step = turn(scheduler)
    assert chunks(step) == [(1, 0, 5, True), (2, 0, 1, True)]
    assert generated_after(newer, 7) == 4
    assert scheduler.pool.num_free == 0


def test_eviction_by_swap():
    # The same, but its 2 blocks are copied out, and back when 3 are free: 4 tokens and the one that the step writes.
    scheduler = scheduler_of(4, 2, preemption=Preemption.SWAP)
    older, newer = add(scheduler, (2, 6), (2, 6))
    turn(scheduler, times=3)
    scheduler.add(later := Sequence(2, prompt_tok=1, max_tokens=1))
    step = turn(scheduler)
    assert (step.preempted, step.num_swapped_out_blocks, step.num_swapped_in_blocks) == ((newer,), 2, 0)
    assert (newer.status, list(scheduler.swapped), list(scheduler.waiting)) == (Status.SWAPPED, [newer], [later])
    assert scheduler.num_recomputed_tok == 0
    step = turn(scheduler)
    assert (step.swapped_in, chunks(step), scheduler.pool.num_free) == ((), [], 1)  # the later one does not pass it
    turn(scheduler, [older])
    step = turn(scheduler)
    assert (step.swapped_in, step.num_swapped_in_blocks, step.num_swapped_out_blocks) == ((newer,), 2, 0)
    assert (step.num_decode_seqs, step.context_tok, chunks(step)) == (1, 5, [(2, 0, 1, True)])
    assert generated_after(newer, 7) == 4
    assert scheduler.pool.num_free == 0


def test_a_prompt_in_the_middle_is_not_swapped():
    # 6 blocks of 2, 5 tokens a step. Step 1: 4 tokens of the older one and 1 of the newer: 2 + 1 blocks. Step 2: 5 and 1 + 4:
    # 3 + 3 blocks. Step 3: 6 and 5 + 4: 3 + 5 blocks. The newer one goes, and its 5 tokens are computed again, not copied.
    scheduler = scheduler_of(6, 2, max_num_batched_tokens=5, preemption=Preemption.SWAP)
    _, newer = add(scheduler, (4, 6), (10, 2))
    assert chunks(turn(scheduler)) == [(0, 0, 4, True), (1, 0, 1, False)]
    step = turn(scheduler)
    assert (chunks(step), scheduler.pool.num_free) == ([(1, 1, 4, False)], 0)
    step = turn(scheduler)
    assert (step.preempted, chunks(step), step.num_swapped_out_blocks) == ((newer,), [], 0)
    assert (newer.status, newer.target_tok, scheduler.num_recomputed_tok) == (Status.WAITING, 10, 5)


def test_reserve_admits_full_lengths_only():
    # 7 blocks of 2. 2 + 6 tokens are 4 blocks: of two such the second waits, with 6 blocks free, and nobody is evicted.
    scheduler = scheduler_of(7, 2, preemption=Preemption.RESERVE)
    older, newer, later = add(scheduler, (2, 6), (2, 6), (1, 1))
    assert chunks(turn(scheduler)) == [(0, 0, 2, True)]
    assert scheduler.pool.num_free == 6
    step = turn(scheduler, [older], times=5)
    assert (step.preempted, step.num_decode_seqs, list(scheduler.waiting)) == ((), 1, [newer, later])
    # Then both: 4 and 1 blocks.
    assert chunks(turn(scheduler)) == [(1, 0, 2, True), (2, 0, 1, True)]
    assert older.num_preemptions == newer.num_preemptions == 0


def test_reserve_forgets_the_promise_with_the_sequence():
    scheduler = scheduler_of(4, 2, preemption=Preemption.RESERVE)
    first, second, third = add(scheduler, (2, 6), (2, 6), (2, 6))
    turn(scheduler)
    scheduler.abort(second)  # it waits: nothing was promised to it
    assert chunks(turn(scheduler)) == []
    scheduler.abort(first)
    assert chunks(turn(scheduler)) == [(2, 0, 2, True)]
    scheduler.abort(third)
    assert scheduler.pool.num_free == 4


def test_the_watermark_is_for_admissions():
    # 10 blocks of 1, 3 of them left free. 4 + 3 leave 3; a third prompt of 1 would leave 2. Decodes may have those.
    scheduler = scheduler_of(10, 1, watermark_frac=0.3)
    assert scheduler.longest_tok == 7
    _, second, third = add(scheduler, (4, 3), (3, 4), (1, 1))
    assert chunks(turn(scheduler)) == [(0, 0, 4, True), (1, 0, 3, True)]
    assert scheduler.pool.num_free == 3
    assert chunks(turn(scheduler)) == []
    assert scheduler.pool.num_free == 1
    scheduler.abort(second)  # 3 + 1 back: 5 free, of which the older one takes one in step 3
    assert chunks(turn(scheduler)) == [(2, 0, 1, True)]
    assert third.status is Status.DECODE


def test_the_watermark_holds_for_the_way_back_too():
    # 10 blocks of 1: as above two begin with 4 and 3; step 2 leaves 1, step 3 needs 2: the newer one goes with its 4, and
    # step 3 takes one. 4 are free: to come back it needs 5 and 3 more.
    scheduler = scheduler_of(10, 1, watermark_frac=0.3, preemption=Preemption.SWAP)
    older, newer = add(scheduler, (4, 3), (3, 4))
    assert turn(scheduler, [], times=3).preempted == (newer,)
    assert scheduler.pool.num_free == 4
    scheduler.abort(older)
    assert turn(scheduler).swapped_in == (newer,)
    assert scheduler.pool.num_free == 5


def test_one_that_was_evicted_had_stopped_in_the_step_in_flight():
    # As test_eviction_by_recompute, but step 4 is picked, and the newer one evicted, before step 3 says that it stopped.
    scheduler = scheduler_of(4, 2)
    older, newer = add(scheduler, (2, 6), (2, 6))
    turn(scheduler, times=2)
    third, fourth = scheduler.schedule(), scheduler.schedule()
    assert (fourth.preempted, fourth.num_decode_seqs, scheduler.pool.num_free) == ((newer,), 1, 1)
    assert scheduler.commit(third, [newer]) == 0  # it has no row in step 4
    assert (newer.status, list(scheduler.waiting), list(scheduler.decoding)) == (Status.DONE, [], [older])
    fifth = scheduler.schedule()
    scheduler.commit(fourth)
    scheduler.commit(fifth)
    check_blocks(scheduler, {older: 0, newer: 0}, 5)
    assert scheduler.pool.num_free == 1


def test_one_that_was_swapped_had_stopped_in_the_step_in_flight():
    scheduler = scheduler_of(4, 2, preemption=Preemption.SWAP)
    older, newer = add(scheduler, (2, 6), (2, 6))
    turn(scheduler, times=2)
    third, fourth = scheduler.schedule(), scheduler.schedule()
    assert (fourth.preempted, fourth.num_swapped_out_blocks) == ((newer,), 2)  # copied for nothing
    assert scheduler.commit(third, [newer]) == 0
    assert (list(scheduler.swapped), list(scheduler.decoding)) == ([], [older])


def test_nobody_is_evicted_for_blocks_on_their_way_back():
    # 2 blocks of 2, one each. Step 2 is in flight when the newer one turns out to have stopped in step 1; step 3 would
    # begin a block for the older one. There is none until step 2 is committed, and no step to evict anybody for.
    scheduler = scheduler_of(2, 2)
    older, newer = add(scheduler, (1, 3), (1, 3))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert scheduler.commit(first, [newer]) == 1
    assert scheduler.pool.num_free == 0
    assert scheduler.schedule() is None
    scheduler.commit(second)
    third = scheduler.schedule()
    assert (third.step_index, third.num_decode_seqs, third.preempted, older.num_preemptions) == (3, 1, (), 0)


def test_a_prompt_waits_for_blocks_on_their_way_back():
    # 6 blocks of 2, 4 tokens a step. Step 1: a prompt of 2 and 2 of 9, 1 + 1 blocks. Step 2: a row and 3 more, 2 + 3 blocks.
    # The older one stopped in step 1. Step 3 would compute 4 more, with 2 more blocks: 1 is free, 2 are held until step 2 is
    # committed. No row, no chunk, no step; and the free block is not for one that came later.
    scheduler = scheduler_of(6, 2, max_num_batched_tokens=4)
    older, newer, later = add(scheduler, (2, 6), (9, 1), (1, 1))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert (chunks(second), scheduler.pool.num_free) == ([(1, 2, 3, False)], 1)
    assert scheduler.commit(first, [older]) == 1
    assert scheduler.schedule() is None
    assert (newer.status, newer.num_preemptions, list(scheduler.waiting)) == (Status.PREFILL, 0, [later])
    scheduler.commit(second)
    assert chunks(scheduler.schedule()) == [(1, 5, 4, True)]


def test_one_that_comes_back_takes_a_seat():
    # Two seats, 5 blocks of 2. Step 4 evicts, as above. Two come later; when the older one has stopped, 5 blocks are free:
    # 3 for the one swapped out and 1 each for the others, of whom only one has a seat.
    scheduler = scheduler_of(5, 2, max_num_seqs=2, preemption=Preemption.SWAP)
    older, newer = add(scheduler, (2, 6), (2, 6))
    assert turn(scheduler, times=4).preempted == (newer,)
    for number in (2, 3):
        scheduler.add(Sequence(number, prompt_tok=1, max_tokens=1))
    turn(scheduler, [older], times=2)
    step = turn(scheduler)
    assert (step.swapped_in, chunks(step), scheduler.pool.num_free) == ((newer,), [(2, 0, 1, True)], 1)


def test_an_abort_comes_back_with_the_last_step_that_writes_it():
    scheduler = scheduler_of(4, 2)
    [one] = add(scheduler, (2, 6))
    first, second = scheduler.schedule(), scheduler.schedule()
    scheduler.abort(one)
    scheduler.commit(first)
    assert scheduler.pool.num_free == 2
    scheduler.commit(second)
    assert scheduler.pool.num_free == 4


def test_nothing_is_steady_while_blocks_are_on_their_way_back():
    # 4 blocks of 4: two prompts of 4 begin their second ones with step 2, and a third request waits. The newer one stopped in
    # step 1, and holds 2 blocks until step 2 is committed. Step 3 is a plain decode, and there is a block until step 6; but
    # step 4 is not like it.
    scheduler = scheduler_of(4, 4)
    _, newer, _ = add(scheduler, (4, 6), (4, 6), (1, 1))
    first, second = scheduler.schedule(), scheduler.schedule()
    scheduler.commit(first, [newer])
    third = scheduler.schedule()
    assert third.is_decode_only
    assert scheduler.num_steady_steps(9) == 0
    scheduler.commit(second)
    assert scheduler.num_steady_steps(9) == 0
    assert chunks(scheduler.schedule()) == [(2, 0, 1, True)]
    scheduler.commit(third)
