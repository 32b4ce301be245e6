"""Round trips: known coefficients -> synthetic samples -> the fit recovers them."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tpplanner.domain.engine import SamplingPolicy, Switches
from tpplanner.fit.engine_terms import NAMES, EngineRun, fit_engine_terms, predicted_tok_s, with_coefficients
from tpplanner.fit.least_squares import fit_log
from tpplanner.io.model_config import load_model
from tpplanner.io.profile_engine import load_engine
from tpplanner.io.profile_hardware import load_hardware

TRUTH = np.array([30e-6, 9e-6, 20e-6])
SWITCHES = (Switches(), Switches(async_sched=True, early_feedback=True),
            Switches(async_sched=True, early_feedback=True, seq_parallel_sampling=True))


def runs(noise, seed=0):
    hardware = load_hardware("h100-sxm")
    engine = with_coefficients(load_engine("vllm-0.11"), TRUTH, names=NAMES)
    rng = np.random.default_rng(seed)
    found = []
    for name, tp in (("Qwen/Qwen2.5-7B-Instruct", 1), ("Qwen/Qwen2.5-14B-Instruct", 2), ("Qwen/Qwen2.5-32B-Instruct", 4)):
        for switches in SWITCHES:
            for num_seqs in (32.0, 128.0, 256.0):
                run = EngineRun(model=load_model(name), tp=tp, switches=switches, num_seqs=num_seqs, context_tok=600.0,
                                prefill_tok_per_step=10.0, isl_tok=80.0, throughput_tok_s=1.0)
                exact = float(predicted_tok_s(run, hardware, engine))
                found.append(replace(run, throughput_tok_s=exact * np.exp(noise * rng.standard_normal())))
    return found


def test_fit_recovers_exact_coefficients():
    fit, _ = fit_engine_terms(runs(0.0), load_hardware("h100-sxm"), load_engine("vllm-0.11"))
    assert [c.value for c in fit.coefficients] == pytest.approx(TRUTH, rel=1e-5)
    assert not fit.warnings


@pytest.mark.parametrize("seed", range(5))
def test_fit_recovers_noisy_coefficients_within_three_standard_errors(seed):
    fit, _ = fit_engine_terms(runs(0.02, seed), load_hardware("h100-sxm"), load_engine("vllm-0.11"))
    for coefficient, truth in zip(fit.coefficients, TRUTH, strict=True):
        assert abs(coefficient.value - truth) < 3 * coefficient.std_error


def test_parameter_at_its_bound_warns():
    x = np.linspace(1, 10, 20)
    fit = fit_log(lambda c: 1.0 + c[0] * x + c[1], 1.0 + 0.0 * x - 0.01 * x, names=["slope", "offset"], start=[1.0, 1.0])
    assert fit["slope"].at_bound
    assert "slope is at its bound" in fit.warnings[0]


def test_regression_profiles_hold_what_the_benchmark_fits():
    # The fitted numbers in profiles/engines were typed from this output: they may not drift apart.
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    import fit_engine_profiles

    for engine, (_, fit) in zip(("vllm-0.11", "sglang-0.5"), fit_engine_profiles.fits(), strict=True):
        profile = load_engine(engine)
        full = profile.sampling[SamplingPolicy.FULL].per_seq_s
        held = {"broadcast_per_seq_per_log2_tp_s": profile.prepare_input.per_seq_per_log2_tp_s, "sampling_per_seq_s": full}
        for name, quantity in held.items():
            assert fit[name].value == pytest.approx(quantity.value, rel=2e-3)
            assert fit[name].std_error == pytest.approx(quantity.std_error, rel=1e-2)
            assert quantity.num_samples == fit.num_samples
        if engine == "vllm-0.11":
            host = profile.schedule.per_seq_s.value + profile.process_output.per_seq_s.value
            assert fit["host_per_seq_s"].value == pytest.approx(host, rel=2e-3)
