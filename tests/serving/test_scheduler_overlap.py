"""The same run in turn and with one step in flight (style.md, Tests, 4)."""

import pytest
from driving import Ask, Driver, asks, check_empty, configs, make_sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from tpplanner.domain.engine import Preemption
from tpplanner.serving.config import SchedulerConfig
from tpplanner.serving.scheduler import Scheduler


def run(config, requests, *, in_flight):
    """Run to the end; the books are checked after every turn, so that a block that is freed twice shows at once."""
    driver, coming = Driver(Scheduler(config), in_flight), make_sequences(config, requests)
    turn = 0
    while coming or driver.live or driver.flights:
        while coming and coming[0][0] <= turn:
            _, sequence, output = coming.pop(0)
            driver.add(sequence, output)
        driver.turn()
        driver.check()
        turn += 1
    check_empty(driver)
    return driver


def tokens(driver):
    return {s.request_id: count for s, count in driver.tokens.items()}


@settings(max_examples=200)
@given(config=configs(), requests=st.lists(asks(), min_size=1, max_size=10))
def test_a_step_in_flight_changes_nobodys_tokens(config, requests):
    in_turn, overlapped = (run(config, requests, in_flight=in_flight) for in_flight in (False, True))
    assert tokens(in_turn) == tokens(overlapped) == {s.request_id: output for s, output in in_turn.outputs.items()}
    assert in_turn.num_unused == 0
    for driver in (in_turn, overlapped):
        started = [s.request_id for s in driver.started]
        assert started == sorted(started)
        assert len(started) == len(driver.outputs)


@settings(max_examples=60)
@given(requests=st.lists(asks(max_turn=0), min_size=1, max_size=6))
def test_with_room_for_all_every_stop_costs_one_row(requests):
    """All come at once and nobody lacks blocks: a sequence stops one step before it is known, and runs on once."""
    config = SchedulerConfig(num_kv_blocks=200, kv_block_size_tok=4, max_num_seqs=8, max_num_batched_tokens=200)
    in_turn, overlapped = (run(config, requests, in_flight=in_flight) for in_flight in (False, True))
    assert overlapped.num_unused == len(requests)
    assert overlapped.index == in_turn.index + 1


@pytest.mark.parametrize("in_flight", [False, True])
@pytest.mark.parametrize("preemption", Preemption)
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_a_cache_far_too_small_serves_everybody_in_the_end(preemption, in_flight, prefix_caching):
    """40 requests of 2 to 7 blocks, 10 seats, 8 blocks."""
    config = SchedulerConfig(num_kv_blocks=8, kv_block_size_tok=4, max_num_seqs=10, max_num_batched_tokens=16,
                             preemption=preemption, prefix_caching=prefix_caching)
    requests = [Ask(i // 4, 1 + 5 * i % 13, 3 + 7 * i % 12, 3 + 7 * i % 12, (0,)) for i in range(40)]
    driver = run(config, requests, in_flight=in_flight)
    assert len(driver.outputs) == 40
    assert tokens(driver) == {i: 3 + 7 * i % 12 for i in range(40)}
    assert (driver.preempted.total() > 10) is (preemption is not Preemption.RESERVE)
