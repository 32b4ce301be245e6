"""From a folder of samples to a profile that plans, and its report; which machine is meant."""

from dataclasses import replace

import numpy as np
import pytest

from tpplanner.api import recommend
from tpplanner.api.calibration import BENCHES, chosen_machine, fit_calibration
from tpplanner.api.calibration_compared import packaged_sheet
from tpplanner.api.calibration_machine import with_imported
from tpplanner.api.emulation import emulation_of
from tpplanner.domain.fit_evidence import KernelResiduals
from tpplanner.domain.hardware import CollectiveOp
from tpplanner.errors import OutputError, ProfileError
from tpplanner.io.fitted_files import load_fitted
from tpplanner.io.machine_names import machine_name
from tpplanner.io.profile_hardware import load_hardware
from tpplanner.report.calibration_text import Rate, boundary_section, datasheet_section, shape_section


def test_samples_become_a_profile_that_plans(root, monkeypatch):
    fitted = fit_calibration(root, chosen_machine(root, None))
    assert sorted(path.name for path in fitted.paths) == [
        "datasheet.toml", "fit_report-tpplanner.md", "fit_report-tpplanner.png", "fitted-tpplanner.json"]
    report = (root / "cpu-a-cpu-9000" / "fit_report-tpplanner.md").read_text()
    assert "| T1 schedule | 20 +-" in report
    monkeypatch.setenv("TPPLANNER_PROFILES", str(root))
    answer = recommend(model="HuggingFaceTB/SmolLM2-1.7B-Instruct", dtype="fp32", gpus="2xcpu-a-cpu-9000", isl=64, osl=32,
                       concurrency=4, engine="tpplanner-overlap")
    # 1.7 billion weights in 32 bits at no more than the measured 20 GB/s, on one rank or two.
    tpot = {plan.tp: plan.outcome.tpot_s for plan in answer.plans if plan.outcome is not None}
    assert 0.34 < tpot[1] < 1.5
    assert tpot[1] / 2 < tpot[2] < tpot[1]


def test_nothing_is_written_over_unasked(root):
    fit_calibration(root, "cpu-a-cpu-9000")
    with pytest.raises(OutputError):
        fit_calibration(root, "cpu-a-cpu-9000")
    fit_calibration(root, "cpu-a-cpu-9000", overwrite=True)


@pytest.mark.parametrize("bench", [b for b in BENCHES if b != "collective"])
def test_missing_samples_are_named(root, bench):
    (root / "cpu-a-cpu-9000" / "samples" / f"{bench}.jsonl").unlink()
    with pytest.raises(ProfileError, match=f"has no samples of {bench}; run tpplanner calibrate again"):
        fit_calibration(root, "cpu-a-cpu-9000")


def test_which_machine_is_meant(root, tmp_path):
    assert chosen_machine(root, "cpu-a-cpu-9000") == "cpu-a-cpu-9000"
    with pytest.raises(ProfileError, match=r"--machine: no samples of cpu-a-cpu-900 .*did you mean cpu-a-cpu-9000"):
        chosen_machine(root, "cpu-a-cpu-900")
    with pytest.raises(ProfileError, match="holds samples of no machine; tpplanner calibrate takes them"):
        chosen_machine(tmp_path / "none", None)
    other = root / "another" / "samples"
    other.mkdir(parents=True)
    (other / "machine.json").write_text("{}")
    with pytest.raises(ProfileError, match="samples of another, cpu-a-cpu-9000; name one with --machine"):
        chosen_machine(root, None)


@pytest.mark.parametrize(("device", "name", "expected"), [
    ("cpu", "AMD EPYC", "cpu-amd-epyc"), ("cpu", "Intel(R) Xeon(R) Platinum 8480+", "cpu-intel-xeon-platinum-8480"),
    ("cuda", "NVIDIA H200", "h200"), ("cuda", "NVIDIA H100 80GB HBM3", "h100-sxm"), ("cuda", "NVIDIA L4", "l4"),
    ("cuda", "NVIDIA Something New", "something-new"),
])
def test_the_name_of_a_machine(device, name, expected):
    assert machine_name({"device": device, "name": name}) == expected


def report_of(root):
    return (root / "cpu-a-cpu-9000" / "fit_report-tpplanner.md").read_text()


def test_a_machine_without_a_datasheet_has_rates_that_stand_alone(root):
    fit_calibration(root, "cpu-a-cpu-9000")
    report = report_of(root)
    assert "The package has no datasheet of this machine" in report
    # 16 MiB in 50 us and 1 ns a byte; an all-reduce over two ranks sends what it holds once, an all-gather half of its result.
    for op, share in (("all_reduce", 1.0), ("all_gather", 0.5)):
        [line] = [line for line in report.splitlines() if f"bandwidth of {op} over 2 ranks, 16,777,216 bytes" in line]
        assert float(line.split("|")[2].split()[0]) == pytest.approx(share * 0.997, rel=1e-3)
        assert line.endswith(" GB/s | - | - |")
    assert "No other fit of this machine and engine is there." in report


def test_rates_are_shares_of_the_packaged_datasheet_of_the_same_gpu():
    # By the profile's own name, and where that is the owner's, by the GPU's.
    for name in ("h200", "h200-own"):
        sheet = packaged_sheet(name, {"device": "cuda", "name": "NVIDIA H200"})
        assert sheet is not None
        assert sheet.name == "h200"
    assert packaged_sheet("here", {"device": "cpu", "name": "A CPU"}) is None
    rates = [Rate("memory", 3600.0, 4800.0, "GB/s"), Rate("products in fp32", 50.0, None, "TFLOP/s")]
    lines = list(datasheet_section(rates, "H200"))
    assert lines[-2:] == ["| memory | 3600 GB/s | 4800 GB/s | 75.0 |", "| products in fp32 | 50 TFLOP/s | - | - |"]


def test_a_second_fit_is_compared_with_the_one_that_it_replaces(root):
    fit_calibration(root, "cpu-a-cpu-9000")
    fit_calibration(root, "cpu-a-cpu-9000", overwrite=True)
    same = report_of(root)
    assert [line for line in same.splitlines() if line.endswith(" moved")] == []
    assert "Against fitted-tpplanner.json as it was" in same
    assert "coefficients within 2 standard errors of each other" in same
    path = root / "cpu-a-cpu-9000" / "samples" / "layer.jsonl"
    lines = [line.replace('"times_s":[', '"times_s":[9') for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    fit_calibration(root, "cpu-a-cpu-9000", overwrite=True)
    [line] = [line for line in report_of(root).splitlines() if line.startswith("layer_overhead_s")]
    assert line.endswith(" moved")


def test_a_file_before_that_cannot_be_read_is_said_and_replaced(root):
    fit_calibration(root, "cpu-a-cpu-9000")
    (root / "cpu-a-cpu-9000" / "fitted-tpplanner.json").write_text("{")
    fit_calibration(root, "cpu-a-cpu-9000", overwrite=True)
    assert "Not compared with fitted-tpplanner.json as it was: " in report_of(root)


def test_coefficients_at_a_bound_are_named(root):
    profile = fit_calibration(root, "cpu-a-cpu-9000").profile
    host = replace(profile.host, layer_overhead_s=replace(profile.host.layer_overhead_s, value=0.0),
                   elementwise_memory=replace(profile.host.elementwise_memory, value=1.0))
    before, after = ("\n".join(boundary_section(p)) for p in (profile, replace(profile, host=host)))
    for name, bound in (("layer_overhead_s", 0), ("elementwise_memory", 1)):
        assert name not in before
        assert f"- {name} is at its bound {bound}: not identified" in after
    assert list(boundary_section(replace(profile, host=None, kernels=replace(profile.kernels, gemm={}, decode_attention={},
                                                                             prefill_attention={}))))[-1] == "No coefficient."


def test_the_worst_shapes_by_hand(root):
    [gemm] = [r for r in fit_calibration(root, "cpu-a-cpu-9000").evidence.residuals if r.operator == "gemm"]
    measured = np.ones(4)
    residuals = KernelResiduals(
        operator="gemm", kernel=gemm.kernel, driver="num_tok", measured_s=measured, predicted_s=np.array([1.1, 0.7, 1.02, 1.0]),
        sizes={"num_tok": np.array([1.0, 2.0, 1.0, 2.0]), "in_features": np.array([8.0, 8.0, 4.0, 4.0])})
    assert list(shape_section([residuals]))[-2:] == [
        "| gemm | fp32 | in_features=8 | 2 | 20.0 | -10.0 | -30.0 |", "| gemm | fp32 | in_features=4 | 2 | 1.0 | +1.0 | +2.0 |"]


def test_packaged_curves_stand_in_for_what_one_gpu_cannot_measure():
    packaged = {(c.op, c.tp): c for c in load_fitted("h200", "vllm").collectives}
    own = replace(packaged[CollectiveOp.ALL_REDUCE, 2], source="samples/")
    gpu = {"device": "cuda", "name": "NVIDIA H200"}
    found = {(c.op, c.tp): c for c in with_imported([own], "h200-own", gpu)}
    assert set(found) >= set(packaged)
    # What was measured is not replaced; what was not says so.
    assert found[CollectiveOp.ALL_REDUCE, 2] is own
    assert found[CollectiveOp.ALL_REDUCE, 8].source.startswith("not measured here, fitted-vllm: ")
    assert found[CollectiveOp.ALL_REDUCE, 8].latency_s == packaged[CollectiveOp.ALL_REDUCE, 8].latency_s
    # A processor has none, whatever its profile is called.
    assert with_imported([], "h200", {"device": "cpu", "name": "A CPU"}) == ()
    label = emulation_of(replace(load_hardware("h200"), collectives=tuple(found.values())), 8).label
    assert "packaged curves, not measured here" in label
