from math import hypot

import pytest
from builders import q, round_hardware, tiny_model, tiny_moe

from tpplanner.cost.linear import experts_s, gemm_s, gemms_s, linear_bytes, linear_class_s, linear_flop
from tpplanner.cost.work import work_of

EXACT = 1e-12
HARDWARE = round_hardware()
WORK = work_of(tiny_model())
# Per layer: q 1024 x 512 and o 512 x 1024 are 524,288 each, gate_up 1024 x 8192 is 8,388,608, down
# 4,194,304: 13,631,488; two layers 27,262,976. K and V: 1024 x 256, two layers 524,288.
SHARDED, KV, HEAD = 27_262_976, 524_288, 32_768_000


def test_gemm_by_hand():
    # 100 rows by 1e9 weights: 2e11 FLOP at 1e14 are 2 ms; 2e9 bytes at 1e12 are 2 ms; p = 2: 2.8284 ms.
    time = gemm_s(num_tok=100, num_params=1e9, bytes_per_param=2, flop_s=1e14, bytes_s=1e12, sharpness=2.0)
    assert time == pytest.approx(2e-3 * 2**0.5, rel=EXACT)


def test_classes_of_the_tiny_model():
    found = {c.min_shard_frac: c.num_params for c in WORK.linears}
    # Two KV heads: from t = 2 on a rank holds one of them whole, half of the matrix.
    assert found == {0.0: SHARDED, 0.5: KV}
    assert WORK.lm_head.num_params == HEAD


def test_one_class_by_hand():
    sharded = next(c for c in WORK.linears if c.min_shard_frac == 0.0)
    # t = 2, 10 rows: 2 * 10 * 13,631,488 / 5e13 = 5.4525952 us; 2 * 13,631,488 / 8e11 = 34.07872 us.
    assert linear_class_s(sharded, HARDWARE, tp=2, num_tok=10) == pytest.approx(
        hypot(5.4525952e-6, 34.07872e-6), rel=EXACT)


def test_kv_projection_is_replicated_beyond_the_kv_heads():
    kv = next(c for c in WORK.linears if c.min_shard_frac == 0.5)
    # t = 2 and t = 4: 262,144 weights; 10 rows: 2 * 10 * 262,144 / 5e13 = 0.1048576 us; / 8e11: 0.65536 us.
    for tp in (2, 4, 8):
        assert linear_class_s(kv, HARDWARE, tp=tp, num_tok=10) == pytest.approx(
            hypot(0.1048576e-6, 0.65536e-6), rel=EXACT)


def test_all_linears_by_hand():
    # Head on 4 sampled rows, t = 2: 2 * 4 * 16,384,000 / 5e13 = 2.62144 us; 2 * 16,384,000 / 8e11 = 40.96 us.
    expected = (hypot(5.4525952e-6, 34.07872e-6) + hypot(0.1048576e-6, 0.65536e-6) + hypot(2.62144e-6, 40.96e-6))
    assert gemms_s(tiny_model(), HARDWARE, tp=2, num_tok=10, num_sampled=4) == pytest.approx(expected, rel=EXACT)


def test_flop_and_bytes_by_hand():
    # t = 2: 2 * 10 * (13,631,488 + 262,144) + 2 * 4 * 16,384,000 = 277,872,640 + 131,072,000.
    assert linear_flop(WORK, tp=2, num_tok=10, num_sampled=4) == pytest.approx(408_944_640, rel=EXACT)
    # 2 bytes of each weight once: 2 * (13,631,488 + 262,144 + 16,384,000).
    assert linear_bytes(WORK, tp=2, num_tok=10) == pytest.approx(60_555_264, rel=EXACT)


def test_experts_by_hand():
    work = work_of(tiny_model(mlp=tiny_moe()))
    expert = next(c for c in work.linears if c.is_expert)
    # One expert: 1024 x 1024 + 512 x 1024 = 1,572,864; two layers 3,145,728.
    assert expert.num_params == 3_145_728
    # 8 experts, 2 per token: one token reads 8 (1 - 3/4) = 2, two tokens 8 (1 - 9/16) = 3.5.
    assert [float(expert.num_copies_read(n)) for n in (0, 1, 2)] == [0.0, 2.0, 3.5]
    # t = 2, 2 rows: 2 * 2 * 2 * 1,572,864 / 4e13 = 0.3145728 us; 3.5 * 1,572,864 * 2 / 5e11 = 22.020096 us.
    assert linear_class_s(expert, HARDWARE, tp=2, num_tok=2) == pytest.approx(
        hypot(0.3145728e-6, 22.020096e-6), rel=EXACT)
    assert experts_s(tiny_model(mlp=tiny_moe()), HARDWARE, tp=2, num_tok=2) == pytest.approx(
        hypot(0.3145728e-6, 22.020096e-6), rel=EXACT)
    assert experts_s(tiny_model(), HARDWARE, tp=2, num_tok=2) == 0.0


def test_router_is_on_every_rank():
    work = work_of(tiny_model(mlp=tiny_moe()))
    router = next(c for c in work.linears if c.min_shard_frac == 1.0)
    # Two layers of 1024 x 8.
    assert router.num_params * router.shard_frac(8) == 16_384


def test_fp8_runs_at_its_own_peak_and_falls_back_to_bf16():
    fp8 = next(c for c in work_of(tiny_model(weights="fp8")).linears if c.min_shard_frac == 0.0)
    # 10,000 rows, t = 1: 2e4 * 27,262,976 / 1e14 = 5.4525952 ms; bytes 27,262,976 / 8e11 = 34.07872 us.
    assert linear_class_s(fp8, HARDWARE, tp=1, num_tok=10_000) == pytest.approx(
        hypot(5.4525952e-3, 34.07872e-6), rel=EXACT)
    assert HARDWARE.peak_for("nvfp4").value == 1e14
    assert HARDWARE.peak_for("fp8") == q(2e14, "flop/s")
