"""Many steps at once give what single steps give."""

from dataclasses import fields, replace

import numpy as np
import pytest
from builders import ALL_SWITCHES
from hypothesis import given, settings
from hypothesis import strategies as st
from simulations import run, small_grid, traffic

from tpplanner.domain.engine import Preemption
from tpplanner.domain.simulation import Quantiles, Router, SimulatedOutcome, SimulationOptions

LENGTHS = st.lists(st.tuples(st.integers(1, 600), st.integers(1, 300)), min_size=1, max_size=25)


def assert_same(fast, slow):
    (one, detail), (two, other) = fast, slow
    for name in ("start_s", "first_token_s", "finish_s"):
        np.testing.assert_allclose(getattr(detail.requests, name), getattr(other.requests, name), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(detail.requests.num_preemptions, other.requests.num_preemptions)
    np.testing.assert_array_equal(detail.requests.replica, other.requests.replica)
    for field in fields(SimulatedOutcome):
        mine, theirs = getattr(one, field.name), getattr(two, field.name)
        if isinstance(mine, Quantiles):
            for name in Quantiles.__slots__:
                assert getattr(mine, name) == pytest.approx(getattr(theirs, name), rel=1e-9, abs=1e-12), (field.name, name)
        elif isinstance(mine, float):
            assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12), field.name
        else:
            assert mine == theirs, field.name


@settings(max_examples=25)
@given(lengths=LENGTHS, gaps=st.lists(st.floats(0.0, 0.5), min_size=25, max_size=25), switches=st.sampled_from(ALL_SWITCHES),
       preemption=st.sampled_from(list(Preemption)), num_blocks=st.integers(60, 200), num_replicas=st.integers(1, 3),
       router=st.sampled_from(list(Router)))
def test_an_open_loop_is_the_same_step_by_step(lengths, gaps, switches, preemption, num_blocks, num_replicas, router):
    grid = small_grid(switches=switches, num_gpu_blocks=float(num_blocks), max_num_seqs=8.0, max_num_batched_tokens=256.0)
    grid = replace(grid, engine=replace(grid.engine, preemption=preemption))
    requests = traffic([isl for isl, _ in lengths], [osl for _, osl in lengths], np.cumsum(gaps[:len(lengths)]))
    fast, slow = (run(grid, requests, num_replicas=num_replicas,
                      options=SimulationOptions(router=router, step_by_step=slowly)) for slowly in (False, True))
    assert_same(fast, slow)


@settings(max_examples=15)
@given(lengths=LENGTHS, switches=st.sampled_from(ALL_SWITCHES), clients=st.lists(st.integers(0, 6), min_size=1, max_size=3),
       num_blocks=st.integers(60, 200), ramp_s=st.sampled_from([0.0, 0.3]))
def test_a_closed_loop_is_the_same_step_by_step(lengths, switches, clients, num_blocks, ramp_s):
    clients = [max(clients[0], 1), *clients[1:]]
    grid = small_grid(switches=switches, num_gpu_blocks=float(num_blocks), max_num_seqs=4.0)
    requests = traffic([isl for isl, _ in lengths], [osl for _, osl in lengths])
    fast, slow = (run(grid, requests, num_replicas=len(clients), clients=clients, ramp_s=ramp_s, step_by_step=slowly)
                  for slowly in (False, True))
    assert_same(fast, slow)
    assert fast[0].num_completed == len(lengths) - fast[0].num_unservable
