"""What devices that share a memory keep, from times alone and together; how it reaches a plan."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tpplanner.api import recommend
from tpplanner.domain.contention import shares, with_busy
from tpplanner.domain.hardware import Contention
from tpplanner.domain.kernels import GemmKernel, Kernels
from tpplanner.domain.machine_fit import MachineFit
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.errors import ProfileError
from tpplanner.fit.calibration_contention import alone, fit_contention, slowdowns
from tpplanner.fit.calibration_drift import kernels_with_drift, machine_drift, pass_factors
from tpplanner.fit.kernel_operators import gemm_operator
from tpplanner.io.profile_hardware import load_hardware
from tpplanner.report.machine_fit_text import machine_sections

FLOP_S, BYTES_S = 80e9, 20e9


def quantity(value):
    return Quantity(value=value, unit="1", provenance=Provenance.MEASURED, source="by hand")


def contention(num_busy, compute, memory):
    return Contention(num_busy=num_busy, compute_frac=quantity(compute), memory_frac=quantity(memory))


def kernel():
    values = {name: quantity(v) for name, v in (("latency_s", 5e-6), ("compute_frac", 0.9), ("memory_frac", 0.6),
                                                ("sharpness", 3.0))}
    return GemmKernel(dtype="fp32", surface=None, held_out_median_frac=None, held_out_p90_frac=None, num_samples=0, source="x",
                      **values)


def operator(compute, memory):
    return gemm_operator(weight_bytes_per_param=4.0, flop_s=compute * FLOP_S, hbm_bytes_s=memory * BYTES_S)


def samples(compute, memory, *, noise=0.02, seed=0):
    sizes = pd.DataFrame([{"dtype": "fp32", "timer": "host", "num_tok": n, "out_features": o, "in_features": i}
                          for n in (1, 8, 32, 256) for o, i in ((576, 576), (3072, 576), (576, 1536), (49152, 576))])
    columns = {name: sizes[name].to_numpy(dtype=float) for name in ("num_tok", "out_features", "in_features")}
    rng = np.random.default_rng(seed)
    # The kernel is 30 % off at every shape: only ratios count.
    single, busy = (1.3 * operator(c, m).predict(kernel(), columns) * np.exp(rng.normal(0, noise, len(sizes)))
                    for c, m in ((1.0, 1.0), (compute, memory)))
    return pd.concat([sizes.assign(latency_s=single), sizes.assign(latency_s=busy, num_busy=2)], ignore_index=True)


@pytest.mark.parametrize(("compute", "memory"), [(0.95, 0.6), (0.55, 0.8), (0.5, 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_shares_are_found_again_within_three_standard_errors(compute, memory, seed):
    measured = {"gemm": slowdowns(samples(compute, memory, seed=seed))}
    (found,) = fit_contention(measured, {"gemm": (kernel(), operator)}, source="x")
    assert found.num_busy == 2
    for name, true in (("compute_frac", compute), ("memory_frac", memory)):
        share = getattr(found, name)
        assert abs(share.value - true) <= 3 * share.std_error + 1e-6
        assert share.std_error < 0.06


def test_one_bad_case_does_not_carry_the_fit():
    rows = samples(0.9, 0.6)
    rows.loc[len(rows) - 1, "latency_s"] *= 8.0
    (found,) = fit_contention({"gemm": slowdowns(rows)}, {"gemm": (kernel(), operator)}, source="x")
    assert found.memory_frac.value == pytest.approx(0.6, abs=0.05)


def test_cases_alone_are_kept_apart():
    rows = samples(0.9, 0.6, noise=0.0)
    assert len(alone(rows)) == len(rows) / 2
    assert "num_busy" not in alone(rows)
    assert len(slowdowns(rows)) == len(rows) / 2
    assert (slowdowns(rows)["slowdown"] >= 1.0).all()
    assert slowdowns(alone(rows)).empty
    assert fit_contention({"gemm": slowdowns(alone(rows))}, {"gemm": (kernel(), operator)}, source="x") == ()


def test_shares_between_and_beyond_what_was_measured():
    measured = (contention(2, 1.0, 0.8), contention(4, 0.5, 0.5))
    assert shares(measured, 1).memory_frac == 1.0
    assert shares(measured, 2).memory_frac == pytest.approx(0.8)
    # The time, not the share, is interpolated: 1 / 0.8 and 1 / 0.5 in the middle.
    assert shares(measured, 3).memory_frac == pytest.approx(1 / ((1 / 0.8 + 1 / 0.5) / 2))
    # All eight together get no more than the four did.
    assert shares(measured, 8).memory_frac == pytest.approx(0.25)
    assert shares(measured, 8).compute_frac == pytest.approx(0.5)


def test_a_machine_at_work_is_slower_and_says_why():
    machine = load_hardware("h100-sxm")
    assert with_busy(machine, 8) is machine
    shared = replace(machine, contention=(contention(2, 0.9, 0.6),))
    assert with_busy(shared, 1) is shared
    busy = with_busy(shared, 2)
    assert busy.hbm_bytes_s.value == pytest.approx(0.6 * machine.hbm_bytes_s.value)
    assert busy.peak_for("bf16").value == pytest.approx(0.9 * machine.peak_for("bf16").value)
    assert busy.hbm_bytes_s.source.endswith("times 0.6 with 2 devices at work")
    # Once is enough.
    assert with_busy(busy, 2) is busy


def test_a_plan_counts_every_device_that_works():
    machine = replace(load_hardware("h100-sxm"), contention=(contention(2, 1.0, 0.5),))

    def tpot_s(num_gpus):
        answer = recommend(model="Qwen/Qwen2.5-7B-Instruct", gpus=(num_gpus, machine), isl=256, osl=256,
                           concurrency=num_gpus, engine="sequential")
        return answer.plan(1).outcome.tpot_s

    # One request on each of two GPUs that share a memory: each reads its weights at half the bandwidth.
    assert tpot_s(2) > 1.3 * tpot_s(1)


@pytest.mark.parametrize(("compute", "memory", "field"), [(0.0, 0.5, "compute_frac"), (0.5, 1.2, "memory_frac")])
def test_a_share_that_makes_no_sense_is_refused(compute, memory, field):
    with pytest.raises(ProfileError, match=field):
        contention(2, compute, memory)


def passes(factors, *, noise=0.01, cases=40):
    rng = np.random.default_rng(1)
    return pd.DataFrame([{"num_tok": n, "round": r, "latency_s": (n + 1) * f * np.exp(rng.normal(0, noise))}
                         for n in range(cases) for r, f in enumerate(factors)])


def test_the_drift_between_passes_is_that_of_the_machine_and_not_of_single_cases():
    assert pass_factors(passes((1.0, 1.2))) == pytest.approx((-np.log(1.2) / 2, np.log(1.2) / 2), abs=0.005)
    # Two passes 20 % apart: a standard deviation of log(1.2) / sqrt(2).
    assert machine_drift([passes((1.0, 1.2)), passes((1.2, 1.0))]) == pytest.approx(np.log(1.2) / np.sqrt(2), rel=0.05)
    assert machine_drift([passes((1.0, 1.0), noise=0.3)]) < 0.12
    assert machine_drift([passes((1.0,))]) is None
    assert machine_drift([]) is None


def test_errors_contain_the_drift_and_what_no_sample_moves_with_has_one_as_large_as_itself():
    def fitted(value, std_error):
        return Quantity(value=value, unit="1", provenance=Provenance.FITTED, source="x", std_error=std_error, num_samples=9)

    one = replace(kernel(), latency_s=fitted(1e-5, 3e-7), memory_frac=fitted(0.5, 0.0), sharpness=fitted(12.0, 1e-9))
    wider = kernels_with_drift(Kernels(gemm={"fp32": one}), 0.04).gemm["fp32"]
    # 3 % of its own and 4 % of drift.
    assert wider.latency_s.std_error == pytest.approx(5e-7)
    assert wider.memory_frac.std_error == 0.5
    assert wider.sharpness.std_error == 12.0
    # A figure that was not fitted has no error to add to.
    assert wider.compute_frac == one.compute_frac


def test_the_report_shows_what_each_device_keeps():
    none = pd.DataFrame()
    fit = MachineFit(source="x", contention=(contention(2, 0.9, 0.75),))
    lines = list(machine_sections(fit, power=none, copies=none, launch=none))
    assert "| 2 | 90 | 75 |" in lines
    assert any("its own rates" in line for line in machine_sections(None, power=none, copies=none, launch=none))
