import io
import json
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import make_sim, make_steps

from tpplanner.domain.simulation import LoadSeries, RequestLog, StepLog
from tpplanner.domain.statistic import compared_s
from tpplanner.report.simulation_logs import KINDS, REQUEST_COLUMNS, chrome_trace, requests_csv, requests_frame

NAN = float("nan")
# One that runs, one of one token, one that never fits.
LOG = RequestLog(
    arrival_s=np.array([1.0, 2.0, 3.0]), start_s=np.array([1.5, 2.1, NAN]), first_token_s=np.array([2.0, 2.5, NAN]),
    finish_s=np.array([4.0, 2.5, NAN]), isl_tok=np.array([100, 10, 10**6]), osl_tok=np.array([5, 1, 7]),
    replica=np.array([0, 1, -1]), num_preemptions=np.array([2, 0, 0]), outside_s=np.array([0.1, 0.0, 0.0]),
)
SERIES = LoadSeries(replica=1, time_s=np.array([0.0, 0.5]), num_running_seqs=np.array([3.0, 2.5]),
                    num_waiting_seqs=np.array([1.0, 0.0]), kv_used_frac=np.array([0.25, 0.125]))


def step_log(start_s: list[float], duration_s: list[float], **changes: list[float]) -> StepLog:
    count = len(start_s)
    columns = dict.fromkeys(("replica", "num_prefill_tok", "num_waiting_seqs", "num_preempted"), [0] * count)
    columns |= {"num_steps": [1] * count, "num_decode_seqs": [1] * count} | changes
    return StepLog(start_s=np.array(start_s), duration_s=np.array(duration_s), kv_used_frac=np.zeros(count), complete=True,
                   **{name: np.asarray(values, dtype=np.int64) for name, values in columns.items()})


def events(text: str) -> list[dict]:
    return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} in JSON"))["traceEvents"]


def slices(text: str) -> list[dict]:
    return [event for event in events(text) if event["ph"] == "X"]


def test_times_of_requests_by_hand() -> None:
    times = LOG
    # 1.5 - 1 - 0.1, 2 - 1, (4 - 2) / 4, 4 - 1; one token has no gap.
    np.testing.assert_allclose(times.queue_s, [0.4, 0.1, NAN], rtol=1e-12)
    np.testing.assert_allclose(times.ttft_s, [1.0, 0.5, NAN], rtol=1e-12)
    np.testing.assert_allclose(times.tpot_s, [0.5, NAN, NAN], rtol=1e-12)
    np.testing.assert_allclose(times.e2e_s, [3.0, 0.5, NAN], rtol=1e-12)


def test_a_statistic_of_nothing_is_none() -> None:
    assert compared_s(None, np.array([1.0]), 0.75) is None
    quantiles = make_sim().degrees[2].outcome.ttft
    assert compared_s(quantiles, None, 0.75) is None
    assert compared_s(quantiles, np.array([NAN]), 0.75) is None
    assert compared_s(quantiles, np.array([NAN, 1.0, 2.0]), 0.75) == 1.75


def test_requests_as_frame_and_csv() -> None:
    frame = requests_frame(LOG)
    assert tuple(frame.columns) == REQUEST_COLUMNS
    assert frame["request"].tolist() == [0, 1, 2]
    assert frame["tpot_s"].isna().tolist() == [False, True, True]
    text = requests_csv(LOG)
    assert text.splitlines()[3] == "2,-1,1000000,7,3.0,,,,0.0,,,,,0"
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), frame)


def test_the_log_agrees_with_the_outcome() -> None:
    degree = make_sim().degrees[2]
    frame = requests_frame(degree.detail.requests)
    assert frame["ttft_s"].quantile(0.99) == pytest.approx(degree.outcome.ttft.p99_s, rel=1e-12)
    assert frame["e2e_s"].mean() == pytest.approx(degree.outcome.e2e.mean_s, rel=1e-12)


def test_no_request() -> None:
    empty = RequestLog(**{name: getattr(LOG, name)[:0] for name in LOG.__slots__})
    assert requests_csv(empty) == ",".join(REQUEST_COLUMNS) + "\n"


def test_a_trace_by_hand() -> None:
    steps = step_log([0.0, 0.00125, 0.25], [0.00125, 0.002, 1.0], replica=[0, 0, 1], num_steps=[1, 1, 40],
                     num_decode_seqs=[0, 3, 4], num_prefill_tok=[512, 256, 0], num_waiting_seqs=[2, 1, 0],
                     num_preempted=[0, 1, 0])
    text = chrome_trace(steps, series=(SERIES,), title='a "name"')
    document = json.loads(text)
    assert document["otherData"] == {"title": 'a "name"', "steps_complete": True}
    first, second, third = slices(text)
    assert first == {
        "name": "prefill", "cat": "step", "ph": "X", "ts": 0.0, "dur": 1250.0, "pid": 1, "tid": 1,
        "args": {"num_steps": 1, "num_decode_seqs": 0, "num_prefill_tok": 512, "num_waiting_seqs": 2, "num_preempted": 0,
                 "kv_used_frac": 0.0},
    }
    assert (second["name"], second["ts"], second["dur"], second["args"]["num_preempted"]) == ("mixed", 1250.0, 2000.0, 1)
    assert (third["name"], third["ts"], third["pid"], third["args"]["num_steps"]) == ("decode", 250_000.0, 2, 40)
    assert [(e["name"], e["ts"], e["args"]) for e in events(text) if e["ph"] == "C"] == [
        ("sequences", 0.0, {"running": 3, "waiting": 1}), ("sequences", 500_000.0, {"running": 2.5, "waiting": 0}),
        ("KV used", 0.0, {"percent": 25.0}), ("KV used", 500_000.0, {"percent": 12.5}),
    ]
    names = {(e["pid"], e["args"]["name"]) for e in events(text) if e["name"] == "process_name"}
    assert names == {(1, "replica 0"), (2, "replica 1")}


def test_every_event_has_the_keys_that_viewers_need() -> None:
    detail = make_sim().degrees[1].detail
    found = events(chrome_trace(detail.steps, series=detail.series))
    needed = {"X": {"name", "cat", "ts", "dur", "args"}, "C": {"name", "ts", "args"}, "M": {"name", "args"}}
    for event in found:
        assert needed[event["ph"]] | {"ph", "pid", "tid"} == set(event)
        # Process and thread 0 are the idle task of a kernel.
        assert event["pid"] >= 1
        assert event["tid"] == event["pid"]
        assert event.get("ts", 0.0) >= 0.0
        assert event.get("dur", 0.0) >= 0.0
    assert {event["ph"] for event in found} == set(needed)
    assert Counter(event["name"] for event in found)["decode"] == 4 * 4
    assert {event["name"] for event in slices(chrome_trace(detail.steps))} <= set(KINDS)


def test_a_timeline_that_ends_early_says_where() -> None:
    (mark,) = [event for event in events(chrome_trace(make_steps(6, 2, complete=False))) if event["ph"] == "i"]
    # Ten steps of 10 ms, five of them in one entry.
    assert (mark["name"], mark["ts"], mark["s"]) == ("later steps were not kept", 100_000.0, "g")
    assert not [event for event in events(chrome_trace(make_steps())) if event["ph"] == "i"]


def test_no_step_is_still_a_trace() -> None:
    assert events(chrome_trace(make_steps(0, 1, complete=False))) == []
    assert len(slices(chrome_trace(make_steps(1, 1)))) == 1


def test_a_step_without_rows_is_named() -> None:
    assert slices(chrome_trace(step_log([0.0], [0.1], num_decode_seqs=[0])))[0]["name"] == "no rows"


@given(st.lists(st.floats(1e-6, 3.0), min_size=2, max_size=30), st.floats(0.0, 1e6))
def test_steps_that_touch_neither_overlap_nor_lose_a_nanosecond(durations_s: list[float], begin_s: float) -> None:
    durations = np.array(durations_s)
    starts = begin_s + np.concatenate([[0.0], np.cumsum(durations)[:-1]])
    found = slices(chrome_trace(step_log(starts.tolist(), durations.tolist())))
    ends = [round(1000 * event["ts"]) + round(1000 * event["dur"]) for event in found]
    for event, end, before in zip(found[1:], ends[1:], ends, strict=False):
        assert before <= round(1000 * event["ts"])
        assert before <= end
    # Floats at 1e6 s are 0.1 ns apart; the sum of 30 of them is known to a few ns.
    np.testing.assert_allclose([event["dur"] * 1e-6 for event in found], durations, atol=1e-8)


def test_a_real_overlap_is_kept() -> None:
    first, second = slices(chrome_trace(step_log([0.0, 0.5], [0.6, 0.5])))
    assert first["ts"] + first["dur"] > second["ts"]


def test_two_hundred_thousand_steps_take_seconds() -> None:
    steps = make_steps(50_000, 4)
    begin = time.perf_counter()
    text = chrome_trace(steps)
    # 0.4 s on two shared cores.
    assert time.perf_counter() - begin < 10.0
    assert text.count('"ph":"X"') == 200_000
