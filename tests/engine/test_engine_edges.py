"""Edges of the engine's life: cancelled between two looks, closed, asked for nothing, planned too late."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tpplanner.api.engine_bench import engine_bench
from tpplanner.domain.engine import Switches
from tpplanner.engine import core as core_module
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.core import Core, Flight
from tpplanner.engine.engine import Engine
from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.errors import EngineError, WorkloadError
from tpplanner.serving.config import SchedulerConfig

OVERLAP = Switches(async_sched=True, early_feedback=True)
SHORT = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


def config_of(folder, **settings):
    return EngineConfig(model=str(folder), **({"device": "cpu", "num_threads": 1, "num_kv_blocks": 64} | settings))


@pytest.mark.parametrize("switches", [Switches(), OVERLAP], ids=["sequential", "overlap"])
def test_a_cancellation_between_two_looks_at_the_queue_is_no_error(tiny, switches):
    with Engine(config_of(tiny("llama"), switches=switches)) as running:
        told = []
        request_id = running.submit([5, 6], SHORT, told.append)
        look = running.core.has_work

        def look_and_cancel():
            found = look()
            running.cancel(request_id)
            return found

        running.core.has_work = look_and_cancel
        running.run()
        running.core.has_work = look
        assert str(told[-1].finish_reason) == "abort"
        [done] = running.generate([[5, 6]], SHORT)
        assert len(done.output_ids) == 4


def test_a_closed_engine_refuses_and_nobody_waits(tiny):
    running = Engine(config_of(tiny("llama")))
    assert running.await_idle()
    running.close()
    with pytest.raises(EngineError, match="is closed"):
        running.generate([[5, 6]], SHORT)
    with pytest.raises(EngineError, match="is closed"):
        running.submit([5, 6], SHORT, lambda output: None)
    running.close()


def test_a_prompt_in_chunks_has_started_with_its_first(tiny):
    with Engine(config_of(tiny("llama"), max_num_batched_tokens=16, max_num_seqs=4)) as running:
        [done] = running.generate([list(range(1, 81))], SHORT)
        records = list(running.core.records)
        assert [r.num_prefill_tok for r in records[:5]] == [16] * 5
        assert done.start_s == records[0].schedule_begin_s


def test_a_server_keeps_the_newest_records_only(tiny, monkeypatch):
    monkeypatch.setattr(core_module, "NUM_RECENT", 3)
    with Engine(config_of(tiny("llama"))) as running:
        running.generate([[5, 6]], SHORT)
        running.generate([[5, 6]], SHORT)
        assert [r.step_index for r in running.core.records] == [6, 7, 8]


@pytest.mark.parametrize(("load", "message"), [
    ({"concurrency": 0}, r"engine bench: concurrency must be between 1 and 1e\+13, got 0"),
    ({"concurrency": -1}, r"concurrency must be between 1"),
    ({"concurrency": 2, "num_warmup": -1}, r"num_warmup must be between 0"),
    ({"concurrency": 0, "request_rate": 2.0}, r"be one of --concurrency and --request-rate, got both|got 'both'"),
])
def test_a_load_that_makes_no_sense_is_refused_before_anything_starts(tiny, load, message):
    with pytest.raises(WorkloadError, match=message):
        engine_bench(config_of(tiny("llama")), {"isl": 4, "osl": 4, "num_requests": 2}, **load)


def test_a_context_beyond_the_models_own_is_the_models_own(tiny):
    with Engine(config_of(tiny("llama"), max_context_tok=10**9)) as running:
        assert running.config.max_context_tok == running.max_context_tok <= 8192


class ScriptedWorkers:
    """Says how long the loop waited before it planned."""

    def __init__(self):
        self.waited_s = []

    def has_output(self, timeout_s):
        self.waited_s.append(timeout_s)
        return False


def test_after_a_long_prompt_the_next_steps_are_planned_in_time():
    """1 s for a prompt of 1,000 tokens: a decode step of 20 ms is planned for 20 ms, the next prompt of 500 for half a second."""
    workers = ScriptedWorkers()
    limits = SchedulerConfig(num_kv_blocks=64, kv_block_size_tok=16, max_num_seqs=4, max_num_batched_tokens=1024)
    core = Core(EngineConfig(model="none"), limits, workers, 1024, ())
    core.is_serving = True

    def wait_of(num_prefill_tok):
        core._sent_s = time.perf_counter()
        core.await_planning_time(Flight(None, SimpleNamespace(num_prefill_tok=num_prefill_tok)))
        return workers.waited_s[-1]

    for _ in range(60):  # a mean over the last steps
        for num_prefill_tok, device_s in ((0, 0.020), (1000, 1.020)):
            core.took(SimpleNamespace(num_prefill_tok=num_prefill_tok, device_s=device_s))
    assert wait_of(0) == pytest.approx(0.019, abs=0.002)
    assert wait_of(500) == pytest.approx(0.519, abs=0.01)


DRIVER = """
import sys
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.engine import Engine
Engine(EngineConfig(model=sys.argv[1], tp=2, device="cpu", num_threads=1, num_kv_blocks=512))
"""


def test_a_driver_killed_while_its_workers_start_leaves_no_folder(tiny, tmp_path):
    deadline = time.monotonic() + 30.0
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tiny("llama"))], stderr=subprocess.PIPE, text=True,
                          env=os.environ | {"TMPDIR": str(tmp_path)}) as driver:
        while not list(tmp_path.glob("tpplanner-engine-*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3)  # the workers are there, and still import
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        words = driver.stderr.read()  # until the last worker has ended
    assert "Traceback" not in words
    assert not list(tmp_path.glob("tpplanner-engine-*"))
