"""Weight-only products: right answers against dequantised weights, offered formats only, and a fit that the planner uses."""

import numpy as np
import pandas as pd
import pytest
import torch

from calibrate import bench_gemm, bench_weight_only
from calibrate.bench import Bench, Plan, WrongAnswerError
from calibrate.machine import Nvml
from calibrate.scopes import engine_model
from calibrate.suite import parts
from tpplanner.cost.gemms import gemms_of
from tpplanner.cost.kernel_time import gemm_kernel_for
from tpplanner.cost.kernels import gemm_kernel_s
from tpplanner.domain.dtypes import DTYPES
from tpplanner.domain.fitted_profile import FittedProfile, MadeFrom, apply_kernels
from tpplanner.domain.kernels import GemmKernel
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.fit.calibration_kernels import Peaks, fit_kernels, measured_peaks
from tpplanner.io.calibration_samples import TINY_MODEL
from tpplanner.io.model_config import load_model
from tpplanner.io.profile_hardware import load_hardware

CPU = torch.device("cpu")
PLAN = Plan(models=(engine_model(TINY_MODEL),), degrees=(1, 2), num_tok=(1, 20), context_tok=(40,), dtypes=("fp32",),
            budget_s=0.0)


@pytest.fixture
def bench():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench(device=CPU, nvml=Nvml(None))
    torch.set_num_threads(before)


def test_this_torch_has_both_on_a_cpu():
    assert bench_weight_only.available(CPU) == ("int8_wo", "int4_wo")


def test_every_case_is_checked_and_timed(bench):
    cases = list(bench_weight_only.cases(PLAN, CPU))
    assert {case["dtype"] for case in cases} == {"int8_wo", "int4_wo"}
    for case in cases[:4] + cases[-4:]:
        sample = bench.time(bench_weight_only.NAME, case, bench_weight_only.prepare(case, bench), budget_s=0.0)
        assert (sample.bench, sample.case, len(sample.times_s)) == ("gemm", case, 5)


def test_the_head_stays_as_it_is_and_the_rest_is_quantised():
    shapes = {(case["out_features"], case["in_features"]) for case in bench_weight_only.cases(PLAN, CPU)}
    assert shapes == set(bench_gemm.shapes(PLAN)) - {(4096, 256), (2048, 256)}


def test_a_quick_look_at_a_cpu_leaves_them_out(bench):
    quick = Plan(models=PLAN.models, degrees=(1,), num_tok=(1,), context_tok=(40,), dtypes=("fp32",), budget_s=0.0, is_quick=True)
    assert list(bench_weight_only.cases(quick, CPU)) == []

    def dtypes(plan):
        return {case["dtype"] for part in parts(plan, bench, num_devices=1) if part.name == "gemm" for case in part.cases}

    assert dtypes(quick) == {"fp32"}
    assert dtypes(PLAN) == {"fp32", "int8_wo", "int4_wo"}


@pytest.mark.parametrize(("name", "dtype"), [("_weight_int8pack_mm", "int8_wo"), ("_weight_int4pack_mm_for_cpu", "int4_wo")])
def test_an_operation_that_is_missing_or_wrong_is_not_offered(monkeypatch, bench, name, dtype):
    bench_weight_only.available.cache_clear()
    right = getattr(torch, name)
    monkeypatch.setattr(torch, name, lambda *given: 1.1 * right(*given))
    case = {"dtype": dtype, "num_tok": 2, "out_features": 64, "in_features": 96}
    with pytest.raises(WrongAnswerError, match=f"gemm {dtype}: differs"):
        bench_weight_only.prepare(case, bench).check()
    assert dtype not in bench_weight_only.available(CPU)
    bench_weight_only.available.cache_clear()
    monkeypatch.delattr(torch, name)
    assert dtype not in bench_weight_only.available(CPU)
    assert len(bench_weight_only.available(CPU)) == 1
    bench_weight_only.available.cache_clear()


TRUE = {"latency_s": 12e-6, "compute_frac": 0.4, "memory_frac": 0.6, "sharpness": 3.0}
BF16, INT8, HBM = 1e14, 2e14, 2e12


def kernel(dtype):
    values = {n: Quantity(value=v, unit="s" if n.endswith("_s") else "1", provenance=Provenance.DATASHEET, source="x")
              for n, v in TRUE.items()}
    return GemmKernel(dtype=dtype, surface=None, held_out_median_frac=None, held_out_p90_frac=None, num_samples=0, source="x",
                      **values)


def gemm_samples(dtype, num_bytes, flop_s):
    rows = pd.DataFrame([{"dtype": dtype, "num_tok": n, "out_features": o, "in_features": i}
                         for n in (1, 4, 16, 64, 256, 1024) for o in (1024, 4096, 16384) for i in (1024, 4096)])
    sizes = {name: rows[name].to_numpy(float) for name in ("num_tok", "out_features", "in_features")}
    times = gemm_kernel_s(kernel(dtype), **sizes, weight_bytes_per_param=num_bytes, flop_s=flop_s, hbm_bytes_s=HBM)
    return rows.assign(latency_s=times * np.exp(np.random.default_rng(1).normal(0.0, 0.02, len(rows))))


DECODE = pd.DataFrame([{"kv_dtype": "bf16", "num_kv_heads": 4, "head_dim": 64, "num_seqs": n, "context_tok": c, "num_heads": 8,
                        "latency_s": 20e-6 + n * c * 4 * 64 * 4 / 5e11} for n in (1, 4, 16, 64) for c in (64, 256, 1024, 4096)])
PREFILL = pd.DataFrame([{"kv_dtype": "bf16", "num_kv_heads": 4, "head_dim": 64, "isl_tok": c, "prefix_tok": 0, "num_heads": h,
                         "latency_s": 20e-6 + c * c * h * 64 * 2 / 5e13} for c in (32, 64, 256, 1024) for h in (4, 8)])


def fitted(gemm, **flop_s):
    return fit_kernels(gemm=gemm, decode=DECODE, prefill=PREFILL, collective=pd.DataFrame(), source="by hand",
                       peaks=Peaks(flop_s={"bf16": BF16, **flop_s}, bytes_s=HBM))


@pytest.mark.parametrize(("dtype", "stored", "flop_s"), [("int8_wo", "int8", {}), ("int8_wo", "int8", {"int8": INT8}),
                                                         ("int4_wo", "int4", {"int8": INT8, "fp8": INT8})])
def test_a_kernel_is_found_again_with_the_bytes_and_the_peak_of_the_planner(dtype, stored, flop_s):
    peak = INT8 if dtype == "int8_wo" and flop_s else BF16
    found = fitted(gemm_samples(dtype, DTYPES[stored].num_bytes, peak), **flop_s).kernels.gemm[dtype]
    for name, true in TRUE.items():
        assert abs(getattr(found, name).value - true) <= 3.0 * getattr(found, name).std_error, name


@pytest.mark.parametrize(("weights", "dtype"), [("int8", "int8_wo"), ("int4", "int4_wo")])
def test_the_planner_takes_the_kernel_for_such_weights(weights, dtype):
    gemm = pd.concat([gemm_samples("bf16", 2.0, BF16), gemm_samples(dtype, DTYPES[weights].num_bytes, BF16)])
    profile = FittedProfile(
        machine="h200", engine="tpplanner", kernels=fitted(gemm).kernels, collectives=(), serving=None,
        made_from=MadeFrom(package="tpplanner calibrate", version="1", tables=(), notice="Measured here."))
    machine = apply_kernels(load_hardware("h200"), profile)
    model = load_model("meta-llama/Llama-3.1-8B-Instruct", dtype=weights)
    assert {gemm_kernel_for(machine, gemm).dtype for gemm in gemms_of(model)} == {dtype}


def test_too_few_samples_of_one_format_leave_it_out_and_say_so():
    gemm = pd.concat([gemm_samples("bf16", 2.0, BF16), gemm_samples("int4_wo", 0.5, BF16).head(5)])
    found = fitted(gemm)
    assert set(found.kernels.gemm) == {"bf16"}
    assert found.evidence.warnings == ("gemm int4_wo: 5 samples are too few for a fit: left out",)


def test_widened_weights_are_no_peak():
    gemm = pd.DataFrame([{"dtype": dtype, "num_tok": 2, "out_features": 1000, "in_features": 1000, "latency_s": time_s}
                         for dtype, time_s in (("fp32", 1e-3), ("int8_wo", 1e-4))])
    memory = pd.DataFrame([{"size_bytes": 1e9, "moved_bytes": 2e9, "latency_s": 1.0}])
    peaks = measured_peaks(gemm=gemm, memory=memory, decode=DECODE.assign(latency_s=1.0), cache_bytes=32e6)
    assert peaks.flop_s == {"fp32": 4e9}
    assert peaks.bytes_s == 1e10  # a megabyte of weights in 0.1 ms
