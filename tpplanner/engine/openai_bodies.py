"""Bodies of ``/v1/completions``: calls with OpenAI's fields and vLLM's extensions, answers, errors."""

import re
import secrets
import time
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final, Literal

import msgspec

from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.errors import WorkloadError, reject

MAX_PROMPTS: Final = 2048  # of one call, as OpenAI has it
DEFAULT_MAX_TOKENS: Final = 16  # OpenAI's
_ONLY: Final[dict[str, Any]] = {"n": 1, "best_of": 1, "echo": False, "logprobs": None, "logit_bias": {}, "suffix": ""}
_PARAM: Final = re.compile(r"\$\.(\w+)|field `(\w+)`|^(?:\w+: )?(\w+) must")

Prompts = list[tuple[str | list[int], SamplingParams]]


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a completion but for its :class:`SamplingParams`."""

    model: str
    prompt: str | list[str | int | list[int]]
    seed: int | None = None
    stream: bool = False
    stream_options: dict[Literal["include_usage"], bool] | None = None
    user: str = ""

    def prompts(self, params: SamplingParams) -> Prompts:
        """Prompts, text or token ids, with their policies; without a seed each gets its own."""
        items: Sequence[str | int | list[int]] = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        kinds = {type(item) for item in items}
        if len(kinds) != 1 or (len(items) > MAX_PROMPTS and int not in kinds):
            reject(WorkloadError, "prompt", f"be text, token ids, or a list of up to {MAX_PROMPTS} of one of them", items)
        if int in kinds:
            items = [[item for item in items if isinstance(item, int)]]
        seed = self.seed + 2**64 if self.seed is not None and self.seed < 0 else self.seed  # OpenAI's have a sign
        return [(item, msgspec.structs.replace(params, seed=secrets.randbits(64) if seed is None else seed))
                for item in items if not isinstance(item, int)]


def parse(body: bytes) -> tuple[Call, Prompts]:
    """Read a body; ``null`` counts as not given.

    Raises
    ------
    WorkloadError
        If a field is malformed, unknown or asks for what is not served.
    """
    try:
        return _parsed(msgspec.json.decode(body, type=dict[str, Any]))
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise WorkloadError(str(error)) from error


def _parsed(fields: dict[str, Any]) -> tuple[Call, Prompts]:
    given = {field: value for field, value in fields.items() if value is not None}
    for field, only in _ONLY.items():
        value = given.pop(field, only)
        if (type(value), value) != (type(only), only):
            reject(WorkloadError, field, f"be {msgspec.json.encode(only).decode()}, nothing else is served", value)
    call = msgspec.convert({field: given.pop(field) for field in Call.__struct_fields__ if field in given}, Call)
    if call.stream_options is not None and not call.stream:
        reject(WorkloadError, "stream_options", "be given with stream only", call.stream_options)
    if given.get("top_k") == -1:
        given["top_k"] = 0  # vLLM's other way to say off
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    return call, call.prompts(msgspec.convert({"max_tokens": DEFAULT_MAX_TOKENS, **given}, SamplingParams))


def reply_to(call: Call) -> dict[str, Any]:
    """Begin an answer, or the events of a stream."""
    return {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": call.model}


def choice_of(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    """Return the text of one prompt, or the next piece of it."""
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def error_body(status: int, message: str) -> bytes:
    """Return an error in OpenAI's form, with the field that the message is about."""
    found = _PARAM.search(message)
    return msgspec.json.encode({"error": {
        "message": message, "type": "server_error" if status >= 500 else "invalid_request_error",
        "param": found and found[found.lastindex or 0], "code": HTTPStatus(status).name.lower()}})
