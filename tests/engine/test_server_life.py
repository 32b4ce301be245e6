"""The HTTP server: clients that hang up, workers that die, the end, rubbish."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from http_clients import LONG, PROMPT, WAIT_S, config, free_again, listening, refused, texts
from hypothesis import given
from hypothesis import strategies as st

from tpplanner.engine.engine import Engine
from tpplanner.engine.openai_bodies import parse
from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.engine.server import serve
from tpplanner.errors import EngineError, WorkloadError


@pytest.mark.parametrize("prompt", [PROMPT, [PROMPT, PROMPT]])
def test_who_hangs_up_mid_stream_gives_the_blocks_back(engine, client, body, prompt):
    free_again(engine)
    with client.stream("POST", "/v1/completions", json=body(prompt=prompt, max_tokens=LONG, stream=True)) as answer:
        lines = answer.iter_lines()
        for _ in range(6):
            next(lines)
        assert engine.num_free_kv_blocks < engine.num_kv_blocks
        num_steps = len(engine.core.records)
    free_again(engine)
    assert len(engine.core.records) - num_steps < LONG / 2
    assert texts(client, body(max_tokens=1))


def test_who_hangs_up_before_the_answer_gives_the_blocks_back(engine, client, body):
    free_again(engine)
    num_steps = len(engine.core.records)
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=body(max_tokens=LONG), timeout=0.5)
    free_again(engine)
    assert 0 < len(engine.core.records) - num_steps < LONG / 2
    assert texts(client, body(max_tokens=1))


def test_who_hangs_up_within_the_body_leaves_nothing(engine, client, body):
    address = client.base_url.host, client.base_url.port
    with socket.create_connection(address) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert texts(client, body(max_tokens=1))
    free_again(engine)


def test_a_dead_worker_is_an_error_for_everybody_and_the_server_answers_on(tiny, body):
    with Engine(config(tiny("llama"))) as engine:
        with listening(engine) as url, httpx.Client(base_url=url, timeout=WAIT_S) as client:
            long = body(max_tokens=LONG, stream=True, model=engine.model_name)
            with client.stream("POST", "/v1/completions", json=long) as answer:
                lines = (line for line in answer.iter_lines() if line)
                assert "text" in next(lines)
                os.kill(engine.process_ids[1], signal.SIGKILL)
                *_, last = lines
                assert "rank 0" in json.loads(last.removeprefix("data: "))["error"]["message"]
            for answer in (client.get("/health"), client.post("/v1/completions", json=body(model=engine.model_name))):
                assert "rank 0" in refused(answer, 503)["message"]
            assert client.get("/v1/models").status_code == 200
        with pytest.raises(EngineError, match="rank 0"):
            serve(engine, port=0)


SERVE = """
import sys
from tpplanner.engine import server
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.errors import EngineError
server.GRACE_S = int(sys.argv[2])
try:
    with Engine(EngineConfig(model=sys.argv[1], device="cpu", num_threads=1, num_kv_blocks=256)) as engine:
        print(engine.process_ids[1], file=sys.stderr)
        server.serve(engine, port=0)
except EngineError as error:
    sys.exit(str(error))
"""


@contextmanager
def server_of_its_own(folder, *, grace_s):
    """Run ``serve`` in a process; give it, the id of its worker and a client."""
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(folder), str(grace_s)], stderr=subprocess.PIPE, text=True)
    try:
        worker, line = int(process.stderr.readline()), process.stderr.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        with httpx.Client(base_url=line.split()[-1], timeout=WAIT_S) as client:
            yield process, worker, client
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("end", ["worker", signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_server_of_its_own_ends_in_order(tiny, body, end):
    folder = tiny("llama")
    with server_of_its_own(folder, grace_s=10) as (process, worker, client):
        call = body(model=folder.name, max_tokens=100, stream=True)
        with client.stream("POST", "/v1/completions", json=call) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(*((worker, signal.SIGKILL) if end == "worker" else (process.pid, end)))
            *_, last = [line for line in lines if line]
        # Who was being served gets the whole answer where that is possible.
        assert ("error" in last) if end == "worker" else (last == "data: [DONE]")
        _, said = process.communicate(timeout=WAIT_S)
        if end == "worker":
            assert process.returncode == 1
            assert said == "engine: rank 0 was ended by signal 9; all ranks were ended\n"
        else:
            assert (process.returncode, said) == (0, "")


@pytest.mark.slow
def test_answers_that_take_too_long_are_cut_at_ctrl_c(tiny, body):
    folder = tiny("llama")
    with server_of_its_own(folder, grace_s=1) as (process, _, client), ThreadPoolExecutor(1) as other:
        call = body(model=folder.name, max_tokens=LONG)
        whole = other.submit(client.post, "/v1/completions", json=call)
        with client.stream("POST", "/v1/completions", json=call | {"stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            *_, last = [line for line in lines if line]
        assert "shuts down" in json.loads(last.removeprefix("data: "))["error"]["message"]
        assert "shuts down" in refused(whole.result(), 503)["message"]
        _, said = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0
        assert "Traceback" not in said


def test_an_address_in_use_is_one_clear_error(engine):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EngineError, match="server: cannot listen"):
        serve(engine, port=taken.getsockname()[1])
    for port in (-1, 65536):
        with pytest.raises(WorkloadError, match="port must be between"):
            serve(engine, port=port)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=6)
FIELDS = st.sampled_from(["model", "prompt", "stream", "stream_options", "n", "logprobs", "user",
                          *SamplingParams.__struct_fields__])


@given(st.dictionaries(FIELDS, JSON, max_size=5), st.binary(max_size=3), st.integers(0, 200))
def test_no_body_breaks_the_reader(fields, rubbish, cut):
    for body in (json.dumps({"model": "m", "prompt": "p"} | fields).encode(), json.dumps(fields).encode()[:cut] + rubbish):
        try:
            call, prompts = parse(body)
        except WorkloadError as error:
            assert "\n" not in str(error)
        else:
            assert call.model is not None
            assert all(isinstance(params, SamplingParams) for _, params in prompts)
