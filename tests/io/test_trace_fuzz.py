"""Any file gives a trace or one line of `WorkloadError`, never another exception."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trace_files import FILES

from tpplanner.domain.traffic import Traffic
from tpplanner.errors import WorkloadError
from tpplanner.io.length_text import parse_length
from tpplanner.io.traces import ReadTrace, TraceFormat, read_trace, write_trace

few = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

ENDINGS = ["csv", "jsonl", "json"]
HOSTILE_CELLS = st.one_of(
    st.sampled_from(["", "nan", "-0", "1e309", "1" * 400, "0x10", "1,2", '"', "\x00", "\u0661", "1_0", "2023-02-30 00:00:00",
                     "2024-05-10 00:00:00+99:59", "1e-400", "00012", "++1", "1e8", "-1", " 7 ", "\x1c5"]),
    st.text(max_size=8), st.integers().map(str), st.floats().map(str),
)
HOSTILE_JSON = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([10**400, -(10**30), 1e308, [], {}, [[[]]], "\ud800", [1, "a"], [10**30], 1.0]),
    st.recursive(st.none() | st.integers(), lambda inner: st.lists(inner, max_size=3)
                 | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6),
)


@pytest.fixture
def outcome(tmp_path: Path) -> Callable[..., None]:
    """Read ``content`` as a file; anything but a trace or one line fails the test."""

    def check(ending: str, content: bytes, trace_format: str | None = None) -> None:
        path = tmp_path / f"trace.{ending}"
        path.write_bytes(content)
        try:
            found = read_trace(path, trace_format=trace_format)
        except WorkloadError as error:
            assert len(str(error).splitlines()) == 1, repr(str(error))
            assert str(error).startswith(f"{path}: ")
        else:
            assert isinstance(found, ReadTrace)
            arrival_s = found.traffic.arrival_s
            assert arrival_s is None or (arrival_s[0] == 0.0 and np.all(np.diff(arrival_s) >= 0))

    return check


@few
@given(ending=st.sampled_from(ENDINGS), content=st.binary(max_size=200))
def test_any_bytes(outcome: Callable[..., None], ending: str, content: bytes) -> None:
    outcome(ending, content)


@few
@given(trace_format=st.sampled_from(list(TraceFormat)[1:]),
       content=st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_any_bytes_of_a_given_format(outcome: Callable[..., None], trace_format: TraceFormat, content: bytes) -> None:
    outcome("txt", content, trace_format)


@few
@given(name=st.sampled_from(sorted(FILES)), cut=st.floats(0.0, 1.0), junk=st.binary(max_size=4), flip=st.floats(0.0, 1.0))
def test_cut_and_damaged_files(outcome: Callable[..., None], name: str, cut: float, junk: bytes, flip: float) -> None:
    content = FILES[name].encode()
    ending = name.rpartition(".")[2]
    outcome(ending, content[: round(cut * len(content))])
    at = round(flip * len(content))
    outcome(ending, content[:at] + junk + content[at + len(junk):])


@few
@given(name=st.sampled_from([name for name in sorted(FILES) if name.endswith("csv")]), data=st.data())
def test_hostile_cells(outcome: Callable[..., None], name: str, data: st.DataObject) -> None:
    rows = [line.split(",") for line in FILES[name].splitlines()]
    for _ in range(data.draw(st.integers(1, 3))):
        row = data.draw(st.sampled_from(rows))
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(HOSTILE_CELLS)
    outcome("csv", "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass"))


@few
@given(name=st.sampled_from(["own.jsonl", "mooncake.jsonl"]), data=st.data())
def test_hostile_values(outcome: Callable[..., None], name: str, data: st.DataObject) -> None:
    records = [json.loads(line) for line in FILES[name].splitlines()]
    for _ in range(data.draw(st.integers(1, 3))):
        record = data.draw(st.sampled_from(records))
        record[data.draw(st.sampled_from([*record, "extra"]))] = data.draw(HOSTILE_JSON)
    outcome("jsonl", "\n".join(json.dumps(record) for record in records).encode())


@few
@given(data=st.data())
def test_hostile_conversations(outcome: Callable[..., None], data: st.DataObject) -> None:
    entries = json.loads(FILES["sharegpt.json"])
    turns = [turn for entry in entries for turn in entry["conversations"]]
    part = data.draw(st.sampled_from([*entries, *turns]))
    part[data.draw(st.sampled_from([*part, "extra"]))] = data.draw(HOSTILE_JSON)
    outcome("json", json.dumps(entries).encode())


@pytest.mark.parametrize("depth", [10, 150, 500, 900, 980, 1000, 1100, 5000])
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_nested_garbage(outcome: Callable[..., None], ending: str, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    outcome(ending, nested.encode())
    outcome(ending, f'[{{"conversations": {nested}}}]'.encode())
    outcome(ending, f'{{"isl_tok": {nested}, "osl_tok": 1}}'.encode())


@few
@given(cut=st.floats(0.0, 1.0), junk=st.binary(min_size=1, max_size=6))
def test_cut_and_damaged_parquet(outcome: Callable[..., None], tmp_path: Path, cut: float, junk: bytes) -> None:
    pytest.importorskip("pyarrow")
    traffic = Traffic(name="t", isl_tok=np.array([1, 2]), osl_tok=np.array([3, 4]), arrival_s=np.array([0.0, 1.0]))
    content = write_trace(traffic, tmp_path / "whole.parquet", overwrite=True).read_bytes()
    at = round(cut * len(content))
    outcome("parquet", content[:at])
    # Thrift structures at the end hold lengths; the head of the file is what pyarrow checks by itself.
    outcome("parquet", junk + content[len(junk):])


@few
@given(text=st.one_of(
    st.text(max_size=20), st.integers().map(str),
    st.builds("{}:{}:{}".format, st.sampled_from(["gamma", "lognormal", "histogram", ""]), HOSTILE_CELLS, HOSTILE_CELLS),
))
def test_any_text_of_a_length(text: str) -> None:
    try:
        parse_length(text)
    except WorkloadError as error:
        assert len(str(error).splitlines()) == 1
