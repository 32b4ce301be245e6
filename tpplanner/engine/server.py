"""HTTP in OpenAI's form: ``/v1/completions``, ``/v1/models`` and ``/health`` of one engine.

Outputs come from the engine's thread; everything else happens on the event loop.
"""

import asyncio
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tpplanner.engine.engine import Engine
from tpplanner.engine.openai_bodies import Call, Prompts, choice_of, error_body, parse, reply_to
from tpplanner.engine.request import Output
from tpplanner.errors import EngineError, WorkloadError, reject

MAX_BODY_BYTES: Final = 8 * 2**20
GRACE_S: Final = 10  # for answers that are open at Ctrl-C


class Exchange:
    """One call: its requests to the engine, and what comes back for them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[int, int] = {}
        self._num_tok: dict[int, tuple[int, int]] = {}
        self.arrived: asyncio.Queue[tuple[int, Output] | None] = asyncio.Queue()

    def submit(self, prompts: Prompts, post: Callable[["Exchange", int, Output], None]) -> None:
        """Hand the prompts to the engine, in any thread."""
        for index, (prompt, params) in enumerate(prompts):
            self._open[index] = self._engine.submit(prompt, params, partial(post, self, index))

    async def outputs(self) -> AsyncIterator[tuple[int, Output]]:
        """Outputs, each with the index of its prompt; EngineError or ClientDisconnect where no more will come."""
        while self._open:
            try:
                item = await self.arrived.get()
            except asyncio.CancelledError:
                raise EngineError("the server shuts down") from None
            if item is None:
                raise ClientDisconnect
            index, output = item
            if output.finish_reason is not None:
                del self._open[index]
            if output.finish_reason in ("error", "abort"):
                raise EngineError(output.error or "the request was cancelled")
            self._num_tok[index] = output.num_prompt_tok, output.num_output_tok
            yield index, output

    def usage(self) -> dict[str, int]:
        """Tokens so far, over all prompts."""
        num_prompt_tok, num_output_tok = map(sum, zip(*self._num_tok.values(), strict=True))
        return {"prompt_tokens": num_prompt_tok, "completion_tokens": num_output_tok,
                "total_tokens": num_prompt_tok + num_output_tok}

    async def watch(self, receive: Receive) -> None:
        """Wait for the client to hang up; the body has been read before."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.arrived.put_nowait(None)

    def close(self) -> None:
        """Take back what has not ended, so that its KV blocks are free for others."""
        for request_id in self._open.values():
            self._engine.cancel(request_id)


class Completions:
    """``POST /v1/completions``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._posted: deque[tuple[Exchange, int, Output]] = deque()
        self._woken = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        exchange = Exchange(self._engine)
        watch: asyncio.Task[None] | None = None
        try:
            call, prompts = parse(await _read_body(Request(scope, receive)))
            if call.model != self._engine.model_name:
                raise HTTPException(404, f"model must be {self._engine.model_name}, got {call.model}")
            watch = asyncio.create_task(exchange.watch(receive))
            post = partial(self._post, asyncio.get_running_loop())
            await asyncio.to_thread(exchange.submit, prompts, post)  # tokenizing megabytes takes seconds
            await (_stream if call.stream else _answer)(exchange, call, send)
        except ClientDisconnect:
            pass
        finally:
            exchange.close()
            if watch is not None:
                watch.cancel()

    def _post(self, loop: asyncio.AbstractEventLoop, exchange: Exchange, index: int, output: Output) -> None:
        """Take an output over from the engine's thread, waking the loop once for all that a step brings."""
        self._posted.append((exchange, index, output))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first, so that whoever posts from here on wakes the loop again
        while self._posted:
            exchange, index, output = self._posted.popleft()
            exchange.arrived.put_nowait((index, output))


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        if len(body) <= MAX_BODY_BYTES:  # but read on: a client that still writes misses the answer
            body += chunk
    if len(body) > MAX_BODY_BYTES:
        raise HTTPException(413, f"a body has {MAX_BODY_BYTES} bytes at most")
    return bytes(body)


async def _answer(exchange: Exchange, call: Call, send: Send) -> None:
    texts: dict[int, str] = {}
    reasons: dict[int, str | None] = {}
    async for index, output in exchange.outputs():
        texts[index] = texts.get(index, "") + output.text
        reasons[index] = output.finish_reason
    choices = [choice_of(index, text, reasons[index]) for index, text in sorted(texts.items())]
    body = msgspec.json.encode(reply_to(call) | {"choices": choices, "usage": exchange.usage()})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


async def _stream(exchange: Exchange, call: Call, send: Send) -> None:
    async def event(data: bytes, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": b"data: %b\n\n" % data, "more_body": more})

    counts = (call.stream_options or {}).get("include_usage", False)
    reply = reply_to(call) | ({"usage": None} if counts else {})
    await send({"type": "http.response.start", "status": 200, "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]})
    try:
        async for index, output in exchange.outputs():
            await event(msgspec.json.encode(reply | {"choices": [choice_of(index, output.text, output.finish_reason)]}))
    except EngineError as error:
        return await event(error_body(503, str(error)), more=False)
    if counts:
        await event(msgspec.json.encode(reply | {"choices": [], "usage": exchange.usage()}))
    await event(b"[DONE]", more=False)


async def _refuse(request: Request, error: Exception) -> Response:
    match error:
        case HTTPException():
            status, message = error.status_code, error.detail
        case WorkloadError():
            status, message = 400, str(error)
        case EngineError():
            status, message = 503, str(error)
        case _:
            status, message = 500, "internal error"
    return Response(error_body(status, message), status, getattr(error, "headers", None), "application/json")


def build_app(engine: Engine) -> Starlette:
    """Return the application; the engine's loop gets a thread where it has none."""
    created = int(time.time())
    if not engine.is_running:
        engine.start_loop()

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{
            "id": engine.model_name, "object": "model", "created": created, "owned_by": "tpplanner",
            "max_model_len": engine.longest_tok}]})

    async def health(request: Request) -> Response:
        if engine.failure is not None:
            raise EngineError(str(engine.failure))
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[Route("/v1/completions", Completions(engine), methods=["POST"]), Route("/v1/models", models),
                Route("/health", health)],
        exception_handlers=dict.fromkeys((HTTPException, WorkloadError, EngineError, Exception), _refuse))


def serve(engine: Engine, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises
    ------
    EngineError
        If the address cannot be had, or a worker died.
    """

    async def look() -> None:
        server.should_exit |= engine.failure is not None

    if not 0 <= port < 2**16:
        reject(WorkloadError, "port", "be between 0 and 65535", port, "server")
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
    except OSError as error:
        raise EngineError(f"server: cannot listen on {host}:{port}: {error}") from error
    server = uvicorn.Server(uvicorn.Config(
        build_app(engine), log_level="warning", access_log=False, ws="none", lifespan="off",
        timeout_graceful_shutdown=GRACE_S, callback_notify=look, timeout_notify=0))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, for the caller closes the engine
    shown = f"[{host}]" if ":" in host else host
    print(f"listening on http://{shown}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    with listener, suppress(KeyboardInterrupt):
        server.run([listener])
    if engine.failure is not None:
        raise engine.failure
