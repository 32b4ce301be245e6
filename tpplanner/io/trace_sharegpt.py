"""ShareGPT conversations: the first question and its answer, as vLLM's serving benchmark takes them."""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from tpplanner.domain.checks import check_real
from tpplanner.domain.traffic import Traffic
from tpplanner.errors import WorkloadError, reject
from tpplanner.io.model_json import one_line
from tpplanner.io.trace_build import ReadTrace
from tpplanner.io.trace_columns import plain
from tpplanner.io.trace_file import unreadable
from tpplanner.io.trace_json import BYTE_ORDER_MARK, decode_json

CHARS_PER_TOK: Final = 4.0
"""Rule of thumb for English text and tokenizers of some 100,000 entries; code and other scripts have fewer."""

MIN_TOK, MAX_ISL_TOK, MAX_TOTAL_TOK = 4, 1024, 2048
"""vLLM, vllm/benchmarks/datasets/utils.py, is_valid_sequence: other conversations are not used."""

WHY: Final = (
    f"no question with an answer, one of them under {MIN_TOK} tokens, the question over {MAX_ISL_TOK:,} or both "
    f"over {MAX_TOTAL_TOK:,} (vLLM's rule)"
)
_ASKS: Final = frozenset({"human", "user"})
_ANSWERS: Final = frozenset({"gpt", "assistant", "chatgpt", "bing", "bard"})

CountTok = Callable[[str], int]


def read_sharegpt(
    path: Path, place: str, *, chars_per_tok: float | None = None, tokenizer: CountTok | str | Path | None = None
) -> ReadTrace:
    """Return the first question and answer of each conversation; nothing is known of times.

    Parameters
    ----------
    path, place
        A JSON list of objects with ``conversations``, a list of turns with ``from`` and ``value``.
    chars_per_tok
        Characters per token, where texts are not tokenized; 4 unless told.
    tokenizer
        Counts the tokens of a text, or is the path of a ``tokenizer.json``.

    Raises
    ------
    WorkloadError
        If the file is not of that form, both ways of counting are given, or the tokenizer cannot be loaded.
    """
    count_tok = _counter(chars_per_tok, tokenizer)
    isl_tok, osl_tok = [], []
    entries = _entries(path, place)
    for number, entry in enumerate(entries, start=1):
        where = f"{place}: conversation {number}"
        texts = _first_exchange(decode_json(bytes(entry), where), where)
        if texts is None:
            continue
        question_tok, answer_tok = map(count_tok, texts)
        if min(question_tok, answer_tok) < MIN_TOK or question_tok > MAX_ISL_TOK or question_tok + answer_tok > MAX_TOTAL_TOK:
            continue
        isl_tok.append(question_tok)
        osl_tok.append(answer_tok)
    num_left_out = len(entries) - len(isl_tok)
    if not isl_tok:
        rule = "be at least one" + (f" (left out: {num_left_out} with {WHY})" if num_left_out else "")
        reject(WorkloadError, "conversations", rule, 0, place)
    lengths = np.array([isl_tok, osl_tok], dtype=np.int64)
    traffic = Traffic(name=one_line(path.name), isl_tok=lengths[0], osl_tok=lengths[1])
    return ReadTrace(traffic=traffic, num_left_out=num_left_out, why=WHY if num_left_out else "")


def _entries(path: Path, place: str) -> list[msgspec.Raw]:
    """Return the conversations undecoded: as objects, all texts at once would take a multiple of the file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(error, place) from None
    try:
        return msgspec.json.decode(content.removeprefix(BYTE_ORDER_MARK), type=list[msgspec.Raw])
    except RecursionError:
        raise WorkloadError(f"{place}: the JSON is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise WorkloadError(f"{place}: is no JSON list ({one_line(error)})") from None


def _first_exchange(entry: object, where: str) -> tuple[str, str] | None:
    """Return the first question and the first answer after it; ``None`` where there are none."""
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    if not isinstance(turns, list):
        reject(WorkloadError, "conversation", "be an object with a list conversations", plain(entry), where)
    question: str | None = None
    for turn in turns:
        speaker = turn.get("from") if isinstance(turn, dict) else None
        text = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or not isinstance(text, str):
            reject(WorkloadError, "turn", "be an object with texts from and value", plain(turn), where)
        if question is None and speaker in _ASKS:
            question = text
        elif question is not None and speaker in _ANSWERS:
            return question, text
    return None


def _counter(chars_per_tok: float | None, tokenizer: CountTok | str | Path | None) -> CountTok:
    if tokenizer is None:
        per_tok = CHARS_PER_TOK if chars_per_tok is None else chars_per_tok
        check_real(WorkloadError, "trace", minimum=0.1, maximum=100.0, chars_per_tok=per_tok)
        return lambda text: math.ceil(len(text) / per_tok)
    if chars_per_tok is not None:
        reject(WorkloadError, "chars_per_tok", "be absent with a tokenizer", chars_per_tok, "trace")
    return _loaded(Path(tokenizer)) if isinstance(tokenizer, str | Path) else tokenizer


def _loaded(path: Path) -> CountTok:
    """Return the counter of a ``tokenizer.json``, without the special tokens that a chat template adds."""
    place = one_line(path)
    try:
        library = importlib.import_module("tokenizers")
    except ImportError:
        raise WorkloadError(f"{place}: the package tokenizers must be installed to read it: pip install tokenizers") from None
    try:
        encode = library.Tokenizer.from_file(str(path)).encode
    except Exception as error:  # the library raises plain Exception for a missing or damaged file
        raise WorkloadError(f"{place}: is no readable tokenizer.json ({one_line(error)})") from None
    return lambda text: len(encode(text, add_special_tokens=False).ids)
