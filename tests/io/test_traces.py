"""Traces of every format, on small files and on the real ones where they are here."""

from pathlib import Path

import numpy as np
import pytest
from trace_files import AZURE_2023, BURSTGPT, FILES, MOONCAKE, OWN_CSV, OWN_LINES, TRACES, VIDUR, requests

from tpplanner.domain.traffic import Arrivals, SpreadLength, Traffic
from tpplanner.errors import OutputError, WorkloadError
from tpplanner.io import trace_csv, trace_json
from tpplanner.io.traces import ReadTrace, TraceFormat, read_trace, write_trace
from tpplanner.sim.traffic import drawn

EXPECTED = {
    "own.csv": [(0.0, 10, 2), (0.0, 20, 1), (2.75, 30, 7)],
    "own.jsonl": [(0.0, 10, 2), (0.0, 20, 1), (2.75, 30, 7)],
    "vidur.csv": [(0.0, 374, 44), (4.314579, 396, 109)],
    # 50.9951690 - 46.6805900 = 4.3145790, as Vidur has it.
    "azure_2023.csv": [(0.0, 374, 44), (4.314579, 396, 109)],
    "azure_2024.csv": [(0.0, 2162, 5), (0.99007, 2399, 6)],
    "burstgpt.csv": [(0.0, 472, 18), (113.0, 417, 276)],
    "mooncake.jsonl": [(0.0, 6758, 500), (3.052, 2287, 316)],
    # Four characters a token, rounded up: 41 -> 11, 80 -> 20; 20 -> 5, 16 -> 4.
    "sharegpt.json": [(None, 11, 20), (None, 5, 4)],
}


def read(tmp_path: Path, content: str | bytes, name: str = "trace.csv", **options: object) -> ReadTrace:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_trace(path, **options)


@pytest.mark.parametrize("name", FILES)
def test_each_format_is_detected_and_read(tmp_path: Path, name: str) -> None:
    trace = read(tmp_path, FILES[name], name)
    assert requests(trace.traffic) == EXPECTED[name]
    assert trace.traffic.name == name


@pytest.mark.parametrize(("name", "trace_format"), [
    ("own.csv", "tpplanner"), ("own.jsonl", TraceFormat.TPPLANNER), ("vidur.csv", "vidur"), ("azure_2023.csv", "azure"),
    ("burstgpt.csv", "burstgpt"), ("mooncake.jsonl", "mooncake"), ("sharegpt.json", "sharegpt"),
])
def test_each_format_can_be_given(tmp_path: Path, name: str, trace_format: str) -> None:
    # Of a format with one container the name of the file does not matter.
    other = name if trace_format == "tpplanner" else "data.txt"
    assert requests(read(tmp_path, FILES[name], other, trace_format=trace_format).traffic) == EXPECTED[name]


def test_rows_without_work_are_left_out_counted_and_said(tmp_path: Path) -> None:
    trace = read(tmp_path, BURSTGPT, "b.csv")
    assert trace.num_left_out == 2
    assert trace.note == (
        "b.csv: 2 of 4 rows left out: no prompt or no output tokens, as failed and cancelled requests"
    )
    azure = read(tmp_path, AZURE_2023.replace(",44\n", ",0\n"), "a.csv")
    assert (requests(azure.traffic), azure.num_left_out) == ([(0.0, 396, 109)], 1)
    whole = read(tmp_path, VIDUR)
    assert (whole.num_left_out, whole.why, whole.note) == (0, "", None)


def test_prefixes_of_mooncake(tmp_path: Path) -> None:
    traffic = read(tmp_path, MOONCAKE, "m.jsonl").traffic
    assert traffic.prefix_ids == ((0, 1, 2), (0, 42, 43, 44, 45))
    assert traffic.prefix_block_tok == 512
    left_out = read(tmp_path, MOONCAKE.replace("500", "0"), "m.jsonl").traffic
    assert left_out.prefix_ids == ((0, 42, 43, 44, 45),)
    without = read(tmp_path, '{"timestamp": 0, "input_length": 5, "output_length": 1, "session_id": "s"}\n', "m.jsonl").traffic
    assert (without.prefix_ids, without.prefix_block_tok) == (None, None)


def test_times_are_optional_in_our_own_and_in_processed_traces(tmp_path: Path) -> None:
    assert requests(read(tmp_path, "isl_tok,osl_tok\n3,4\n").traffic) == [(None, 3, 4)]
    assert requests(read(tmp_path, '{"osl_tok": 4, "isl_tok": 3}', "a.jsonl").traffic) == [(None, 3, 4)]
    pairs = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n74,918,992,0.08\n"
    assert requests(read(tmp_path, pairs).traffic) == [(None, 74, 918)]


def test_order_of_columns_blanks_byte_order_mark_line_ends_and_quotes(tmp_path: Path) -> None:
    text = '\ufeffosl_tok, isl_tok ,arrival_s\r\n\r\n "2",  10 ,1e0\r\n1.0,+20,"2.5"\r\n'
    assert requests(read(tmp_path, text.replace(' "2"', '"2"')).traffic) == [(0.0, 10, 2), (1.5, 20, 1)]
    lines = b"\xef\xbb\xbf\n" + OWN_LINES.encode().replace(b"\n", b"\r\n\n")
    assert requests(read(tmp_path, lines, "a.ndjson").traffic) == EXPECTED["own.jsonl"]


def test_a_day_s_end_a_leap_day_and_zones(tmp_path: Path) -> None:
    stamps = ("2024-02-28T23:59:59.5", "2024-02-29 00:00:00Z", "2024-02-29 02:00:01+02:00", "2024-02-28 23:00:02.25-0100")
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{stamp},1,1\n" for stamp in stamps)
    assert read(tmp_path, text).traffic.arrival_s.tolist() == [0.0, 0.5, 1.5, 2.75]


def test_gaps_of_a_tenth_of_a_microsecond_are_kept(tmp_path: Path) -> None:
    text = AZURE_2023.replace("18:15:50.9951690", "18:15:46.6805901")
    assert read(tmp_path, text).traffic.arrival_s.tolist() == [0.0, 1e-7]


@pytest.mark.parametrize("name", ["own.csv", "own.jsonl", "azure_2024.csv", "burstgpt.csv", "mooncake.jsonl"])
def test_files_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    whole = read(tmp_path, FILES[name], name)
    monkeypatch.setattr(trace_csv, "CHUNK_ROWS", 1)
    monkeypatch.setattr(trace_json, "CHUNK_LINES", 1)
    pieces = read(tmp_path, FILES[name], name)
    assert requests(pieces.traffic) == requests(whole.traffic)
    assert (pieces.traffic.prefix_ids, pieces.num_left_out) == (whole.traffic.prefix_ids, whole.num_left_out)
    falling = OWN_CSV.replace("4.25", "1.25")
    with pytest.raises(WorkloadError, match=r"row 4: arrival_s must not fall from one row to the next, got '1.25'"):
        read(tmp_path, falling)


def made(**changes: object) -> Traffic:
    spread = SpreadLength(kind="lognormal", mean_tok=500.0, cv=1.0)
    return drawn(isl=spread, osl=spread, num_requests=300, seed=5, name="made",
                 **{"arrivals": Arrivals.POISSON, "rate_req_s": 3.0, **changes})


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("timed", [True, False])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, ending: str, timed: bool) -> None:
    traffic = made() if timed else made(arrivals=None, rate_req_s=None)
    path = write_trace(traffic, tmp_path / f"trace.{ending}")
    back = read_trace(path).traffic
    assert np.array_equal(back.isl_tok, traffic.isl_tok)
    assert np.array_equal(back.osl_tok, traffic.osl_tok)
    if timed:
        assert np.array_equal(back.arrival_s, traffic.arrival_s - traffic.arrival_s[0])
        # From then on time starts at 0, and a second round changes nothing at all.
        again = read_trace(write_trace(back, tmp_path / f"again.{ending}")).traffic
        assert np.array_equal(again.arrival_s, back.arrival_s)
    else:
        assert back.arrival_s is None


def test_writing_is_refused_where_it_would_lose_something(tmp_path: Path) -> None:
    path = write_trace(made(), tmp_path / "a.csv")
    with pytest.raises(OutputError, match="already exists"):
        write_trace(made(), path)
    assert write_trace(made(), path, overwrite=True) == path
    with pytest.raises(WorkloadError, match=r"file name must end in \.csv, \.jsonl, .* for tpplanner, got '\.json'"):
        write_trace(made(), tmp_path / "a.json")
    with pytest.raises(WorkloadError, match=r"m\.jsonl: prefix_ids must be absent: the format has no prefixes"):
        write_trace(read(tmp_path, MOONCAKE, "m.jsonl").traffic, tmp_path / "b.csv")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.csv", "m.jsonl"]


@pytest.mark.skipif(not TRACES.is_dir(), reason="shared/traces is not here")
@pytest.mark.parametrize(("name", "num", "isl_tok", "osl_tok", "rate_req_s"), [
    # Counts and means by pandas; the rate is (N - 1) / (last - first): 19,365 / 3501.721937 and 8,818 / 3435.948056.
    ("azure_conv_2023.csv", 19_366, 1154.6974, 211.1259, 5.530137),
    ("azure_code_2023.csv", 8_819, 2047.8483, 27.8825, 2.566395),
])
def test_the_azure_traces_of_2023(name: str, num: int, isl_tok: float, osl_tok: float, rate_req_s: float) -> None:
    trace = read_trace(TRACES / name)
    assert (trace.traffic.num_requests, trace.num_left_out) == (num, 0)
    assert trace.traffic.isl_tok.mean() == pytest.approx(isl_tok, abs=1e-4)
    assert trace.traffic.osl_tok.mean() == pytest.approx(osl_tok, abs=1e-4)
    assert trace.traffic.rate_req_s == pytest.approx(rate_req_s, rel=1e-6)
    assert trace.traffic.arrival_s[0] == 0.0
