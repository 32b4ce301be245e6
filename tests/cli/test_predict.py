"""Many deployments at once."""

import csv
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tpplanner
from tpplanner.cli.main import main
from tpplanner.errors import TpplannerError, WorkloadError
from tpplanner.io.cases import PREDICTION_COLUMNS, parse_case, predictions_csv, read_cases

HEADER = "id,model,system,engine,tp,isl,osl,concurrency,request_rate,batch,offline,dtype,kv_cache_dtype,max_num_seqs,ep"
ROWS = {
    "closed": "closed,meta-llama/Llama-3.1-70B-Instruct,h100_sxm,vllm-0.11,8,1024,1024,64,,,,,,,",
    "open": "open,meta-llama/Llama-3.1-70B-Instruct,h100_sxm,vllm-0.11,8,1024,1024,,1.5,,,,,,",
    "batch": "batch,meta-llama/Llama-3.1-70B-Instruct,h100_sxm,vllm-0.11,8,1024,1024,,,64,,,,,",
    "offline": "offline,meta-llama/Llama-3.1-70B-Instruct,h100_sxm,vllm-0.11,8,1024,1024,,,,true,,,,",
    "fp8": "fp8,meta-llama/Llama-3.1-70B-Instruct,h100_sxm,vllm-0.11,2,1024,1024,16,,,,fp8,fp8,64,",
    "oom": "oom,meta-llama/Llama-3.1-70B-Instruct,h100_sxm,vllm-0.11,1,1024,1024,16,,,,,,,",
    "heads": "heads,meta-llama/Llama-3.1-70B-Instruct,h100_sxm,vllm-0.11,3,1024,1024,16,,,,,,,",
    "model": "model,no/such-model,h100_sxm,vllm-0.11,1,1024,1024,16,,,,,,,",
    "loads": "loads,meta-llama/Llama-3.1-70B-Instruct,h100_sxm,vllm-0.11,8,1024,1024,16,1,,,,,,",
    "ep": "ep,meta-llama/Llama-3.1-70B-Instruct,h100_sxm,vllm-0.11,8,1024,1024,16,,,,,,,3",
    "text": "text,meta-llama/Llama-3.1-70B-Instruct,h100_sxm,vllm-0.11,eight,1024,1024,16,,,,,,,",
}


def predict(tmp_path, text, *flags):
    cases, out = tmp_path / "cases.csv", tmp_path / "predictions.csv"
    cases.write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--cases", str(cases), "--out", str(out), *flags])
    rows = {r["id"]: r for r in csv.DictReader(out.read_text().splitlines())} if out.exists() else {}
    return stop.value.code or 0, rows


def test_one_bad_row_does_not_stop_the_others(tmp_path):
    code, rows = predict(tmp_path, "\n".join([HEADER, *ROWS.values()]) + "\n")
    assert code == 0
    assert list(rows) == list(ROWS)
    status = {k: r["status"].split(":")[0] for k, r in rows.items()}
    assert status == {"closed": "ok", "open": "ok", "batch": "ok", "offline": "ok", "fp8": "ok", "oom": "OOM",
                      "heads": "error", "model": "error", "loads": "error", "ep": "error", "text": "error"}
    assert float(rows["closed"]["pred_tpot_ms"]) > 0
    assert rows["offline"]["pred_ttft_ms"] == ""
    assert rows["batch"]["pred_tpot_ms"] == rows["closed"]["pred_tpot_ms"]


def test_prediction_equals_the_recommendation_of_one_replica(tmp_path):
    _, rows = predict(tmp_path, f"{HEADER}\n{ROWS['closed']}\n")
    answer = tpplanner.recommend(model="meta-llama/Llama-3.1-70B-Instruct", gpus="8xh100-sxm", isl=1024, osl=1024,
                                 concurrency=64, engine="vllm-0.11", flip_points=False)
    outcome = answer.plan(8).outcome
    assert float(rows["closed"]["pred_tpot_ms"]) == pytest.approx(outcome.tpot_s * 1e3, abs=1e-4)
    assert float(rows["closed"]["pred_throughput_tok_s"]) == pytest.approx(outcome.throughput_tok_s, abs=1e-3)
    assert int(rows["closed"]["kv_capacity_tok"]) == answer.plan(8).memory.kv_capacity_tok


@pytest.mark.parametrize("text", ["", "id,model\na,b\n", HEADER + "\n", "id,id\n1,2\n", "\x00\x01", '"unclosed'])
def test_bad_file_is_exit_2_and_writes_nothing(tmp_path, capsys, text):
    code, rows = predict(tmp_path, text)
    assert code == 2
    assert not rows
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "predictions.csv").exists()


@pytest.mark.parametrize("kind", ["device", "folder", "pipe", "missing"])
def test_cases_must_be_a_regular_file(tmp_path, capsys, kind):
    path = Path("/dev/zero") if kind == "device" else tmp_path / "cases"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(SystemExit) as stop:
        main(["predict", "--cases", str(path), "--out", str(tmp_path / "out.csv")])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert ("No such file" if kind == "missing" else "is no regular file") in err


def test_a_file_is_read_up_to_a_limit(tmp_path, monkeypatch):
    path = tmp_path / "cases.csv"
    path.write_text(f"{HEADER}\n{ROWS['closed']}\n")
    monkeypatch.setattr("tpplanner.io.cases.MAX_BYTES", path.stat().st_size)
    assert len(read_cases(path).rows) == 1
    monkeypatch.setattr("tpplanner.io.cases.MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(WorkloadError, match="is larger than"):
        read_cases(path)


def test_a_row_with_more_cells_than_the_header_is_an_error(tmp_path):
    long = ROWS["closed"].replace("closed", "long") + ",surplus,"
    code, rows = predict(tmp_path, f"{HEADER}\n{long}\n{ROWS['closed']}\n")
    assert code == 0
    assert rows["long"]["status"] == "error: cells must be as many as the columns of the header, got 2 more"
    assert rows["long"]["pred_tpot_ms"] == ""
    assert rows["closed"]["status"] == "ok"


def test_notes_on_stderr(tmp_path, capsys):
    rate = ROWS["open"].replace("open", "fast").replace("1.5", "1500")
    long = ROWS["closed"].replace("closed", "long").replace("1024,1024", "200000,1024")
    with_ep = ROWS["closed"].replace("closed", "cut") + "8"
    code, rows = predict(tmp_path, "\n".join([HEADER, rate, long, with_ep, ROWS["open"], ROWS["open"]]) + "\n")
    assert code == 0
    assert rows["fast"]["status"] == "ok"
    assert rows["fast"]["pred_ttft_ms"] == ""
    assert list(rows["fast"]) == list(PREDICTION_COLUMNS)
    assert capsys.readouterr().err.splitlines()[:4] == [
        "duplicate ids: open",
        "ep has no effect (1 row): no kernel of the experts was measured there",
        "isl + osl exceed the context limit of the model in 1 row",
        "request_rate exceeds the capacity in 1 row: throughput is the capacity, the TTFT has no mean",
    ]
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + 5


def test_no_notes_without_a_cause(tmp_path, capsys):
    predict(tmp_path, f"{HEADER}\n{ROWS['open']}\n{ROWS['offline']}\n")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_existing_output_needs_overwrite(tmp_path):
    text = f"{HEADER}\n{ROWS['closed']}\n"
    assert predict(tmp_path, text)[0] == 0
    (tmp_path / "predictions.csv").write_text("kept")
    assert predict(tmp_path, text)[0] == 2
    assert (tmp_path / "predictions.csv").read_text() == "kept"
    assert predict(tmp_path, text, "--overwrite")[0] == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=300), st.integers(0, 400).map(lambda n: f"{HEADER}\n{ROWS['closed']}".encode()[:n])))
def test_reader_answers_with_rows_or_one_line(tmp_path, content):
    path = tmp_path / "fuzz.csv"
    path.write_bytes(content)
    try:
        cases = read_cases(path)
    except WorkloadError as error:
        assert "\n" not in str(error)
        return
    for row in cases.rows:
        try:
            parse_case(row)
        except TpplannerError as error:
            assert "\n" not in str(error)


def test_predictions_csv_leaves_unknown_cells_empty():
    assert predictions_csv([{"id": "a", "status": "OOM"}]).splitlines()[1] == "a,OOM,,,,"
