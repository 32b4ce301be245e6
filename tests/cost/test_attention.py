from math import hypot

import pytest
from builders import GQA, LINEAR, MLA, WINDOWED, round_hardware, tiny_model

from tpplanner.cost.attention import (
    attention_bytes,
    attention_flop,
    decode_attention_s,
    flop_per_query,
    prefill_attention_s,
)
from tpplanner.cost.operators import operator_times
from tpplanner.cost.work import work_of
from tpplanner.domain.step import Batch

EXACT = 1e-12
HARDWARE = round_hardware()  # KV reads at 5e11 bytes/s, arithmetic of attention at 2.5e13 FLOP/s, p = 2


@pytest.mark.parametrize(("attention", "absorbed", "expected"), [
    (GQA, True, 1_024_000),  # t = 2: 4 * 4 heads * 64 * 1,000 keys
    (WINDOWED, True, 102_400),  # 100 keys
    (MLA, True, 8_704_000),  # 2 * 4 heads * (576 + 512) * 1,000
    (MLA, False, 2_560_000),  # 2 * 4 heads * (128 + 64 + 128) * 1,000
    (LINEAR, True, 12_288),  # 6 * 4 heads * 16 * 32, whatever the context
])
def test_flop_of_one_query(attention, absorbed, expected):
    assert flop_per_query(attention, tp=2, context_tok=1000, absorbed=absorbed) == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize(("attention", "compute_s", "memory_s"), [
    # Four sequences of 1,000 tokens at t = 2, per layer: 4 * FLOP / 2.5e13 and 4 * bytes / 5e11.
    (GQA, 1.6384e-7, 2.048e-6),
    (WINDOWED, 1.6384e-8, 2.048e-7),
    (MLA, 1.39264e-6, 9.216e-6),
    (LINEAR, 1.96608e-9, 1.67936e-7),  # the state is read and written: 2 * 10,496 bytes
])
def test_decode_by_hand(attention, compute_s, memory_s):
    work = work_of(tiny_model(attention))
    time = decode_attention_s(work, HARDWARE, tp=2, num_seqs=4, context_tok=1000, kv_element_bytes=2)
    assert time == pytest.approx(2 * hypot(compute_s, memory_s), rel=EXACT)


@pytest.mark.parametrize(("attention", "expected"), [
    (GQA, 2 * 2.048e-6),  # 100 tokens that see 500 keys at t = 2: 100 * 512,000 / 2.5e13 per layer
    (WINDOWED, 2 * 4.096e-7),  # 100 keys
    (MLA, 2 * 5.12e-6),  # 100 * 2 * 4 * 320 * 500 / 2.5e13
    (LINEAR, 2 * 4.9152e-8),  # 100 * 12,288 / 2.5e13
])
def test_prefill_by_hand(attention, expected):
    work = work_of(tiny_model(attention))
    assert prefill_attention_s(work, HARDWARE, tp=2, num_tok=100, context_tok=500) == pytest.approx(expected, rel=EXACT)


def test_mixed_batch_by_hand():
    work = work_of(tiny_model(GQA))
    batch = Batch(num_decode_seqs=4, decode_context_tok=1000, num_prefill_tok=100, prefill_context_tok=500,
                  num_prefill_seqs=1, num_prefill_ends=1)
    alone = operator_times(tiny_model(GQA), HARDWARE, tp=2, batch=batch)
    assert alone.decode_attention_s == pytest.approx(2 * hypot(1.6384e-7, 2.048e-6), rel=EXACT)
    assert alone.prefill_attention_s == pytest.approx(2 * 2.048e-6, rel=EXACT)
    # Two layers, four sequences of 256,000 bytes.
    assert attention_bytes(work, tp=2, batch=batch, kv_element_bytes=2) == pytest.approx(2_048_000, rel=EXACT)
    # Two layers of 4 * 1,024,000 + 100 * 512,000.
    assert attention_flop(work, tp=2, batch=batch) == pytest.approx(110_592_000, rel=EXACT)
