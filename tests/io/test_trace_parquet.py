"""Our own traces in Parquet."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tpplanner.domain.traffic import Traffic
from tpplanner.errors import WorkloadError
from tpplanner.io import trace_parquet
from tpplanner.io.traces import read_trace, write_trace

TRAFFIC = Traffic(name="made", isl_tok=np.array([10, 20, 30]), osl_tok=np.array([2, 1, 7]), arrival_s=np.array([0.0, 0.1, 2.75]))


def write(tmp_path: Path, columns: dict[str, object]) -> Path:
    pytest.importorskip("pyarrow")
    path = tmp_path / "trace.parquet"
    pd.DataFrame(columns).to_parquet(path, engine="pyarrow")
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    back = read_trace(write_trace(TRAFFIC, tmp_path / "t.parquet")).traffic
    assert (back.isl_tok.tolist(), back.osl_tok.tolist(), back.arrival_s.tolist()) == ([10, 20, 30], [2, 1, 7], [0.0, 0.1, 2.75])
    assert back.name == "t.parquet"


@pytest.mark.parametrize("dtype", ["int8", "uint64", "float32", "Int64"])
def test_types_of_numbers(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path, {"osl_tok": pd.array([7, 8], dtype=dtype), "isl_tok": pd.array([5, 6], dtype=dtype)})
    traffic = read_trace(path).traffic
    assert (traffic.isl_tok.tolist(), traffic.osl_tok.tolist(), traffic.arrival_s) == ([5, 6], [7, 8], None)


@pytest.mark.parametrize(("changes", "message"), [
    ({"isl_tok": ["5", "6"]}, "isl_tok must be a column of numbers, got"),
    ({"isl_tok": [True, False]}, "isl_tok must be a column of numbers, got 'bool'"),
    ({"isl_tok": [5.0, np.nan]}, "row 2: isl_tok must be a number, got nan"),
    ({"isl_tok": pd.array([5, None], dtype="Int64")}, "row 2: isl_tok must be a number, got nan"),
    ({"isl_tok": [5, -6]}, "row 2: isl_tok must be a whole number between 1 and 1e+08, got -6.0"),
    ({"osl_tok": [0, 1]}, "row 1: osl_tok must be a whole number between 1 and 1e+08, got 0.0"),
    ({"arrival_s": [2.0, 1.0]}, "row 2: arrival_s must not fall from one row to the next, got 1.0"),
    ({"arrival_s": pd.to_datetime(["2024-01-01", "2024-01-02"])}, "arrival_s must be a column of numbers, got 'datetime64["),
    ({"model": [1, 2]}, "columns must be among arrival_s, isl_tok, osl_tok, got 'model'"),
])
def test_bad_columns(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write(tmp_path, {"isl_tok": [5, 6], "osl_tok": [7, 8], **changes})
    with pytest.raises(WorkloadError) as refused:
        read_trace(path)
    assert str(refused.value).startswith(f"{path}: {message}")


def test_missing_columns_no_rows_and_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, {"isl_tok": [5]})
    with pytest.raises(WorkloadError, match="columns must include osl_tok, got 'isl_tok'"):
        read_trace(path)
    with pytest.raises(WorkloadError, match="requests must be at least one, got 0"):
        read_trace(write(tmp_path, {"isl_tok": np.array([], dtype=int), "osl_tok": np.array([], dtype=int)}))
    monkeypatch.setattr(trace_parquet, "MAX_TRACE_REQUESTS", 1)
    with pytest.raises(WorkloadError, match=r"rows must be at most 1e\+00, got 2"):
        read_trace(write(tmp_path, {"isl_tok": [5, 6], "osl_tok": [7, 8]}))


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1")
    message = r"pyarrow must be installed for Parquet: pip install 'tpplanner\[sweep\]'"
    with pytest.raises(WorkloadError, match=f"t.parquet: {message}"):
        read_trace(path)
    with pytest.raises(WorkloadError, match=f"made: {message}"):
        write_trace(TRAFFIC, tmp_path / "new.parquet")
    assert [item.name for item in tmp_path.iterdir()] == ["t.parquet"]
