"""ShareGPT conversations: which exchange is taken, how tokens are counted, and what is left out."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from trace_files import SHAREGPT, conversation, requests

from tpplanner.errors import WorkloadError
from tpplanner.io.traces import read_trace


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "chats.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def exchange(question_tok: int, answer_tok: int) -> dict[str, object]:
    return conversation(("human", "q" * question_tok), ("gpt", "a" * answer_tok))


def test_first_question_and_the_answer_after_it(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, SHAREGPT), chars_per_tok=2.0)
    assert requests(trace.traffic) == [(None, 21, 40), (None, 10, 8)]
    assert trace.num_left_out == 2
    assert trace.note.startswith("chats.json: 2 of 4 rows left out: no question with an answer, ")


def test_other_names_of_the_speakers_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff" + json.dumps([conversation(("user", "q" * 40), ("assistant", "a" * 40))]))
    assert requests(read_trace(path).traffic) == [(None, 10, 10)]


def test_lengths_that_the_benchmark_uses(tmp_path: Path) -> None:
    used = [(4, 4), (1024, 1024), (1024, 4), (4, 2044)]
    not_used = [(3, 4), (4, 3), (1025, 4), (1024, 1025), (4, 2045), (0, 4)]
    trace = read_trace(write(tmp_path, [exchange(*pair) for pair in used + not_used]), chars_per_tok=1.0)
    assert requests(trace.traffic) == [(None, *pair) for pair in used]
    assert trace.num_left_out == len(not_used)


def test_characters_are_not_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, [conversation(("human", "\u00e9\U0001f600" * 10), ("gpt", "\n\"" * 10))])
    assert requests(read_trace(path, chars_per_tok=1.0).traffic) == [(None, 20, 20)]


def test_a_counter_of_tokens(tmp_path: Path) -> None:
    path = write(tmp_path, [conversation(("human", "one two three four"), ("gpt", "five six seven eight nine"))])
    assert requests(read_trace(path, tokenizer=lambda text: len(text.split())).traffic) == [(None, 4, 5)]


def test_a_tokenizer_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tokenizer:
        @staticmethod
        def from_file(path: str) -> "Tokenizer":
            if not Path(path).is_file():
                raise Exception("No such file\nor directory")
            return Tokenizer()

        def encode(self, text: str, *, add_special_tokens: bool) -> SimpleNamespace:
            return SimpleNamespace(ids=[0] * (len(text) // 2 + 1000 * add_special_tokens))

    monkeypatch.setitem(sys.modules, "tokenizers", SimpleNamespace(Tokenizer=Tokenizer))
    path, tokenizer = write(tmp_path, SHAREGPT), tmp_path / "tokenizer.json"
    tokenizer.write_text("{}")
    assert requests(read_trace(path, tokenizer=tokenizer).traffic) == [(None, 20, 40), (None, 10, 8)]
    with pytest.raises(WorkloadError, match=r"none.json: is no readable tokenizer.json \(No such file or directory\)"):
        read_trace(path, tokenizer=str(tmp_path / "none.json"))


def test_without_the_tokenizer_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError):
        importlib.import_module("tokenizers")
    message = r"t\.json: the package tokenizers must be installed to read it: pip install tokenizers"
    with pytest.raises(WorkloadError, match=message):
        read_trace(write(tmp_path, SHAREGPT), tokenizer="t.json")


@pytest.mark.parametrize(("content", "options", "message"), [
    ("{}", {}, "is no JSON list (Expected `array`, got `object`)"),
    (SHAREGPT[:-30], {}, "is no JSON list (Input data was truncated)"),
    ("[" * 100_000, {}, "the JSON is nested too deeply"),
    ("[]", {}, "conversations must be at least one, got 0"),
    ([conversation()], {}, "conversations must be at least one (left out: 1 with no question with an answer"),
    ([exchange(9, 9), 5], {}, "conversation 2: conversation must be an object with a list conversations, got 5"),
    ([{"id": "a"}], {}, "conversation 1: conversation must be an object with a list conversations, got 'an object'"),
    ([{"conversations": "a"}], {}, "conversation 1: conversation must be an object with a list conversations"),
    ([{"conversations": ["a"]}], {}, "conversation 1: turn must be an object with texts from and value, got 'a'"),
    ([{"conversations": [{"from": "human"}]}], {}, "conversation 1: turn must be an object with texts from and value, got 'an"),
    ([{"conversations": [{"from": "human", "value": 5}]}], {}, "conversation 1: turn must be an object with texts"),
])
def test_bad_conversations(tmp_path: Path, content: object, options: dict[str, object], message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(WorkloadError) as refused:
        read_trace(path, **options)
    assert str(refused.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(("options", "message"), [
    ({"chars_per_tok": 0.0}, "trace: chars_per_tok must be between 0.1 and 100, got 0.0"),
    ({"chars_per_tok": 4.0, "tokenizer": len}, "trace: chars_per_tok must be absent with a tokenizer, got 4.0"),
])
def test_bad_options(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(WorkloadError) as refused:
        read_trace(write(tmp_path, SHAREGPT), **options)
    assert str(refused.value) == message
