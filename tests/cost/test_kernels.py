"""Fitted kernels: worked cases, physical floors, and monotone growth with the work."""

import math
from dataclasses import replace

import numpy as np
import pytest
from builders import kernel, q, wavy
from hypothesis import given
from hypothesis import strategies as st

from tpplanner.cost.kernels import (
    decode_attention_kernel_s,
    experts_read,
    gemm_kernel_s,
    moe_kernel_s,
    prefill_attention_kernel_s,
    visible_pairs,
)
from tpplanner.domain.kernels import DecodeAttentionKernel, GemmKernel, Kernels, MoeKernel, PrefillAttentionKernel, Surface
from tpplanner.errors import ProfileError

PEAKS = {"flop_s": 1e15, "hbm_bytes_s": 4e12}


def gemm(k, num_tok, out_features=4096.0, in_features=4096.0):
    return gemm_kernel_s(k, num_tok=num_tok, out_features=out_features, in_features=in_features,
                         weight_bytes_per_param=2.0, **PEAKS)


def decode(k, num_seqs, context_tok, **change):
    sizes = {"num_heads": 32.0, "num_kv_heads": 8.0, "head_dim": 128.0} | change
    return decode_attention_kernel_s(k, num_seqs=num_seqs, context_tok=context_tok, kv_element_bytes=2.0, **sizes, **PEAKS)


def prefill(k, num_seqs, isl_tok, **change):
    sizes = {"num_heads": 32.0, "num_kv_heads": 8.0, "head_dim": 128.0} | change
    return prefill_attention_kernel_s(k, num_seqs=num_seqs, isl_tok=isl_tok, kv_element_bytes=2.0, **sizes, **PEAKS)


def moe(k, num_tok, **change):
    sizes = {"hidden_size": 1000.0, "expert_intermediate_size": 500.0, "num_experts_per_tok": 2.0, "num_experts": 8.0}
    return moe_kernel_s(k, num_tok=num_tok, weight_bytes_per_param=2.0, **sizes | change, **PEAKS)


def test_gemm_by_hand():
    # 100 x 4000 by 4000 x 2000: 1.6e9 flop at 0.5e15 = 3.2 us; (8e6 weights + 100 * 6000 activations) * 2 bytes = 17.2 MB
    # at 3.2e12 = 5.375 us; p = 2: sqrt(10.24 + 28.890625) = 6.2554... us; + 2 us; twice as long by the surface.
    k = kernel(GemmKernel, surface=Surface(axes=("num_tok",), knots=((1.0,),), log_ratio=(math.log(2.0),)))
    expected = 2.0 * (2e-6 + math.hypot(3.2e-6, 5.375e-6))
    assert gemm(k, 100.0, 2000.0, 4000.0) == pytest.approx(expected, rel=1e-12)


def test_decode_by_hand():
    # 10 sequences, 8 KV heads of 128, 1000 tokens: 2 * 10 * 8 * 128 * 1000 * 2 bytes = 40.96 MB, and the query and output
    # 2 * 2 * 10 * 32 * 128 = 163,840 bytes; 4 * 10 * 32 * 1000 * 128 = 163.84 Mflop.
    expected = 2e-6 + math.hypot(163.84e6 / 0.5e15, (40.96e6 + 163840) / 3.2e12)
    assert decode(kernel(DecodeAttentionKernel), 10.0, 1000.0) == pytest.approx(expected, rel=1e-12)
    assert decode(kernel(DecodeAttentionKernel), 10.0, 5000.0, window_tok=1000.0) == pytest.approx(expected, rel=1e-12)


def test_prefill_by_hand():
    # One prompt of 1000: 500,500 pairs * 4 * 32 * 128 = 8.200192 Gflop; KV 2 * 8 * 128 * 1000 * 2 = 4.096 MB; Q and O 16.384 MB.
    expected = 2e-6 + math.hypot(8.200192e9 / 0.5e15, (4.096e6 + 16.384e6) / 3.2e12)
    assert prefill(kernel(PrefillAttentionKernel), 1.0, 1000.0) == pytest.approx(expected, rel=1e-12)


def test_moe_by_hand():
    # 2 tokens, 2 of 8 experts: 3.5 are read, 3 * 1000 * 500 * 2 bytes each = 10.5 MB at 3.2e12; 6 * 4 rows * 5e5 = 12 Mflop;
    # activations 2 * (2 * 2000 + 4 * (2000 + 1500)) = 36,000 bytes, moved besides.
    expected = 2e-6 + 36e3 / 3.2e12 + math.hypot(12e6 / 0.5e15, 10.5e6 / 3.2e12)
    assert moe(kernel(MoeKernel), 2.0) == pytest.approx(expected, rel=1e-12)


def test_sharding_experts_by_width_or_by_number_halves_the_weights_read():
    flat = kernel(MoeKernel, latency_s=q(0.0, "s"))
    whole = moe(flat, 1.0)
    assert moe(flat, 1.0, moe_tp=2.0) < 0.51 * whole
    assert moe(flat, 1.0, moe_ep=2.0) < 0.51 * whole


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 80))
def test_visible_pairs_are_the_sum_over_tokens(isl, past, window):
    assert visible_pairs(isl, past_tok=past, window_tok=window) == sum(min(past + i, window) for i in range(1, isl + 1))
    assert visible_pairs(isl, past_tok=past) == sum(past + i for i in range(1, isl + 1))


def test_chunks_of_a_prompt_see_as_many_pairs_as_the_whole():
    assert visible_pairs(300) + visible_pairs(700, past_tok=300) == visible_pairs(1000)


def test_skewed_routing_reads_fewer_experts():
    balanced, skewed = (experts_read(50.0, num_experts=64, num_experts_per_tok=4, effective_frac=f) for f in (1.0, 0.5))
    assert skewed == pytest.approx(32 * (1 - (1 - 4 / 32) ** 50), rel=1e-12)
    assert skewed < balanced


SIZE = st.floats(1.0, 1e5)
ROUNDING = 1.0 - 1e-12  # the test's products are taken in another order


@given(SIZE, SIZE, SIZE, st.floats(-3.0, 3.0))
def test_gemm_is_never_under_the_peak(num_tok, out_features, in_features, log_ratio):
    k = kernel(GemmKernel, surface=Surface(axes=("num_tok",), knots=((1.0,),), log_ratio=(log_ratio,)))
    time_s = gemm(k, num_tok, out_features, in_features)
    params = out_features * in_features
    assert time_s >= ROUNDING * max(2.0 * num_tok * params / 1e15, 2.0 * params / 4e12) > 0


@given(SIZE, SIZE, st.floats(-3.0, 3.0))
def test_attention_is_never_under_the_peak(num_seqs, context_tok, log_ratio):
    surface = Surface(axes=("head_dim",), knots=((1.0,),), log_ratio=(log_ratio,))
    kv_bytes = 2.0 * num_seqs * context_tok * 8.0 * 128.0 * 2.0
    assert decode(kernel(DecodeAttentionKernel, surface=surface), num_seqs, context_tok) >= ROUNDING * kv_bytes / 4e12
    flop = 4.0 * num_seqs * 32.0 * 128.0 * visible_pairs(context_tok)
    assert prefill(kernel(PrefillAttentionKernel, surface=surface), num_seqs, context_tok) >= ROUNDING * flop / 1e15


@given(st.floats(1.0, 1e3), st.floats(1.0, 10.0))
def test_beyond_the_surface_more_work_never_takes_less_time(start, factor):
    # The last knot of every wavy surface is 16,384.
    more, less = 16384.0 * start * factor, 16384.0 * start
    calls = [
        (kernel(GemmKernel, surface=wavy("num_tok")), gemm),
        (kernel(DecodeAttentionKernel, surface=wavy("read_tok")), lambda k, n: decode(k, 4.0, n)),
        (kernel(PrefillAttentionKernel, surface=wavy("isl_tok")), lambda k, n: prefill(k, 1.0, n)),
        (kernel(MoeKernel, surface=wavy("num_tok")), moe),
    ]
    for k, call in calls:
        assert call(k, more) >= ROUNDING * call(k, less) > 0


def test_an_array_equals_the_scalars():
    k = kernel(GemmKernel, surface=wavy("num_tok"))
    sizes = np.array([1.0, 3.0, 77.0, 1e5])
    assert gemm(k, sizes) == pytest.approx([float(gemm(k, n)) for n in sizes], rel=1e-12)
    context = np.array([[10.0], [1000.0]])
    assert decode(kernel(DecodeAttentionKernel), sizes, context, window_tok=128.0).shape == (2, 4)


@pytest.mark.parametrize(("change", "message"), [
    ({"compute_frac": q(1.2)}, "compute_frac must be in"),
    ({"memory_frac": q(0.0)}, "memory_frac must be in"),
    ({"sharpness": q(0.5)}, "sharpness must be >= 1"),
    ({"dtype": ""}, "dtype must be given"),
    ({"latency_s": q(-1e-6, "s")}, "latency_s must be >= 0"),
])
def test_refuses_nonsense(change, message):
    with pytest.raises(ProfileError, match=message):
        kernel(GemmKernel, **change)


def test_moe_refuses_more_experts_than_there_are_and_still_checks_the_rest():
    for change in ({"effective_experts_frac": q(1.1)}, {"sharpness": q(0.5)}):
        with pytest.raises(ProfileError):
            kernel(MoeKernel, **change)


def test_kernels_are_kept_under_their_own_format():
    k = kernel(GemmKernel)
    assert Kernels(gemm={"bf16": k}).gemm["bf16"] is k
    with pytest.raises(ProfileError, match="equal its key 'fp8'"):
        Kernels(gemm={"fp8": replace(k)})
