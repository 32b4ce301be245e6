from math import hypot

import pytest
from builders import round_engine, round_hardware, tiny_model

from tpplanner.cost.step_time import step_time
from tpplanner.domain.engine import SamplingPolicy, Switches
from tpplanner.domain.step import Batch

EXACT = 1e-12
DECODE = Batch(num_decode_seqs=4, decode_context_tok=1000)


def step(switches=None, tp=2, batch=DECODE):
    return step_time(tiny_model(), round_hardware(), round_engine(switches), tp=tp, batch=batch)


def test_every_term_of_a_decode_step_by_hand():
    time = step()
    # Four rows, t = 2: 8 * 13,631,488 / 5e13, 8 * 262,144 / 5e13, 8 * 16,384,000 / 5e13 beside the reads
    # of the same weights (see test_linear).
    linear = (hypot(2.18103808e-6, 34.07872e-6) + hypot(0.04194304e-6, 0.65536e-6) + hypot(2.62144e-6, 40.96e-6))
    assert time.linear_s == pytest.approx(linear, rel=EXACT)
    attention = 2 * hypot(1.6384e-7, 2.048e-6)  # see test_attention
    assert time.attention_s == pytest.approx(attention, rel=EXACT)
    elementwise = 4 * (36_864 + 28_672) / 5e11  # see test_elementwise
    assert time.elementwise_s == pytest.approx(elementwise, rel=EXACT)
    assert time.launch_s == pytest.approx(100e-6, rel=EXACT)
    # Four all-reduces of 4 * 2,048 bytes: 10 us + 8,192 / 75e9; the logits 256,000 / 2 bytes.
    comm = 4 * (10e-6 + 8_192 / 75e9) + 10e-6 + 128_000 / 75e9
    assert time.comm_s == pytest.approx(comm, rel=EXACT)
    assert time.sampling_s == pytest.approx(220e-6, rel=EXACT)  # 100 us + 4 * 30 us
    # T1 1 ms + 4 * 10 us; T2 2 ms + (0.5 ms + 4 * 5 us) log2 2; T5 4 * 20 us.
    host = [time.schedule_s, time.prepare_input_s, time.process_output_s]
    assert host == pytest.approx([1.04e-3, 2.52e-3, 80e-6], rel=EXACT)
    assert (time.overlap_overhead_s, time.hidden_s) == (0.0, 0.0)
    device = linear + attention + elementwise + 100e-6 + comm + 220e-6
    assert time.total_s == pytest.approx(device + 3.64e-3, rel=EXACT)


@pytest.mark.parametrize(("switches", "exposed_s"), [
    # The device works 0.4 ms in this batch: all of it hides host work of 1.12 ms (T1 + T5) or 3.64 ms.
    (Switches(async_sched=True), 3.72e-3),
    (Switches(async_sched=True, early_feedback=True), 3.72e-3),
])
def test_a_short_device_step_hides_no_more_than_itself(switches, exposed_s):
    time = step(switches)
    # T1 + T2 + T5 = 3.64 ms and 80 us of overlap; the device's time is hidden in it.
    assert time.total_s == pytest.approx(exposed_s, rel=EXACT)
    assert time.hidden_s == pytest.approx(time.device_s, rel=EXACT)


def test_a_long_device_step_hides_all_host_work():
    batch = Batch(num_decode_seqs=4, decode_context_tok=1000, num_prefill_tok=2000, prefill_context_tok=1000,
                  num_prefill_seqs=1, num_prefill_ends=1)
    slow, fast = step(batch=batch), step(Switches(async_sched=True, early_feedback=True), batch=batch)
    # 5 sequences: T1 1.05 ms + T5 0.1 ms, and T2 2 ms + 0.5 ms + 25 us; 80 us are the price.
    assert slow.device_s == fast.device_s
    hidden = min(3.675e-3, float(fast.device_s))
    assert slow.total_s - fast.total_s == pytest.approx(hidden - 80e-6, rel=1e-9)


def test_sampling_policy_is_the_engines_unless_asked():
    engine = round_engine()
    engine = round_engine(sampling={**engine.sampling, SamplingPolicy.FULL: engine.schedule})
    model, hardware = tiny_model(), round_hardware()
    greedy = step_time(model, hardware, engine, tp=2, batch=DECODE)
    full = step_time(model, hardware, engine, tp=2, batch=DECODE, sampling=SamplingPolicy.FULL)
    # 100 us + 4 * 30 us against 1 ms + 4 * 10 us.
    assert (greedy.sampling_s, full.sampling_s) == pytest.approx((220e-6, 1.04e-3), rel=EXACT)


def test_an_empty_batch_costs_launches_and_the_fixed_host_time():
    time = step(batch=Batch(num_decode_seqs=0, decode_context_tok=0))
    assert time.launch_s == pytest.approx(100e-6, rel=EXACT)
    assert time.sampling_s == 0.0
    assert time.host_s == pytest.approx(3.5e-3, rel=EXACT)
