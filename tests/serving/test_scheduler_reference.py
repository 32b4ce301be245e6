"""Step by step as the plain re-implementation."""

from driving import Ask, Driver, asks, check_empty, configs, make_sequences
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Reference, ReferenceStep, Request

from tpplanner.domain.engine import Preemption
from tpplanner.serving.config import SchedulerConfig
from tpplanner.serving.scheduler import Scheduler


def seen(scheduler, step):
    """Return what the package's step says, in the reference's words."""
    return ReferenceStep(
        step.num_decode_seqs, step.context_tok,
        [(c.sequence.request_id, c.start_tok, c.num_tok, c.ends) for c in step.chunks],
        [s.request_id for s in step.preempted], [s.request_id for s in step.swapped_in],
        step.num_swapped_out_blocks, step.num_swapped_in_blocks, scheduler.pool.num_free)


def run_both(config, requests):
    """Drive both with the same requests and compare every step; return both."""
    driver, reference = Driver(Scheduler(config), in_flight=False), Reference(config)
    coming, twins = make_sequences(config, requests), []
    turn = 0
    while coming or driver.live:
        while coming and coming[0][0] <= turn:
            _, sequence, output = coming.pop(0)
            driver.add(sequence, output)
            twins.append(Request(sequence.request_id, sequence.prompt_tok, output, sequence.max_tokens))
            reference.waiting.append(twins[-1])
        if driver.live:
            step = driver.schedule()
            assert step is not None
            assert seen(driver.scheduler, step) == reference.step()
            assert [s.request_id for s in driver.commit()] == reference.finish()
            assert driver.scheduler.pool.num_free == reference.num_free
            assert [s.request_id for s in driver.scheduler.waiting] == [r.name for r in reference.waiting]
        turn += 1
    assert [s.num_preemptions for s in driver.outputs] == [r.num_preemptions for r in twins]
    assert driver.scheduler.num_recomputed_tok == reference.recomputed
    return driver, reference


@settings(max_examples=300)
@given(config=configs(caching=st.just(False)), requests=st.lists(asks(), min_size=1, max_size=12))
def test_every_step_is_that_of_the_reference(config, requests):
    run_both(config, requests)


LARGER = st.builds(
    SchedulerConfig, num_kv_blocks=st.integers(30, 90), kv_block_size_tok=st.sampled_from([4, 8]),
    max_num_seqs=st.integers(8, 24), max_num_batched_tokens=st.integers(24, 80), preemption=st.sampled_from(Preemption),
    watermark_frac=st.sampled_from([0.0, 0.05]))


@settings(max_examples=60)
@given(config=LARGER, seed=st.randoms(use_true_random=False))
def test_forty_requests_in_a_larger_pool(config, seed):
    """More of everything than Hypothesis builds by itself: batches of twenty, queues, evictions in rows."""
    requests = []
    for turn in range(40):
        output = seed.randint(1, 40)
        requests.append(Ask(turn // 2, seed.randint(1, 60), output, output + seed.randint(0, 4), ()))
    driver, _ = run_both(config, requests)
    check_empty(driver)


def test_the_comparison_meets_evictions():
    """The reference would agree with anything that never happens: here all three ways of the full cache do."""
    # 6 blocks of 2. Three requests of 2 + 8 tokens grow to 5 blocks each: two of them are in the way.
    requests = [Ask(0, 2, 8, 8, ())] * 3
    recompute, swap, reserve = (
        run_both(SchedulerConfig(num_kv_blocks=6, kv_block_size_tok=2, max_num_seqs=4, max_num_batched_tokens=8,
                                 preemption=preemption), requests)[0]
        for preemption in (Preemption.RECOMPUTE, Preemption.SWAP, Preemption.RESERVE))
    assert recompute.preempted.total() >= 2
    assert swap.preempted.total() >= 2
    assert reserve.preempted.total() == 0
