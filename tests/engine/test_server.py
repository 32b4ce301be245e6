"""The HTTP server on a real engine and real sockets: answers, and what is refused."""

import asyncio
import json
import time

import httpx
import pytest
from http_clients import LONG, PROMPT, WAIT_S, complete, events, free_again, refused, streamed, texts

from tpplanner.engine.server import MAX_BODY_BYTES


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
