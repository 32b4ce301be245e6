"""Files of limits, predictions and accepted predictions."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "validation"))

from points import offline, run, scored

from tpplanner.domain.run_prediction import ScoredRun
from tpplanner.errors import WorkloadError
from tpplanner.io.cases import PREDICTION_COLUMNS as PREDICT_COLUMNS
from tpplanner.io.validation_files import (
    PREDICTION_COLUMNS,
    accepted_text,
    predictions_text,
    read_accepted,
    read_limits,
    read_predictions,
)

GOOD = """
[packaged.max]
dense.tpot.mean = 0.2
"model Llama-3.1-8B fp8.c.regret" = 1
[degree.min]
"dense.c.hit" = 0.8
[drift]
tolerance = 0.01
[terms]
"a group" = "comm"
"""


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "file"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_limits(tmp_path: Path) -> None:
    found = read_limits(written(tmp_path, GOOD))
    assert dict(found.limits["packaged"].maxima) == {"dense.tpot.mean": 0.2, "model Llama-3.1-8B fp8.c.regret": 1.0}
    assert dict(found.limits["packaged"].minima) == {}
    assert dict(found.limits["degree"].minima) == {"dense.c.hit": 0.8}
    assert (found.drift_frac, dict(found.terms)) == (0.01, {"a group": "comm"})
    assert read_limits(written(tmp_path, "")).drift_frac == 1e-3


def test_the_file_that_the_docs_show(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    shown = page.partition("```toml\n")[2].partition("```")[0]
    found = read_limits(written(tmp_path, shown))
    assert found.limits["packaged"].maxima["dense.tpot.mean"] == 0.2
    assert found.terms


@pytest.mark.parametrize(("text", "message"), [
    ("[packaged.maximum]\na = 1", "packaged: keys must be among max, min (did you mean max"),
    ("[pakaged.max]\na = 1", "keys must be among packaged, degree"),
    ("[packaged.max]\na = 'x'", "a must be a finite number, got 'x'"),
    ("[packaged.max]\na.b = true", "a.b must be a finite number, got True"),
    ("[packaged.max]\na = nan", "a must be a finite number, got nan"),
    ("packaged = 1", "packaged must be a table, got 1"),
    ("[packaged]\nmax = 1", "packaged.max must be a table, got 1"),
    ("[drift]\ntolerance = -1", "drift.tolerance must be >= 0, got -1"),
    ("[drift]\nlimit = 1", "drift: keys must be among tolerance, got 'limit'"),
    ("[terms]\na = 1", "terms.a must be text on one line, got 1"),
    ("[packaged", "must be valid TOML"),
    (b"\xff", "must be UTF-8 text"),
])
def test_bad_limits_are_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(WorkloadError) as error:
        read_limits(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("reader", [read_limits, read_predictions, read_accepted])
def test_missing_file(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    with pytest.raises(WorkloadError, match=r"(?i)none: .*no such file"):
        reader(tmp_path / "none")


def points() -> list[ScoredRun]:
    return [
        scored(run("a", copies=("a2", "a3")), 1.1, tpot_low_s=0.01, tpot_high_s=0.03, fold="tp 1"), scored(run("b"), None),
        ScoredRun(run=run("none"), prediction=None), scored(offline("c", tp=1, throughput_tok_s=1000.0), 0.5),
    ]


def test_predictions_go_out_and_come_back(tmp_path: Path) -> None:
    text = predictions_text(points())
    assert text.splitlines()[0] == ",".join(PREDICTION_COLUMNS)
    assert PREDICTION_COLUMNS[:5] == PREDICT_COLUMNS[:5]
    # 1.1 * (0.5 s, 20 ms); 8 * 101 tokens in 1.1 * 2.5 s.
    assert text.splitlines()[1] == "a,ok,550,22,293.8181818,10,30,,,,,tp 1"
    found = {one.run_id: one for one in read_predictions(written(tmp_path, text))}
    assert list(found) == ["a", "a2", "a3", "b", "c"]
    assert (found["a3"].ttft_s, found["a3"].tpot_s) == (pytest.approx(0.55, rel=1e-9), pytest.approx(0.022, rel=1e-9))
    assert found["a"].interval("tpot") == (0.01, 0.03)
    assert (found["a"].throughput_tok_s, found["a"].fold) == (None, "tp 1")
    assert found["b"].is_oom
    assert found["c"].throughput_tok_s == 2000.0


def test_predictions_of_other_tools(tmp_path: Path) -> None:
    text = "id,pred_ttft_ms,pred_tpot_ms,status,more\na,100,20,OK,x\nb,,,INFEASIBLE,\nc,,,,\nd,,,no table,\ne,,,ok,\n"
    found = read_predictions(written(tmp_path, text))
    assert [one.status for one in found] == ["ok", "OOM", "no prediction", "no table", "no prediction"]


@pytest.mark.parametrize(("text", "message"), [
    ("id,pred_ttft_ms\na,1\n", "columns must include pred_tpot_ms"),
    ("id,pred_ttft_ms,pred_tpot_ms\na,-1,2\n", "row 2: pred_ttft_ms must be > 0, got '-1'"),
    ("id,pred_ttft_ms,pred_tpot_ms\na,x,2\n", "row 2: pred_ttft_ms must be a number, got 'x'"),
    ("id,pred_ttft_ms,pred_tpot_ms\na,1,2\na,1,2\n", "row 3: id must differ from that of row 2"),
    ("id,pred_ttft_ms,pred_tpot_ms,pred_tpot_low_ms\na,1,2,1\n", "row 2: prediction of a: tpot interval must have both"),
])
def test_bad_predictions_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(WorkloadError) as error:
        read_predictions(written(tmp_path, text))
    assert message in str(error.value)


def test_accepted_go_out_and_come_back(tmp_path: Path) -> None:
    text = accepted_text(points())
    assert text.splitlines() == ["id,pred_tpot_ms,pred_ttft_ms,pred_throughput_tok_s", "a,22,550,293.818", "b,,,", "none,,,",
                                 "c,,,2000"]
    found = read_accepted(written(tmp_path, text))
    assert found["a"].tpot_s == pytest.approx(0.022, rel=1e-6)
    assert found["b"].tpot_s is None
    with pytest.raises(WorkloadError, match="columns must be among"):
        read_accepted(written(tmp_path, "id,pred_tpot_ms,pred_ttft_ms,x\na,1,1,1\n"))
    assert read_accepted(written(tmp_path, "id,pred_tpot_ms,pred_ttft_ms\na,1,1\n"))["a"].throughput_tok_s is None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=200), st.integers(0, len(GOOD)).map(lambda n: GOOD.encode()[:n])))
def test_readers_answer_with_data_or_one_line(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path, content)
    for reader in (read_limits, read_predictions, read_accepted):
        try:
            reader(path)
        except WorkloadError as error:
            assert len(str(error).splitlines()) == 1
