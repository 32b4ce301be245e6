"""tpplanner.simulate: loads, capacities, ways out, and one error for each wrong argument."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tpplanner
from tpplanner.api.question import question
from tpplanner.api.simulated import check_simulated_outputs, write_simulated
from tpplanner.api.simulation import OptionsAsked
from tpplanner.api.simulation_load import clients_of, default_requests, few_requests
from tpplanner.api.traffic import TrafficAsked, source_of
from tpplanner.domain.plan import Reason
from tpplanner.domain.simulation import Router
from tpplanner.domain.traffic import Traffic
from tpplanner.domain.workload import LoadMode
from tpplanner.errors import OutputError, TpplannerError, WorkloadError
from tpplanner.planner.recommend import recommend as recommend_question
from tpplanner.report.simulation_json import parse_simulation_json

SMALL = {"model": "Qwen/Qwen2.5-7B-Instruct", "gpus": "4xh100-sxm"}
SHORT = {**SMALL, "isl": 256, "osl": 32, "num_requests": 60}
TRACE = Traffic(name="mine", isl_tok=np.full(80, 300), osl_tok=np.full(80, 20), arrival_s=np.arange(80) * 0.05)


def simulate(**asked):
    return tpplanner.simulate(**{**SHORT, **asked})


def traced(trace=TRACE, **asked):
    return tpplanner.simulate(**SMALL, trace=trace, **asked)


@pytest.fixture(scope="module")
def answer():
    return simulate(request_rate=20, ttft_ms=500, tpot_ms=50, num_timeline_steps=100)


# The answer and its ways out


def test_one_entry_per_degree_and_the_best_of_them(answer):
    assert [degree.tp for degree in answer.degrees] == [1, 2, 4]
    assert [degree.num_replicas for degree in answer.degrees] == [4, 2, 1]
    assert all(degree.meets_targets and degree.outcome.num_completed == 60 for degree in answer.degrees)
    shortest = min(answer.degrees, key=lambda degree: degree.outcome.e2e.mean_s)
    assert answer.best_tp == shortest.tp == answer.best_plan.tp
    assert answer.degree(2) is answer.degrees[1]
    assert answer.simulation.best is answer.degree(answer.best_tp)
    assert [plan.tp for plan in answer.recommendation.plans] == [1, 2, 4]


def test_ways_out(answer):
    assert answer.to_text().startswith("Serve Qwen/Qwen2.5-7B-Instruct at TP ")
    document = parse_simulation_json(answer.to_json())
    assert document.best.tp == answer.best_tp
    assert json.loads(answer.to_json())["traffic"]["num_requests"] == 60
    frame = answer.to_frame()
    assert frame.tp.tolist() == [1, 2, 4]
    assert frame.best.tolist() == [tp == answer.best_tp for tp in (1, 2, 4)]
    assert len(answer.requests()) == len(answer.requests(2)) == 60
    for kind in ("latency_cdf", "degrees", "load"):
        assert answer.plot(kind).axes


def test_what_was_not_simulated_is_one_error(answer):
    for call in (lambda: answer.degree(3), lambda: answer.requests(3), lambda: answer.plot("load", 8),
                 lambda: answer.degree("2")):
        with pytest.raises(WorkloadError, match="tp must be among 1, 2, 4"):
            call()
    with pytest.raises(WorkloadError, match="kind must be latency_cdf, degrees or load"):
        answer.plot("pie")


def test_degrees_by_name():
    assert [d.tp for d in simulate(request_rate=20, tp=2).degrees] == [2]
    assert [d.tp for d in simulate(request_rate=20, tp=(4, 1, 4)).degrees] == [1, 4]
    assert [d.tp for d in simulate(request_rate=20, tp=iter([2])).degrees] == [2]
    odd = simulate(request_rate=20, tp=[3, 64])
    assert [d.reason for d in odd.degrees] == [Reason.HEADS, Reason.HEADS]
    assert odd.best_tp is odd.best_plan is None


def test_a_degree_beyond_the_table_has_launch_lines_too():
    wide = tpplanner.simulate(model="meta-llama/Llama-3.1-70B-Instruct", gpus="16xh100-sxm", isl=256, osl=16, request_rate=2,
                              num_requests=20, tp=16)
    assert [plan.tp for plan in wide.recommendation.plans] == [1, 2, 4, 8]
    assert wide.best_tp == wide.best_plan.tp == 16


def test_a_run_repeats_itself_and_another_seed_is_another_run():
    asked = {"isl": "lognormal:256:1", "osl": "gamma:32:1", "request_rate": 50, "tp": 1, "router": "least-outstanding"}
    one, same, other = (simulate(**asked, seed=seed) for seed in (1, 1, 2))
    assert one.degree(1).outcome == same.degree(1).outcome
    for name in one.degree(1).detail.requests.__slots__:
        np.testing.assert_array_equal(getattr(one.degree(1).detail.requests, name), getattr(same.degree(1).detail.requests, name))
    assert one.degree(1).outcome != other.degree(1).outcome
    assert one.simulation.options.router is Router.LEAST_OUTSTANDING


def test_step_by_step_is_the_same():
    fast, slow = (simulate(request_rate=50, tp=2, num_requests=30, step_by_step=slowly).degree(2).outcome
                  for slowly in (False, True))
    assert fast.num_steps == slow.num_steps
    assert fast.e2e.p99_s == pytest.approx(slow.e2e.p99_s, rel=1e-9)


def test_progress_names_the_degree_and_its_requests():
    told = []
    simulate(request_rate=500, num_requests=2500, osl=2, tp=[1, 4], progress=lambda *args: told.append(args))
    assert told == [(1, 1000, 2500), (1, 2000, 2500), (4, 1000, 2500), (4, 2000, 2500)]


# Loads


def test_a_closed_loop_shares_its_clients_out():
    shared = simulate(concurrency=6, ramp_s=0.0)
    each, per_gpu = simulate(concurrency_per_replica=3, ramp_s=0.0), simulate(batch_per_gpu=3, ramp_s=0.0)
    for found, at_first in ((shared, ([2, 2, 1, 1], [3, 3], [6])), (each, ([3] * 4, [3, 3], [3])),
                            (per_gpu, ([3] * 4, [6, 6], [12]))):
        for degree, per_replica in zip(found.degrees, at_first, strict=True):
            log = degree.detail.requests
            assert np.bincount(log.replica[log.arrival_s == 0.0]).tolist() == per_replica


@pytest.mark.parametrize(("load", "clients"), [
    ({"concurrency": 3}, {1: [1, 1, 1, 0], 2: [2, 1], 4: [3]}), ({"concurrency": 0.2}, {1: [1, 0, 0, 0], 4: [1]}),
    ({"concurrency_per_replica": 2.6}, {1: [3] * 4, 4: [3]}), ({"batch_per_gpu": 0.1}, {1: [1, 0, 0, 0], 2: [1, 0], 4: [1]}),
    ({"batch_per_gpu": 1.5}, {1: [2, 2, 1, 1], 2: [3, 3], 4: [6]})])
def test_clients_of_each_replica(load, clients):
    asked = question(**SMALL, isl=256, osl=32, **load)
    for plan in recommend_question(asked, with_flip_points=False).plans:
        if plan.tp in clients:
            assert clients_of(asked, plan) == clients[plan.tp]


def test_clients_of_a_closed_loop_start_within_the_time_of_one_request_by_default():
    spread, at_once = (simulate(concurrency=8, tp=4, ramp_s=ramp_s).degree(4) for ramp_s in (None, 0.0))
    first = np.sort(spread.detail.requests.arrival_s)[:8]
    assert np.all(np.diff(first) > 0.0)
    assert first[-1] < 2.0 * spread.outcome.e2e.mean_s
    assert at_once.outcome.window_s == at_once.outcome.duration_s


def test_offline_is_the_default_and_ranks_by_throughput():
    queued = simulate()
    assert queued.simulation.question.load.mode is LoadMode.OFFLINE
    assert np.all(queued.degree(1).detail.requests.arrival_s == 0.0)
    assert queued.best_tp == max(queued.degrees, key=lambda d: d.outcome.throughput_tok_s).tp
    assert all(d.meets_targets for d in queued.degrees)


def test_a_rate_that_no_degree_serves_has_no_answer():
    swamped = simulate(request_rate=2000, osl=400, num_requests=300, max_num_seqs=8)
    assert swamped.best_tp is None
    assert all(d.outcome.saturated and not d.meets_targets for d in swamped.degrees)
    assert "saturated" in swamped.to_text()
    with pytest.raises(WorkloadError, match="tp must be given where no degree is feasible"):
        swamped.requests()
    assert swamped.plot("load").axes


def test_outputs_of_one_token_meet_any_tpot():
    ones = simulate(osl=1, request_rate=20, tpot_ms=1e-3)
    assert all(d.meets_targets and d.outcome.goodput_frac == 1.0 and d.outcome.tpot is None for d in ones.degrees)


@pytest.mark.parametrize("load", [{}, {"request_rate": 5}, {"concurrency": 4}, {"ttft_ms": 500}])
def test_where_nothing_fits_there_is_no_answer(load):
    none = simulate(isl=600_000, osl=10, tp=1, num_requests=25, num_gpu_blocks=1000, **load)
    [degree] = none.degrees
    assert none.best_tp is None
    if degree.outcome is not None:
        assert (degree.outcome.num_completed, degree.outcome.num_unservable) == (0, 25)
    assert "kv_cache" in none.to_text()


def test_what_does_not_fit_is_left_out_and_told():
    isl = np.full(40, 200)
    isl[::10] = 50_000
    some = traced(Traffic(name="some", isl_tok=isl, osl_tok=np.full(40, 20), arrival_s=np.arange(40) * 0.1), num_gpu_blocks=1000,
                  tp=1)
    outcome = some.degree(1).outcome
    assert (outcome.num_unservable, outcome.num_completed) == (4, 36)
    assert "4 of 40 requests never fit into the KV cache" in some.to_text()


# Traces


def test_a_trace_is_replayed_at_its_own_rate():
    own = traced()
    assert own.simulation.question.load.mode is LoadMode.REQUEST_RATE
    assert own.simulation.question.load.value == pytest.approx(TRACE.rate_req_s)
    assert own.simulation.question.workload.isl_tok == 300
    np.testing.assert_array_equal(own.degree(1).detail.requests.arrival_s, TRACE.arrival_s)
    stretched = traced(request_rate=5, tp=1)
    np.testing.assert_allclose(stretched.degree(1).detail.requests.arrival_s, TRACE.arrival_s * TRACE.rate_req_s / 5)
    closed = traced(concurrency=4, tp=1)
    assert closed.simulation.traffic.arrival_s is None


def test_a_trace_with_targets_is_replayed_and_with_arrivals_of_its_own_searched():
    held = traced(ttft_ms=500, tp=1)
    assert held.simulation.question.load.mode is LoadMode.REQUEST_RATE
    searched = traced(ttft_ms=500, tp=1, arrivals="poisson")
    assert searched.simulation.question.load.mode is LoadMode.SLO_CAPACITY
    assert searched.degree(1).outcome.offered_rate_req_s > TRACE.rate_req_s


def test_the_fewest_gpus_for_a_trace():
    # Its own rate is the load that the GPUs are counted for.
    fast = replace(TRACE, arrival_s=TRACE.arrival_s / 40)
    needed = tpplanner.simulate(model="Qwen/Qwen2.5-7B-Instruct", gpus="l40s", trace=fast, ttft_ms=2000)
    assert needed.simulation.question.num_gpus > 1
    assert needed.simulation.question.load.value == pytest.approx(fast.rate_req_s)


def test_a_named_workload_brings_its_concurrency_and_sampling():
    named = tpplanner.simulate(model="Qwen/Qwen2.5-7B-Instruct", gpus="1xh100-sxm", workload="albireo", num_requests=40)
    asked = named.simulation.question
    assert (asked.load.mode, asked.load.value, asked.sampling.value) == (LoadMode.CONCURRENCY_PER_REPLICA, 256.0, "full")


def test_prefix_caching_needs_prefixes():
    shared = replace(TRACE, isl_tok=np.full(80, 2048), prefix_ids=tuple((7, 8, 9, 1000 + i) for i in range(80)),
                     prefix_block_tok=512)
    off, on = (traced(shared, tp=1, prefix_caching=cached) for cached in (False, True))
    assert off.degree(1).outcome.prefix_hit_frac == 0.0
    # Each of four replicas computes the shared three quarters once.
    assert on.degree(1).outcome.prefix_hit_frac == pytest.approx(0.75 * 76 / 80)
    assert on.degree(1).outcome.ttft.mean_s < 0.9 * off.degree(1).outcome.ttft.mean_s
    assert on.simulation.warnings == off.simulation.warnings
    unknown = traced(prefix_caching=True, tp=1)
    assert any("prefix caching finds nothing" in line for line in unknown.simulation.warnings)


# Capacity

SEARCHED = {**SMALL, "isl": "lognormal:512:0.5", "osl": 24, "num_requests": 1000}


@pytest.mark.parametrize("slo_quantile", [None, 0.99])
def test_the_capacity_holds_the_targets_and_a_tenth_more_does_not(slo_quantile):
    targets = {"ttft_ms": 150, "tpot_ms": 25, "slo_quantile": slo_quantile}
    found = tpplanner.simulate(**SEARCHED, **targets)
    assert found.simulation.question.load.mode is LoadMode.SLO_CAPACITY
    assert found.simulation.warnings == ()
    # Drawn gaps do not have exactly the mean that was asked for.
    per_asked = source_of(TrafficAsked(isl=512, osl=24)).at_rate(1.0, 1000).rate_req_s
    for degree in found.degrees:
        assert degree.meets_targets
        rate = degree.outcome.offered_rate_req_s
        for factor, holds in ((1.1, False), (1.03, False), (1.0, True), (0.9, True)):
            again = tpplanner.simulate(**SEARCHED, **targets, tp=degree.tp, request_rate=factor * rate / per_asked)
            assert again.degree(degree.tp).outcome.offered_rate_req_s == pytest.approx(factor * rate)
            assert again.degree(degree.tp).meets_targets == holds
    rates = [degree.outcome.offered_rate_req_s for degree in found.degrees]
    assert found.best_tp == found.degrees[int(np.argmax(rates))].tp
    assert found.simulation.traffic.rate_req_s == max(rates)


def test_a_percentile_is_harder_than_the_mean_and_a_lower_one_easier():
    rates = {}
    for quantile in (None, 0.5, 0.9, 0.97, 0.99):
        found = tpplanner.simulate(**SEARCHED, tp=2, ttft_ms=120, slo_quantile=quantile)
        rates[quantile] = found.degree(2).outcome.offered_rate_req_s
    assert rates[0.99] <= rates[0.97] <= rates[0.9] <= rates[0.5]
    assert rates[0.99] < 0.9 * rates[None]


def test_where_no_rate_holds_the_lowest_one_tells_why():
    missed = simulate(ttft_ms=5000, tpot_ms=0.5, num_requests=30)
    assert missed.best_tp is None
    for degree in missed.degrees:
        assert not degree.meets_targets
        assert degree.outcome.tpot.mean_s > 0.5e-3
        assert degree.outcome.offered_rate_req_s < 1.0
    # TTFT holds: it is the TPOT that is missed.
    text = missed.to_text()
    assert "fails on tpot" in text.splitlines()[0]
    assert "exceeds the target of 0.50 ms even at" in text
    assert "ttft)" not in text


def test_a_capacity_from_few_requests_is_not_more_than_they_can_show():
    # A hundred requests at ten times the capacity are all in flight at once: that shows nothing.
    asked = {**SMALL, "gpus": "1xh100-sxm", "isl": 500, "osl": 200, "ttft_ms": 2000, "slo_quantile": 0.99}
    few, many = (tpplanner.simulate(**asked, num_requests=n).degree(1).outcome for n in (100, 3000))
    assert few.offered_rate_req_s <= 1.05 * many.offered_rate_req_s
    told = tpplanner.simulate(**asked, num_requests=100).simulation.warnings
    assert any(line.startswith("few requests: 100, where the closed form has up to ") for line in told)


# How many requests


@pytest.mark.parametrize(("load", "least"), [
    ({"request_rate": 0.5}, 1000), ({"request_rate": 40}, 12_000), ({"request_rate": 1e4}, 50_000), ({"concurrency": 4}, 1000),
    ({"concurrency": 400}, 20 * 400), ({"offline": True}, 20 * 1024), ({"ttft_ms": 1e4}, 1000)])
def test_requests_of_a_run_that_was_not_told_how_many(load, least):
    asked = question(**SMALL, isl=256, osl=32, **load)
    plans = recommend_question(asked, with_flip_points=False).plans
    count = default_requests(asked, plans)
    assert least <= count <= 50_000
    assert few_requests(asked, plans, count) == ()
    if load == {"request_rate": 0.5}:
        assert count == 1000


def test_a_slow_request_makes_a_longer_run():
    # 6,000 tokens take most of a minute: 300 s of traffic would be over before the batch is steady.
    asked = question(**SMALL, isl=256, osl=6000, request_rate=3)
    plans = recommend_question(asked, with_flip_points=False).plans
    longest_s = max(plan.outcome.e2e_s for plan in plans if plan.reason is None)
    assert longest_s > 30.0
    assert default_requests(asked, plans) == int(20 * 3 * longest_s)
    [told] = few_requests(asked, plans, 100)
    assert told.startswith("few requests: 100, ")


# Wrong arguments

WRONG = [
    *[({"tp": tp}, "tp must") for tp in (0, -1, 1.5, True, "x", "", "4", "2,4", [], {}, {"2": 1}, [0], [True], [1.5], [2, "x"],
                                         [None], np.array([2]), 10**14, b"2")],
    *[({"router": value}, "router must be among round-robin, least-outstanding") for value in ("", "least", 5, True, [])],
    *[({name: value}, f"{name} must be True or False") for name in ("prefix_caching", "step_by_step")
      for value in (1, 0, "yes", [], 1.0)],
    *[({"watermark_frac": value}, "watermark_frac must") for value in (-0.1, 0.9, 1, float("nan"), "0.1", True, [])],
    *[({"slo_quantile": value, "ttft_ms": 500}, "slo_quantile must")
      for value in (0, 0.0, 1, 1.0, 2, 99, -0.5, float("nan"), float("inf"), "p99", True, [])],
    *[({"num_timeline_steps": value}, "num_timeline_steps must") for value in (-1, 1.5, "x", True, [])],
    *[({"ramp_s": value, "concurrency": 4}, "ramp_s must") for value in (-1, 1e10, float("nan"), float("inf"), "5", True, [])],
    *[({"request_rate": value}, "request_rate must") for value in (0, -1, float("nan"), float("inf"), 1e10, "5", True, [])],
    *[({"concurrency": value}, "concurrency must") for value in (0, -1, float("nan"), "5", True)],
    ({"request_rate": 5, "concurrency": 5}, "load must be given in one way"),
    ({"request_rate": 5, "offline": True}, "load must be given in one way"),
    ({"request_rate": 1e-8}, "arrival_s must be between 0 and 1e+09 s"),
    ({"nonsense": 5}, "unknown argument 'nonsense'"),
    ({"ttft_ms": 0}, "ttft_s must be > 0"),
    ({"ttft_ms": "fast"}, "ttft_ms must be a number"),
    ({"isl": 0}, "--isl"),
    ({"workload": "nope", "isl": None}, "workload must be among"),
    ({"trace": "x.csv"}, "isl must be absent"),
    # What the load has no use for.
    *[({**load, name: value}, f"{name} must be given with a request rate, a trace with times, or targets")
      for load in ({}, {"offline": True}, {"concurrency": 4}) for name, value in (("arrivals", "gamma"), ("burstiness", 2.0))],
    *[({**load, "ramp_s": 1.0}, "ramp_s must be given with the clients of a closed loop")
      for load in ({}, {"request_rate": 5}, {"ttft_ms": 500})],
    ({"concurrency": 4, "router": "round-robin"}, "router must be given with requests that arrive"),
    ({"request_rate": 5, "slo_quantile": 0.9}, "slo_quantile must be given with targets"),
    ({"ttft_ms": 500, "num_requests": 19}, "requests must be at least 20 for a search"),
]


@pytest.mark.parametrize(("asked", "told"), WRONG, ids=lambda v: str(v)[:60] if isinstance(v, dict) else "")
def test_a_wrong_argument_is_one_error_that_names_it(asked, told):
    with pytest.raises(TpplannerError) as error:
        simulate(**asked)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("asked", "told"), [
    ({"scale_rate": 2.0, "request_rate": 5}, "scale_rate must be given with the times of the trace, not with another load"),
    ({"scale_rate": 2.0, "concurrency": 5}, "scale_rate must be given with the times of the trace, not with another load"),
    ({"num_requests": 81}, "num_requests must be at most 80 where the times of the trace are kept"),
    ({"head": 10, "num_requests": 11}, "num_requests must be at most 10"),
    ({"head": 15, "arrivals": "poisson", "ttft_ms": 500}, "requests must be at least 20 for a search"),
    ({"arrivals": "gamma", "concurrency": 4}, "arrivals must be given with a request rate"),
])
def test_what_does_not_go_with_a_trace(asked, told):
    with pytest.raises(WorkloadError, match=told):
        traced(**asked)


ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(-2, 5), st.floats(), st.text(max_size=5),
                     st.sampled_from(["all", "round-robin", 0.5, [1, 2], (4,), 10**5000]))


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(sorted({*OptionsAsked.__annotations__, "tp"})), ANYTHING, max_size=3))
def test_whatever_is_asked_there_is_an_answer_or_one_error(asked):
    # Without a model it ends at the latest there.
    with pytest.raises(TpplannerError) as error:
        tpplanner.simulate(model="no/such", gpus="1xl40s", isl=16, osl=2, **asked)
    assert "\n" not in str(error.value)


# Files

FILES = {"simulation.json", "simulation.csv", "latency_cdf.png", "degrees.png", "launch.sh",
         *(name.format(tp) for tp in (1, 2, 4) for name in ("requests-tp{}.csv", "steps-tp{}.trace.json", "load-tp{}.png"))}


def test_files_are_written_together_or_not_at_all(answer, tmp_path):
    folder = tmp_path / "out"
    written = write_simulated(answer, folder, overwrite=False)
    assert {path.name for path in written} == {path.name for path in folder.iterdir()} == FILES
    assert len((folder / "requests-tp2.csv").read_text().splitlines()) == 61
    assert json.loads((folder / "steps-tp1.trace.json").read_text())["traceEvents"]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(OutputError, match="already exist"):
        write_simulated(answer, folder, overwrite=False)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert {path.name for path in write_simulated(answer, folder, overwrite=True)} == FILES


@pytest.mark.parametrize("name", [*sorted(FILES), "requests-tp16.csv", "requests-tp2.parquet", "load-tp128.png"])
def test_any_file_that_might_be_written_refuses_before_the_run(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=name):
        check_simulated_outputs(tmp_path, overwrite=False)
    check_simulated_outputs(tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["requests-tp2.txt", "requests-tpx.csv", "my-requests-tp2.csv", "load-tp2.png.bak", "notes.md"])
def test_other_files_are_no_hindrance(tmp_path, name):
    (tmp_path / name).write_text("mine")
    check_simulated_outputs(tmp_path, overwrite=False)


def test_a_folder_that_cannot_be_written_refuses_before_the_run(tmp_path):
    (tmp_path / "file").write_text("here")
    (tmp_path / "degrees.png").mkdir()
    for folder in ("", " ", tmp_path / "file", tmp_path / "no" / "such", tmp_path):
        for overwrite in (False, True):
            with pytest.raises(OutputError):
                check_simulated_outputs(folder, overwrite=overwrite)
    check_simulated_outputs(tmp_path / "new", overwrite=False)
    assert not (tmp_path / "new").exists()
