"""``tpplanner calibrate``: anchors and fits from a CSV of one's own runs."""

import csv
import json

import pytest

from tpplanner.io.fitted_files import read_fitted
from tpplanner.io.profile_files import packaged_root

HEADER = "id,model,system,engine,tp,isl,osl,concurrency,ttft_ms,tpot_ms"
ANCHORS = """a,Qwen/Qwen2.5-7B-Instruct,h100-sxm,vllm,1,1024,256,4,60,11
b,Qwen/Qwen2.5-7B-Instruct,h100-sxm,vllm,1,1024,256,32,150,14
"""
CASE = "id,model,system,engine,tp,isl,osl,concurrency\nx,Qwen/Qwen2.5-7B-Instruct,h100-sxm,vllm,1,1024,256,32\n"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder to work in, with a file of runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs.csv").write_text(f"{HEADER}\n{ANCHORS}")
    (tmp_path / "cases.csv").write_text(CASE)
    return tmp_path


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def predicted(run, out):
    assert run("predict", "--cases", "cases.csv", "--out", out)[0] == 0
    with open(out, newline="") as stream:
        (row,) = csv.DictReader(stream)
    return float(row["pred_tpot_ms"])


def test_an_anchor_writes_a_profile_and_predictions_follow(run, work, use_profiles):
    before = predicted(run, "before.csv")
    code, out, err = run("calibrate", "anchor", "runs.csv")
    assert (code, out) == (0, "profiles/h100-sxm/fitted-vllm.json\n")
    assert err == "To use it: TPPLANNER_PROFILES=profiles tpplanner ...\n"
    assert files(work) == ["before.csv", "cases.csv", "profiles/h100-sxm/fitted-vllm.json", "runs.csv"]
    # Nothing follows before the folder is named.
    assert predicted(run, "same.csv") == before
    use_profiles(work / "profiles")
    after = predicted(run, "after.csv")
    assert abs(before / 14 - 1) > 0.1
    assert after == pytest.approx(14, rel=0.06)
    new = read_fitted(work / "profiles" / "h100-sxm" / "fitted-vllm.json")
    old = read_fitted(packaged_root() / "h100-sxm" / "fitted-vllm.json")
    assert new.serving.num_runs == old.serving.num_runs + 2
    assert new.kernels.gemm["bf16"] == old.kernels.gemm["bf16"]


def test_nothing_is_overwritten_unasked(run, work):
    assert run("calibrate", "anchor", "runs.csv", "--out", "mine")[0] == 0
    path = work / "mine" / "h100-sxm" / "fitted-vllm.json"
    path.write_text("mine")
    code, out, err = run("calibrate", "anchor", "runs.csv", "--out", "mine")
    assert (code, out) == (2, "")
    assert "fitted-vllm.json already exists; nothing was written" in err
    assert len(err.splitlines()) == 1
    assert path.read_text() == "mine"
    code, out, _ = run("calibrate", "anchor", "runs.csv", "--out", "mine", "--overwrite")
    assert (code, out) == (0, "mine/h100-sxm/fitted-vllm.json\n")
    assert json.loads(path.read_bytes())["machine"] == "h100-sxm"


def test_one_file_in_the_way_keeps_all_from_being_written(run, work):
    elsewhere = ANCHORS.splitlines()[0].replace("a,", "c,", 1).replace("h100-sxm", "h200")
    (work / "runs.csv").write_text(f"{HEADER}\n{ANCHORS}{elsewhere}\n")
    (work / "mine" / "h200").mkdir(parents=True)
    (work / "mine" / "h200" / "fitted-vllm.json").write_text("mine")
    code, out, err = run("calibrate", "anchor", "runs.csv", "--out", "mine")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert files(work / "mine") == ["h200/fitted-vllm.json"]


BAD = [
    ("", "runs.csv"), ("\n", "runs.csv"), (HEADER, "runs.csv"),
    (f"{HEADER},surprise\n{ANCHORS.splitlines()[0]},1\n", "surprise"),
    (HEADER.replace(",tpot_ms", "") + "\na,m,h100-sxm,vllm,1,1,1,1,1\n", "tpot_ms"),
    (f"{HEADER}\n{ANCHORS}{ANCHORS}", "id must differ from that of row 2, got 'a'"),
    (f"{HEADER}\n{ANCHORS.replace(',11', ',fast')}", "tpot_ms must be a number, got 'fast'"),
    (f"{HEADER}\n{ANCHORS.replace(',60,', ',-60,')}", "ttft_ms must be > 0, got '-60'"),
    (f"{HEADER}\n{ANCHORS.replace('h100-sxm', 'h1000')}", "run a: unknown GPU 'h1000'"),
    (f"{HEADER}\n{ANCHORS.replace('vllm', 'vlm')}", "run a: unknown engine 'vlm'"),
    (f"{HEADER}\n{ANCHORS.replace('Qwen/Qwen2.5-7B-Instruct', 'no/such-model')}", "run a: "),
]


@pytest.mark.parametrize("command", ["anchor", "serving"])
@pytest.mark.parametrize(("content", "message"), BAD)
def test_bad_runs_are_one_line_and_nothing_is_written(run, work, command, content, message):
    (work / "runs.csv").write_text(content)
    code, out, err = run("calibrate", command, "runs.csv", "--out", "mine")
    assert (code, out) == (2, "")
    *progress, last = err.splitlines()
    assert message in last
    assert all(line.startswith("fitting ") for line in progress)
    assert not (work / "mine").exists()


@pytest.mark.parametrize(("engine", "system"), [("albireo", "h100-sxm"), ("vllm-0.11", "h100-sxm"), ("vllm", "rtx-4090")])
def test_no_fit_to_anchor_is_one_line(run, work, engine, system):
    (work / "runs.csv").write_text(f"{HEADER}\n" + ANCHORS.replace("vllm", engine).replace("h100-sxm", system))
    code, out, err = run("calibrate", "anchor", "runs.csv")
    assert (code, out) == (2, "")
    assert f"{system}/{engine} must have a serving fit to anchor" in err
    assert len(err.splitlines()) == 1
    assert files(work) == ["cases.csv", "runs.csv"]


def test_a_missing_file_is_one_line(run, work):
    for command in ("anchor", "serving"):
        code, out, err = run("calibrate", command, "none.csv")
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert "none.csv" in err


def test_a_fit_of_ones_own_runs(run, work, use_profiles):
    rows = [f"{c}-{tp},Qwen/Qwen2.5-7B-Instruct,h100-sxm,vllm,{tp},1024,256,{c},{20 * (1 + c / 4) / tp},{8 / tp + c / 20}"
            for c in (1, 8, 64) for tp in (1, 2)]
    (work / "runs.csv").write_text("\n".join([HEADER, *rows, ""]))
    code, out, err = run("calibrate", "serving", "runs.csv", "--out", "mine")
    assert code == 0
    assert err.splitlines() == ["fitting 6 runs", "To use it: TPPLANNER_PROFILES=mine tpplanner ..."]
    # Every machine and engine with kernels gets the terms: their own here, pooled ones there.
    assert sorted(out.splitlines()) == [f"mine/{name}" for name in files(work / "mine")]
    packaged = {str(path.relative_to(packaged_root())) for path in packaged_root().glob("*/fitted-*.json")}
    assert set(files(work / "mine")) == packaged
    own, other = (read_fitted(work / "mine" / machine / "fitted-vllm.json").serving for machine in ("h100-sxm", "b200"))
    assert (own.num_runs, other.num_runs) == (6, 0)
    assert own.source == "runs.csv"
    assert set(own.tpot) == {"dense"}
    assert other.terms["dense"].layer_s.source == "runs.csv; no run of b200/vllm: other machines and engines"
    use_profiles(work / "mine")
    # 8 ms and 32 / 20: between the loads that were measured.
    assert predicted(run, "after.csv") == pytest.approx(9.6, rel=0.15)


def test_help_says_what_each_does(run):
    code, out, _ = run("calibrate", "--help")
    assert code == 0
    assert "anchor" in out
    assert "serving" in out
    assert "narrows the intervals" in " ".join(run("calibrate", "anchor", "--help")[1].split())


@pytest.mark.parametrize(("arguments", "message"), [
    (("--tp", "0"), "--tp must be numbers from 1 to 9999 such as 1,2,4, got '0'"),
    (("--tp", "²"), "--tp must be numbers"),
    (("--quick", "fit"), "options of calibrate itself must not stand before fit, got 'scope'"),
    (("verify", "--batch", "one"), "--batch must be numbers from 1 to 9999"),
    (("fit",), "holds samples of no machine"),
    (("fit", "--machine", "mine"), "--machine: no samples of mine"),
])
def test_bad_flags_are_one_line_and_nothing_is_written(run, work, arguments, message):
    before = files(work)
    code, out, err = run("calibrate", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert message in err
    assert files(work) == before
