"""A cluster under each load mode: replicas, queues, energy, and one array for many points."""

from dataclasses import fields, replace
from itertools import product

import numpy as np
import pytest
from builders import make_grid, round_engine, round_hardware, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from tpplanner.domain.workload import LoadMode, Targets
from tpplanner.planner.cluster import ClusterState, evaluate

SMALL_GPU = replace(round_hardware(), hbm_bytes=replace(round_hardware().hbm_bytes, value=1.3e9))
GRID = make_grid(tiny_model(), round_hardware(), round_engine())
MODES = [(LoadMode.REQUEST_RATE, 2.0), (LoadMode.CONCURRENCY, 50.0), (LoadMode.BATCH_PER_GPU, 8.0),
         (LoadMode.CONCURRENCY_PER_REPLICA, 20.0), (LoadMode.SLO_CAPACITY, 0.0), (LoadMode.OFFLINE, 0.0)]


def on(num_gpus: float, mode: LoadMode, value: float = 0.0, **changes: object) -> ClusterState:
    return evaluate(replace(GRID, **changes), num_gpus=num_gpus, mode=mode, value=value)


@pytest.mark.parametrize(("num_gpus", "tp", "replicas"), [(6, 4, 1), (6, 2, 3), (6, 1, 6), (8, 3, 2), (7, 4, 1)])
def test_whole_replicas_share_the_load(num_gpus, tp, replicas):
    state = on(num_gpus, LoadMode.CONCURRENCY, 24.0, tp=float(tp))
    assert state.num_replicas == replicas
    assert state.concurrency_per_replica == pytest.approx(24 / replicas, rel=1e-12)
    one = on(tp, LoadMode.CONCURRENCY_PER_REPLICA, 24.0 / replicas, tp=float(tp))
    assert state.throughput_tok_s == pytest.approx(float(replicas * one.throughput_tok_s), rel=1e-12)
    # Power of the GPUs in use, and 100 W for each of those left over.
    assert state.power_w == pytest.approx(float(replicas * one.power_w) + (num_gpus - replicas * tp) * 100.0, rel=1e-12)


def test_the_modes_state_the_same_load_differently():
    # 8 GPUs at t = 2: 4 replicas of 16 requests.
    same = [on(8, LoadMode.CONCURRENCY, 64.0, tp=2.0), on(8, LoadMode.BATCH_PER_GPU, 8.0, tp=2.0),
            on(8, LoadMode.CONCURRENCY_PER_REPLICA, 16.0, tp=2.0)]
    assert len({float(s.throughput_tok_s) for s in same}) == 1
    # And a rate that leads to the same batch: 16 in flight, less those that wait out the step of the others.
    rate = float(same[0].rate_req_s)
    opened = on(8, LoadMode.REQUEST_RATE, rate, tp=2.0)
    inside = float(same[0].state.num_running_seqs)
    assert 15.5 < inside < 16.0
    assert opened.state.num_running_seqs == pytest.approx(inside, rel=1e-6)
    assert opened.rate_req_s == pytest.approx(rate, rel=1e-6)


def test_fewer_requests_than_replicas():
    # 2 requests on 4 replicas: two replicas work, two idle at 2 x 100 W each.
    state, busy = on(8, LoadMode.CONCURRENCY, 2.0, tp=2.0), on(2, LoadMode.CONCURRENCY, 1.0, tp=2.0)
    assert state.num_active_replicas == 2
    assert state.throughput_tok_s == pytest.approx(float(2 * busy.throughput_tok_s), rel=1e-12)
    assert state.power_w == pytest.approx(float(2 * busy.power_w + 2 * 2 * 100.0), rel=1e-12)
    assert state.latency.tpot_s == busy.latency.tpot_s


def test_a_cluster_smaller_than_the_degree_does_not_run():
    assert not on(2, LoadMode.OFFLINE, tp=4.0).runs


@pytest.mark.parametrize(("mode", "value"), MODES)
def test_one_array_call_equals_the_scalar_calls(mode, value):
    tps, isls = np.array([1.0, 2.0, 4.0, 8.0]), np.array([64.0, 500.0, 3000.0])
    targets = Targets(ttft_s=2.0, tpot_s=0.02)
    grid = replace(GRID, tp=tps[:, None], isl_tok=isls[None, :])
    together = evaluate(grid, num_gpus=8.0, mode=mode, value=value, targets=targets, price_usd_h=2.0)
    for (i, tp), (j, isl) in product(enumerate(tps), enumerate(isls)):
        alone = evaluate(replace(GRID, tp=float(tp), isl_tok=float(isl)), num_gpus=8.0, mode=mode, value=value,
                         targets=targets, price_usd_h=2.0)
        for field in fields(ClusterState):
            if field.name in ("room", "state", "latency"):
                continue
            np.testing.assert_allclose(getattr(together, field.name)[i, j], getattr(alone, field.name), rtol=1e-9,
                                       err_msg=field.name)
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            np.testing.assert_allclose(np.broadcast_to(getattr(together.latency, name), (4, 3))[i, j],
                                       getattr(alone.latency, name), rtol=1e-9, err_msg=name)


@settings(max_examples=60)
@given(tp=st.sampled_from([1.0, 2.0, 4.0]), isl=st.integers(1, 2000), osl=st.integers(1, 2000),
       concurrency=st.floats(1, 500))
def test_offline_is_the_most_that_a_roomy_replica_serves(tp, isl, osl, concurrency):
    lengths = {"tp": tp, "isl_tok": float(isl), "osl_tok": float(osl)}
    offline = on(tp, LoadMode.OFFLINE, **lengths)
    closed = on(tp, LoadMode.CONCURRENCY, concurrency, **lengths)
    assert offline.throughput_tok_s >= closed.throughput_tok_s * (1 - 1e-7)
    assert offline.capacity_req_s == pytest.approx(float(offline.rate_req_s), rel=1e-12)
    assert offline.saturated
    assert np.isnan(offline.latency.ttft_s)


def test_offline_pays_for_preemption_where_memory_is_short():
    # A full KV cache with requests waiting preempts; one request less than that does not. So offline is the
    # most of every *queued* load, and less than the same batch without a queue.
    short = replace(GRID, hardware=SMALL_GPU, isl_tok=100.0, osl_tok=1000.0, max_num_seqs=512.0)
    offline = evaluate(short, num_gpus=1.0, mode=LoadMode.OFFLINE)
    limit = float(offline.room.num_seqs)
    assert limit < 512
    queued = evaluate(short, num_gpus=1.0, mode=LoadMode.CONCURRENCY, value=limit + 100)
    calm = evaluate(short, num_gpus=1.0, mode=LoadMode.CONCURRENCY, value=limit)
    assert offline.state.preemptions_per_req == queued.state.preemptions_per_req == 9.5
    assert offline.throughput_tok_s == pytest.approx(float(queued.throughput_tok_s), rel=1e-12)
    assert 0.7 < offline.throughput_tok_s / calm.throughput_tok_s < 1.0


@pytest.mark.parametrize(("mode", "value"), MODES)
def test_power_and_energy_stay_within_the_board(mode, value):
    state = evaluate(replace(GRID, tp=np.array([1.0, 2.0, 4.0, 8.0])), num_gpus=8.0, mode=mode, value=value,
                     price_usd_h=2.0)
    assert (state.power_w >= 8 * 100.0 * (1 - 1e-12)).all()
    assert (state.power_w <= 8 * 600.0).all()
    assert (state.busy_frac <= 1 + 1e-12).all()
    np.testing.assert_allclose(state.energy_j_per_tok * state.throughput_tok_s, state.power_w, rtol=1e-12)
    # 8 GPUs at 2 USD/h.
    np.testing.assert_allclose(state.cost_usd_per_mtok * state.throughput_tok_s * 3600 / 1e6, 16.0, rtol=1e-12)


def test_a_nearly_idle_cluster_draws_little_more_than_idle_power():
    # One request in 100,000 s: each GPU idles at 100 W, up to the busy 0.001 %.
    state = on(8, LoadMode.REQUEST_RATE, 1e-5, tp=2.0)
    assert state.busy_frac < 1e-4
    assert state.power_w == pytest.approx(800.0, rel=1e-4)


def test_targets_decide_who_is_feasible():
    batch = {"mode": LoadMode.CONCURRENCY_PER_REPLICA, "value": 32.0, "num_gpus": 1.0}
    tpot = float(evaluate(GRID, **batch).latency.tpot_s)
    assert evaluate(GRID, **batch, targets=Targets(tpot_s=tpot * 1.001)).feasible
    assert not evaluate(GRID, **batch, targets=Targets(tpot_s=tpot * 0.999)).meets_tpot
    assert not evaluate(GRID, **batch, targets=Targets(ttft_s=1e-6)).meets_ttft


def test_replicas_do_not_straddle_nodes():
    # Two nodes of 8 hold one TP 5 replica each, and 3 GPUs of each idle at 100 W; every GPU is paid for.
    state = evaluate(replace(GRID, tp=5.0), num_gpus=16.0, mode=LoadMode.CONCURRENCY, value=24.0, price_usd_h=3.0)
    assert state.num_replicas == 2
    assert state.cost_usd_per_mtok == pytest.approx(float(16 * 3.0 / 3600 / state.throughput_tok_s * 1e6), rel=1e-12)


def test_an_open_loop_saturates_at_the_capacity_with_preemption():
    short = replace(GRID, hardware=SMALL_GPU, isl_tok=100.0, osl_tok=1000.0, max_num_seqs=512.0)
    offline = evaluate(short, num_gpus=1.0, mode=LoadMode.OFFLINE)
    capacity = float(offline.rate_req_s)
    for factor, saturated in ((0.99, False), (1.01, True)):
        state = evaluate(short, num_gpus=1.0, mode=LoadMode.REQUEST_RATE, value=capacity * factor)
        assert bool(state.saturated) is saturated
        assert state.capacity_req_s == pytest.approx(capacity, rel=1e-12)
        assert state.rate_req_s <= capacity * (1 + 1e-9)
