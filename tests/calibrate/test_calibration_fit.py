"""Known coefficients are found again from synthetic samples; a fit's file is read as it was written."""

import numpy as np
import pandas as pd
import pytest

from tpplanner.cost.kernels import gemm_kernel_s
from tpplanner.cost.work import work_of
from tpplanner.domain.engine import SamplingPolicy
from tpplanner.domain.engine_fit import with_engine_fit
from tpplanner.domain.fitted_profile import FittedProfile, MadeFrom, apply_kernels
from tpplanner.domain.kernels import GemmKernel, Kernels
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.errors import ProfileError
from tpplanner.fit.calibration_host import fit_engine, layer_bytes
from tpplanner.fit.calibration_kernels import Peaks, fit_kernels, measured_peaks
from tpplanner.fit.task_lines import fit_parts
from tpplanner.io.fitted_files import decode_fitted, encode_fitted
from tpplanner.io.model_config import load_model
from tpplanner.io.profile_engine import load_engine
from tpplanner.io.profile_hardware import load_hardware

NOISE = 0.03


def noisy(times, seed=0):
    return np.asarray(times, dtype=float) * np.exp(np.random.default_rng(seed).normal(0.0, NOISE, len(times)))


def test_lines_are_found_again_within_three_standard_errors():
    n, rng = np.tile([1.0, 2, 4, 8, 16, 32, 64, 128], 6), np.random.default_rng(0)
    distances = []
    for seed in range(100):
        true = {"fixed_s": rng.uniform(1, 500) * 1e-6, "per_seq_s": rng.uniform(0.05, 20) * 1e-6}
        fit = fit_parts({"fixed_s": np.ones(n.size), "per_seq_s": n}, noisy(true["fixed_s"] + true["per_seq_s"] * n, seed),
                        source="x")
        distances += [abs(fit[name].value - value) / fit[name].std_error for name, value in true.items()]
    # 99.6 of 100 are expected; and errors that were much too large would hide all.
    assert np.mean(np.asarray(distances) <= 3.0) >= 0.98
    assert np.mean(np.asarray(distances) <= 1.0) == pytest.approx(0.68, abs=0.12)


def test_a_part_that_is_not_there_is_zero_and_not_negative():
    n = np.array([1.0, 4, 16, 64])
    fit = fit_parts({"fixed_s": np.ones(4), "per_seq_s": n}, np.array([3e-6, 2.9e-6, 2.8e-6, 2.7e-6]), source="x")
    assert fit["per_seq_s"].value == 0.0
    assert fit["per_seq_s"].std_error > 0.0


def host_samples():
    rows = []
    for loop in ("sequential", "overlap"):
        for tp in (1, 2):
            for n in (1, 4, 16, 64):
                times_us = {"schedule": 20 + 0.5 * n, "prepare_input": 100 + 2 * n + 50 * np.log2(tp), "deliver": 80,
                            "process_output": 10 + 3 * n, "reply": 60, "exposed": 150 + n,
                            # Alone it wakes up slowly after each wait; two ranks share their cores with the host instead.
                            "device": 1000 + ((200 + n) * (loop == "sequential") if tp == 1 else 300 * (loop == "overlap"))}
                rows += [{"loop": loop, "tp": tp, "num_seqs": n, "task": task, "latency_s": time_us * 1e-6}
                         for task, time_us in times_us.items()]
    return pd.DataFrame(rows)


def sampling_samples():
    return pd.DataFrame([
        {"policy": p.value, "num_rows": n, "vocab_size": v, "latency_s": 1e-6 * (30 + n * (2 + 1e-3 * v))}
        for p in SamplingPolicy for n in (1, 8, 64) for v in (4096, 49152)])


def layer_samples(bytes_s):
    rows = pd.DataFrame([
        {"dtype": "fp32", "num_tok": n, "hidden_size": h, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64, "num_columns": 3 * h}
        for n in (1, 16, 256) for h in (256, 1024)])
    return rows.assign(latency_s=80e-6 + layer_bytes(rows) / (0.4 * bytes_s))


def step_samples():
    return pd.DataFrame([{"dtype": "fp32", "num_seqs": n, "hidden_size": h, "vocab_size": 4096, "head_dim": 64,
                          "latency_s": 90e-6 + 2e-6 * n} for n in (1, 16, 256) for h in (256, 1024)])


@pytest.fixture(scope="module")
def fit():
    return fit_engine(host=host_samples(), sampling=sampling_samples(), layer=layer_samples(20e9), step=step_samples(),
                      hbm_bytes_s=20e9, source="by hand")


def test_the_engines_terms_are_found_again(fit):
    assert fit.schedule.fixed_s.value == pytest.approx(20e-6)
    assert fit.schedule.per_seq_s.value == pytest.approx(0.5e-6)
    # T2 with the way to the device, T5 with the way back.
    assert fit.prepare_input.fixed_s.value == pytest.approx(180e-6)
    assert fit.prepare_input.per_log2_tp_s.value == pytest.approx(50e-6)
    assert fit.process_output.fixed_s.value == pytest.approx(70e-6)
    assert fit.exposed.fixed_s.value == pytest.approx(150e-6)
    assert fit.exposed.per_seq_s.value == pytest.approx(1e-6)
    assert fit.exposed.per_log2_tp_s.value == pytest.approx(300e-6)
    assert fit.restart.fixed_s.value == pytest.approx(200e-6)
    assert fit.restart.per_seq_s.value == pytest.approx(1e-6)
    assert fit.step_overhead.fixed_s.value == pytest.approx(90e-6)
    assert fit.step_overhead.per_seq_s.value == pytest.approx(2e-6)
    assert fit.sampling[SamplingPolicy.FULL].per_seq_per_vocab_tok_s.value == pytest.approx(1e-9)
    assert fit.layer_overhead_s.value == pytest.approx(80e-6)
    assert fit.elementwise_memory.value == pytest.approx(0.4)


def test_a_device_that_never_waits_exposes_nothing():
    host = host_samples()
    host.loc[host["task"] == "exposed", "latency_s"] = 0.0
    found = fit_engine(host=host, sampling=sampling_samples(), layer=layer_samples(20e9), step=step_samples(), hbm_bytes_s=20e9,
                       source="x")
    assert found.exposed.fixed_s.value == found.exposed.per_seq_s.value == 0.0


@pytest.mark.parametrize(("host", "sampling", "what"), [
    (host_samples().query("loop == 'sequential'"), sampling_samples(), "host must have samples of the overlap loop"),
    (host_samples(), sampling_samples().query("policy == 'greedy'"), "sampling must have samples of every policy"),
])
def test_samples_of_an_interrupted_run_are_refused(host, sampling, what):
    with pytest.raises(ProfileError, match=what):
        fit_engine(host=host, sampling=sampling, layer=layer_samples(1e9), step=step_samples(), hbm_bytes_s=1e9, source="x")


def test_bytes_of_a_layer_by_hand():
    # 2 rows: 4 norms and residuals of 16 twice = 128, rotary and cache (3 * 2 + 4 * 1) heads of 8 = 80, 3 * 32 columns; 4 bytes.
    row = pd.DataFrame([{"dtype": "fp32", "num_tok": 2, "hidden_size": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8,
                         "num_columns": 32}])
    assert layer_bytes(row).tolist() == [2 * (128 + 80 + 96) * 4]


def test_what_stays_exposed_counts_only_where_the_engine_overlaps(fit):
    assert with_engine_fit(load_engine("tpplanner-sequential"), fit).exposed is None
    overlapped = with_engine_fit(load_engine("tpplanner-overlap"), fit)
    # Only a device that waits has to get going again: 90 us around the layers, and 200 more.
    assert overlapped.step_overhead.fixed_s.value == pytest.approx(90e-6)
    assert with_engine_fit(load_engine("tpplanner-sequential"), fit).step_overhead.fixed_s.value == pytest.approx(290e-6)
    assert overlapped.exposed is fit.exposed
    assert overlapped.overlap_overhead_s.value == 0.0


def test_missing_samples_are_named():
    with pytest.raises(ProfileError, match="sampling must have samples"):
        fit_engine(host=host_samples(), sampling=pd.DataFrame(), layer=layer_samples(1e9), step=step_samples(),
                   hbm_bytes_s=1e9, source="x")


TRUE = {"latency_s": 12e-6, "compute_frac": 0.8, "memory_frac": 0.5, "sharpness": 3.0}


def true_kernel():
    values = {n: Quantity(value=v, unit="s" if n.endswith("_s") else "1", provenance=Provenance.DATASHEET, source="x")
              for n, v in TRUE.items()}
    return GemmKernel(dtype="fp32", surface=None, held_out_median_frac=None, held_out_p90_frac=None, num_samples=0, source="x",
                      **values)


def gemm_samples(seed):
    sizes = pd.DataFrame([{"dtype": "fp32", "num_tok": n, "out_features": o, "in_features": i}
                          for n in (1, 4, 16, 64, 256, 1024) for o in (256, 1024, 4096, 16384) for i in (256, 1024, 4096)])
    columns = {name: sizes[name].to_numpy(float) for name in ("num_tok", "out_features", "in_features")}
    times = gemm_kernel_s(true_kernel(), **columns, weight_bytes_per_param=4.0, flop_s=1e11, hbm_bytes_s=2e10)
    return sizes.assign(latency_s=noisy(times, seed))


@pytest.fixture(scope="module")
def kernels():
    heads = {"kv_dtype": "fp32", "num_kv_heads": 4, "head_dim": 64}
    decode = pd.DataFrame([
        {**heads, "num_seqs": n, "context_tok": c, "num_heads": 8, "latency_s": 20e-6 + n * c * 4 * 64 * 8 / 5e9}
        for n in (1, 4, 16, 64) for c in (64, 256, 1024, 4096)])
    prefill = pd.DataFrame([
        {**heads, "isl_tok": c, "prefix_tok": p, "num_heads": h, "latency_s": 20e-6 + c * c * h * 64 * 2 / 5e10}
        for c in (32, 64, 256, 1024) for h in (4, 8) for p in (0, c)])
    collective = pd.DataFrame([
        {"op": "all_reduce", "tp": 2, "mode": mode, "size_bytes": s, "latency_s": (1 + (mode == "eager")) * s * 1e-9}
        for s in (1e3, 1e4, 1e5, 1e6) for mode in ("eager", "graph")])
    return fit_kernels(gemm=gemm_samples(1), decode=decode, prefill=prefill, collective=collective,
                       peaks=Peaks(flop_s={"fp32": 1e11}, bytes_s=2e10), source="by hand")


def test_a_kernels_coefficients_are_found_again(kernels):
    kernel = kernels.kernels.gemm["fp32"]
    for name, true in TRUE.items():
        found = getattr(kernel, name)
        assert abs(found.value - true) <= 3.0 * found.std_error, name
    assert not kernel.notes


def test_collectives_are_those_inside_graphs_where_there_are_any(kernels):
    [error] = kernels.evidence.collective_errors
    assert error.curve.latency_s[0] == pytest.approx(1e-6)


def test_peaks_are_the_best_rates_seen():
    gemm = pd.DataFrame([{"dtype": "fp32", "num_tok": 2, "out_features": 1000, "in_features": 1000, "latency_s": 1e-3}])
    decode = pd.DataFrame([{"kv_dtype": "fp32", "num_seqs": 1, "context_tok": 1000, "num_kv_heads": 1, "head_dim": 100,
                            "latency_s": 1e-3}])
    memory = pd.DataFrame([{"size_bytes": 1e6, "moved_bytes": 2e6, "latency_s": 1e-6},
                           {"size_bytes": 1e9, "moved_bytes": 2e9, "latency_s": 1.0}])
    peaks = measured_peaks(gemm=gemm, memory=memory, decode=decode, cache_bytes=32e6)
    assert peaks == Peaks(flop_s={"fp32": 4e9}, bytes_s=4e9)  # 4 MB of weights in a ms; the array in the cache does not count


def test_the_file_is_read_as_it_was_written(fit, kernels):
    profile = FittedProfile(
        machine="a-cpu", engine="tpplanner", kernels=kernels.kernels, collectives=(), serving=None, host=fit,
        made_from=MadeFrom(package="tpplanner calibrate", version="1", tables=(), notice="Measured here."))
    content = encode_fitted(profile)
    again = decode_fitted(content, "fitted-tpplanner.json")
    assert encode_fitted(again) == content
    assert again.host is not None
    assert again.host.sampling[SamplingPolicy.GREEDY].per_seq_per_vocab_tok_s.value == pytest.approx(1e-9)


@pytest.mark.parametrize(("old", "new", "message"), [
    (b'"greedy"', b'"greediest"', r"host\.sampling must have the policies"),
    (b'"elementwise_memory":{"value":0.4', b'"elementwise_memory":{"value":1.4',
     r"host: .*elementwise_memory must be in \(0, 1\]"),
    (b'"schedule":{"fixed_s"', b'"schedule":{"fixed"', "host.schedule"),
])
def test_a_malformed_record_is_one_error(fit, kernels, old, new, message):
    profile = FittedProfile(
        machine="a-cpu", engine="tpplanner", kernels=Kernels(), collectives=(), serving=None, host=fit,
        made_from=MadeFrom(package="tpplanner calibrate", version="1", tables=(), notice="Measured here."))
    content = encode_fitted(profile)
    assert old in content
    with pytest.raises(ProfileError, match=message):
        decode_fitted(content.replace(old, new, 1), "fitted-tpplanner.json")


def test_a_machine_takes_the_bandwidth_of_its_small_operations(fit):
    machine = load_hardware("h200")
    profile = FittedProfile(
        machine="h200", engine="tpplanner", kernels=Kernels(), collectives=(), serving=None, host=fit,
        made_from=MadeFrom(package="tpplanner calibrate", version="1", tables=(), notice="Measured here."))
    assert apply_kernels(machine, profile).efficiency.elementwise_memory.value == pytest.approx(0.4)


@pytest.mark.parametrize("model", ["HuggingFaceTB/SmolLM2-135M-Instruct", "meta-llama/Llama-3.1-8B-Instruct"])
def test_bytes_of_a_layer_are_those_of_the_cost_model(model):
    spec = load_model(model)
    (group,) = spec.layer_groups
    heads = group.attention
    rows = pd.DataFrame([{"dtype": spec.precision.base.name, "num_tok": 3, "hidden_size": spec.hidden_size,
                          "num_heads": heads.num_heads, "num_kv_heads": heads.num_kv_heads, "head_dim": heads.head_dim,
                          "num_columns": group.mlp.intermediate_size}])
    work = work_of(spec)
    # The cost model counts the last norm and the embedding beside the layers.
    outside = 2 * spec.hidden_size * spec.precision.base.num_bytes
    per_tok = work.replicated_activation_bytes_per_tok - outside + work.sharded_activation_bytes_per_tok
    assert layer_bytes(rows)[0] == pytest.approx(3 * per_tok / spec.num_layers, rel=1e-12)
