"""Small random models of each family, a tokenizer for them, and what Hugging Face's own code makes of a prompt.

Default weights of transformers give a model that says one token for ever. Here layers outweigh the embedding, attention
is sharp and norms and biases are not neutral, so a wrong position, mask, bias or head shows in the tokens.
"""

import json
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from smollm2 import quiet

ODD_HEADS = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 288}
ODD_VOCAB = {"vocab_size": 515, "tie_word_embeddings": False}

COMMON = {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 640, "num_attention_heads": 8,
          "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
          "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# Trained for 64 tokens, stretched 8 times: of 16 wavelengths some are kept, some blended, some stretched.
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
QWEN_ROPE = {"rope_type": "default", "rope_theta": 1000000.0}
# Architecture, fields of its own, and a seed with which the best two logits of every `tiny_prompts` step are well apart.
OWN = {
    "llama": ("llama", {"rope_parameters": PLAIN_ROPE}, 3),
    "llama-tied": ("llama", {"rope_parameters": PLAIN_ROPE, "tie_word_embeddings": True}, 2),
    "llama-rope-scaled": ("llama", {"rope_parameters": LLAMA3_ROPE}, 3),
    "qwen2": ("qwen2", {"rope_parameters": QWEN_ROPE}, 8),
    "qwen3": ("qwen3", {"rope_parameters": QWEN_ROPE, "head_dim": 64}, 2),
}
FAMILIES = tuple(OWN)
# What parity is tested on: the families, and what 2 ranks cannot share evenly or a published folder has otherwise.
VARIANTS = {family: (family, {}) for family in OWN} | {
    "llama-odd-heads": ("llama", ODD_HEADS | {"seed": 3}),
    "llama-odd-vocab": ("llama", ODD_VOCAB | {"seed": 4}),
    "llama-biased": ("llama", {"attention_bias": True, "seed": 9}),
    "qwen2-tied-odd": ("qwen2", ODD_HEADS | ODD_VOCAB | {"tie_word_embeddings": True, "seed": 19}),
    "legacy-sharded": ("llama-rope-scaled", {"legacy_rope": True, "max_shard_size": "2MB"}),
}

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n'}}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
SENTENCES = (
    "The scheduler admits a request when its blocks fit, and preempts the youngest when they do not.",
    "A prompt is read in chunks; after the last chunk the first token is sampled, one more in each step that follows.",
    "user assistant system: the answer, the question and the rule are written one after the other.",
    "Größe, Übung und Straße; déjà vu, naïve, señor: letters of two bytes are learnt in part only.",
)


def make_tiny(folder: Path, family: str, *, seed: int | None = None, legacy_rope: bool = False, max_shard_size: str = "5GB",
              **overrides: object) -> Path:
    """Write a model of the family to a folder: config.json, safetensors in float32, tokenizer.json and their settings.

    ``overrides`` are fields of config.json, ``legacy_rope`` writes RoPE as transformers 4 did, and a ``max_shard_size``
    as ``"1MB"`` gives several files with an index.
    """
    with quiet():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        kind, own, usual_seed = OWN[family]
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(COMMON | own | overrides)), dtype=torch.float32)
        fill(model, torch.Generator().manual_seed(usual_seed if seed is None else seed))
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
    if legacy_rope:
        write_legacy_rope(folder / "config.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[1], "eos_token": SPECIAL[2],
        "unk_token": SPECIAL[0], "pad_token": SPECIAL[2], "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE}, indent=2), encoding="utf-8")
    return folder


def fill(model, generator) -> None:
    """Overwrite every weight: matrices keep the size of their input, queries and keys raise it, so that attention is sharp."""
    import torch

    sharp = 2.4  # scores spread by 6; at 3 rounding grows threefold, at 1.6 one token follows for ever
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                weight.uniform_(0.6 * sharp, 1.4 * sharp, generator=generator)
            elif name.endswith("norm.weight"):
                weight.uniform_(0.6, 1.4, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0, 0.2, generator=generator)
            elif "embed_tokens" in name or "lm_head" in name:  # small beside the layers: tied logits do not echo the input
                weight.normal_(0, 1.5 / weight.shape[1] ** 0.5, generator=generator)
            else:
                gain = sharp if "q_proj" in name or "k_proj" in name else 1.0
                weight.normal_(0, gain / weight.shape[1] ** 0.5, generator=generator)


def write_legacy_rope(file: Path) -> None:
    """Put RoPE into ``rope_theta`` and ``rope_scaling``, as most published config.json have it."""
    config = json.loads(file.read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")


@lru_cache
def tiny_tokenizer():
    """Byte-level BPE of at most 448 tokens. It never saw an emoji or a CJK character: those are three or four tokens each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=448, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL]))
    return made


def tiny_prompts() -> list[list[int]]:
    """Prompts of 1 token, of about one block of 16, of several, with characters in pieces, and of one token all along."""
    text = tiny_tokenizer().encode(" ".join(SENTENCES)).ids
    return [text[:1], text[20:36], text[5:22], text[:75], tiny_tokenizer().encode("日本 🙂 Straße").ids, [300] * 33]


@contextmanager
def hugging_face(folder: Path):
    """Yield torch and Hugging Face's own model of a folder, in float32; one thread, since two wait for each other."""
    with quiet():
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                yield torch, hf_model(folder)
        finally:
            torch.set_num_threads(threads)


@lru_cache(maxsize=2)
def hf_model(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    model.generation_config.eos_token_id = None
    return model


def hf_greedy(folder: Path, prompt_ids: list[int], num_tok: int) -> list[int]:
    """Return the tokens that transformers generates greedily, the end of the text ignored."""
    return list(_greedy(folder, tuple(prompt_ids), num_tok))


@lru_cache(maxsize=1024)
def _greedy(folder: Path, prompt_ids: tuple[int, ...], num_tok: int) -> tuple[int, ...]:
    with hugging_face(folder) as (torch, model):
        ids = torch.tensor([prompt_ids])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tok)
    return tuple(out[0, len(prompt_ids):].tolist())


def hf_logits(folder: Path, prompt_ids: list[int], output_ids: list[int]):
    """Return the logits from which each output token would be chosen, [output token, vocabulary], from one forward pass."""
    with hugging_face(folder) as (torch, model):
        return model(torch.tensor([prompt_ids + output_ids])).logits[0, len(prompt_ids) - 1:-1].numpy()


def hf_choices(folder: Path, prompt_ids: list[int], output_ids: list[int]) -> list[int]:
    """Return what Hugging Face would say after the prompt and each beginning of the output.

    It equals the output just where the output is what `hf_greedy` says: the first token that differs would differ there
    too. One forward pass tells it: a tenth of the time of `hf_greedy` with a real model.
    """
    return [int(i) for i in hf_logits(folder, prompt_ids, output_ids).argmax(axis=1)]


def closest_call(folder: Path, prompt_ids: list[int], output_ids: list[int]) -> float:
    """Return the least difference of the best two logits over the output."""
    best = np.sort(hf_logits(folder, prompt_ids, output_ids), axis=1)
    return float((best[:, -1] - best[:, -2]).min())
