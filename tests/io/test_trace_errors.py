"""Bad traces: one line with the file, the row, the field, the rule and the value."""

import gzip
import os
from pathlib import Path

import pytest
from trace_files import AZURE_2023, MOONCAKE, OWN_CSV, OWN_LINES

from tpplanner.errors import WorkloadError
from tpplanner.io import trace_build, trace_file, trace_json
from tpplanner.io.traces import read_trace

HEAD = "arrival_s,isl_tok,osl_tok\n"
AZURE_HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
WHOLE = "must be a whole number between 1 and 1e+08, got"
DATE = "row 2: TIMESTAMP must be a date and time (2023-11-16 18:15:46.6805900), got"

CSV_CASES = [
    (HEAD + "0,ten,2\n", "row 2: isl_tok must be a number, got 'ten'"),
    (HEAD + "0,,2\n", "row 2: isl_tok must be a number, got ''"),
    (HEAD + "0,10,nan\n", "row 2: osl_tok must be a number, got 'nan'"),
    (HEAD + "0,10,NA\n", "row 2: osl_tok must be a number, got 'NA'"),
    (HEAD + "0,1_0,2\n", "row 2: isl_tok must be a number, got '1_0'"),
    (HEAD + "0,\u0661,2\n", "row 2: isl_tok must be a number, got '\u0661'"),
    (HEAD + "0,True,2\n", "row 2: isl_tok must be a number, got 'True'"),
    (HEAD + "0,5,2\n1,5,2\ninf,5,2\n", "row 4: arrival_s must be a number, got 'inf'"),
    (HEAD + "0,5,2\n1e999,5,2\n", "row 3: arrival_s must be a number, got '1e999'"),
    (HEAD + "0,-10,2\n", f"row 2: isl_tok {WHOLE} '-10'"),
    (HEAD + "0,2.5,2\n", f"row 2: isl_tok {WHOLE} '2.5'"),
    (HEAD + "0,10,0\n", f"row 2: osl_tok {WHOLE} '0'"),
    (HEAD + "0,10,1e9\n", f"row 2: osl_tok {WHOLE} '1e9'"),
    (HEAD + "-1,10,1\n", "row 2: arrival_s must be between 0 and 1e+10 s, got '-1'"),
    (HEAD + "1.7e12,10,1\n", "row 2: arrival_s must be between 0 and 1e+10 s, got '1.7e12'"),
    (HEAD + "0,10,1\n2e9,10,1\n", "arrivals must span at most 1e+09 s, got 2000000000.0"),
    (HEAD + "2,10,1\n\n1,10,1\n", "row 4: arrival_s must not fall from one row to the next, got '1'"),
    (HEAD + "0,10\n", "row 2: cells must be 3, as in the header, got 2"),
    (HEAD + "0,10,1,5\n", "row 2: cells must be 3, as in the header, got 4"),
    (HEAD + '0,"10,1\n', "row 2: is no CSV (unexpected end of data)"),
    (HEAD + f'0,"{"1" * 140_000}",1\n', "row 2: is no CSV (field larger than field limit (131072))"),
    (HEAD, "requests must be at least one, got 0"),
    ("isl_tok,isl_tok,osl_tok\n1,1,1\n", "columns must differ from each other, got 'isl_tok'"),
    ("isl_tok,osl_tok,arival_s\n1,1,1\n", "columns must be among arrival_s, isl_tok, osl_tok, got 'arival_s'"),
    ("isl,osl\n1,1\n", "columns must include those of a known format (tpplanner: isl_tok, osl_tok; vidur: "),
    ("isl_tok,osl_tok,num_prefill_tokens,num_decode_tokens\n", "columns must be those of one format, got 'isl_tok, osl_tok"),
    ("\n \n", "columns must include those of a known format"),
    (AZURE_HEAD + "yesterday,1,1\n", f"{DATE} 'yesterday'"),
    (AZURE_HEAD + "2023-13-16 18:15:46,1,1\n", f"{DATE} '2023-13-16 18:15:46'"),
    (AZURE_HEAD + "2023-11-16 25:15:46,1,1\n", f"{DATE} '2023-11-16 25:15:46'"),
    (AZURE_HEAD + "2023-11-16,1,1\n", f"{DATE} '2023-11-16'"),
    (AZURE_HEAD + "NaT,1,1\n", f"{DATE} 'NaT'"),
    (AZURE_HEAD + "9999-11-16 18:15:46,1,1\n", f"{DATE} '9999-11-16 18:15:46'"),
    (AZURE_HEAD + "2023-11-16 18:15:46,1,-1\n", "row 2: GeneratedTokens must be a whole number between 0 and 1e+08, got '-1'"),
    (AZURE_HEAD + "2023-11-16 18:15:46,1,0\n", "requests must be at least one (left out: 1 rows with no prompt or no"),
    (AZURE_2023.replace("16 18:15:50", "15 18:15:50"), "row 3: TIMESTAMP must not fall from one row to the next"),
]
LINES = '{"arrival_s": 0, "isl_tok": 1, "osl_tok": 1}\n'
LINES_CASES = [
    (OWN_LINES[:-9], "row 3: is no JSON (Input data was truncated)"),
    ("[1, 2]\n", "row 1: line must be a JSON object, got 'a list'"),
    (LINES + "7\n", "row 2: line must be a JSON object, got 7"),
    ('{"isl_tok": NaN, "osl_tok": 1}', "row 1: is no JSON (JSON is malformed: invalid character (byte 12))"),
    ('{"isl_tok": "5", "osl_tok": 1}', "row 1: isl_tok must be a number, got '5'"),
    ('{"isl_tok": 5, "osl_tok": 1}\n{"isl_tok": "5", "osl_tok": 1}', "row 2: isl_tok must be a number, got '5'"),
    ('{"isl_tok": true, "osl_tok": 1}', "row 1: isl_tok must be a number, got True"),
    ('{"isl_tok": null, "osl_tok": 1}', "row 1: isl_tok must be a number, got None"),
    ('{"isl_tok": [5], "osl_tok": 1}', "row 1: isl_tok must be a number, got 'a list'"),
    ('{"isl_tok": 1%s, "osl_tok": 1}' % ("0" * 400), "row 1: isl_tok must be a number, got 1000"),
    ('{"isl_tok": 2.5, "osl_tok": 1}', f"row 1: isl_tok {WHOLE} 2.5"),
    (LINES + '{"isl_tok": 1, "osl_tok": 1}', "row 2: keys must include arrival_s, got 'isl_tok, osl_tok'"),
    (LINES + LINES.replace("arrival_s", "arrival"), "row 2: keys must include arrival_s, got 'arrival, isl_tok, osl_tok'"),
    ('{"isl_tok": 1, "osl_tok": 1, "x": 1}', "row 1: keys must be isl_tok, osl_tok, as on the first line, got 'x'"),
    ('{"tokens": 1}', "row 1: keys must include those of a known format (tpplanner: isl_tok, osl_tok; mooncake: timestamp"),
    ("[" * 100_000, "row 1: the JSON is nested too deeply"),
    ("\n\n", "requests must be at least one, got 0"),
    (MOONCAKE.replace("3052", "-3052"), "row 2: timestamp must be between 0 and 1e+10 s, got -3052"),
    (MOONCAKE.replace("[0, 1, 2]", "[0, 1.5]"), "row 1: hash_ids must be a list of whole numbers, got 'a list'"),
    (MOONCAKE.replace("[0, 1, 2]", '"0 1 2"'), "row 1: hash_ids must be a list of whole numbers, got '0 1 2'"),
    (MOONCAKE.replace("6758", "1024"), "row 1: hash_ids must be at most 2 blocks of 512 tokens, got 3"),
    (MOONCAKE.replace(', "hash_ids": [0, 1, 2]', ""), "row 2: hash_ids must be on the first line where any line has it"),
]


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(WorkloadError) as refused:
        read_trace(path, **options)
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(("name", "content", "message"), [
    *(("t.csv", content, message) for content, message in CSV_CASES),
    *(("t.jsonl", content, message) for content, message in LINES_CASES),
])
def test_bad_content(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert refusal(path).startswith(f"{path}: {message}")


@pytest.mark.parametrize(("name", "content", "message"), [
    ("t.csv", b"", "is empty"),
    ("t.csv", OWN_CSV.encode("utf-16"), "is not UTF-8 text"),
    ("t.csv", OWN_CSV.encode() + b"5,\xff,1\n", "is not UTF-8 text"),
    ("t.csv", gzip.compress(OWN_CSV.encode()), "is compressed (gzip); unpack it first"),
    ("t.jsonl", b"PK\x03\x04abc", "is compressed (zip); unpack it first"),
    ("t.jsonl", b'{"isl_tok": "\xff"}', "row 1: is no JSON ("),
    ("t.parquet", b"PAR1 no more", "is no readable Parquet file ("),
    ("t.xls", b"a", "file name must end in .csv, .jsonl, .ndjson, .json, .parquet, .pq, or --trace-format be given, got '.xls'"),
])
def test_bad_bytes(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name == "t.parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: {message}")


def test_what_is_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.csv") == f"{tmp_path}/none.csv: no such file or directory"
    (tmp_path / "folder.csv").mkdir()
    assert refusal(tmp_path / "folder.csv") == f"{tmp_path}/folder.csv: is no regular file"
    os.mkfifo(tmp_path / "pipe.csv")
    assert refusal(tmp_path / "pipe.csv") == f"{tmp_path}/pipe.csv: is no regular file"
    assert refusal(tmp_path / ("n" * 300 + ".csv")).endswith("file name too long")
    assert "null" in refusal(tmp_path / "a\0b.csv")


def test_a_format_that_the_file_has_not(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(OWN_CSV)
    assert refusal(path, trace_format="azure") == (
        f"{path}: columns must include TIMESTAMP, ContextTokens, GeneratedTokens, got 'arrival_s, isl_tok, osl_tok'"
    )
    assert refusal(path, trace_format="mooncake").startswith(f"{path}: row 1: is no JSON (")
    assert refusal(path, trace_format="sharegpt").startswith(f"{path}: is no JSON list (")
    assert refusal(path, trace_format="csv") == (
        "--trace-format: format must be among tpplanner, vidur, azure, burstgpt, mooncake, sharegpt, got 'csv'"
    )
    assert refusal(tmp_path / "a.json", trace_format="tpplanner").endswith("for tpplanner, got '.json'")
    assert refusal(path, chars_per_tok=3.0) == (
        f"{path}: chars_per_tok must be given with texts (sharegpt) only, got 'csv'"
    )


def test_limits_on_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lines = tmp_path / "own.csv", tmp_path / "own.jsonl"
    path.write_text(OWN_CSV)
    lines.write_text(OWN_LINES)
    monkeypatch.setattr(trace_build, "MAX_TRACE_REQUESTS", 2)
    assert refusal(path) == f"{path}: rows must be at most 2e+00, got 3"
    monkeypatch.setattr(trace_json, "MAX_LINE_BYTES", 2**4)
    assert refusal(lines) == f"{lines}: row 1: is longer than 0 MiB"
    monkeypatch.setattr(trace_file, "MAX_TRACE_BYTES", 10)
    assert refusal(path) == f"{path}: is larger than 0 GB"
