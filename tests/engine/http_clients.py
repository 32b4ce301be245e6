"""An HTTP server on a real engine, and clients that ask it."""

import json
import socket
import threading
import time
from contextlib import contextmanager

import uvicorn

from tpplanner.engine.config import EngineConfig
from tpplanner.engine.server import build_app

PROMPT = "The scheduler admits a request"
LONG = 1500
"""Tokens that take seconds: who hangs up before has an effect."""
WAIT_S = 20.0


@contextmanager
def listening(engine):
    """Serve from a thread on a free port; give the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_app(engine), log_level="error", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive()


def config(folder):
    return EngineConfig(model=str(folder), device="cpu", num_threads=1, num_kv_blocks=256, max_num_batched_tokens=256)


def complete(client, body):
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def texts(client, body):
    return [choice["text"] for choice in complete(client, body)["choices"]]


def events(lines):
    """Data of the events of a stream, which ends as OpenAI's does."""
    data = [line for line in lines if line]
    assert all(line.startswith("data: ") for line in data)
    assert data[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in data[:-1]]


def streamed(client, body):
    with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        return events(answer.iter_lines())


def eventually(true):
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_again(engine):
    eventually(lambda: engine.num_free_kv_blocks == engine.num_kv_blocks)


def refused(answer, status):
    """Check an error's form and return what it says."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert error["message"]
    assert "\n" not in error["message"]
    return error
