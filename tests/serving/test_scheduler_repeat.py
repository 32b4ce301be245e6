"""Many decode steps at once, against as many picked and committed one by one."""

import copy

from driving import Driver, asks, check_empty, configs, make_sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from tpplanner.serving.scheduler import Scheduler
from tpplanner.serving.sequence import Status


def state(scheduler):
    """Everything that later steps depend on. Blocks without a key are alike: their numbers are left out."""
    pool = scheduler.pool
    key_of = getattr(pool, "_key_of", {})

    def of(sequence):
        cached = {Status.DECODE: sequence.base, Status.PREFILL: sequence.cached_tok}.get(sequence.status)
        return (sequence.request_id, sequence.status, cached, sequence.target_tok, sequence.num_preemptions,
                sequence.num_remembered, [key_of.get(block) for block in sequence.blocks])

    return {
        "places": [[of(s) for s in place] for place in (scheduler.decoding, scheduler.prefilling, scheduler.swapped,
                                                         scheduler.waiting, [s for _, s in scheduler._held])],
        "due": [[s.request_id for s in scheduler.decoding.due(i)] for i in range(scheduler.config.kv_block_size_tok)],
        "context_tok": scheduler.decoding.context_tok,
        "pool": (pool.num_free, pool._never_used, [key_of.get(block) for block in getattr(pool, "_free", ())]),
        "counts": (scheduler._index, scheduler._reserved, scheduler._settled, scheduler.num_found_tok,
                   scheduler.num_recomputed_tok),
    }


def told(step):
    """Return a step with names for sequences, so that steps of two copies compare."""
    return None if step is None else step._replace(
        chunks=tuple(c._replace(sequence=c.sequence.request_id) for c in step.chunks),
        preempted=tuple(s.request_id for s in step.preempted), swapped_in=tuple(s.request_id for s in step.swapped_in))


def begin_turn(driver):
    """Pick a step, and commit the one before where one is in flight: the moment in which a simulator repeats."""
    step = driver.schedule()
    if driver.flights and (len(driver.flights) > 1 or step is None):
        driver.commit()
    return step


def one_by_one(driver, num_steps):
    """Take as many steps as were repeated; return the last."""
    for _ in range(num_steps):
        if not driver.in_flight:
            driver.commit()
        step = begin_turn(driver)
    return step


def compare(config, requests, most, *, in_flight):
    """Run with repeats, beside a copy without; return the driver and the number of steps that were repeated."""
    driver, coming = Driver(Scheduler(config), in_flight), make_sequences(config, requests)
    num_repeated = turn = 0
    while coming or driver.live or driver.flights:
        while coming and coming[0][0] <= turn:
            _, sequence, output = coming.pop(0)
            driver.add(sequence, output)
        turn += 1
        if begin_turn(driver) is not None:
            beside = copy.deepcopy(driver)
            num_steps = driver.fast_forward(most)
            if num_steps:
                num_repeated += num_steps
                assert told(one_by_one(beside, num_steps)) == told(driver.flights[-1].step)
                assert state(beside.scheduler) == state(driver.scheduler)
                assert list(beside.tokens.values())[: len(driver.tokens)] == [
                    driver.tokens[s] for s in driver.tokens]
        if driver.flights and not driver.in_flight:
            driver.commit()
    check_empty(driver)
    return driver, num_repeated


@settings(max_examples=150)
@given(config=configs(), requests=st.lists(asks(), min_size=1, max_size=10), most=st.integers(1, 20), in_flight=st.booleans())
def test_repeated_steps_equal_single_ones(config, requests, most, in_flight):
    compare(config, requests, most, in_flight=in_flight)
