"""The names, files and folders that lead to a model, and the hub behind them."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tpplanner.errors import ModelError
from tpplanner.io.model_config import load_model
from tpplanner.io.model_json import MAX_FILE_BYTES

SMALL = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10, "max_position_embeddings": 64,
}
# Per layer q, kv, o of 8x8 each, gate and up 8x32, down 16x8, two norms of 8; embedding and head 10x8
# each, a last norm of 8.
SMALL_PARAMS = 2 * (3 * 64 + 256 + 128 + 16) + 2 * 80 + 8


@pytest.mark.parametrize(("alias", "target", "precision", "kv", "context_tok"), [
    ("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct", "bf16", "bf16", 131072),
    ("LLAMA-3.1-70b-instruct", "meta-llama/Llama-3.1-70B-Instruct", "bf16", "bf16", 131072),
    ("Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct", "bf16", "bf16", 131072),
    ("qwen2.5-32b-instruct", "Qwen/Qwen2.5-32B-Instruct", "bf16", "bf16", 32768),
    ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf", "fp16", "fp16", 4096),
    ("nvidia/Llama-3.1-70B-Instruct-FP8", "meta-llama/Llama-3.1-70B-Instruct", "fp8", "fp8", 131072),
    ("RedHatAI/Meta-Llama-3.1-70B-Instruct-FP8", "meta-llama/Llama-3.1-70B-Instruct", "fp8", "bf16", 131072),
    ("Qwen/Qwen3-32B-FP8", "Qwen/Qwen3-32B", "fp8", "bf16", 40960),
    ("Qwen/Qwen2.5-72B-Instruct-AWQ", "Qwen/Qwen2.5-72B-Instruct", "int4", "bf16", 32768),
    ("zhipuai/GLM-5", "zai-org/GLM-5", "bf16", "bf16", 202752),
    ("zai-org/GLM-5-FP8", "zai-org/GLM-5", "fp8", "bf16", 202752),
    ("nvidia/DeepSeek-R1-0528-NVFP4-v2", "deepseek-ai/DeepSeek-R1", "nvfp4", "fp8", 163840),
])
def test_aliases(alias: str, target: str, precision: str, kv: str, context_tok: int) -> None:
    model = load_model(alias)
    assert model.num_params == load_model(target).num_params
    assert (model.precision.name, model.precision.kv.name) == (precision, kv)
    assert model.max_context_tok == context_tok
    assert model.precision.lm_head.num_bytes == 2


@pytest.mark.parametrize(("alias", "target"), [
    ("nvidia/Qwen3.5-397B-A17B-NVFP4", "Qwen/Qwen3.5-397B-A17B"),
    ("nvidia/Kimi-K2.5-NVFP4", "moonshotai/Kimi-K2.5"),
    ("nvidia/GLM-5-NVFP4", "zai-org/GLM-5"),
    ("nvidia/MiniMax-M2.5-NVFP4", "MiniMaxAI/MiniMax-M2"),
    ("nvidia/DeepSeek-R1-0528-FP4", "deepseek-ai/DeepSeek-R1"),
])
def test_nvfp4_copies_that_leave_attention_in_sixteen_bits(alias: str, target: str) -> None:
    model = load_model(alias)
    p = model.precision
    assert model.num_params == load_model(target).num_params
    assert (p.name, p.linear.name, p.expert.name, p.expert_activation.name) == ("nvfp4", "bf16", "nvfp4", "nvfp4")
    assert (p.lm_head.name, p.kv.name) == ("bf16", "fp8")
    assert load_model(alias, kv_cache_dtype="bf16").precision.kv.name == "bf16"


def test_alias_keeps_its_own_name_and_a_dtype_replaces_its_precision() -> None:
    model = load_model("nvidia/llama-3.1-70b-instruct-fp8", dtype="bf16")
    assert model.name == "nvidia/Llama-3.1-70B-Instruct-FP8"
    assert (model.precision.name, model.precision.kv.name) == ("bf16", "bf16")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


@pytest.mark.usefixtures("no_hub")
def test_unknown_id_names_neighbours_path_and_extra() -> None:
    with pytest.raises(ModelError) as caught:
        load_model("Qwen/Qwen2.5-33B-Instruct")
    message = str(caught.value)
    assert "Qwen/Qwen2.5-32B-Instruct" in message
    assert "path" in message
    assert "[hub]" in message
    assert "\n" not in message


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", [
    "", " ", "\0", "a\nb", "x" * 5000, "no/such/thing", "-", "../..", "/dev/null",
])
def test_nonsense_names(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def hub_with(monkeypatch: pytest.MonkeyPatch, download: object) -> None:
    module = ModuleType("huggingface_hub")
    module.hf_hub_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    # Other tests may have imported the real one, which knows an address that is out of reach here.
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)


class EntryNotFoundError(Exception):
    """Stands for the hub's own class: the reader knows it by name."""


def test_unknown_id_is_fetched_with_both_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    calls: list[SimpleNamespace] = []

    def download(**call: object) -> str:
        calls.append(SimpleNamespace(**call))
        return str(tmp_path / str(call["filename"]))

    hub_with(monkeypatch, download)
    model = load_model("someone/Small-1")
    assert (model.name, model.num_params, model.precision.name) == ("someone/Small-1", SMALL_PARAMS, "fp8")
    assert [call.filename for call in calls] == ["config.json", "hf_quant_config.json"]
    assert all(call.etag_timeout <= 10 for call in calls)


@pytest.mark.parametrize("error", [
    EntryNotFoundError("404\nnot here"), OSError("offline\nreally"), ValueError(),
])
def test_a_failing_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(**_: object) -> str:
        raise error

    hub_with(monkeypatch, download)
    with pytest.raises(ModelError) as caught:
        load_model("someone/Small-1")
    assert "someone/Small-1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_packaged_models_ask_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(**_: object) -> str:
        raise AssertionError("asked the hub")

    hub_with(monkeypatch, download)
    assert load_model("microsoft/phi-4").num_layers == 40


def test_file_and_directory_give_the_same_model(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**SMALL, "auto_map": {"AutoModel": "evil.Evil"}}))
    from_folder, from_file = load_model(str(folder)), load_model(str(folder / "config.json"))
    assert from_folder == from_file
    assert (from_folder.name, from_folder.place) == ("tiny", str(folder / "config.json"))


def test_directory_without_config_and_file_too_large(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(ModelError, match="larger than 10 MB"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"3", b"null", b'"x"', b"\xff\xfe", b'{"hidden_size": NaN}',
    b'{"vocab_size": Infinity}',
    b"[" * 100_000, b'{"a":' * 100_000, b'{"hidden_size": 1' + b"0" * 6000 + b"}",
])
def test_broken_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_model(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
