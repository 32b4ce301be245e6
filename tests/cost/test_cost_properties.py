"""What holds for every model, machine, engine and batch (style.md, Tests, 3)."""

from dataclasses import fields, replace

import numpy as np
import pytest
from builders import (
    ALL_SWITCHES,
    GQA,
    LINEAR,
    MLA,
    WINDOWED,
    curve,
    make_hardware,
    make_model,
    round_engine,
    round_hardware,
    tiny_model,
    tiny_moe,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tpplanner.cost.communication import collective_s, curve_s, wire_frac
from tpplanner.cost.kv import kv_bytes_per_tok, layer_kv_bytes_per_tok
from tpplanner.cost.linear import linear_class_s
from tpplanner.cost.memory import memory_split
from tpplanner.cost.roofline import roofline_s
from tpplanner.cost.step_time import step_time
from tpplanner.cost.work import work_of
from tpplanner.domain.hardware import CollectiveCurve, CollectiveOp
from tpplanner.domain.step import Batch, StepTime

MODELS = (
    tiny_model(), tiny_model(GQA, WINDOWED), tiny_model(MLA, mlp=tiny_moe()), tiny_model(GQA, LINEAR, mlp=tiny_moe()),
    tiny_model(weights="fp8", kv="fp8", tied=True), tiny_model(weights="int4"), make_model(),
)
MACHINES = (round_hardware(), round_hardware(curves=(curve(2), curve(4))), make_hardware())
SLACK = 1 + 1e-12  # of sums taken in another order

models, machines = st.sampled_from(MODELS), st.sampled_from(MACHINES)
engines = st.sampled_from([round_engine(s) for s in ALL_SWITCHES])
degrees = st.sampled_from([1, 2, 3, 4, 8, 16])
sizes = st.floats(0, 1e5, allow_subnormal=False)
batches = st.builds(
    Batch, num_decode_seqs=st.floats(0, 2048), decode_context_tok=sizes, num_prefill_tok=st.floats(0, 16384),
    prefill_context_tok=sizes, num_prefill_seqs=st.floats(0, 64), num_prefill_ends=st.floats(0, 64),
)
cases = given(model=models, hardware=machines, engine=engines, tp=degrees, batch=batches)
TERMS = [f.name for f in fields(StepTime)]
BATCH = [f.name for f in fields(Batch)]


def terms(time: StepTime) -> dict[str, float]:
    return {name: float(getattr(time, name)) for name in [*TERMS, "scalable_s", "host_s", "device_s", "total_s"]}


@settings(max_examples=150)
@cases
def test_times_are_finite_and_not_negative(model, hardware, engine, tp, batch):
    found = terms(step_time(model, hardware, engine, tp=tp, batch=batch))
    assert all(np.isfinite(value) and value >= 0 for value in found.values()), found


@settings(max_examples=100)
@cases
def test_one_gpu_does_not_communicate(model, hardware, engine, tp, batch):
    assert step_time(model, hardware, engine, tp=1, batch=batch).comm_s == 0.0
    assert tp == 1 or step_time(model, hardware, engine, tp=tp, batch=batch).comm_s > 0.0


@settings(max_examples=150)
@cases
def test_the_total_lies_between_its_largest_part_and_their_sum(model, hardware, engine, tp, batch):
    t = terms(step_time(model, hardware, engine, tp=tp, batch=batch))
    parts = [t["scalable_s"], t["comm_s"], t["sampling_s"], t["host_s"]]
    assert max(parts) <= t["total_s"] * SLACK
    assert t["device_s"] <= t["total_s"] * SLACK
    assert t["total_s"] <= sum(parts) * SLACK
    assert t["hidden_s"] <= min(t["host_s"], t["device_s"]) * SLACK


@settings(max_examples=60)
@given(model=models, hardware=machines, tp=degrees, batch=batches)
def test_each_switch_only_helps(model, hardware, tp, batch):
    # Apart from the constant price of overlapping itself and the exchange that splits the sampling.
    free = {"overlap_overhead_s": replace(round_engine().overlap_overhead_s, value=0.0)}
    times = {(s.async_sched, s.early_feedback, s.seq_parallel_sampling):
             step_time(model, hardware, round_engine(s, **free), tp=tp, batch=batch) for s in ALL_SWITCHES}
    for split in (False, True):
        off, some, most = (float(times[a, e, split].total_s) for a, e in ((0, 0), (1, 0), (1, 1)))
        assert most <= some * SLACK
        assert some <= off * SLACK
    assert float(times[0, 0, True].sampling_s) <= float(times[0, 0, False].sampling_s) * SLACK


@settings(max_examples=200)
@given(model=models, hardware=machines, engine=engines, tp=degrees, batch=batches, field=st.sampled_from(BATCH),
       more=st.floats(0, 4096))
def test_more_never_takes_less_time(model, hardware, engine, tp, batch, field, more):
    # With overlap too: total = host - can_hide + max(can_hide, device), and both grow.
    larger = replace(batch, **{field: getattr(batch, field) + more})
    before = step_time(model, hardware, engine, tp=tp, batch=batch).total_s
    assert before <= step_time(model, hardware, engine, tp=tp, batch=larger).total_s * SLACK


@settings(max_examples=60)
@given(model=models, hardware=machines, engine=engines,
       grid=st.lists(st.tuples(degrees, batches), min_size=2, max_size=6))
def test_an_array_call_equals_the_scalar_calls(model, hardware, engine, grid):
    batch = Batch(**{name: np.array([getattr(b, name) for _, b in grid]) for name in BATCH})
    together = step_time(model, hardware, engine, tp=np.array([float(t) for t, _ in grid]), batch=batch)
    for i, (tp, one) in enumerate(grid):
        alone = step_time(model, hardware, engine, tp=tp, batch=one)
        for name in TERMS:
            assert np.broadcast_to(getattr(together, name), len(grid))[i] == pytest.approx(
                float(getattr(alone, name)), rel=1e-12, abs=0), name


@settings(max_examples=30)
@given(model=models, hardware=machines, engine=engines, batch=batches)
def test_arguments_are_not_written_to(model, hardware, engine, batch):
    columns = {name: np.full(3, float(getattr(batch, name))) for name in BATCH}
    for column in columns.values():
        column.setflags(write=False)
    tp = np.array([1.0, 2.0, 8.0])
    tp.setflags(write=False)
    step_time(model, hardware, engine, tp=tp, batch=Batch(**columns))


@settings(max_examples=100)
@given(model=models, hardware=machines, tp=degrees, num_tok=st.floats(0, 1e5))
def test_sharded_linear_work_times_t_is_constant(model, hardware, tp, num_tok):
    work = work_of(model)
    for linear in (*work.linears, work.lm_head):
        alone = float(linear_class_s(linear, hardware, tp=1, num_tok=num_tok))
        shared = float(linear_class_s(linear, hardware, tp=tp, num_tok=num_tok))
        # A class whose least share is reached (K and V beyond the KV heads) stays as it is.
        share = max(1 / tp, linear.min_shard_frac)
        assert shared == pytest.approx(share * alone, rel=1e-12, abs=0)


@settings(max_examples=100)
@given(a=st.floats(0, 1e3), b=st.floats(0, 1e3), p=st.one_of(st.floats(1, 50), st.just(float("inf"))))
def test_roofline_bounds(a, b, p):
    time = float(roofline_s(compute_s=a, memory_s=b, sharpness=p))
    assert max(a, b) <= time * SLACK
    assert time <= (a + b) * SLACK
    assert roofline_s(compute_s=b, memory_s=a, sharpness=p) == time


@settings(max_examples=100)
@given(hardware=machines, op=st.sampled_from(list(CollectiveOp)), tp=st.sampled_from([2, 4, 8, 16]),
       size=st.floats(1, 1e10), factor=st.floats(1, 1e3))
def test_a_larger_message_never_takes_less_time(hardware, op, tp, size, factor):
    small = collective_s(hardware, op, tp=tp, size_bytes=size)
    assert small <= collective_s(hardware, op, tp=tp, size_bytes=size * factor) * SLACK


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 10**9).map(float), st.floats(1e-7, 1e-1)), min_size=2, max_size=12,
                unique_by=lambda sample: sample[0]))
def test_a_curve_passes_through_its_samples(samples):
    samples.sort()
    sizes, times = zip(*samples, strict=True)
    measured = CollectiveCurve(op=CollectiveOp.ALL_REDUCE, tp=2, size_bytes=sizes, latency_s=times, source="drawn")
    # exp(log(x)) is x to a few units in the last place.
    np.testing.assert_allclose(curve_s(measured, np.array(sizes)), times, rtol=1e-13)
    between = curve_s(measured, np.geomspace(sizes[0], sizes[-1], 50))
    assert between.min() >= min(times) / SLACK
    assert between.max() <= max(times) * SLACK


def test_the_wire_carries_less_than_two_buffers():
    tps = np.arange(1.0, 65.0)
    assert (wire_frac(CollectiveOp.ALL_REDUCE, tps) == 2 * wire_frac(CollectiveOp.ALL_GATHER, tps)).all()
    assert (np.diff(wire_frac(CollectiveOp.ALL_REDUCE, tps)) > 0).all()
    # An exchange over rows sends what a gather sends, from each rank's own share.
    np.testing.assert_allclose(wire_frac(CollectiveOp.ALL_TO_ALL, tps) * tps,
                               wire_frac(CollectiveOp.ALL_GATHER, tps), rtol=1e-15)


def memory(model, hardware, tp, utilisation):
    return memory_split(model, hardware, round_engine(), tp=tp, gpu_memory_utilization=utilisation, max_num_seqs=64,
                        max_num_batched_tokens=2048)


@settings(max_examples=150)
@given(model=models, hardware=machines, tp=degrees, utilisation=st.floats(0.05, 1.0))
def test_the_blocks_fit_and_one_more_does_not(model, hardware, tp, utilisation):
    m = memory(model, hardware, tp, utilisation)
    rest = m.weight_bytes + m.activation_bytes + m.runtime_bytes
    block = m.kv_bytes_per_tok * round_engine().kv_block_size_tok
    slack = 1e-3  # bytes: sums of 10**11 in double precision
    assert m.num_kv_blocks == 0 or rest + m.num_kv_blocks * block <= m.usable_bytes + slack
    assert rest + (m.num_kv_blocks + 1) * block > m.usable_bytes - slack
    assert m.kv_capacity_tok == 16 * m.num_kv_blocks


@settings(max_examples=60)
@given(model=models, hardware=machines, tp=degrees, low=st.floats(0.05, 1.0), high=st.floats(0.05, 1.0))
def test_more_memory_never_holds_fewer_blocks(model, hardware, tp, low, high):
    low, high = sorted((low, high))
    assert memory(model, hardware, tp, low).num_kv_blocks <= memory(model, hardware, tp, high).num_kv_blocks


@settings(max_examples=60)
@given(model=models, hardware=machines, low=degrees, high=degrees)
def test_more_ranks_never_hold_more_per_rank(model, hardware, low, high):
    low, high = sorted((low, high))
    few, many = memory(model, hardware, low, 0.9), memory(model, hardware, high, 0.9)
    assert many.weight_bytes <= few.weight_bytes
    assert many.weight_bytes * high >= few.weight_bytes * low / SLACK  # but all of it is somewhere
    assert many.activation_bytes <= few.activation_bytes
    assert many.kv_bytes_per_tok <= few.kv_bytes_per_tok


@pytest.mark.parametrize("tp", [1, 2, 3, 4, 8, 16, 64])
def test_kv_heads_are_replicated_beyond_their_number(tp):
    one_head = 2 * 64 * 2
    found = layer_kv_bytes_per_tok(GQA, tp=tp, kv_element_bytes=2)
    assert found == pytest.approx(max(2 / tp, 1) * one_head, rel=1e-12)
    # A replica then holds tp copies of one head rather than two heads.
    assert found * tp >= 2 * one_head
    assert kv_bytes_per_tok(work_of(tiny_model(MLA)), tp=tp, kv_element_bytes=2) == 2 * 1152
