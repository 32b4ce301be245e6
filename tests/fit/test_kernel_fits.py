"""Round trips of kernel fits: known coefficients -> synthetic samples -> the fit recovers them, and says what it cannot."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tpplanner.cost.communication import curve_s
from tpplanner.cost.kernels import decode_attention_kernel_s, gemm_kernel_s, moe_kernel_s, prefill_attention_kernel_s
from tpplanner.domain.hardware import CollectiveOp
from tpplanner.domain.kernels import DecodeAttentionKernel, GemmKernel, MoeKernel, PrefillAttentionKernel, Surface
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.errors import ProfileError
from tpplanner.fit.collective_fits import TOLERANCE_FRAC, collective_held_out, fit_collective
from tpplanner.fit.kernel_fits import fit_decode_attention, fit_gemm, fit_moe, fit_prefill_attention, held_out
from tpplanner.fit.surface_fit import fit_surface, monotone_along, supported_knots

PEAK = {"peak_flop_s": 1e15, "hbm_bytes_s": 4e12, "source": "synthetic"}
RATES = {"flop_s": 1e15, "hbm_bytes_s": 4e12}
TRUTH = {"latency_s": 4e-6, "compute_frac": 0.65, "memory_frac": 0.8, "sharpness": 2.5}
NOISE = 0.02


def true_kernel(kind, surface=None, **change):
    fields = {n: Quantity(value=v, unit="1", provenance=Provenance.MEASURED, source="truth")
              for n, v in (TRUTH | change).items()}
    more = {"distribution": "balanced"} if kind is MoeKernel else {}
    return kind(dtype="bf16", surface=surface, held_out_median_frac=None, held_out_p90_frac=None, num_samples=0,
                source="truth", **fields, **more)


def grid(**axes):
    return pd.DataFrame(list(itertools.product(*axes.values())), columns=list(axes), dtype=float)


def timed(rows, predict, kernel, seed, *, ignored=(), **known):
    """Synthetic samples: the kernel's times with log-normal noise."""
    sizes = {n: rows[n].to_numpy() for n in rows.columns if n not in ignored}
    exact = predict(kernel, **sizes, **known, **RATES)
    return rows.assign(latency_s=exact * np.exp(NOISE * np.random.default_rng(seed).standard_normal(len(rows))))


SIZES = (256, 512, 1024, 2048, 4096, 8192, 16384)
NUM_TOK = (1, 4, 16, 48, 64, 128, 192, 256, 512, 1024, 3000, 8192)


def gemm_samples(seed=0, surface=None, *, sizes=SIZES, num_tok=NUM_TOK, **change):
    rows = grid(num_tok=num_tok, out_features=sizes, in_features=sizes)
    kernel = true_kernel(GemmKernel, surface, **change)
    return timed(rows, gemm_kernel_s, kernel, seed, weight_bytes_per_param=2.0).assign(dtype="bf16")


# Wide groups of query heads make the arithmetic count in decode; narrow ones say nothing about it.
HEADS = np.array([(8, 1), (8, 8), (32, 4), (64, 8), (64, 1), (128, 1), (256, 2), (512, 8)], dtype=float)


def attention_rows(**axes):
    rows = grid(**axes, pair=range(len(HEADS)))
    heads = HEADS[rows.pop("pair").astype(int)]
    return rows.assign(num_heads=heads[:, 0], num_kv_heads=heads[:, 1], head_dim=128.0)


def within_three_errors(kernel, **change):
    for name, truth in (TRUTH | change).items():
        quantity = getattr(kernel, name)
        assert abs(quantity.value - truth) < 3 * quantity.std_error, name


@pytest.mark.parametrize("seed", range(4))
def test_gemm_round_trip(seed):
    kernel = fit_gemm(gemm_samples(seed), dtype="bf16", weight_bytes_per_param=2.0, **PEAK)
    within_three_errors(kernel)
    assert kernel.held_out_median_frac < 1.2 * NOISE  # the median of |noise| is 0.67 NOISE; the rest is the surface's
    assert max(abs(v) for v in kernel.surface.log_ratio) < 3 * NOISE
    assert kernel.num_samples == 12 * 49
    assert not kernel.notes


@pytest.mark.parametrize("seed", range(3))
def test_decode_round_trip(seed):
    rows = attention_rows(num_seqs=2.0 ** np.arange(9), context_tok=2.0 ** np.arange(4, 17))
    samples = timed(rows, decode_attention_kernel_s, true_kernel(DecodeAttentionKernel), seed, kv_element_bytes=2.0)
    kernel = fit_decode_attention(samples.assign(kv_dtype="bf16", window_tok=0), kv_dtype="bf16", kv_element_bytes=2.0, **PEAK)
    within_three_errors(kernel)
    assert kernel.held_out_median_frac < 1.5 * NOISE


@pytest.mark.parametrize("seed", range(3))
def test_prefill_round_trip(seed):
    rows = attention_rows(num_seqs=2.0 ** np.arange(5), isl_tok=2.0 ** np.arange(4, 14))
    samples = timed(rows, prefill_attention_kernel_s, true_kernel(PrefillAttentionKernel), seed, kv_element_bytes=2.0)
    kernel = fit_prefill_attention(samples.assign(kv_dtype="bf16", window_tok=np.nan), kv_dtype="bf16", kv_element_bytes=2.0,
                                   **PEAK)
    within_three_errors(kernel)
    assert kernel.held_out_median_frac < 1.5 * NOISE


@pytest.mark.parametrize("seed", range(3))
def test_moe_round_trip_finds_the_skew(seed):
    rows = grid(num_tok=(1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096), hidden_size=(2048, 7168), num_experts=(32, 128),
                expert_intermediate_size=(768, 2048), num_experts_per_tok=(4, 8), moe_tp=(1, 2), moe_ep=(1, 4))
    kernel = true_kernel(MoeKernel, effective_experts_frac=0.7)
    samples = timed(rows, moe_kernel_s, kernel, seed, weight_bytes_per_param=2.0).assign(
        dtype="bf16", distribution="power_law_1.2")
    found = fit_moe(samples, dtype="bf16", distribution="power_law_1.2", weight_bytes_per_param=2.0, **PEAK)
    within_three_errors(found, effective_experts_frac=0.7)


def test_a_known_surface_cuts_the_error_on_held_out_shapes():
    surface = Surface(axes=("num_tok", "out_features"), knots=((1.0, 128.0, 8192.0), (256.0, 16384.0)),
                      log_ratio=(0.5, 0.0, 0.1, 0.3, 0.0, -0.1))
    samples = gemm_samples(1, surface, sizes=np.geomspace(256, 16384, 13), num_tok=np.geomspace(1, 8192, 40))
    kernel = fit_gemm(samples, dtype="bf16", weight_bytes_per_param=2.0, **PEAK)
    sizes = {n: samples[n].to_numpy() for n in ("num_tok", "out_features", "in_features")}
    bare = gemm_kernel_s(replace(kernel, surface=None), weight_bytes_per_param=2.0, **sizes, **RATES)
    roofline_error = np.median(np.abs(bare / samples["latency_s"] - 1.0))
    assert kernel.held_out_median_frac < min(0.6 * roofline_error, 3 * NOISE)


def test_fitted_times_do_not_fall_from_knot_to_knot():
    rng = np.random.default_rng(0)
    samples = gemm_samples(2)
    samples["latency_s"] *= np.exp(0.3 * rng.standard_normal(len(samples)))
    kernel = fit_gemm(samples, dtype="bf16", weight_bytes_per_param=2.0, **PEAK)
    num_tok, out_features, in_features = np.meshgrid(*kernel.surface.knots, indexing="ij")
    time_s = gemm_kernel_s(kernel, num_tok=num_tok, out_features=out_features, in_features=in_features,
                           weight_bytes_per_param=2.0, **RATES)
    assert (np.diff(np.log(time_s), axis=0) > -0.02).all()  # making one axis monotone may disturb another a little


def test_samples_that_beat_the_peak_are_left_out_and_said_so():
    samples = gemm_samples()
    samples.loc[samples.index[:59], "latency_s"] = 1e-12
    kernel = fit_gemm(samples, dtype="bf16", weight_bytes_per_param=2.0, **PEAK)
    assert kernel.num_samples == 12 * 49 - 59
    assert "10.03% of the samples beat the machine's peak" in kernel.notes[0]


def test_a_coefficient_at_its_bound_is_noted():
    samples = gemm_samples()
    weights = samples["in_features"] * samples["out_features"]
    compute_s, memory_s = 2.0 * samples["num_tok"] * weights / 6e14, 2.0 * weights / 3e12
    samples["latency_s"] = 4e-6 + (compute_s**0.7 + memory_s**0.7) ** (1.0 / 0.7)  # the knee is softer than a sum
    kernel = fit_gemm(samples, dtype="bf16", weight_bytes_per_param=2.0, **PEAK)
    assert "sharpness is at its bound 1: not identified" in kernel.notes


def test_a_table_of_host_launches_is_noted():
    kernel = fit_gemm(gemm_samples(latency_s=60e-6), dtype="bf16", weight_bytes_per_param=2.0, **PEAK)
    assert "timed the host's launches" in kernel.notes[0]


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda s: s.drop(columns="in_features"), "columns must include in_features"),
    (lambda s: s.assign(dtype="fp8"), "samples must number at least"),
    (lambda s: s.assign(latency_s=-1.0), "latency_s must be finite and > 0"),
    (lambda s: s.assign(num_tok=math.nan), "num_tok must be finite and > 0"),
])
def test_bad_samples_are_refused(spoil, message):
    with pytest.raises(ProfileError, match=message):
        fit_gemm(spoil(gemm_samples()), dtype="bf16", weight_bytes_per_param=2.0, **PEAK)


def test_held_out_rows_are_whole_shapes_and_whole_driver_values():
    columns = {n: c.to_numpy() for n, c in gemm_samples().drop(columns="dtype").items()}
    out = held_out(columns, shape=("out_features", "in_features"), driver="num_tok", seed=3)
    frame = pd.DataFrame(columns).assign(out=out)
    whole_shapes = frame.groupby(["out_features", "in_features"])["out"].all()
    whole_values = frame.groupby("num_tok")["out"].all()
    assert (whole_shapes.sum(), whole_values.sum()) == (9, 2)  # a fifth of 49 shapes and of 10 inner values
    seen = frame.set_index(["out_features", "in_features"]).index.map(whole_shapes) | frame["num_tok"].map(whole_values)
    assert (frame["out"].to_numpy() == seen.to_numpy()).all()
    assert (held_out(columns, shape=("out_features", "in_features"), driver="num_tok", seed=3) == out).all()


def test_a_surface_recovers_its_knots_and_fills_empty_ones():
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(0, np.log(100), 4000))
    truth = np.interp(np.log(x), np.log([1.0, 10.0, 100.0]), [0.3, -0.2, 0.1])
    found = fit_surface({"x": x}, truth, knots={"x": (0.001, 1, 10, 100, 1e6)})
    assert found.knots == ((1.0, 10.0, 100.0),)
    assert found.log_ratio == pytest.approx([0.3, -0.2, 0.1], abs=2e-3)


def test_supported_knots_of_one_value():
    assert supported_knots([64, 128, 256], np.array([128.0])) == (128.0,)
    assert supported_knots([64, 128, 256], np.array([512.0])) == (256.0,)


def test_monotone_leaves_rising_times_alone():
    values, base = np.array([[0.1, 0.0], [0.0, 0.2]]), np.array([[0.0, 1.0], [0.5, 1.5]])
    assert monotone_along(values, base, axis=1) == pytest.approx(values, abs=1e-12)


def collective_samples():
    sizes = 256.0 * 2.0 ** np.arange(20)
    return pd.DataFrame({"op": "all_reduce", "tp": 4, "size_bytes": sizes, "latency_s": 5e-6 + sizes / 2e11})


def test_a_collective_keeps_few_sizes_and_stays_close():
    samples = collective_samples()
    curve = fit_collective(samples, op=CollectiveOp.ALL_REDUCE, tp=4, source="synthetic")
    assert len(curve.size_bytes) < 12
    error = np.abs(curve_s(curve, samples["size_bytes"].to_numpy()) / samples["latency_s"] - 1)
    assert error.max() <= TOLERANCE_FRAC
    median, p90 = collective_held_out(samples, op=CollectiveOp.ALL_REDUCE, tp=4, source="synthetic")
    assert 0 < median < p90 < 0.2


def test_collectives_that_were_not_measured_are_refused():
    with pytest.raises(ProfileError, match="at least 2 sizes of all_reduce over 8"):
        fit_collective(collective_samples(), op=CollectiveOp.ALL_REDUCE, tp=8, source="synthetic")
    with pytest.raises(ProfileError, match="columns must include tp"):
        fit_collective(collective_samples().drop(columns="tp"), op=CollectiveOp.ALL_REDUCE, tp=4, source="synthetic")
