"""The HTTP server on a real engine and real sockets."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from tpplanner.engine.config import EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.engine.openai_bodies import parse
from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.engine.server import MAX_BODY_BYTES, build_app, serve
from tpplanner.errors import EngineError, WorkloadError

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


@pytest.fixture(scope="module")
def engine(tiny):
    with Engine(config(tiny("llama"))) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine):
    with listening(engine) as url, httpx.Client(base_url=url, timeout=WAIT_S) as client:
        yield client


@pytest.fixture
def body(engine):
    """Return a body that greedily gives 12 tokens; ``None`` takes a field away."""

    def make(**fields):
        plain = {"model": engine.model_name, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        return plain | fields

    return make


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


def test_answer_has_the_shape_that_clients_read(engine, client, body):
    answer = complete(client, body())
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", engine.model_name)
    assert abs(answer["created"] - time.time()) < 60
    [choice] = answer["choices"]
    assert set(choice) == {"index", "text", "finish_reason", "logprobs"}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert choice["text"]
    num_prompt_tok = len(engine.encode(PROMPT))
    assert answer["usage"] == {"prompt_tokens": num_prompt_tok, "completion_tokens": 12, "total_tokens": num_prompt_tok + 12}


def test_a_stream_carries_the_same_text(client, body):
    [whole] = complete(client, body())["choices"]
    chunks = streamed(client, body())
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    assert len(chunks) == 12  # one per token, so that a client can time them
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 11 + ["length"]


def test_usage_of_a_stream_comes_last_and_only_where_asked_for(engine, client, body):
    *chunks, last = streamed(client, body(stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 12
    assert last["usage"]["prompt_tokens"] == len(engine.encode(PROMPT))


def test_the_forms_of_a_prompt_mean_the_same(engine, client, body):
    ids, other = engine.encode(PROMPT), engine.encode("A prompt is read in chunks")
    [text] = texts(client, body())
    [other_text] = texts(client, body(prompt=other))
    assert texts(client, body(prompt=ids)) == [text]
    assert texts(client, body(prompt=[PROMPT, "A prompt is read in chunks"])) == [text, other_text]
    answer = complete(client, body(prompt=[other, ids]))
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [(0, other_text), (1, text)]
    assert answer["usage"]["prompt_tokens"] == len(ids) + len(other)
    assert answer["usage"]["completion_tokens"] == 24
    pieces = ["", ""]
    for chunk in streamed(client, body(prompt=[other, ids])):
        pieces[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert pieces == [other_text, text]


def test_null_counts_as_not_given_and_neutral_values_are_served(client, body):
    neutral = {"n": 1, "best_of": 1, "echo": False, "suffix": None, "logprobs": None, "logit_bias": {}, "user": "me",
               "stop": None, "seed": None, "top_p": None, "stream": False, "stream_options": None, "top_k": -1}
    assert texts(client, body(**neutral)) == texts(client, body())
    assert complete(client, body(max_tokens=None))["usage"]["completion_tokens"] == 16  # OpenAI's default


def test_seeds(client, body):
    hot = body(temperature=1.5, top_p=0.99, max_tokens=24)
    assert texts(client, hot | {"seed": 7}) == texts(client, hot | {"seed": 7})
    assert texts(client, hot | {"seed": -7}) == texts(client, hot | {"seed": 2**64 - 7})  # OpenAI's seeds have a sign
    assert len({*texts(client, hot | {"prompt": [PROMPT] * 4})}) == 4


def test_penalties_and_filters_reach_the_sampler(client, body):
    [plain] = texts(client, body(max_tokens=32))
    assert texts(client, body(max_tokens=32, frequency_penalty=2.0, presence_penalty=2.0)) != [plain]
    assert texts(client, body(max_tokens=32, repetition_penalty=10.0)) != [plain]
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert texts(client, body(max_tokens=32, temperature=1.0, seed=3, **narrow)) == [plain]


def test_stop_strings_end_the_text_before_them(client, body):
    [text] = texts(client, body(max_tokens=40))
    stop = text[8:11]
    for stops in (stop, ["not there", stop]):
        [choice] = complete(client, body(max_tokens=40, stop=stops))["choices"]
        assert (choice["text"], choice["finish_reason"]) == (text[:text.index(stop)], "stop")
    chunks = streamed(client, body(max_tokens=40, stop=stop))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text[:text.index(stop)]


def test_stop_tokens_end_the_output(engine, client, body):
    every = list(range(engine.vocab_size))
    answer = complete(client, body(stop_token_ids=every))
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("stop", 1)


def test_concurrent_clients_get_what_each_gets_alone(engine, client, body):
    prompts = [f"{PROMPT} {'and another ' * number}" for number in range(12)]
    alone = [texts(client, body(prompt=prompt))[0] for prompt in prompts]

    async def ask(session, prompt, stream):
        if not stream:
            return (await session.post("/v1/completions", json=body(prompt=prompt))).json()["choices"][0]["text"]
        async with session.stream("POST", "/v1/completions", json=body(prompt=prompt, stream=True)) as answer:
            return "".join([chunk["choices"][0]["text"] for chunk in events([line async for line in answer.aiter_lines()])])

    async def ask_all():
        async with httpx.AsyncClient(base_url=client.base_url, timeout=WAIT_S) as session:
            return await asyncio.gather(*(ask(session, prompt, number % 2) for number, prompt in enumerate(prompts)))

    assert asyncio.run(ask_all()) == alone
    free_again(engine)


MALFORMED = {
    "nothing": (b"", None), "not JSON": (b"{prompt}", None), "cut off": (b'{"model": "tiny", "prompt": "a', None),
    "more than JSON": (b"{} {}", None), "a list": (b"[]", None), "not UTF-8": (b'{"model": "\xff"}', None),
    "half a character": (b'{"prompt": "\\ud800"}', None), "deep": (b'{"prompt": ' + b"[" * 100_000, None),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_call_is_refused(client, body, case):
    refused(client.post("/v1/completions", content=MALFORMED[case][0]), 400)
    assert texts(client, body(max_tokens=1))


WRONG = [
    ("prompt", 7), ("prompt", []), ("prompt", ""), ("prompt", [[]]), ("prompt", [1, "a"]), ("prompt", ["a", [1]]),
    ("prompt", [1.0]), ("prompt", [True]), ("prompt", [-1]), ("prompt", [10**9]), ("prompt", [2**70]), ("prompt", {}),
    ("prompt", ["a"] * 2049), ("max_tokens", 0), ("max_tokens", "7"), ("max_tokens", 1.5), ("max_tokens", True),
    ("max_tokens", 2**70), ("temperature", -0.1), ("temperature", "hot"), ("temperature", 101), ("top_p", 0), ("top_p", 1.1),
    ("top_k", -2), ("min_p", 2), ("n", 2), ("n", True), ("best_of", 3), ("echo", True), ("echo", 0), ("logprobs", 0),
    ("logit_bias", {"5": 100}), ("suffix", "end"), ("stream", 1), ("stream", "true"), ("stream_options", {"include_usage": True}),
    ("stop", ""), ("stop", ["a", ""]), ("stop", 5), ("stop", ["x"] * 17), ("stop_token_ids", "5"), ("stop_token_ids", [-1]),
    ("seed", 2**64), ("seed", -2**64 - 1), ("seed", 0.5), ("presence_penalty", 3), ("frequency_penalty", -3),
    ("repetition_penalty", 0), ("ignore_eos", 1), ("user", 5), ("model", 5), ("no_such_field", 1), ("messages", []),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=[f"{field}={str(value)[:20]}" for field, value in WRONG])
def test_a_wrong_field_is_refused_by_name(client, body, field, value):
    error = refused(client.post("/v1/completions", json=body(**{field: value})), 400)
    assert field in error["message"]
    assert error["param"] in (field, "stream")


@pytest.mark.parametrize("field", ["model", "prompt"])
def test_a_missing_field_is_refused_by_name(client, body, field):
    fields = {name: value for name, value in body().items() if name != field}
    assert refused(client.post("/v1/completions", json=fields), 400)["param"] == field


def test_options_of_a_stream_are_checked(client, body):
    for options in ({"include_use": True}, {"include_usage": 1}, [], "usage"):
        answer = client.post("/v1/completions", json=body(stream=True, stream_options=options))
        assert refused(answer, 400)["param"] == "stream_options"


def test_a_prompt_that_is_too_long_is_refused_and_takes_its_neighbours_along(engine, client, body):
    too_long = [1] * engine.max_context_tok
    for stream in (False, True):
        refused(client.post("/v1/completions", json=body(prompt=too_long, stream=stream)), 400)
        refused(client.post("/v1/completions", json=body(prompt=[[1, 2], too_long], max_tokens=LONG, stream=stream)), 400)
    refused(client.post("/v1/completions", json=body(max_tokens=engine.max_context_tok)), 400)
    free_again(engine)
    assert texts(client, body(max_tokens=1))


def test_a_body_over_the_limit_is_refused(client, body):
    for content in (b" " * (MAX_BODY_BYTES + 1), iter([b" " * 2**20] * 9)):  # the second does not say its length
        assert refused(client.post("/v1/completions", content=content), 413)["code"]
    most = json.dumps(body(max_tokens=1)).encode()
    answer = client.post("/v1/completions", content=most + b" " * (MAX_BODY_BYTES - len(most)))
    assert answer.status_code == 200


def test_unknown_model_path_and_method(client, body):
    assert refused(client.post("/v1/completions", json=body(model="gpt-4")), 404)["param"] == "model"
    refused(client.post("/v1/chat/completions", json={}), 404)
    refused(client.get("/v1/completions"), 405)
    refused(client.post("/v1/models"), 405)


def test_models_and_health(engine, client):
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == engine.model_name
    assert (model["object"], model["max_model_len"]) == ("model", engine.max_context_tok)
    assert client.get("/health").status_code == 200


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
