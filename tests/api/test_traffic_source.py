"""From arguments to requests: every source, and one error for each wrong type, value and combination."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpplanner.api.traffic import TrafficAsked, source_of
from tpplanner.domain.engine import SamplingPolicy
from tpplanner.domain.traffic import Arrivals, FixedLength, SpreadLength, Traffic
from tpplanner.domain.workload import LoadMode
from tpplanner.errors import TpplannerError, WorkloadError
from tpplanner.io.traces import write_trace

TIMED = Traffic(name="timed", isl_tok=np.arange(1, 51) * 10, osl_tok=np.full(50, 20), arrival_s=np.arange(50) * 0.5)
UNTIMED = Traffic(name="untimed", isl_tok=np.arange(1, 51) * 10, osl_tok=np.full(50, 20))
LENGTHS = {"isl": 128, "osl": 16}


def source(**asked):
    return source_of(TrafficAsked(**asked))


# What there is


def test_lengths_are_drawn_and_arrive_at_a_rate():
    found = source(isl=128, osl="lognormal:100:1", num_requests=200, seed=3)
    assert (found.trace, found.isl, found.arrivals) == (None, FixedLength(tok=128), None)
    assert isinstance(found.osl, SpreadLength)
    assert (found.mean_isl_tok, found.mean_osl_tok) == (128.0, 100.0)
    assert not found.replays
    assert found.own_load() is None
    arrived = found.at_rate(4.0, 10)
    assert arrived.num_requests == 200  # the number asked for, not the default
    assert arrived.rate_req_s == pytest.approx(4.0, rel=0.2)
    np.testing.assert_array_equal(arrived.osl_tok, found.requests(10).osl_tok)
    assert found.at_once(10).arrival_s.tolist() == [0.0] * 200


def test_another_seed_draws_other_requests_and_another_rate_stretches_the_same():
    one, same, other = (source(isl=128, osl="gamma:100:1", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.at_rate(4.0, 50).arrival_s, same.at_rate(4.0, 50).arrival_s)
    assert np.any(one.at_rate(4.0, 50).arrival_s != other.at_rate(4.0, 50).arrival_s)
    assert np.any(one.requests(50).osl_tok != other.requests(50).osl_tok)
    np.testing.assert_allclose(one.at_rate(8.0, 50).arrival_s, one.at_rate(4.0, 50).arrival_s / 2.0)
    np.testing.assert_array_equal(one.at_rate(8.0, 50).osl_tok, one.at_rate(4.0, 50).osl_tok)


def test_lengths_are_named_as_they_are_typed():
    assert source(isl=128, osl="lognormal:100:0.5").name == "128 in / lognormal:100:0.5 out"
    spread = SpreadLength(kind="gamma", mean_tok=99.5, cv=1.0)
    assert source(isl=FixedLength(tok=7), osl=spread).name == "7 in / gamma:99.5:1 out"


def test_a_histogram_is_named_by_its_file(tmp_path):
    path = tmp_path / "lengths.csv"
    path.write_text("tok,weight\n128,0.5\n1024,2\n")
    found = source(isl=f"histogram:{path}", osl=5)
    assert found.name == f"histogram:{path} in / 5 out"
    # (128 * 0.5 + 1024 * 2) / 2.5
    assert found.mean_isl_tok == pytest.approx(844.8)


def test_without_a_seed_it_is_zero():
    assert source(**LENGTHS).seed == source(**LENGTHS, seed=None).seed == 0


@pytest.mark.parametrize(("asked", "kind", "cv"), [
    ({}, None, 1.0), ({"arrivals": "constant"}, Arrivals.CONSTANT, 1.0), ({"arrivals": "gamma"}, Arrivals.GAMMA, 1.0),
    ({"burstiness": 2}, Arrivals.GAMMA, 2.0), ({"arrivals": "gamma", "burstiness": 0.5}, Arrivals.GAMMA, 0.5)])
def test_arrivals(asked, kind, cv):
    found = source(**LENGTHS, **asked)
    assert (found.arrivals, found.burstiness_cv) == (kind, cv)


def test_a_named_workload_with_one_length_of_ones_own():
    found = source(workload="albireo", osl=256)
    assert (found.mean_isl_tok, found.mean_osl_tok) == (80.0, 256.0)
    assert found.sampling is SamplingPolicy.FULL
    assert (found.own_load().mode, found.own_load().value) == (LoadMode.CONCURRENCY_PER_REPLICA, 256.0)


def test_a_trace_with_times_is_replayed():
    found = source(trace=TIMED)
    assert found.replays
    assert (found.own_load().mode, found.own_load().value) == (LoadMode.REQUEST_RATE, TIMED.rate_req_s)
    np.testing.assert_array_equal(found.at_rate(TIMED.rate_req_s, 7).arrival_s, TIMED.arrival_s)
    np.testing.assert_allclose(found.at_rate(4.0, 7).arrival_s, TIMED.arrival_s / 2.0)
    # A closed loop takes the requests in their order and leaves the times.
    assert found.requests(7).num_requests == 50
    assert found.requests(7).arrival_s is None


def test_the_first_requests_of_a_trace_keep_their_times():
    for found in (source(trace=TIMED, num_requests=10), source(trace=TIMED, head=10)):
        assert found.replays
        replayed = found.at_rate(found.own_load().value, 99)
        np.testing.assert_array_equal(replayed.arrival_s, TIMED.arrival_s[:10])
        np.testing.assert_array_equal(replayed.isl_tok, TIMED.isl_tok[:10])
        assert found.requests(99).num_requests == 10
        assert found.mean_isl_tok == 55.0


def test_a_trace_cannot_be_replayed_for_longer_than_it_is():
    for asked, most in (({"num_requests": 51}, 50), ({"head": 20, "num_requests": 21}, 20),
                        ({"tail": 5, "num_requests": 500}, 5)):
        found = source(trace=TIMED, **asked)
        with pytest.raises(WorkloadError, match=f"num_requests must be at most {most} where the times of the trace are kept"):
            found.at_rate(2.0, 99)
        # With arrivals of its own, or clients that ask, requests are drawn from it.
        again = source(trace=TIMED, arrivals="poisson", **asked)
        assert again.at_rate(2.0, 99).num_requests == found.requests(99).num_requests == asked["num_requests"]


def test_arrivals_of_ones_own_replace_the_times_of_a_trace():
    found = source(trace=TIMED, arrivals="constant")
    assert not found.replays
    np.testing.assert_allclose(found.at_rate(4.0, 7).arrival_s, np.arange(1, 51) / 4.0)
    assert source(trace=UNTIMED).own_load() is None


@pytest.mark.parametrize(("part", "start", "stop"), [
    ({"head": 10}, 0, 10), ({"tail": 10}, 40, 50), ({"head": 20, "tail": 10}, 10, 20), ({"head": 50}, 0, 50),
    ({"tail": 50}, 0, 50)])
def test_parts_of_a_trace(part, start, stop):
    found = source(trace=TIMED, **part).trace
    np.testing.assert_array_equal(found.isl_tok, TIMED.isl_tok[start:stop])
    np.testing.assert_allclose(np.diff(found.arrival_s), 0.5)


def test_scaling_a_trace():
    found = source(trace=TIMED, scale_rate=2, scale_isl=0.5, scale_osl=3.0).trace
    np.testing.assert_allclose(found.arrival_s, TIMED.arrival_s / 2.0)
    np.testing.assert_array_equal(found.isl_tok, TIMED.isl_tok // 2)
    assert set(found.osl_tok.tolist()) == {60}
    assert source(trace=TIMED, scale_rate=2).own_load().value == pytest.approx(2 * TIMED.rate_req_s)


def test_a_file_is_read_and_what_it_leaves_out_is_said(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.99,0,3\n"
                    "2023-11-16 18:15:56.68,396,109\n")
    found = source(trace=path)
    assert found.trace.num_requests == 2
    assert len(found.notes) == 1
    assert "1" in found.notes[0]
    assert source(trace=str(path), trace_format="azure").trace.num_requests == 2


# What there is not

WRONG_VALUES = [
    ({}, "isl must be given"), ({"isl": 5}, "osl must be given"), ({"isl": None, "osl": 5}, "isl must be given"),
    *[({**LENGTHS, name: value}, f"--{name}: tok must be between 1 and 1e") for name in ("isl", "osl")
      for value in (0, -5, 10**9, 10**30)],
    *[({**LENGTHS, name: value}, f"--{name}: length must be") for name in ("isl", "osl")
      for value in (1.5, True, [], {}, "", "x", "1e3", "lognormal:5", "lognormal:5:1:1", np.int64(5), b"5")],
    ({**LENGTHS, "isl": "lognormal:0:1"}, "--isl: mean must"), ({**LENGTHS, "isl": "gamma:10:nan"}, "--isl: "),
    ({**LENGTHS, "isl": "lognormal:10:1000"}, "--isl: cv must"), ({**LENGTHS, "isl": "histogram:/no/such"}, "/no/such: "),
    *[({**LENGTHS, "seed": value}, "seed must be") for value in (-1, 1.5, "x", True, False, "", [], 10**14, 2**70)],
    *[({**LENGTHS, "num_requests": value}, "num_requests must be")
      for value in (0, -1, 1.5, "x", True, [], 10**9, 10**12, 10**99)],
    *[({**LENGTHS, "burstiness": value}, "burstiness must be")
      for value in (0, -1, 1e-9, 1e9, float("nan"), float("inf"), "2", True, [])],
    *[({**LENGTHS, "burstiness": 2.0, "arrivals": kind}, f"burstiness must be absent with {kind}")
      for kind in ("poisson", "constant")],
    *[({**LENGTHS, "arrivals": value}, "arrivals") for value in ("", "uniform", "GAMMA", "g" * 10_000, 5, True, [], b"gamma")],
    *[({"workload": value}, "workload must be") for value in ("", "nope", "n" * 10_000, 5, True, [], ("albireo",))],
    *[({**LENGTHS, name: 2}, f"{name} must be given with a trace only")
      for name in ("scale_rate", "scale_isl", "scale_osl", "head", "tail", "chars_per_tok")],
    ({**LENGTHS, "trace_format": "azure"}, "trace_format must be given with a trace only"),
    ({**LENGTHS, "tokenizer": "t.json"}, "tokenizer must be given with a trace only"),
    *[({"trace": value}, "trace must be a path or a Traffic") for value in ("", 5, True, [], TIMED.isl_tok, {})],
    *[({"trace": TIMED, name: value}, f"{name} must be absent where a trace gives the requests")
      for name, value in (("isl", 5), ("osl", "gamma:5:1"), ("workload", "albireo"))],
    *[({"trace": TIMED, name: value}, f"{name}") for name in ("head", "tail")
      for value in (0, -1, 51, 10**12, 1.5, "x", True, [])],
    ({"trace": TIMED, "head": 10, "tail": 11}, "tail of timed, first 10: num_requests must be at most 10"),
    *[({"trace": TIMED, name: value}, "scaling: ") for name in ("scale_rate", "scale_isl", "scale_osl")
      for value in (0, -1, 1e-7, 1e7, float("nan"), float("inf"), "2", True, [])],
    ({"trace": UNTIMED, "scale_rate": 2.0}, "rate must be 1 for requests without times"),
    *[({"trace": "x.csv", "trace_format": value}, "format must be") for value in ("nope", "", 5, True)],
    ({"trace": "x.json", "tokenizer": 5}, "tokenizer must be a path"),
]


@pytest.mark.parametrize(("asked", "told"), WRONG_VALUES, ids=lambda v: str(v)[:60] if isinstance(v, dict) else "")
def test_a_wrong_argument_is_one_error_that_names_it(asked, told):
    with pytest.raises(WorkloadError) as error:
        source(**asked)
    message = str(error.value)
    assert told in message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("name", ["isl", "num_requests", "seed", "head", "arrivals"])
def test_a_number_that_python_does_not_print_is_one_error(name):
    asked = {"trace": TIMED} if name == "head" else LENGTHS
    with pytest.raises(WorkloadError, match="got int"):
        source(**{**asked, name: 10**5000})


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 200), st.floats(), st.text(max_size=20),
    st.sampled_from(["gamma", "poisson", "albireo", "azure", "lognormal:10:1", "1024", "/no/such.csv", "sharegpt", 1.0, 2, TIMED,
                     UNTIMED]),
    st.lists(st.integers(), max_size=2), st.binary(max_size=5))


@given(st.dictionaries(st.sampled_from(sorted(TrafficAsked.__annotations__)), ANYTHING, max_size=6))
def test_whatever_is_asked_there_is_a_source_or_one_error(asked):
    try:
        found = source(**asked)
    except TpplannerError as error:
        assert "\n" not in str(error)
        return
    assert found.mean_isl_tok >= 1.0
    assert found.mean_osl_tok >= 1.0
    assert found.trace is not None or (asked.get("isl") is not None and asked.get("osl") is not None) or "workload" in asked


# Files

GOOD_ROWS = "arrival_s,isl_tok,osl_tok\n0.0,10,5\n1.0,20,5\n"
BAD_FILES = {
    "missing.csv": (None, "no such file"),
    "empty.csv": (b"", "is empty"),
    "header.csv": (b"arrival_s,isl_tok,osl_tok\n", "requests must be at least one"),
    "unsorted.csv": (b"arrival_s,isl_tok,osl_tok\n1.0,10,5\n0.5,20,5\n", "row 3"),
    "nan.csv": (b"arrival_s,isl_tok,osl_tok\nnan,10,5\n", "row 2"),
    "nan_tok.csv": (b"arrival_s,isl_tok,osl_tok\n0.0,nan,5\n", "row 2"),
    "negative.csv": (b"arrival_s,isl_tok,osl_tok\n0.0,-10,5\n", "row 2"),
    "zero.csv": (b"arrival_s,isl_tok,osl_tok\n0.0,0,5\n", "row 2"),
    "huge.csv": (b"arrival_s,isl_tok,osl_tok\n0.0,10,99999999999\n", "row 2"),
    "text.csv": (b"arrival_s,isl_tok,osl_tok\n0.0,ten,5\n", "row 2"),
    "short.csv": (b"arrival_s,isl_tok,osl_tok\n0.0,10\n", "row 2"),
    "column.csv": (b"arrival_s,isl_tok\n0.0,10\n", "osl_tok"),
    "utf16.csv": (GOOD_ROWS.encode("utf-16"), "utf"),
    "latin.csv": (b"arrival_s,isl_tok,osl_tok,\xff\n0.0,10,5,1\n", "utf"),
    "packed.csv": (b"\x1f\x8b\x08\x00abc", "gzip"),
    "cut.jsonl": (b'{"isl_tok": 5, "osl_tok": 5}\n{"isl_tok": 5, "os', "cut.jsonl"),
    "list.jsonl": (b"[1, 2]\n", "list.jsonl"),
    "text.json": (b"not json", "text.json"),
    "none.json": (json.dumps([]).encode(), "none.json"),
    "parquet.parquet": (b"PAR1 nothing", "parquet.parquet"),
    "name.txt": (GOOD_ROWS.encode(), "file name must end in"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_error_that_names_it(tmp_path, name):
    content, told = BAD_FILES[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WorkloadError) as error:
        source(trace=path)
    assert name in str(error.value)
    assert told in str(error.value).lower()
    assert "\n" not in str(error.value)


def test_a_folder_is_no_trace(tmp_path):
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    with pytest.raises(WorkloadError, match="is no regular file"):
        source(trace=folder)


def test_a_written_trace_is_the_same_source(tmp_path):
    path = write_trace(TIMED, tmp_path / "mine.jsonl")
    one, two = source(trace=path), source(trace=TIMED)
    np.testing.assert_array_equal(one.trace.arrival_s, two.trace.arrival_s)
    np.testing.assert_array_equal(one.trace.isl_tok, two.trace.isl_tok)
    assert one.own_load() == two.own_load()
