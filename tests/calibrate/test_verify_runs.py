"""Verify with the engine at work: small cases, failures beside them, the command line, the recording."""

import csv
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sample_folder import NAME

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import record_verify

from tpplanner.api import calibration_cases, calibration_verify
from tpplanner.api.calibration_cases import Asked, Case, Group, Limits
from tpplanner.api.calibration_verify import FILES, run_groups, tiny_model, verified
from tpplanner.api.validate import load_limits, validate
from tpplanner.cli.main import main
from tpplanner.errors import OutputError, TpplannerError, WorkloadError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def own(fitted_root, tmp_path, monkeypatch):
    """A fitted folder to write into; runs are as short as they may be."""
    monkeypatch.setattr(calibration_cases, "_SERVED_S", 0.0)
    return shutil.copytree(fitted_root, tmp_path / "profiles")


def rows_of(root):
    with (root / NAME / FILES[0]).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_both_sides_of_every_case_and_why_some_failed(own):
    seen = []
    # 4,096 tokens are the model's limit: one length is too long for the engine, the others go on after it.
    asked = Asked(models=(), degrees=(1,), batches=(2,), lengths=((4090, 16), (8, 6)), emulated=(2,))
    verdict, paths = verified(own, NAME, asked, report=seen.append)
    assert [path.name for path in paths] == list(FILES)
    rows = rows_of(own)
    assert len(rows) == len(seen) == 2 * 2 * 2 + 2
    assert [float(row["injected_s"]) > 0 for row in rows] == [False] * 8 + [True] * 2
    long, short = ([row for row in rows if row["isl_tok"] == isl] for isl in ("4090", "8"))
    assert all("4106" in row["failure"] and not row["measured_step_s"] for row in long)
    assert all(not row["failure"] and float(row["measured_throughput_tok_s"]) > 0 for row in short)
    assert verdict["num_failed"] == len(long) == 6
    assert {row["predicted_num_kv_blocks"] == row["measured_num_kv_blocks"] for row in short} == {True}
    assert [row["tp"] for row in short if row["emulated"] == "True"] == ["2", "2"]
    assert verdict["emulated_error_frac"] is not None
    with (own / NAME / FILES[1]).open(newline="") as file:
        assert {(row["tp"], row["isl"]) for row in csv.DictReader(file)} == {("1", "8")}
    with pytest.raises(OutputError):
        verified(own, NAME, asked)


def test_an_engine_that_does_not_start_is_noted_once_for_each_of_its_cases(own):
    # 2,000 ranks are more than the engine takes.
    seen = []
    asked = Asked(models=(), degrees=(2000, 1), batches=(1, 2), lengths=((8, 6),))
    verdict, paths = verified(own, NAME, asked, report=seen.append)
    refused = [row for row in seen if row["failure"]]
    assert [(row["tp"], row["num_seqs"]) for row in refused] == [(2000, n) for n in (1, 1, 2, 2, 2, 2)]
    assert all("tp must be between" in row["failure"] for row in refused)
    # What ran is there whole, with blocks as predicted.
    assert [path.name for path in paths] == list(FILES)
    ran = [row for row in rows_of(own) if not row["failure"]]
    assert [(row["tp"], row["num_seqs"], row["num_requests"]) for row in ran] == [("1", "1", "1")] * 2 + [("1", "2", "2")] * 2
    assert all(row["predicted_num_kv_blocks"] == row["measured_num_kv_blocks"] != "" for row in ran)
    assert (verdict["num_failed"], verdict["num_ranked"], verdict["speedup_errors_frac"]) == (6, 0, ())


def test_nothing_but_failures_is_an_error_and_writes_nothing(own):
    with pytest.raises(WorkloadError, match=r"all 6 cases failed; the first one: .*tp must be between"):
        verified(own, NAME, Asked(models=(), degrees=(2000,), batches=(1, 2), lengths=((8, 6),)))
    assert not any((own / NAME / name).exists() for name in FILES)


def test_a_model_that_is_none_stops_before_the_first_run(own, tmp_path):
    with pytest.raises(TpplannerError):
        verified(own, NAME, Asked(models=("tiny", str(tmp_path / "none")), degrees=(1,), batches=(1,)))


def test_injected_time_is_slept_in_its_cases_only(own):
    seen = []
    verified(own, NAME, Asked(models=(), degrees=(1,), batches=(1,), lengths=((8, 16),)), report=seen.append)
    for loop in ("sequential", "overlap"):
        plain, slept = (row for row in seen if row["loop"] == loop)
        third_s = slept["injected_s"] / 3
        for task in ("schedule_s", "prepare_input_s", "process_output_s"):
            assert slept["measured"][task] >= third_s
        assert plain["measured"]["schedule_s"] < slept["measured"]["schedule_s"]


@pytest.mark.slow
def test_the_command(own, capfd):
    with pytest.raises(SystemExit) as stop:
        main(("calibrate", "verify", "--out", str(own), "--tp", "1", "--batch", "1", "--length", "8/6"))
    out, err = capfd.readouterr()
    assert not stop.value.code, err
    lines = out.splitlines()
    assert len(lines) == 2 + 2 * 4 + 4 + len(FILES)  # heads, two loops and both again with injected time, the verdict
    assert lines[-3] == "energy: no counter on this machine"
    assert lines[-4].startswith("KV blocks: 0.0%")


@pytest.mark.parametrize(("flags", "told"), [
    (["--length", "64"], "--length must be prompts and outputs such as 64/32,1024/128"),
    (["--length", "64/2"], "lengths must be a prompt of 1 and an output of 4 tokens or more"),
    (["--emulate-tp", "1"], "--emulate-tp must be 2 or more"),
    (["--emulate-tp", "two"], "--emulate-tp must be numbers"),
])
def test_bad_options_are_one_line(own, run, flags, told):
    code, out, err = run("calibrate", "verify", "--out", str(own), *flags)
    assert (code, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) == 1


def test_the_recorded_runs_are_within_their_limits(run, use_profiles, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    use_profiles(record_verify.OUT)
    runs, limits = (str(record_verify.OUT / name) for name in ("runs.csv", "validation.toml"))
    code, out, err = run("validate", runs, "--thresholds", limits)
    assert code == 0, err
    assert "holds" in err
    assert "not predicted" not in out


def recorded_by_hand(own, tmp_path):
    """A folder as verify leaves it, with a model that two ranks do not divide."""
    folder = tmp_path / "models" / "odd"
    config = json.loads((Path(tiny_model(folder)) / "config.json").read_text()) | {
        "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
    (folder / "config.json").write_text(json.dumps(config))
    heads = ("id,model,system,engine,tp,isl,osl,concurrency,ttft_ms,tpot_ms,throughput_tok_s,dtype,max_num_seqs,"
             "max_num_batched_tokens,prompts_per_client,source")
    rows = [f"r{tp},{folder},{NAME},tpplanner-overlap,{tp},64,32,8,10,5,1500,fp32,8,2048,4,by hand" for tp in (1, 2)]
    (own / NAME / "runs.csv").write_text("\n".join([heads, *rows]) + "\n")
    (own / NAME / "verify.csv").write_text(f"model,tp\n{folder},1\n")


def test_a_recording_is_made_from_a_folder_of_verify(own, tmp_path, use_profiles):
    recorded_by_hand(own, tmp_path)
    out = tmp_path / "recorded"
    (out / "old").mkdir(parents=True)
    record_verify.record(own / NAME, out)
    assert not (out / "old").exists()
    configs = {path.parent.name: json.loads(path.read_text()) for path in out.glob("models/*/config.json")}
    assert {name: (c["num_attention_heads"], c["num_key_value_heads"]) for name, c in configs.items()} == {
        "odd": (9, 3), "odd-tp2": (12, 4)}
    use_profiles(out)
    found = validate(out / "runs.csv")
    figures = found.figures()
    assert figures["predicted"] == figures["runs"] == 2
    limits = out / "validation.toml"
    limits.write_text(record_verify.limits_text(figures, {"name": "A CPU", "num_cores": 2, "torch": "2"}))
    assert found.broken(load_limits(limits)) == ()
    # A prediction that errs a tenth more breaks them: 5 % is the room.
    worse = limits.read_text().replace(f"# {figures['all.throughput.mean']:.4f}", "").replace(
        f"{figures['all.throughput.mean'] * 1.05:.4f}", f"{figures['all.throughput.mean'] * 0.95:.4f}")
    limits.write_text(worse)
    assert "all.throughput.mean" in [one.figure for one in found.broken(load_limits(limits))]


def test_a_recording_that_fails_leaves_the_old_one(own, tmp_path, monkeypatch):
    out = tmp_path / "recorded"
    (out / "old").mkdir(parents=True)
    monkeypatch.setattr(record_verify, "OUT", out)
    (own / NAME / "runs.csv").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        record_verify.main(own / NAME)
    assert [path.name for path in tmp_path.glob("recorded*")] == ["recorded"]
    assert (out / "old").exists()


def test_what_was_compared_before_ctrl_c_stays(own, monkeypatch):
    def stop(row):
        seen.append(row)
        if len(seen) == 2:
            raise KeyboardInterrupt

    seen = []
    with pytest.raises(KeyboardInterrupt):
        verified(own, NAME, Asked(models=(), degrees=(1,), batches=(1, 2), lengths=((8, 6),)), report=stop)
    assert [(row["num_seqs"], row["loop"]) for row in rows_of(own)] == [("1", "sequential"), ("1", "overlap")]


class Recorder:
    """Stands where an engine would serve: each run takes longer than the one before."""

    def __init__(self, machine, group, stack):
        self.group = group

    def run(self, case, num_requests):
        served.append((case.tp, case.loop, case.num_seqs))
        if case.tp == 2 and case.num_seqs == 8 and served.count(served[-1]) == 2:
            raise WorkloadError("the second time it breaks")
        return {"throughput_tok_s": float(len(served))}


served = []


def test_loads_are_served_in_turns_and_the_mean_counts(monkeypatch):
    served.clear()
    monkeypatch.setattr(calibration_verify, "_Served", Recorder)
    monkeypatch.setattr(calibration_verify, "predict", lambda machine, spec, case, limits: ({"throughput_tok_s": 1.0}, 3))
    limits = Limits(max_num_seqs=8, max_context_tok=64, kv_cache_bytes=1)
    groups = [Group(spec=None, limits=limits, cases=tuple(Case(model="m", tp=tp, loop="overlap", num_seqs=n) for n in batches))
              for tp, batches in ((1, (1, 8)), (2, (1, 8)), (4, (1,)))]
    found = list(run_groups(SimpleNamespace(device="cpu"), groups))
    assert [tp for tp, _, n in served if n == 1] == [1, 2, 4] * 3
    assert [(one.case.tp, one.case.num_seqs) for one in found] == [(1, 1), (2, 1), (4, 1), (1, 8), (2, 8)]
    # Runs 1, 4 and 7 were of the first case.
    assert found[0].measured == {"throughput_tok_s": 4.0}
    assert (found[4].failure, found[4].measured) == ("the second time it breaks", {})
    # After it broke it is left alone.
    assert [tp for tp, _, n in served if n == 8] == [1, 2, 1, 2, 1]
