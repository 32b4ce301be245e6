"""Lengths as they are typed."""

from pathlib import Path

import pytest

from tpplanner.domain.traffic import FixedLength, HistogramLength, SpreadLength
from tpplanner.errors import WorkloadError
from tpplanner.io.length_text import parse_length

FORMS = "must be 1024, lognormal:MEAN:CV, gamma:MEAN:CV or histogram:FILE"


def test_numbers_and_distributions() -> None:
    assert parse_length("1024") == FixedLength(tok=1024)
    assert parse_length(" 1 ") == FixedLength(tok=1)
    assert parse_length("lognormal:800:1.2") == SpreadLength(kind="lognormal", mean_tok=800.0, cv=1.2)
    assert parse_length("gamma:3e2:.9") == SpreadLength(kind="gamma", mean_tok=300.0, cv=0.9)


def test_histogram(tmp_path: Path) -> None:
    path = tmp_path / "a:b.csv"
    path.write_text("weight,tok\n0.5,10\n2,4\n0,1\n")
    length = parse_length(f"histogram:{path}")
    assert isinstance(length, HistogramLength)
    assert (length.tok.tolist(), length.weight.tolist(), length.name) == ([10, 4, 1], [0.5, 2.0, 0.0], str(path))


@pytest.mark.parametrize(("text", "message"), [
    ("", f"length {FORMS}, got ''"),
    ("many", f"length {FORMS}, got 'many'"),
    ("10.5", f"length {FORMS}, got '10.5'"),
    ("-1", f"length {FORMS}, got '-1'"),
    ("normal:3:1", f"length {FORMS}, got 'normal:3:1'"),
    ("gamma:3", f"length {FORMS}, got 'gamma:3'"),
    ("gamma:3:1:1", f"length {FORMS}, got 'gamma:3:1:1'"),
    ("gamma:nan:1", f"length {FORMS}, got 'gamma:nan:1'"),
    ("1024:5", f"length {FORMS}, got '1024:5'"),
    ("histogram:", f"length {FORMS}, got 'histogram:'"),
    ("0", "length must be between 1 and 1e+08 tokens, got 0"),
    ("1000000000", "length must be between 1 and 1e+08 tokens, got 1000000000"),
    ("gamma:0.5:1", "mean must be between 1 and 1e+08 tokens, got '0.5'"),
    ("gamma:1e999:1", "mean must be between 1 and 1e+08 tokens, got '1e999'"),
    ("lognormal:5:0", "cv must be between 1e-6 and 100, got '0'"),
    ("lognormal:5:101", "cv must be between 1e-6 and 100, got '101'"),
])
def test_refused_text(text: str, message: str) -> None:
    with pytest.raises(WorkloadError) as refused:
        parse_length(text, place="--osl")
    assert str(refused.value) == f"--osl: {message}"


@pytest.mark.parametrize(("content", "message"), [
    ("tok,weight\n0,1\n", "row 2: tok must be a whole number >= 1, got '0'"),
    ("tok,weight\n1e9,1\n", "row 2: tok must be at most 1e+08, got '1e9'"),
    ("tok,weight\n5,1\n5,-1\n", "row 3: weight must be between 0 and 1e+18, got '-1'"),
    ("tok,weight\n5,1e308\n", "row 2: weight must be between 0 and 1e+18, got '1e308'"),
    ("tok,weight\n5,0\n", "weights must be finite, >= 0 and not all 0, got 0.0"),
    ("tok,weight\n", "rows must be at least one, got 0"),
    ("tok\n5\n", "columns must include weight, got 'tok'"),
    ("tok,weight,x\n5,1,1\n", "columns must be among tok, weight, got 'x'"),
])
def test_refused_histograms(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "h.csv"
    path.write_text(content)
    with pytest.raises(WorkloadError) as refused:
        parse_length(f"histogram:{path}")
    assert str(refused.value) == f"{path}: {message}"
