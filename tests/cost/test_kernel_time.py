"""Operators by their fitted kernels: exact sums, the curve that stands for them, and what happens without kernels."""

from dataclasses import replace
from math import hypot

import numpy as np
import pytest
from builders import MLA, kernel, q, round_hardware, tiny_model, tiny_moe, wavy
from hypothesis import given, settings
from hypothesis import strategies as st

from tpplanner.api.loaded import engine_of, hardware_of, with_kernels
from tpplanner.cost.gemms import experts_of, gemms_of, lm_head_of
from tpplanner.cost.kernel_time import (
    decode_kernel_s,
    experts_kernel_s,
    gemm_kernel_for,
    gemm_time_s,
    has_gemm_kernels,
    has_moe_kernels,
    layers_kernel_s,
    moe_kernel_for,
    prefill_kernel_s,
)
from tpplanner.cost.kernels import moe_kernel_s
from tpplanner.cost.linear import experts_s, gemms_s, linear_class_s
from tpplanner.cost.work import work_of
from tpplanner.domain.kernels import DecodeAttentionKernel, GemmKernel, Kernels, MoeKernel, PrefillAttentionKernel
from tpplanner.io.model_config import load_model

DENSE, MOE = tiny_model(), tiny_model(mlp=tiny_moe())


def machine(gemm=("bf16",), moe=("bf16",), surface=None, **peaks):
    """The round machine with kernels in these formats."""
    plain = round_hardware()
    return replace(
        plain, peak_flop_s={**plain.peak_flop_s, **{name: q(value, "flop/s") for name, value in peaks.items()}},
        kernels=Kernels(
            gemm={name: kernel(GemmKernel, dtype=name, surface=surface) for name in gemm},
            moe={name: kernel(MoeKernel, dtype=name, surface=surface) for name in moe},
            decode_attention={"bf16": kernel(DecodeAttentionKernel)},
            prefill_attention={"bf16": kernel(PrefillAttentionKernel)},
        ),
    )


def exact_layers_s(model, hardware, tp, num_tok, num_sampled):
    layers = sum(gemm_time_s(g, hardware, tp=tp, num_tok=num_tok) for g in gemms_of(model))
    return float(layers + gemm_time_s(lm_head_of(model), hardware, tp=tp, num_tok=num_sampled))


def exact_experts_s(model, hardware, tp, ep, num_tok):
    return float(sum(
        e.num_layers * moe_kernel_s(
            moe_kernel_for(hardware, e), num_tok=num_tok, hidden_size=e.hidden_size,
            expert_intermediate_size=e.mlp.expert_intermediate_size, num_experts_per_tok=e.mlp.num_experts_per_tok,
            num_experts=e.mlp.num_experts, weight_bytes_per_param=e.bytes_per_param,
            flop_s=hardware.peak_for(e.runs_as).value, hbm_bytes_s=hardware.hbm_bytes_s.value, moe_tp=tp / ep, moe_ep=ep)
        for e in experts_of(model)))


def test_one_multiplication_by_hand():
    qkv, o, _, _ = gemms_of(DENSE)
    # t = 2, 100 rows, 2 layers. qkv 1024 x 384: 2 * 100 * 393,216 = 78.6432 Mflop at 5e13 = 1.572864 us; weights 786,432 bytes
    # and activations 2 * 100 * 1408 = 281,600 bytes, 1,068,032 at 8e11 = 1.33504 us.
    assert gemm_time_s(qkv, machine(), tp=2, num_tok=100) == pytest.approx(
        2 * (2e-6 + hypot(1.572864e-6, 1.33504e-6)), rel=1e-12)
    # o 256 x 1024: 52.4288 Mflop = 1.048576 us; 524,288 + 2 * 100 * 1280 = 780,288 bytes = 0.97536 us.
    assert gemm_time_s(o, machine(), tp=2, num_tok=100) == pytest.approx(
        2 * (2e-6 + hypot(1.048576e-6, 0.97536e-6)), rel=1e-12)


def test_q_k_and_v_pay_one_latency():
    # 4 kernels per layer and the head: with 1 ms each the rest is below 1 %.
    slow = machine()
    slow = replace(slow, kernels=replace(slow.kernels, gemm={"bf16": kernel(GemmKernel, latency_s=q(1e-3, "s"))}))
    assert layers_kernel_s(DENSE, slow, tp=4, num_tok=1, num_sampled=1) == pytest.approx(2 * 4e-3 + 1e-3, rel=0.02)


rows = st.floats(0, 17).map(lambda octaves: 2.0**octaves)


@settings(max_examples=200)
@given(model=st.sampled_from([DENSE, MOE, tiny_model(MLA, mlp=tiny_moe())]), tp=st.sampled_from([1, 2, 4, 8]), num_tok=rows,
       num_sampled=rows)
def test_the_curve_is_the_sum_to_half_a_percent(model, tp, num_tok, num_sampled):
    hardware = MACHINE
    found = float(layers_kernel_s(model, hardware, tp=tp, num_tok=num_tok, num_sampled=num_sampled))
    assert found == pytest.approx(exact_layers_s(model, hardware, tp, num_tok, num_sampled), rel=0.005)


MACHINE = machine()
MEASURED = [(name, engine) for name in ("h100-sxm", "b200") for engine in ("vllm", "sglang", "trtllm")]


@pytest.mark.parametrize(("name", "engine"), MEASURED)
@pytest.mark.parametrize(("model", "dtype"), [
    ("meta-llama/Llama-3.1-70B-Instruct", None), ("Qwen/Qwen2.5-7B-Instruct", "fp8"),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", None)])
def test_the_curve_of_measured_kernels_is_their_sum_to_half_a_percent(name, engine, model, dtype):
    """At random rows, tiles begun included; where a surface lets more rows take less time, the longest time so far counts."""
    hardware, spec = with_kernels(hardware_of(name), engine_of(engine)), load_model(model, dtype=dtype)
    assert has_gemm_kernels(spec, hardware)
    every = np.arange(1.0, 4097.0)
    tiles = np.array([16, 17, 18, 64, 65, 66, 128, 129, 130])
    rows = np.concatenate([tiles, np.random.default_rng(0).integers(1, 4097, 100)]).astype(float)
    for tp in (1, 8):
        found = layers_kernel_s(spec, hardware, tp=tp, num_tok=rows, num_sampled=1.0)
        exact = np.maximum.accumulate(sum(gemm_time_s(g, hardware, tp=tp, num_tok=every) for g in gemms_of(spec)))
        head = gemm_time_s(lm_head_of(spec), hardware, tp=tp, num_tok=1.0)
        np.testing.assert_allclose(found, exact[rows.astype(int) - 1] + head, rtol=0.005)


@settings(max_examples=60)
@given(tp=st.sampled_from([1, 2, 4, 8]), ep=st.sampled_from([1, 2, 4, 8]), num_tok=rows)
def test_experts_by_degree_of_expert_parallelism(tp, ep, num_tok):
    if tp % ep:
        return
    found = float(experts_kernel_s(MOE, MACHINE, tp=tp, ep=ep, num_tok=num_tok))
    assert found == pytest.approx(exact_experts_s(MOE, MACHINE, tp, ep, num_tok), rel=0.005)


def test_a_split_of_the_experts_by_hand():
    # 1 token, 2 of 8 experts of 3 * 1024 * 512 weights, 2 layers. Over 2 groups a rank meets half of them, whole: the
    # weights are those of a rank that holds half of each. What differs is the activations inside an expert.
    latency, bytes_s = 2e-6, 8e11
    weights = 3 * 1024 * 512 * 2  # bytes of 2 half experts or of 1 whole one
    flop_s = 6 * 1 * 1024 * 512 / 5e13  # 2 rows by half, or 1 row by whole
    for tp, ep, moved in ((2, 1, 2 * 1024 + 2 * (2048 + 3 * 256)), (2, 2, 2 * 1024 + 1 * (2048 + 3 * 512))):
        expected = 2 * (latency + 2 * moved / bytes_s + hypot(flop_s, weights / bytes_s))
        assert experts_kernel_s(MOE, MACHINE, tp=tp, ep=ep, num_tok=1.0) == pytest.approx(expected, rel=1e-12)
    assert experts_s(MOE, MACHINE, tp=2, num_tok=1.0, ep=2) == pytest.approx(expected, rel=1e-12)


def test_an_array_equals_the_scalars():
    hardware = machine(surface=wavy("num_tok"))
    tp, ep, num_tok = np.array([[1.0], [2.0], [4.0]]), np.array([[1.0], [2.0], [1.0]]), np.array([1.0, 17.0, 5000.0])
    layers = layers_kernel_s(MOE, hardware, tp=tp, num_tok=num_tok, num_sampled=3.0)
    experts = experts_kernel_s(MOE, hardware, tp=tp, ep=ep, num_tok=num_tok)
    assert layers.shape == experts.shape == (3, 3)
    for i in range(3):
        for j in range(3):
            one = float(tp[i, 0]), float(num_tok[j])
            assert layers[i, j] == pytest.approx(
                float(layers_kernel_s(MOE, hardware, tp=one[0], num_tok=one[1], num_sampled=3.0)), rel=1e-12)
            assert experts[i, j] == pytest.approx(
                float(experts_kernel_s(MOE, hardware, tp=one[0], ep=float(ep[i, 0]), num_tok=one[1])), rel=1e-12)


def test_more_rows_never_take_less_time():
    # The surface itself falls by half between its knots.
    hardware = machine(surface=wavy("num_tok", amplitude=2.0))
    num_tok = 2.0 ** np.arange(-2.0, 24.0, 0.1)
    for found in (layers_kernel_s(DENSE, hardware, tp=2, num_tok=num_tok, num_sampled=1.0),
                  experts_kernel_s(MOE, hardware, tp=2, ep=1, num_tok=num_tok)):
        assert (np.diff(found) >= -1e-12 * found[1:]).all()


def test_below_one_row_and_beyond_the_grid():
    few, one = (float(layers_kernel_s(DENSE, MACHINE, tp=1, num_tok=n, num_sampled=1.0)) for n in (0.0, 1.0))
    assert few == one
    # The grid ends at 2**21 rows: from there on as many times longer as there are more rows.
    head = float(gemm_time_s(lm_head_of(DENSE), MACHINE, tp=1, num_tok=1.0))
    last, more = (float(layers_kernel_s(DENSE, MACHINE, tp=1, num_tok=n, num_sampled=1.0)) - head for n in (2.0**21, 2.0**23))
    assert more == pytest.approx(4 * last, rel=1e-9)


@pytest.mark.parametrize("hardware", [round_hardware(), machine(gemm=("fp8",), moe=("fp8",)), machine(gemm=(), moe=())])
def test_without_a_kernel_the_efficiencies_answer(hardware):
    assert not has_gemm_kernels(MOE, hardware)
    assert not has_moe_kernels(MOE, hardware)
    work = work_of(MOE)
    gemms = sum(linear_class_s(c, hardware, tp=2, num_tok=10) for c in work.linears if not c.is_expert)
    gemms += linear_class_s(work.lm_head, hardware, tp=2, num_tok=4)
    assert gemms_s(MOE, hardware, tp=2, num_tok=10, num_sampled=4) == pytest.approx(float(gemms), rel=1e-12)
    experts = sum(linear_class_s(c, hardware, tp=2, num_tok=10) for c in work.linears if c.is_expert)
    assert experts_s(MOE, hardware, tp=2, num_tok=10, ep=2) == pytest.approx(float(experts), rel=1e-12)


def test_one_multiplication_without_a_kernel_leaves_all_to_the_efficiencies():
    # fp8 layers, bf16 head and router: kernels of both formats, or none is used.
    model = tiny_model(weights="fp8")
    assert has_gemm_kernels(model, machine(gemm=("bf16", "fp8")))
    assert has_gemm_kernels(model, machine(gemm=("bf16", "fp8_block")))
    assert not has_gemm_kernels(model, machine(gemm=("fp8",)))
    assert gemms_s(model, machine(gemm=("fp8",)), tp=2, num_tok=10, num_sampled=4) == gemms_s(
        model, round_hardware(), tp=2, num_tok=10, num_sampled=4)


def test_the_best_fitting_kernel_runs():
    both = machine(gemm=("bf16", "fp16", "fp8", "fp8_block"), moe=("fp8", "fp8_block"))
    dense, moe = (gemms_of(tiny_model(weights="fp8", mlp=mlp))[0] for mlp in (None, tiny_moe()))
    assert gemm_kernel_for(both, dense).dtype == "fp8"
    assert gemm_kernel_for(both, moe).dtype == "fp8_block"
    assert gemm_kernel_for(both, gemms_of(DENSE)[0]).dtype == "bf16"
    assert gemm_kernel_for(round_hardware(), dense) is None
    assert moe_kernel_for(round_hardware(), experts_of(MOE)[0]) is None


@pytest.mark.parametrize(("peaks", "name"), [({}, "w4a16_mxfp4"), ({"nvfp4": 4e14}, "w4a8_mxfp4_mxfp8"),
                                             ({"mxfp4": 4e14}, "w4a8_mxfp4_mxfp8")])
def test_machines_with_4_bit_floats_quantise_the_activations_too(peaks, name):
    (layers,) = experts_of(tiny_model(weights="mxfp4", mlp=tiny_moe()))
    every = ("w4a16_mxfp4", "w4a8_mxfp4_mxfp8", "fp8", "fp8_block", "int4_wo", "bf16")
    found = moe_kernel_for(machine(moe=every, **peaks), layers)
    assert found.dtype == name
    # A machine that has but the other runs that, bf16 after all others.
    for only in ("w4a16_mxfp4", "w4a8_mxfp4_mxfp8", "int4_wo"):
        assert moe_kernel_for(machine(moe=("bf16", only), **peaks), layers).dtype == only
    assert moe_kernel_for(machine(moe=("bf16",), **peaks), layers).dtype == "bf16"


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_gpt_oss_on_the_measured_machines(engine):
    layers = experts_of(load_model("openai/gpt-oss-120b"))[0]
    for name, expected in (("b200", "w4a8_mxfp4_mxfp8"), ("h200", "w4a16_mxfp4")):
        assert moe_kernel_for(with_kernels(hardware_of(name), engine_of(engine)), layers).dtype == expected


def test_4_bit_floats_change_nothing_for_other_formats():
    (layers,) = experts_of(tiny_model(weights="fp8", mlp=tiny_moe()))
    assert moe_kernel_for(machine(moe=("fp8", "fp8_block"), nvfp4=4e14), layers).dtype == "fp8_block"


def test_attention_by_its_kernels_by_hand():
    attention = DENSE.layer_groups[0].attention
    sizes = {"hardware": MACHINE, "tp": 4, "kv_element_bytes": 2.0}
    # t = 4: 2 heads and one whole KV head of 64. 10 sequences of 1000: KV 2 * 10 * 64 * 1000 * 2 = 2.56 MB, query and output
    # 2 * 2 * 10 * 2 * 64 = 5,120 bytes at 8e11; 4 * 10 * 2 * 1000 * 64 = 5.12 Mflop at 5e13.
    assert decode_kernel_s(attention, num_seqs=10, context_tok=1000, **sizes) == pytest.approx(
        2e-6 + hypot(5.12e6 / 5e13, 2_565_120 / 8e11), rel=1e-12)
    # A prompt of 1000: 500,500 pairs * 4 * 2 * 64 = 256.256 Mflop; KV 2 * 64 * 2 * 1000 = 256,000 bytes, query and output
    # 2 * 2 * 1000 * 2 * 64 = 512,000.
    assert prefill_kernel_s(attention, isl_tok=1000, **sizes) == pytest.approx(
        2e-6 + hypot(256.256e6 / 5e13, 768e3 / 8e11), rel=1e-12)
    # No kernel for caches in fp8, and none at all.
    assert decode_kernel_s(attention, num_seqs=1, context_tok=1, **{**sizes, "kv_element_bytes": 1.0}) is None
    assert prefill_kernel_s(attention, isl_tok=1, **{**sizes, "hardware": round_hardware()}) is None
