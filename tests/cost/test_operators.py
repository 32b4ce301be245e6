"""Times of the operators of a step, each alone, and the step that is made of them."""

from dataclasses import replace

import numpy as np
import pytest
from builders import ALL_SWITCHES, GQA, LINEAR, MLA, kernel, round_engine, round_hardware, tiny_model, tiny_moe
from hypothesis import given, settings
from hypothesis import strategies as st

from tpplanner.cost.attention import decode_attention_s, prefill_attention_s
from tpplanner.cost.communication import communication_s
from tpplanner.cost.elementwise import elementwise_s
from tpplanner.cost.linear import experts_s, gemms_s, weights_read_s
from tpplanner.cost.operators import OperatorTimes, operator_times
from tpplanner.cost.step_time import step_of, step_time
from tpplanner.cost.work import work_of
from tpplanner.domain.kernels import DecodeAttentionKernel, GemmKernel, Kernels, MoeKernel, PrefillAttentionKernel
from tpplanner.domain.step import Batch, StepTime

NAMES = tuple(OperatorTimes.__slots__)
MODELS = (tiny_model(), tiny_model(mlp=tiny_moe()), tiny_model(MLA, mlp=tiny_moe()), tiny_model(GQA, LINEAR))
PLAIN = round_hardware()
MEASURED = replace(PLAIN, kernels=Kernels(
    gemm={"bf16": kernel(GemmKernel)}, moe={"bf16": kernel(MoeKernel)},
    decode_attention={"bf16": kernel(DecodeAttentionKernel)}, prefill_attention={"bf16": kernel(PrefillAttentionKernel)}))
BATCH = Batch(num_decode_seqs=7, decode_context_tok=900, num_prefill_tok=300, prefill_context_tok=150, num_prefill_seqs=2,
              num_prefill_ends=1.5)
models, machines, degrees = st.sampled_from(MODELS), st.sampled_from([PLAIN, MEASURED]), st.sampled_from([1, 2, 4, 8])


@pytest.mark.parametrize("hardware", [PLAIN, MEASURED])
def test_each_operator_sees_its_own_rows(hardware):
    model = tiny_model(mlp=tiny_moe())
    work = work_of(model)
    found = operator_times(model, hardware, tp=2, ep=2, batch=BATCH)
    # 7 + 300 rows; 7 + 1.5 are sampled.
    expected = {
        "gemm_s": gemms_s(model, hardware, tp=2, num_tok=307, num_sampled=8.5),
        "gemm_floor_s": weights_read_s(work, hardware, tp=2),
        "expert_s": experts_s(model, hardware, tp=2, ep=2, num_tok=307),
        "decode_attention_s": decode_attention_s(work, hardware, tp=2, num_seqs=7, context_tok=900, kv_element_bytes=2),
        "prefill_attention_s": prefill_attention_s(work, hardware, tp=2, num_tok=300, context_tok=150, kv_element_bytes=2),
        "elementwise_s": elementwise_s(work, hardware, tp=2, num_tok=307),
        "comm_s": communication_s(work, hardware, tp=2, num_tok=307, num_sampled=8.5, seq_parallel_sampling=False),
    }
    assert set(expected) == set(NAMES)
    for name, value in expected.items():
        assert float(getattr(found, name)) == pytest.approx(float(value), rel=1e-12) != 0, name


def test_what_a_batch_lacks_takes_no_time():
    decode = operator_times(tiny_model(), MEASURED, tp=2, batch=Batch(num_decode_seqs=4, decode_context_tok=100))
    assert (decode.prefill_attention_s, decode.expert_s) == (0.0, 0.0)
    prefill = operator_times(tiny_model(), MEASURED, tp=1, batch=replace(BATCH, num_decode_seqs=0.0, decode_context_tok=0.0))
    assert (prefill.decode_attention_s, prefill.comm_s) == (0.0, 0.0)


def test_attention_caches_are_read_in_their_own_format():
    batch = Batch(num_decode_seqs=64, decode_context_tok=8000)
    wide, narrow = (operator_times(tiny_model(kv=kv), PLAIN, tp=1, batch=batch) for kv in ("bf16", "fp8"))
    # Bound by reading, but for the knee: half the bytes, about half the time.
    assert narrow.decode_attention_s / wide.decode_attention_s == pytest.approx(0.5, abs=0.01)
    assert narrow.gemm_s == wide.gemm_s


def test_splitting_the_samples_changes_the_communication_alone():
    plain, split = (operator_times(tiny_model(), PLAIN, tp=4, batch=BATCH, seq_parallel_sampling=on) for on in (False, True))
    assert plain.comm_s != split.comm_s
    assert all(getattr(plain, name) == getattr(split, name) for name in NAMES if name != "comm_s")


@settings(max_examples=60)
@given(model=models, hardware=machines, tp=degrees, switches=st.sampled_from(ALL_SWITCHES))
def test_the_step_is_made_of_them(model, hardware, tp, switches):
    engine = round_engine(switches)
    alone = operator_times(model, hardware, tp=tp, batch=BATCH, seq_parallel_sampling=switches.seq_parallel_sampling)
    whole, made = step_time(model, hardware, engine, tp=tp, batch=BATCH), step_of(alone, model, engine, tp=tp, batch=BATCH)
    for name in StepTime.__slots__:
        assert float(getattr(made, name)) == float(getattr(whole, name)), name
    assert whole.linear_s == pytest.approx(float(alone.gemm_s + alone.expert_s), rel=1e-12)
    assert whole.attention_s == pytest.approx(float(alone.decode_attention_s + alone.prefill_attention_s), rel=1e-12)


@settings(max_examples=60)
@given(model=models, hardware=machines, points=st.lists(st.tuples(degrees, st.floats(0, 500), st.floats(0, 5000)), min_size=2,
                                                        max_size=5))
def test_an_array_call_equals_the_scalar_calls(model, hardware, points):
    tp, seqs, tok = (np.array(column, dtype=float) for column in zip(*points, strict=True))

    def batch(num_seqs, num_tok):
        return Batch(num_decode_seqs=num_seqs, decode_context_tok=700.0, num_prefill_tok=num_tok, prefill_context_tok=200.0)

    together = operator_times(model, hardware, tp=tp, batch=batch(seqs, tok))
    for i in range(len(points)):
        one = operator_times(model, hardware, tp=tp[i], batch=batch(seqs[i], tok[i]))
        for name in NAMES:
            assert np.broadcast_to(getattr(together, name), tp.shape)[i] == pytest.approx(
                float(getattr(one, name)), rel=1e-12, abs=0), name
