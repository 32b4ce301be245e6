"""Killed processes, strangers, listeners that raise: one clear error, nothing left."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from processes import EVERY_SWITCH, LIMIT_S, LONG, SHORT, assert_all_end, config_of, is_alive

from tpplanner.domain.engine import Switches
from tpplanner.engine import workers as workers_module
from tpplanner.engine.config import Delays
from tpplanner.engine.engine import Engine
from tpplanner.engine.link import accept, connect, listen, new_key
from tpplanner.errors import EngineError


@pytest.mark.parametrize(("tp", "rank", "switches"), [(2, 1, EVERY_SWITCH), (1, 0, Switches())])
def test_a_killed_worker_ends_the_run(tiny, tp, rank, switches):
    with Engine(config_of(tiny("llama"), tp, switches=switches)) as running:
        pids = running.workers.process_ids
        assert len(pids) == tp
        runs, outputs, ended = threading.Event(), [], threading.Event()

        def hear(output):
            outputs.append(output)
            runs.set()
            if output.finish_reason is not None:
                ended.set()

        running.start_loop()
        for prompt in ([5, 6, 7], [8]):
            running.submit(prompt, LONG, hear)
        assert runs.wait(LIMIT_S)
        os.kill(pids[rank], signal.SIGKILL)
        assert ended.wait(LIMIT_S)
        assert_all_end(pids)
        running.await_idle()
        last = [output for output in outputs if output.finish_reason is not None]
        assert [str(output.finish_reason) for output in last] == ["error", "error"]
        assert {output.error for output in last} == {f"engine: rank {rank} was ended by signal 9; all ranks were ended"}
        with pytest.raises(EngineError, match=f"rank {rank} .*signal 9"):
            running.submit([1], SHORT, hear)
        with pytest.raises(EngineError, match=f"rank {rank} .*signal 9"):
            running.generate([[1]], SHORT)


def test_a_worker_killed_while_nobody_asks_is_noticed(tiny):
    with Engine(config_of(tiny("llama"))) as running:
        [done] = running.generate([[5, 6]], SHORT)
        assert len(done.output_ids) == 4
        [pid] = running.workers.process_ids
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        with pytest.raises(EngineError, match=r"rank 0 was ended by signal 9"):
            running.generate([[5, 6]] * 8, LONG)
        assert_all_end([pid])

    with Engine(config_of(tiny("llama"))) as running:
        running.start_loop()
        [pid] = running.workers.process_ids
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + LIMIT_S
        while running.failure is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(EngineError, match=r"rank 0 was ended by signal 9"):
            running.submit([1], SHORT, lambda output: None)
        assert_all_end([pid])


DRIVER = """
import sys, threading, time
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.engine.sampling_params import SamplingParams

running = Engine(EngineConfig(model=sys.argv[1], tp=2, device="cpu", num_threads=1, num_kv_blocks=512))
running.start_loop()
began = threading.Event()
running.submit([5, 6, 7], SamplingParams(temperature=0.0, max_tokens=1900, ignore_eos=True), lambda output: began.set())
began.wait()
print(*running.workers.process_ids, flush=True)
time.sleep(600)
"""


def test_a_killed_driver_leaves_no_worker_and_no_folder(tiny, tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(tiny("llama"))], stdout=subprocess.PIPE, text=True,
                          env=environment) as driver:
        try:
            pids = [int(word) for word in driver.stdout.readline().split()]
            assert len(pids) == 2
            assert all(is_alive(pid) for pid in pids)
            assert list(tmp_path.glob("tpplanner-engine-*"))
        finally:
            driver.kill()
    assert_all_end(pids, 10.0)
    assert not list(tmp_path.glob("tpplanner-engine-*"))


def test_a_rank_that_exits_by_itself_is_named_with_its_code(tiny):
    """As a worker that a library ends: its code is told, not guessed."""
    with Engine(config_of(tiny("llama"))) as running:
        [process] = running.workers._processes.values()
        process.kill()
        process.wait()
        process.returncode = 3
        with pytest.raises(EngineError, match=r"^engine: rank 0 ended with exit code 3; all ranks were ended$"):
            running.generate([[5, 6]], SHORT)


def test_a_listener_that_raises_fails_the_engine_and_nobody_waits_for_ever(tiny):
    def raising(output):
        raise ZeroDivisionError("in the caller's code")

    with Engine(config_of(tiny("llama"))) as running:
        pids = running.workers.process_ids
        running.submit([5, 6], SHORT, raising)
        with pytest.raises((EngineError, ZeroDivisionError), match="in the caller's code"):
            running.run()
        with pytest.raises(EngineError, match="in the caller's code"):
            running.submit([5, 6], SHORT, lambda output: None)
        assert_all_end(pids)


def test_closing_with_requests_open_aborts_them(tiny):
    outputs, runs = [], threading.Event()
    with Engine(config_of(tiny("llama"), delays=Delays(schedule_s=0.01))) as running:
        running.start_loop()
        for _ in range(3):
            running.submit([5, 6], LONG, lambda output: (outputs.append(output), runs.set()))
        assert runs.wait(LIMIT_S)
        pids = running.workers.process_ids
    assert [str(output.finish_reason) for output in outputs if output.finish_reason] == ["abort"] * 3
    assert_all_end(pids)


def test_strangers_at_the_port_do_no_harm(tiny, monkeypatch):
    """One says nothing, one talks nonsense, one goes at once: the ranks find their driver all the same."""
    strangers = []

    def listen_with_strangers(host, port):
        server = listen(host, port)
        for message in (None, b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff" * 64):
            stranger = socket.create_connection(server.getsockname())
            strangers.append(stranger)
            if message:
                stranger.sendall(message)
        strangers[1].close()
        return server

    monkeypatch.setattr(workers_module, "listen", listen_with_strangers)
    made = []
    thread = threading.Thread(target=lambda: made.append(Engine(config_of(tiny("llama")))), daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    for stranger in strangers:
        stranger.close()
    assert made, "the engine did not start while strangers were connected"
    with made[0] as running:
        assert len(running.generate([[5, 6]], SHORT)[0].output_ids) == 4


def test_a_wrong_key_is_refused():
    with listen("127.0.0.1", 0) as server:
        server.settimeout(LIMIT_S)
        refused = []

        def call():
            try:
                connect(server.getsockname(), new_key())
            except Exception as error:
                refused.append(type(error).__name__)

        caller = threading.Thread(target=call)
        caller.start()
        assert accept(server, new_key()) is None
        caller.join(LIMIT_S)
    assert refused == ["AuthenticationError"]
