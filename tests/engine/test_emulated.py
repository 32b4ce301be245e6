"""One rank of t on one device: its share is that of the real rank 0, its collectives take the time they are told to."""

import csv
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import config_of, one_line

from tpplanner.api.emulation import emulation_of, emulation_on
from tpplanner.api.engine_bench import engine_bench
from tpplanner.api.engine_files import run_document, run_text
from tpplanner.cost.communication import collective_s
from tpplanner.domain.engine import Switches
from tpplanner.domain.hardware import CollectiveOp
from tpplanner.engine.config import Emulation
from tpplanner.engine.engine import Engine
from tpplanner.errors import WorkloadError
from tpplanner.io.profile_hardware import load_hardware

torch = pytest.importorskip("torch")

LOOPS = {"sequential": Switches(), "overlap": Switches(async_sched=True, early_feedback=True),
         "divided": Switches(seq_parallel_sampling=True),
         "all": Switches(async_sched=True, early_feedback=True, seq_parallel_sampling=True)}


def emulation(tp=2, reduce_s=0.0, gather_s=0.0, exchange_s=0.0):
    """Collectives that take as long for any size up to a GB."""
    curve = {"all_reduce": reduce_s, "all_gather": gather_s, "all_to_all": exchange_s}
    return Emulation(tp=tp, source="a test", **{name: ((1.0, time_s), (1e9, time_s)) for name, time_s in curve.items()})


def emulated(folder, given, **settings):
    return config_of(folder, emulate=given, load_format="dummy", **settings)


def served(folder, given, switches, **settings):
    config = emulated(folder, given, switches=switches, **settings)
    return engine_bench(config, {"isl": 8, "osl": 24, "num_requests": 6}, concurrency=3, num_warmup=1)


def median_s(run, task):
    return float(np.median([getattr(step, task) for step in run.steps if not step.num_prefill_tok]))


def test_delay_by_hand():
    given = Emulation(tp=4, all_reduce=((1000.0, 10e-6), (2000.0, 30e-6), (4000.0, 40e-6)), all_gather=((8.0, 1e-6),),
                      all_to_all=((8.0, 0.0),))
    # Below the first point its time; half way from 10 to 30, a quarter from 30 to 40; 40 times 10,000 / 4,000 above.
    for size, time_s in ((1, 10e-6), (1000, 10e-6), (1500, 20e-6), (2000, 30e-6), (2500, 32.5e-6), (4000, 40e-6), (10000, 1e-4)):
        assert given.delay_s(CollectiveOp.ALL_REDUCE, size) == pytest.approx(time_s, rel=1e-12)
    assert given.delay_s(CollectiveOp.ALL_GATHER, 16) == pytest.approx(2e-6, rel=1e-12)
    assert given.delay_s(CollectiveOp.ALL_TO_ALL, 1e9) == 0.0
    assert given.delay_s(CollectiveOp.ALL_REDUCE, 0) == 0.0


@pytest.mark.parametrize(("changes", "told"), [
    ({"tp": 1}, "emulation: tp must be between 2"),
    ({"tp": 2.0}, "emulation: tp must be an integer"),
    ({"tp": 2000}, "emulation: tp must be between 2 and 1024"),
    ({"all_reduce": ()}, "all_reduce must be at least one pair"),
    ({"all_gather": ((1.0, 2.0, 3.0),)}, "all_gather must be at least one pair"),
    ({"all_to_all": [(1.0, 2.0)]}, "all_to_all must be at least one pair"),
    ({"all_reduce": ((2.0, 1e-6), (1.0, 1e-6))}, "all_reduce must have positive sizes in ascending order"),
    ({"all_reduce": ((1.0, 1e-6), (1.0, 1e-6))}, "all_reduce must have positive sizes in ascending order"),
    ({"all_reduce": ((0.0, 1e-6),)}, "all_reduce must have positive sizes"),
    ({"all_reduce": ((float("inf"), 1e-6),)}, "size_bytes must be a finite number"),
    ({"all_gather": ((1.0, float("nan")),)}, "time_s must be a finite number"),
    ({"all_gather": ((1.0, -1e-6),)}, "time_s must be >= 0"),
    ({"source": "two\nlines"}, "source must be one line of text"),
])
def test_an_emulation_that_makes_no_sense_is_one_line(changes, told):
    plain = {"tp": 2, "all_reduce": ((1.0, 0.0),), "all_gather": ((1.0, 0.0),), "all_to_all": ((1.0, 0.0),)}
    with pytest.raises(WorkloadError, match=told) as error:
        Emulation(**(plain | changes))
    assert one_line(error).startswith("emulation: ")


@pytest.mark.parametrize(("changes", "told"), [
    ({"emulate": 2}, "emulate must be an Emulation"),
    ({"tp": 2}, "tp must be 1 where one rank of several is emulated, got 2"),
    ({"load_format": "auto"}, "load_format must be dummy where one rank of several is emulated, got 'auto'"),
])
def test_settings_that_contradict_an_emulation_are_refused(changes, told):
    with pytest.raises(WorkloadError, match=told) as error:
        config_of("anywhere", **({"emulate": emulation(), "load_format": "dummy"} | changes))
    assert one_line(error).startswith("engine: ")


@pytest.mark.parametrize("tp", [2, 3])
def test_collectives_have_the_shape_of_real_ones_and_their_time(tp):
    from tpplanner.engine.emulated_ranks import EmulatedRanks

    vocab, rows = 50, 2 * tp
    ranks = EmulatedRanks(emulation(tp, 1e-3, 2e-3, 4e-3), vocab)
    ranks.connect(torch.device("cpu"), "file:///nowhere/store")
    assert (ranks.rank, ranks.tp) == (0, tp)
    logits, ids = torch.randn(rows, -(-vocab // tp)), torch.arange(2)
    for call, shape, least_s in (
            (lambda: ranks.all_reduce(logits), logits.shape, 1e-3), (lambda: ranks.gather_rows(logits), (rows, vocab), 2e-3),
            (lambda: ranks.scatter_rows(logits), (2, vocab), 4e-3), (lambda: ranks.gather_ids(ids), (rows,), 2e-3),
            (lambda: ranks.tell(ids), ids.shape, 2e-3)):
        times = []
        for _ in range(5):
            begin_s = time.perf_counter()
            out = call()
            times.append(time.perf_counter() - begin_s)
            assert out.shape == torch.Size(shape)
        assert least_s <= min(times) < least_s + 0.9e-3  # the next longer delay is 1 ms more
    width = logits.shape[1]
    assert torch.equal(ranks.gather_rows(logits)[:, width: 2 * width], logits[:, : min(width, vocab - width)])
    assert torch.equal(ranks.gather_ids(ids), torch.arange(2).repeat(tp))
    assert ranks.all_reduce(logits) is logits
    begin_s = time.perf_counter()
    assert ranks.gather_rows(logits[:0]).shape == (0, vocab)
    assert time.perf_counter() - begin_s < 1e-3  # nothing to send


@pytest.mark.parametrize("variant", ["llama", "llama-odd-heads", "qwen2-tied-odd"])
def test_the_share_is_that_of_a_real_rank(tiny, variant):
    """Weights, bytes of a KV block, and blocks that fit beside them; neither is that of t = 1."""
    folder, sized = tiny(variant), {"num_kv_blocks": None, "kv_cache_bytes": 1 << 20}
    shares = []
    for config in (config_of(folder, tp=2, load_format="dummy", **sized), emulated(folder, emulation(), **sized),
                   config_of(folder, **sized)):
        with Engine(config) as engine:
            shares.append((engine.workers.weight_bytes, engine.num_kv_blocks))
            assert len(engine.process_ids) == 1 + config.tp
    real, alone, whole = shares
    assert alone == real
    assert alone[0] < whole[0]
    assert alone[1] > whole[1]


def test_memory_and_threads_are_those_of_a_rank(tiny, monkeypatch):
    from tpplanner.engine import memory
    from tpplanner.engine.model_config import read_model
    from tpplanner.engine.workers import worker_environment

    model, device = read_model(tiny("llama")), torch.device("cpu")
    configs = [config_of(tiny("llama"), tp=4, load_format="dummy", num_kv_blocks=None, num_threads=None),
               emulated(tiny("llama"), emulation(4), num_kv_blocks=None, num_threads=None)]
    monkeypatch.setattr(memory, "open", lambda *a, **k: _meminfo(16_000_000), raising=False)
    for function in (lambda c: memory.free_bytes(device, c), lambda c: memory.activation_bytes(model, c, torch.float32),
                     lambda c: memory.num_kv_blocks(model, c, torch.float32, device),
                     lambda c: worker_environment(c)["OMP_NUM_THREADS"]):
        real, alone = map(function, configs)
        assert real == alone
    assert memory.free_bytes(device, configs[1]) == 16_000_000 * 1024 // 8  # half of it over four ranks


def _meminfo(available_kb):
    import io

    return io.StringIO(f"MemTotal: 64000000 kB\nMemAvailable: {available_kb} kB\n")


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("variant", ["llama", "llama-odd-vocab"])
def test_a_load_runs_to_its_end(tiny, variant, name):
    run = served(tiny(variant), emulation(3, 1e-5, 1e-5, 1e-5), LOOPS[name])
    assert run.requests.osl_tok.tolist() == [24] * 6
    assert run.emulated_tp == 3
    assert run.decode is not None


@pytest.mark.parametrize("name", ["sequential", "all"])
def test_steps_grow_by_their_collectives(tiny, name):
    """Four layers, two all-reduces each and one of the embedding; the exchange of the logits and that of the ids."""
    divided = LOOPS[name].seq_parallel_sampling
    free, slow = (served(tiny("llama"), given, LOOPS[name]) for given in (emulation(), emulation(2, 2e-3, 1e-3, 4e-3)))
    told_s = {"forward_s": 9 * 2e-3, "sampling_s": (4e-3 if divided else 1e-3) + 1e-3}
    for task, delay_s in told_s.items():
        grown_s = median_s(slow, task) - median_s(free, task)
        assert 0.8 * delay_s < grown_s < 1.9 * delay_s, (task, grown_s)  # a delay twice over would be too much
    assert slow.decode.step_s - free.decode.step_s > 0.8 * sum(told_s.values())


@pytest.mark.parametrize("tp", [2, 4, 8, 16])
def test_delays_are_those_of_the_cost_model(tp):
    """At the points exactly; between them a chord of the curve, a few per cent off."""
    hardware = load_hardware("h100-sxm")
    given = emulation_of(hardware, tp)
    for op in CollectiveOp:
        points = getattr(given, op.value)
        assert [size for size, _ in points] == [1024.0 * 2**k for k in range(17)]
        for size, time_s in points:
            expected_s = float(collective_s(hardware, op, tp=tp, size_bytes=size))
            assert time_s == pytest.approx(expected_s, rel=1e-12)
        for size in np.geomspace(1024.0, 2.0**26, 60):
            assert given.delay_s(op, size) == pytest.approx(float(collective_s(hardware, op, tp=tp, size_bytes=size)), rel=0.03)


def test_the_label_says_where_the_delays_come_from():
    for machine, fit, told in (("l4", None, "l4 (links of its datasheet)"), ("l40s", "vllm", "l40s (measured curves)"),
                               ("h200", None, "h200 (measured curves: all_reduce; else links of its datasheet)")):
        assert emulation_on(machine, 4, fit=fit).label == f"emulated: one rank of 4, collectives are delays of {told}"
    assert emulation_on("l40s", 4, fit="vllm").all_reduce != emulation_on("l40s", 4).all_reduce


def test_what_is_written_says_that_it_is_emulated(tiny, tmp_path):
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "tpplanner", "engine", "bench", "--model", str(tiny("llama")), "--device", "cpu", "--num-threads",
         "1", "--load-format", "dummy", "--num-kv-blocks", "64", "--emulate-tp", "2", "--system", "l4", "--isl", "8", "--osl",
         "8", "--num-requests", "2", "--concurrency", "2", "--save-dir", str(folder)],
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    label = "emulated: one rank of 2, collectives are delays of l4 (links of its datasheet)"
    assert label in out
    assert ", t = 2," in out.splitlines()[0]
    figures = json.loads((folder / "engine_run.json").read_text())
    assert (figures["tp"], figures["emulated"]) == (2, label)
    [row], requests = (list(csv.DictReader((folder / name).read_text().splitlines())) for name in ("run.csv", "requests.csv"))
    assert row["id"].endswith("-sequential-emulated")
    assert (row["tp"], row["source"]) == ("2", f"tpplanner engine bench; {label}")
    assert [r["emulated"] for r in requests] == [label] * 2
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert {step["emulated"] for step in steps} == {label}
    assert label in (folder / "trace.json").read_text()


def test_a_run_of_all_ranks_is_not_called_emulated(tiny):
    run = engine_bench(config_of(tiny("llama")), {"isl": 8, "osl": 4, "num_requests": 2}, concurrency=2, num_warmup=0)
    assert (run.emulated_tp, run_document(run)["emulated"]) == (None, None)
    assert "emulated" not in run_text(run)


@pytest.mark.parametrize(("flags", "told"), [
    (["--emulate-tp", "2"], "--machine must name the profile whose collectives --emulate-tp delays"),
    (["--machine", "h200"], "--machine must come with --emulate-tp"),
    (["--machine-fit", "vllm"], "--machine-fit must come with --emulate-tp"),
    (["--emulate-tp", "1", "--machine", "h200"], "tp must be between 2"),
    (["--emulate-tp", "2", "--machine", "h201"], "unknown GPU 'h201'"),
    (["--emulate-tp", "2", "--machine", "h200", "--machine-fit", "nope"], "no fit of engine 'nope'"),
    (["--emulate-tp", "2", "--machine", "h200", "--tp", "2"], "tp must be 1 where one rank of several is emulated"),
    (["--emulate-tp", "2", "--machine", "h200", "--load-format", "auto"], "load_format must be dummy"),
])
def test_flags_that_make_no_sense_are_one_line(tiny, run, flags, told):
    plain = ["engine", "bench", "--model", str(tiny("llama")), "--isl", "8", "--osl", "8", "--concurrency", "2"]
    code, out, err = run(*plain, "--load-format", "dummy", *flags)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert told in err


def test_a_gpu_sleeps_for_the_delay_less_its_launch():
    from tpplanner.engine.emulated_ranks import SleepPace

    pace = SleepPace(fixed_s=2e-6, cycles_per_s=1.5e9)
    assert pace.cycles(12e-6) == 15_000  # 10 us at 1.5 GHz
    assert pace.cycles(1e-6) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("delay_s", [10e-6, 50e-6, 1e-3])
def test_a_gpu_waits_as_long_as_it_is_told_inside_a_graph(delay_s):
    from tpplanner.engine.emulated_ranks import EmulatedRanks

    ranks, x = EmulatedRanks(emulation(2, delay_s), 50), torch.zeros(8, 64, device="cuda")
    ranks.connect(x.device, "file:///nowhere/store")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            ranks.all_reduce(x)
    times = []
    for _ in range(9):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(4_000_000)  # the host runs ahead: the graph's launch is not in the time
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    assert np.median(times) == pytest.approx(20 * delay_s, rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_steps_on_a_gpu_grow_by_their_collectives(tiny, cuda_graphs):
    free, slow = (served(tiny("llama"), given, LOOPS["all"], device="cuda", cuda_graphs=cuda_graphs)
                  for given in (emulation(), emulation(2, 2e-3, 1e-3, 4e-3)))
    for task, delay_s in (("forward_s", 18e-3), ("sampling_s", 5e-3)):
        assert 0.8 * delay_s < median_s(slow, task) - median_s(free, task) < 1.2 * delay_s
