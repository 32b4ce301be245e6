"""The scheduler by hand: each case is worked out in the comments beside it. Steps are numbered from 1."""

import pytest
from driving import add, chunks, generated_after, scheduler_of, turn

from tpplanner.errors import WorkloadError
from tpplanner.serving.config import SchedulerConfig
from tpplanner.serving.sequence import Sequence, Status


def test_prompts_in_chunks_beside_decodes():
    # 8 tokens a step. Prompts of 5, 9 and 3.
    scheduler = scheduler_of(100, 4)
    first, second, third = add(scheduler, (5, 9), (9, 9), (3, 9))
    step = turn(scheduler)  # 5 and 3 of 9
    assert (step.num_decode_seqs, chunks(step), step.num_prefill_tok) == (0, [(0, 0, 5, True), (1, 0, 3, False)], 8)
    assert [s.status for s in (first, second, third)] == [Status.DECODE, Status.PREFILL, Status.WAITING]
    step = turn(scheduler)  # a row; the other 6 of 9; 1 of 3
    assert (step.num_decode_seqs, chunks(step), step.context_tok) == (1, [(1, 3, 6, True), (2, 0, 1, False)], 6)
    step = turn(scheduler)  # rows over 7 and 10 tokens; the other 2 of 3; 4 tokens of the budget are left
    assert (step.num_decode_seqs, chunks(step), step.context_tok) == (2, [(2, 1, 2, True)], 17)
    assert not step.is_decode_only
    step = turn(scheduler)  # 8 + 11 + 4
    assert (step.num_decode_seqs, step.context_tok, step.num_prefill_tok) == (3, 23, 0)
    assert step.is_decode_only
    # Cached 8, 11 and 4: 2, 3 and 1 blocks. Sampled in steps 1, 2 and 3 first: 4, 3 and 2 tokens after step 4.
    assert [len(s.blocks) for s in (first, second, third)] == [2, 3, 1]
    assert [s.cached_after(4) for s in (first, second, third)] == [8, 11, 4]
    assert [generated_after(s, 4) for s in (first, second, third)] == [4, 3, 2]


def test_seats_and_order():
    # Two seats: the third waits for one, though tokens and blocks are left; the fourth behind it, though it is short.
    scheduler = scheduler_of(100, 4, max_num_seqs=2)
    first, second, third, fourth = add(scheduler, (2, 9), (2, 9), (4, 9), (1, 9))
    assert len(turn(scheduler).chunks) == 2
    assert list(scheduler.waiting) == [third, fourth]
    assert not scheduler.can_admit
    assert turn(scheduler, [second]).num_decode_seqs == 2
    step = turn(scheduler)
    assert chunks(step) == [(2, 0, 4, True)]
    assert list(scheduler.decoding) == [first, third]
    assert (scheduler.num_running_seqs, scheduler.can_admit) == (2, False)


def test_a_stop_on_a_block_boundary():
    # Blocks of 4, a prompt of 3: step 2 writes the block's last token. The next block would begin with step 3.
    scheduler = scheduler_of(5, 4)
    [one] = add(scheduler, (3, 2))
    turn(scheduler)
    step = scheduler.schedule()
    assert (one.cached_after(2), generated_after(one, 2), len(one.blocks)) == (4, 2, 1)
    scheduler.commit(step, [one])
    assert (scheduler.pool.num_free, one.blocks, one.status) == (5, [], Status.DONE)
    assert scheduler.schedule() is None
    assert not scheduler.has_work


def test_a_stop_just_past_a_block_boundary():
    # A prompt of 4: step 2 begins the second block and is the last.
    scheduler = scheduler_of(5, 4)
    [one] = add(scheduler, (4, 2))
    turn(scheduler)
    step = scheduler.schedule()
    assert (len(one.blocks), scheduler.pool.num_free) == (2, 3)
    scheduler.commit(step, [one])
    assert scheduler.pool.num_free == 5


def test_a_stop_on_a_block_boundary_with_a_step_in_flight():
    # As above, but step 3 is picked before the stop in step 2 is known: it begins a block, for a row that nobody needs.
    scheduler = scheduler_of(5, 4)
    [one] = add(scheduler, (3, 2))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert scheduler.commit(first) == 0
    third = scheduler.schedule()
    assert (third.num_decode_seqs, third.context_tok, len(one.blocks), scheduler.pool.num_free) == (1, 5, 2, 3)
    assert scheduler.commit(second, [one]) == 1
    assert (one.status, scheduler.pool.num_free) == (Status.DONE, 3)  # step 3 may write both blocks
    assert scheduler.schedule() is None
    assert scheduler.commit(third) == 0
    assert (scheduler.pool.num_free, one.blocks) == (5, [])


def test_a_prompt_and_its_stop_in_flight():
    # The only token comes with the prompt: one row too many, the block of it back with the commit after.
    scheduler = scheduler_of(5, 4)
    [one] = add(scheduler, (4, 1))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert (second.num_decode_seqs, scheduler.pool.num_free) == (1, 3)
    assert scheduler.commit(first, [one]) == 1
    assert scheduler.pool.num_free == 3
    scheduler.commit(second)
    assert scheduler.pool.num_free == 5


def test_what_the_cache_cannot_hold_is_refused():
    # 4 blocks of 2: 8 tokens fit, 9 do not.
    scheduler = scheduler_of(4, 2)
    with pytest.raises(WorkloadError) as refused:
        scheduler.add(Sequence(7, prompt_tok=5, max_tokens=4))
    assert str(refused.value) == "request 7: prompt and output must fit into 4 KV blocks, got 9"
    assert not scheduler.has_work
    [whole] = add(scheduler, (5, 3))
    turn(scheduler, [whole], times=3)
    assert scheduler.pool.num_free == 4


def test_nobody_stops_twice():
    scheduler = scheduler_of(4, 2)
    [one] = add(scheduler, (1, 1))
    turn(scheduler, [one])
    with pytest.raises(WorkloadError, match="sequence must be unfinished"):
        scheduler.abort(one)
    assert scheduler.pool.num_free == 4


@pytest.mark.parametrize("wrong", [{"num_kv_blocks": 0}, {"max_num_seqs": 0}, {"kv_block_size_tok": 1.5},
                                   {"watermark_frac": 0.6}, {"max_num_batched_tokens": 3}])
def test_limits_that_make_no_sense(wrong):
    with pytest.raises(WorkloadError, match=f"scheduler: {next(iter(wrong))} must be"):
        SchedulerConfig(**{"num_kv_blocks": 4, "max_num_seqs": 4, **wrong})


@pytest.mark.parametrize("wrong", [{"prompt_tok": 0}, {"max_tokens": 0}, {"prompt_tok": 2.0}])
def test_requests_that_make_no_sense(wrong):
    with pytest.raises(WorkloadError, match=f"request 3: {next(iter(wrong))} must be"):
        Sequence(3, **{"prompt_tok": 1, "max_tokens": 1, **wrong})


def test_an_abort_in_flight_gives_back_with_the_commit():
    scheduler = scheduler_of(6, 2)
    running, waiting = add(scheduler, (8, 1), (2, 1))
    step = scheduler.schedule()
    scheduler.abort(running)
    scheduler.abort(waiting)
    assert (scheduler.pool.num_free, scheduler.has_work) == (2, False)
    assert scheduler.commit(step) == 0
    assert scheduler.pool.num_free == 6


def test_sixteen_steps_at_once():
    # 20 blocks of 4, prompts of 2 and 5. After step 2 they have 3 and 6 tokens, 1 and 2 blocks; 17 are free.
    scheduler = scheduler_of(20, 4)
    first, second = add(scheduler, (2, 40), (5, 40))
    turn(scheduler)
    step = scheduler.schedule()
    # The first begins blocks with steps 4, 8, 12, ..., the second with 5, 9, 13, ...: with n more steps
    # (n + 2) // 4 + (n + 1) // 4 blocks. n = 33: 8 + 8 = 16; n = 34: 9 + 8 = 17; n = 35: 9 + 9 = 18.
    assert scheduler.num_steady_steps(100) == 34
    assert scheduler.num_steady_steps(16) == 16
    last = scheduler.repeat(step, 16)
    assert (last.step_index, last.num_decode_seqs, last.context_tok) == (18, 2, 19 + 22)
    assert [len(s.blocks) for s in (first, second)] == [5, 6]
    assert [generated_after(s, 18) for s in (first, second)] == [18, 18]
    assert scheduler.commit(last, [first, second]) == 0
    assert scheduler.pool.num_free == 20


def test_what_ends_the_steady_state():
    scheduler = scheduler_of(20, 4, max_num_seqs=3)
    first, second = add(scheduler, (2, 40), (5, 40))
    turn(scheduler)
    assert scheduler.num_steady_steps(9) == 0  # prompts
    step = scheduler.schedule()
    assert scheduler.num_steady_steps(9) == 9
    scheduler.add(third := Sequence(2, prompt_tok=1, max_tokens=9))  # a seat is free
    assert scheduler.num_steady_steps(9) == 0
    scheduler.commit(step)
    turn(scheduler, times=2)
    assert scheduler.num_steady_steps(9) == 9
    scheduler.add(fourth := Sequence(3, prompt_tok=1, max_tokens=9))  # none is
    assert scheduler.num_steady_steps(9) == 9
    scheduler.abort(fourth)
    assert scheduler.num_steady_steps(9) == 0
    turn(scheduler, [third])
    assert scheduler.num_steady_steps(9) == 0
    turn(scheduler)
    assert scheduler.num_steady_steps(9) == 9
    scheduler.abort(first)
    scheduler.abort(second)
    assert scheduler.num_steady_steps(9) == 0
