"""``tpplanner validate``: exit codes, streams, files."""

import csv
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "validation"))

from sample_files import peer_predictions, sample

FOLDER = Path(__file__).parents[2] / "benchmarks" / "validation"
PUBLIC = str(FOLDER / "public_runs.csv")
RUNS = """id,model,system,engine,tp,isl,osl,concurrency,ttft_ms,tpot_ms
a,meta-llama/Llama-3.1-70B-Instruct,h100-sxm,vllm-0.11,4,1024,1024,32,200,20
b,meta-llama/Llama-3.1-70B-Instruct,h100-sxm,vllm-0.11,8,1024,1024,64,300,18
c,mistralai/Mixtral-8x7B-Instruct-v0.1,h200,vllm-0.11,2,1024,1024,32,200,15
d,mistralai/Mixtral-8x7B-Instruct-v0.1,h200,vllm-0.11,4,1024,1024,64,300,12
"""


@pytest.fixture
def runs(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(RUNS)
    return str(path)


def test_the_committed_limits_hold_and_nothing_drifted(run):
    code, out, err = run("validate", PUBLIC, "--thresholds", str(FOLDER / "validation.toml"),
                         "--accepted", str(FOLDER / "accepted.csv"))
    assert code == 0, err
    assert out.startswith("176 measured runs of public_runs.csv\n")
    assert "holds" in err
    assert "no prediction of 176 changed by more than 0.1 %" in err


def test_text(run, runs):
    code, out, err = run("validate", runs)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "4 measured runs of runs.csv"
    assert "=== packaged profiles, in-sample where their fit has seen these runs ===" in out
    assert "4 of 4 runs predicted, 0 said not to fit; 2 groups with two or more degrees" in out


def test_json_and_filters(run, runs):
    code, out, _ = run("validate", runs, "--format", "json", "--only", "moe", "--machine", "h200_sxm", "--engine", "vllm_0.11")
    assert code == 0
    data = json.loads(out)
    assert data["left_out"] == {"only moe": 2, "machine h200_sxm": 0, "engine vllm_0.11": 0}
    assert data["scores"][0]["num_runs"] == 2


def test_broken_limits_are_all_listed_with_exit_1(run, runs, tmp_path):
    limits = tmp_path / "limits.toml"
    limits.write_text('[packaged.max]\n"all.tpot.mean" = 0.0001\nruns = 3\n[packaged.min]\n"all.c.hit" = 0\n')
    code, out, err = run("validate", runs, "--thresholds", str(limits))
    assert code == 1
    assert out
    assert [line.split(" is ")[0] for line in err.splitlines()] == ["broken: packaged: all.tpot.mean", "broken: packaged: runs"]
    assert err.splitlines()[1].endswith("is 4, above its maximum 3")


def test_drift(run, runs, tmp_path):
    accepted = tmp_path / "accepted.csv"
    code, _, err = run("validate", runs, "--accepted", str(accepted))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--accept writes it" in err
    assert run("validate", runs, "--accepted", str(accepted), "--accept")[0] == 0
    assert run("validate", runs, "--accepted", str(accepted))[0] == 0
    before = accepted.read_text()
    rows = list(csv.DictReader(before.splitlines()))
    accepted.write_text(before.replace(rows[0]["pred_tpot_ms"], str(float(rows[0]["pred_tpot_ms"]) * 1.01)))
    code, _, err = run("validate", runs, "--accepted", str(accepted))
    assert code == 1
    assert err.splitlines()[0].startswith("changed: a: tpot [s] ")
    assert err.splitlines()[-1] == "broken: 1 prediction of 4 changed by more than 0.1 %"
    limits = tmp_path / "limits.toml"
    limits.write_text("[packaged.min]\nruns = 4\n[drift]\ntolerance = 0.02\n")
    assert run("validate", runs, "--accepted", str(accepted), "--thresholds", str(limits))[0] == 0
    # --accept is the permission to replace.
    assert run("validate", runs, "--accepted", str(accepted), "--accept")[0] == 0
    assert accepted.read_text() == before


def test_files_are_written_once(run, runs, tmp_path):
    out_path, folder = tmp_path / "predictions.csv", tmp_path / "saved"
    argv = ("validate", runs, "--predictions-out", str(out_path), "--save-dir", str(folder))
    code, _, err = run(*argv)
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "accuracy.png", "decisions.csv", "regret.png", "validation.json", "validation.txt"]
    assert len(err.splitlines()) == 6
    assert [row["id"] for row in csv.DictReader(out_path.read_text().splitlines())] == ["a", "b", "c", "d"]
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert len((folder / "decisions.csv").read_text().splitlines()) == 1 + 2
    out_path.write_text("kept")
    code, out, err = run(*argv)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert out_path.read_text() == "kept"
    assert run(*argv, "--overwrite")[0] == 0


def test_predictions_of_a_file_are_those_that_were_written(run, runs, tmp_path):
    out_path = tmp_path / "predictions.csv"
    _, packaged, _ = run("validate", runs, "--predictions-out", str(out_path))
    code, given, _ = run("validate", runs, "--predictions", str(out_path))
    assert code == 0
    assert "=== predictions of predictions.csv ===" in given
    assert given.splitlines()[3:] == packaged.splitlines()[3:]


@pytest.mark.parametrize(("argv", "named"), [
    (["no-such.csv"], "no-such.csv"),
    (["RUNS", "--accept"], "--accept writes --accepted"),
    (["RUNS", "--split", "models"], "models"),
    (["RUNS", "--only", "big"], "big"),
    (["RUNS", "--machine", "h1000"], "at least one after the filters machine h1000"),
    (["RUNS", "--thresholds", "no-such.toml"], "no-such.toml"),
    (["RUNS", "--thresholds", "EMPTY"], "tables must include packaged.max or .min"),
    (["RUNS", "--thresholds", "UNKNOWN"], "packaged.max must name a figure of these runs"),
    (["RUNS", "--predictions", "no-such.csv"], "no-such.csv"),
    (["RUNS", "--predictions", "RUNS", "--split", "model"], "split must be absent where predictions are given"),
    (["RUNS", "--predictions-out", "no/such/folder.csv"], "folder"),
    (["RUNS", "--format", "csv"], "csv"),
])
def test_bad_input_is_one_line_with_exit_2_and_no_file(run, runs, tmp_path, argv, named):
    (tmp_path / "empty.toml").write_text("[drift]\n")
    (tmp_path / "unknown.toml").write_text('[packaged.max]\n"dense.tpot.men" = 1\n')
    files = {"RUNS": runs, "EMPTY": str(tmp_path / "empty.toml"), "UNKNOWN": str(tmp_path / "unknown.toml")}
    code, out, err = run("validate", *(files.get(word, word) for word in argv), "--save-dir", str(tmp_path / "saved"))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert named in err
    assert not (tmp_path / "saved").exists()


def test_without_the_sample_s_package(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TPPLANNER_SILICON", str(tmp_path))
    code, out, err = run("validate")
    assert (code, out, len(err.splitlines())) == (2, "", 1)


def test_another_tool_on_the_sample(run):
    """Its figures in peers.md: dense at equal load per GPU 87 % and 0.93 %."""
    code, out, _ = run("validate", str(sample()), "--predictions", str(peer_predictions()), "--format", "json")
    assert code == 0
    rows = {(row["definition"], row["partition"]): row["policies"]["ours"] for row in json.loads(out)["scores"][0]["decisions"]}
    assert round(rows["c", "dense"]["hit_frac"], 2) == 0.87
    assert round(rows["c", "dense"]["regret_mean_frac"], 4) == 0.0093
