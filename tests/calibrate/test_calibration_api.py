"""From a folder of samples to a profile that plans; which machine is meant; how a comparison is summed up."""

import msgspec
import pytest
from test_calibration_fit import gemm_samples, host_samples, layer_samples, sampling_samples

from tpplanner.api import recommend
from tpplanner.api.calibration import BENCHES, chosen_machine, fit_calibration
from tpplanner.api.calibration_verify import Case, Compared, padded, verdict
from tpplanner.errors import OutputError, ProfileError
from tpplanner.io.machine_names import machine_name
from tpplanner.io.model_config import load_model
from tpplanner.report.verify_text import comparison_csv, line, runs_csv, verdict_text

FACTS = {"device": "cpu", "name": "A CPU (tm) 9000", "torch": "2.13", "num_cores": 2, "cache_bytes": 2**20,
         "host_memory_bytes": 16 * 2**30}


def frames():
    heads = {"kv_dtype": "fp32", "num_kv_heads": 4, "head_dim": 64}
    return {
        "gemm": gemm_samples(1).to_dict("records"),
        "decode_attention": [{**heads, "num_seqs": n, "context_tok": c, "num_heads": 8, "latency_s": 20e-6 + n * c * 2e-6}
                             for n in (1, 4, 16, 64) for c in (64, 256, 1024, 4096)],
        "prefill_attention": [{**heads, "isl_tok": c, "prefix_tok": 0, "num_heads": h, "latency_s": 2e-5 + c * c * h * 2e-9}
                              for c in (32, 64, 128, 256, 512, 1024) for h in (4, 8)],
        "layer": layer_samples(20e9).to_dict("records"), "sampling": sampling_samples().to_dict("records"),
        "host": host_samples().to_dict("records"),
        "collective": [{"op": op, "tp": 2, "mode": "between", "size_bytes": s, "latency_s": 5e-5 + s * 1e-9}
                       for op in ("all_reduce", "all_gather", "all_to_all") for s in (1024, 16384, 2**20, 2**24)],
        "memory": [{"kernel": "copy", "size_bytes": 2**28, "moved_bytes": 2.0**29, "latency_s": 2.0**29 / 20e9}],
    }


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "profiles" / "cpu-a-cpu-9000" / "samples"
    folder.mkdir(parents=True)
    (folder / "machine.json").write_bytes(msgspec.json.encode(FACTS))
    for bench, rows in frames().items():
        with (folder / f"{bench}.jsonl").open("wb") as file:
            for row in rows:
                latency_s = float(row.pop("latency_s"))
                values = {name: float(row.pop(name)) for name in ("moved_bytes",) if name in row}
                case = {k: v if isinstance(v, str) else int(v) for k, v in row.items()}
                file.write(msgspec.json.encode({"bench": bench, "case": case, "times_s": [latency_s], "timer": "host",
                                                "values": values}) + b"\n")
    return tmp_path / "profiles"


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


def test_heads_are_padded_as_the_engine_pads_them():
    model = load_model("HuggingFaceTB/SmolLM2-135M-Instruct")  # 9 query and 3 KV heads
    heads = [(a.num_heads, a.num_kv_heads) for a in (padded(model, tp).layer_groups[0].attention for tp in (1, 2, 3))]
    assert heads == [(9, 3), (12, 4), (9, 3)]


def compared(tp, loop, predicted, measured, injected_s=0.0):
    names = ("schedule_s", "prepare_input_s", "forward_s", "sampling_s", "process_output_s", "tpot_s", "ttft_s")
    times = dict.fromkeys(names, 1e-3)
    return Compared(case=Case(model="m", tp=tp, loop=loop, num_seqs=8, injected_s=injected_s),
                    predicted={**times, "step_s": 8 / predicted, "throughput_tok_s": predicted},
                    measured={**times, "step_s": 8 / measured, "throughput_tok_s": measured})


def test_a_verdict_by_hand():
    every = [compared(1, "sequential", 110, 100), compared(2, "sequential", 150, 250), compared(1, "sequential", 80, 80, 0.01),
             compared(1, "overlap", 100, 100), compared(2, "overlap", 150, 150), compared(1, "overlap", 120, 100, 0.01)]
    found = verdict(every)
    assert found.throughput_error_frac == pytest.approx((0.1 + 0.4 + 0 + 0) / 4)
    # Per device: 110 against 75 predicted, 100 against 125 measured; 100 against 75 on both sides.
    assert (found.best_tp_right, found.num_ranked) == (1, 2)
    assert found.speedup_errors_frac == pytest.approx((1.5 / 1.25 - 1.0,))
    assert "ranked right: 1 of 2" in verdict_text({
        "throughput_error_frac": 0.1, "step_error_frac": 0.1, "best_tp_right": 1, "num_ranked": 2, "speedup_errors_frac": (0.2,)})


def test_files_of_a_comparison():
    one = compared(2, "overlap", 110, 100)
    row = {**{name: getattr(one.case, name) for name in ("model", "tp", "loop", "num_seqs", "injected_s")},
           "predicted": one.predicted, "measured": one.measured}
    assert line(row).endswith("+10%")
    assert comparison_csv([row]).splitlines()[1].startswith("m,2,overlap,8,0,0.001,0.001,")
    runs = runs_csv([row, {**row, "injected_s": 0.1}], machine="cpu-a-cpu-9000", dtype="fp32", isl_tok=64, osl_tok=32)
    assert runs.splitlines()[1:] == ["m-tp2-8-overlap,m,cpu-a-cpu-9000,tpplanner-overlap,2,64,32,8,1,1,100,fp32,8,2048,"
                                     "tpplanner calibrate verify"]
