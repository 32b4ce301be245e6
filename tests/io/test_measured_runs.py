"""Measured runs of both kinds in one file."""

from pathlib import Path

import pytest

from tpplanner.domain.offline_run import OfflineRun
from tpplanner.domain.serving_run import ServingRun
from tpplanner.errors import WorkloadError
from tpplanner.io.measured_runs import read_measured_runs
from tpplanner.io.serving_runs import read_serving_runs

PUBLIC = Path(__file__).parents[2] / "benchmarks" / "validation" / "public_runs.csv"
COLUMNS = "id,model,system,engine,tp,isl,osl,load,concurrency,ttft_ms,tpot_ms,throughput_tok_s,dtype"
CLOSED = "a,org/M,h100,vllm,2,100,101,{load},8,500,20,,fp8"
OFF = "b,org/M,h100,vllm,2,100,101,offline,,,,1000,fp8"


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("load", ["", "closed"])
def test_both_kinds(tmp_path: Path, load: str) -> None:
    (closed, off), dropped = read_measured_runs(written(tmp_path, COLUMNS, CLOSED.format(load=load), OFF))
    assert dropped == {}
    assert isinstance(closed, ServingRun)
    assert (closed.ttft_s, closed.dtype) == (0.5, "fp8")
    assert off == OfflineRun(
        run_id="b", model="org/M", checkpoint="org/M", machine="h100", engine="vllm", isl_tok=100, osl_tok=101, tp=2,
        throughput_tok_s=1000.0, family="own", source="", precision="fp8", dtype="fp8")


def test_a_file_of_closed_loops_needs_no_load(tmp_path: Path) -> None:
    path = written(tmp_path, "id,model,system,engine,tp,isl,osl,concurrency,ttft_ms,tpot_ms", "a,m,h100,vllm,2,100,101,8,500,20")
    assert read_measured_runs(path)[0] == read_serving_runs(path)


def test_the_committed_table() -> None:
    runs, _ = read_measured_runs(PUBLIC)
    assert len(runs) == 176
    assert {type(run) for run in runs} == {OfflineRun}
    assert all("perf-overview.md@258c7540" in run.source for run in runs)
    first = runs[0]
    # H100 fp8, Llama-3.1-8B, 128/128: 28,836.77 tokens/s.
    assert (first.checkpoint, first.machine, first.tp) == ("meta-llama/Llama-3.1-8B-Instruct", "h100-sxm", 1)
    assert first.throughput_tok_s == 28836.77


@pytest.mark.parametrize(("lines", "message"), [
    ((COLUMNS, CLOSED.format(load="open")), "row 2: load must be closed, offline or empty, got 'open'"),
    ((COLUMNS, OFF.replace(",,,,1000", ",8,,,1000")), "row 2: concurrency must be empty where load is offline, got '8'"),
    ((COLUMNS, OFF.replace("1000", "")), "row 2: throughput_tok_s must be a number, got ''"),
    ((COLUMNS, OFF.replace("fp8", "fp7")), "row 2: dtype: must be one of auto"),
    ((COLUMNS, OFF.replace(",2,100", ",2.5,100")), "row 2: tp must be a whole number"),
    (("id,model,system,engine,tp,isl,osl", "a,m,h,e,1,1,1"), "columns must include concurrency, ttft_ms, tpot_ms"),
    (("id,model,system,engine,tp,isl,osl,load", "a,m,h,e,1,1,1,offline"), "columns must include throughput_tok_s"),
    (("id,model,system,engine,tp,isl,osl,laod", "a,m,h,e,1,1,1,offline"), "columns must be among"),
])
def test_bad_files_are_one_line(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    path = written(tmp_path, *lines)
    with pytest.raises(WorkloadError) as error:
        read_measured_runs(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
