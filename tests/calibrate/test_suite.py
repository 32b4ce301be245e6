"""The benchmarks run on a CPU: every case once, right answers only, what fails is noted and the rest goes on."""

import os
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibrate import bench_attention, bench_collectives, bench_gemm, bench_host, bench_layer, bench_memory, bench_sampling
from calibrate.bench import Bench, Plan, WrongAnswerError, close_to
from calibrate.machine import Nvml, last_level_cache_bytes, machine_facts
from calibrate.neighbours import Neighbours
from calibrate.samples import SampleLog
from calibrate.scopes import SCOPES, engine_model, plan_of
from calibrate.suite import Part, parts, run_suite
from calibrate.timing import host_times_s
from tpplanner.domain.engine import LOOPS
from tpplanner.errors import EngineError
from tpplanner.io.calibration_samples import TINY_MODEL, read_samples

TINY = engine_model(TINY_MODEL)
PLAN = Plan(models=(TINY,), degrees=(1, 2), num_tok=(1, 4), context_tok=(40,), dtypes=("fp32",), budget_s=0.0)


@pytest.fixture
def bench():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench(device=torch.device("cpu"), nvml=Nvml(None))
    torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "cases", "prepare"), [
    (bench_gemm.NAME, bench_gemm.cases(PLAN), bench_gemm.prepare),
    (bench_attention.DECODE, bench_attention.decode_cases(PLAN), bench_attention.prepare_decode),
    (bench_attention.PREFILL, bench_attention.prefill_cases(PLAN), bench_attention.prepare_prefill),
    (bench_layer.NAME, bench_layer.cases(PLAN), bench_layer.prepare),
    (bench_layer.STEP, bench_layer.step_cases(PLAN), bench_layer.prepare_step),
    (bench_sampling.NAME, bench_sampling.cases(PLAN), bench_sampling.prepare),
    (bench_memory.NAME, list(bench_memory.cases(PLAN))[:2], bench_memory.prepare),
])
def test_every_case_is_checked_and_timed(bench, name, cases, prepare):
    cases = list(cases)
    assert cases
    with torch.no_grad():
        for case in cases:
            sample = bench.time(name, case, prepare(case, bench), budget_s=0.0)
            assert len(sample.times_s) == 5
            assert all(time_s > 0 for time_s in sample.times_s)
            assert (sample.case, sample.timer, sample.note) == (dict(case), "host", "")


def test_shapes_are_those_of_one_rank_of_every_degree():
    half = Plan(models=(TINY,), degrees=(2,), num_tok=(1,), context_tok=(1,), dtypes=("fp32",), budget_s=0.0)
    assert bench_gemm.shapes(half) == [
        ((4 + 2 * 2) * 32, 256), (256, 4 * 32), (2 * 352, 256), (256, 352), (2048, 256)]


def test_inputs_rotate_past_the_cache(bench):
    cache = last_level_cache_bytes()
    assert bench.rotation(cache / 2) == 4
    assert bench.rotation(10 * cache) == 1


def test_what_runs_before_a_piece_is_not_timed():
    seen = []

    def before(i):
        seen.append(("before", i))
        time.sleep(0.02)

    def call(i):
        seen.append(("call", i))
        time.sleep(0.001)

    times = host_times_s([(before, call), (before, call)], budget_s=0.0, num_warmup=1, least=3)
    assert seen[:4] == [("before", 0), ("call", 0)] * 2
    assert len(times) == 3
    # Two calls of a millisecond; one wait before a call would be twenty.
    assert min(times) >= 0.002
    assert min(times) < 0.02


def test_a_layer_is_timed_in_its_parts_each_after_a_product(bench):
    case = {"dtype": "fp32", "num_tok": 4, "hidden_size": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16,
            "num_columns": 96}
    with torch.no_grad():
        prepared = bench_layer.prepare(case, bench)
        # The rows that come out of down, QKV, out, gate-up.
        assert [before(0).shape[1] for before, _ in prepared.pieces] == [64, (4 + 2 * 2) * 16, 64, 2 * 96]
        shapes = [None if (out := call(0)) is None else tuple(out.shape) for _, call in prepared.pieces]
    # Norm, cache write, norm, gating.
    assert shapes == [(4, 64), None, (4, 64), (4, 96)]


def test_neighbours_work_and_rest(bench):
    case = {"dtype": "fp32", "num_tok": 1, "out_features": 64, "in_features": 64}
    with Neighbours(1) as neighbours:
        (process,) = neighbours._processes
        for _ in range(2):
            neighbours.work(bench_gemm.NAME, case)
            before_s, end_s = cpu_time_s(process.pid), time.monotonic() + 20
            while cpu_time_s(process.pid) - before_s < 0.05 and time.monotonic() < end_s:
                time.sleep(0.05)
            assert cpu_time_s(process.pid) - before_s >= 0.05
            neighbours.rest()
            before_s = cpu_time_s(process.pid)
            time.sleep(0.3)
            assert cpu_time_s(process.pid) - before_s <= 0.02
        process.kill()
        process.wait()
        with pytest.raises(WrongAnswerError, match="a neighbour of the timed process has ended"):
            neighbours.work(bench_gemm.NAME, case)


def cpu_time_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_kernels_are_timed_with_every_rank_of_a_degree_at_work(bench):
    found = [part for part in parts(PLAN, bench, num_devices=2) if part.cases and "num_busy" in part.cases[0]]
    assert [part.name for part in found] == [bench_gemm.NAME, bench_attention.DECODE]
    half = replace(PLAN, degrees=(2,))
    assert found[0].cases == [{**case, "num_busy": 2} for case in bench_gemm.cases(half)]
    with torch.no_grad():
        samples = [s for several in found[0].measure(found[0].cases[:2]) for s in several]
    assert [s.case["num_busy"] for s in samples] == [2, 2]
    assert all(len(s.times_s) == 5 for s in samples)
    # One device has no neighbour to share with.
    assert not [part for part in parts(PLAN, bench, num_devices=1) for case in part.cases if "num_busy" in case]


def test_a_wrong_answer_is_not_timed():
    with pytest.raises(WrongAnswerError, match=r"gemm: differs from the plain computation by 0\.5 of the largest value"):
        close_to(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0]), tolerance=0.1, what="gemm")
    with pytest.raises(WrongAnswerError):
        close_to(torch.tensor([float("nan")]), torch.tensor([1.0]), tolerance=0.1, what="gemm")


def test_collectives_of_two_ranks(bench):
    cases = [{"op": op, "tp": 2, "mode": "eager", "size_bytes": 4096} for op in bench_collectives.OPS]
    samples = list(bench_collectives.run_degree(cases, tp=2, budget_s=0.0))
    assert [s.case for s in samples] == cases
    assert all(len(s.times_s) >= 10 for s in samples)


def test_host_tasks_of_both_loops(bench):
    cases = [{"loop": loop, "tp": 1, "num_seqs": 3} for loop in LOOPS]
    samples = [s for several in bench_host.measure(cases, bench) for s in several]
    tasks = {"schedule", "prepare_input", "process_output", "exposed", "deliver", "reply", "device"}
    assert {(s.case["loop"], s.case["task"]) for s in samples} == {(loop, task) for loop in LOOPS for task in tasks}
    assert all(len(s.times_s) > 20 for s in samples)


def parts_of(measure):
    return [Part("one", [{"n": n} for n in range(4)], measure), Part("two", [{"n": 0}], measure)]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, bench):
    log, ran = SampleLog(tmp_path, {"device": "cpu"}), []

    def stop_at_two(cases):
        for case in cases:
            if case["n"] == 2 and len(ran) < 3:
                raise KeyboardInterrupt
            ran.append(case["n"])
            yield [bench.sample("one", case, [1.0], "host")]

    with pytest.raises(KeyboardInterrupt):
        run_suite(parts_of(stop_at_two), log, lambda progress: None, bench=bench)
    assert ran == [0, 1]
    ran += [None, None]
    told = []
    assert run_suite(parts_of(stop_at_two)[:1], log, told.append, bench=bench) == []
    assert ran == [0, 1, None, None, 2, 3]
    assert [(p.num_done, p.num_cases) for p in told] == [(3, 4), (4, 4)]
    assert [s.case["n"] for s in read_samples(log.path("one"))] == [0, 1, 2, 3]


def test_every_case_is_measured_in_every_pass(tmp_path, bench):
    def measure(cases):
        for case in cases:
            yield [bench.sample("one", case, [1.0], "host")]

    log, part = SampleLog(tmp_path, {}), Part("one", [{"n": 1}, {"n": 2}], measure)
    assert run_suite([part], log, lambda progress: None, bench=bench, num_rounds=2) == []
    assert [(s.round, s.case["n"]) for s in read_samples(log.path("one"))] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    # A third pass adds to the two that are there.
    told = []
    assert run_suite([part], log, told.append, bench=bench, num_rounds=3) == []
    assert [(p.num_done, p.num_cases) for p in told] == [(5, 6), (6, 6)]


def test_what_failed_is_said_and_tried_again(tmp_path, bench):
    broken = [True]

    def measure(cases):
        for case in cases:
            yield [bench.sample("one", case, [], "host", note="failed: no such kernel") if broken[0]
                   else bench.sample("one", case, [1.0], "host")]

    log, part = SampleLog(tmp_path, {}), Part("one", [{"n": 1}], measure)
    assert run_suite([part], log, lambda progress: None, bench=bench) == ["one {'n': 1}: no such kernel"]
    assert log.done("one") == set()
    broken[0] = False
    assert run_suite([part], log, lambda progress: None, bench=bench) == []
    assert len(log.done("one")) == 1


def test_an_engine_that_fails_ends_its_benchmark_and_not_the_others(tmp_path, bench):
    def fails(cases):
        raise EngineError("rank 0: no memory")
        yield

    def measure(cases):
        for case in cases:
            yield [bench.sample("two", case, [1.0], "host")]

    log = SampleLog(tmp_path, {})
    every = [Part("one", [{"n": 1}], fails), Part("two", [{"n": 1}], measure)]
    assert run_suite(every, log, lambda progress: None, bench=bench) == ["one: rank 0: no memory"]
    assert len(log.done("two")) == 1


def test_a_rank_that_fails_ends_the_others():
    ranks = [subprocess.Popen(["sleep", "60"]), subprocess.Popen(["false"])]
    bench_collectives._end_together(ranks)
    assert [rank.wait(5) for rank in ranks] == [-9, 1]


def test_neighbours_that_ended_are_started_anew(bench):
    case = {"dtype": "fp32", "num_tok": 1, "out_features": 64, "in_features": 64}
    with Neighbours(1) as neighbours:
        neighbours._processes[0].kill()
        neighbours.restart()
        neighbours.work(bench_gemm.NAME, case)
        neighbours.rest()


def test_a_wrong_answer_ends_its_benchmark_and_not_the_others(tmp_path, bench):
    def measure(cases):
        for case in cases:
            if case["n"] == 1:
                raise WrongAnswerError("one: is wrong")
            yield [bench.sample("one", case, [1.0], "host")]

    told = []
    assert run_suite(parts_of(measure), SampleLog(tmp_path, {}), told.append, bench=bench) == ["one: one: is wrong"]
    assert [p.bench for p in told] == ["one", "two"]


def test_out_of_memory_at_one_shape_is_noted(tmp_path, bench, monkeypatch):
    real = bench_gemm.prepare

    def scarce(case, where):
        if case["num_tok"] == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(case, where)

    monkeypatch.setattr(bench_gemm, "prepare", scarce)
    with torch.no_grad():
        gemm = next(p for p in parts(PLAN, bench, num_devices=1) if p.name == "gemm")
        log = SampleLog(tmp_path, {})
        assert run_suite([gemm], log, lambda progress: None, bench=bench) == []
    samples = list(read_samples(log.path("gemm")))
    assert len(samples) == len(gemm.cases)
    assert {s.note for s in samples if not s.times_s} == {"out of memory"}
    assert {s.case["num_tok"] for s in samples if not s.times_s} == {4}


class Throttled(Nvml):
    throttle_reasons = 0x4


def test_a_device_that_holds_its_clocks_down_says_so():
    hot = Bench(device=torch.device("cpu"), nvml=Throttled(None))
    assert hot.sample("gemm", {}, [1.0], "event").note == "clocks are held down (NVML reasons 0x4)"


def test_facts_name_no_host_and_do_not_change():
    facts = machine_facts(torch.device("cpu"), num_threads=1)
    assert facts == machine_facts(torch.device("cpu"), num_threads=1)
    assert socket.gethostname() not in str(facts)


def test_a_larger_scope_holds_a_smaller_one():
    for device in ("cpu", "cuda"):
        sizes = [SCOPES[scope, device] for scope in ("quick", "default", "full")]
        cases = [size.num_rounds * len(size.num_tok) * len(size.context_tok) for size in sizes]
        assert cases[0] < cases[1] < cases[2]
    assert plan_of("quick", "cpu", (TINY,), degrees=(1,)).dtypes == ("fp32",)
