"""The table of families, and how a config.json finds its row.

Multimodal files (Gemma 3, Llama 4, Mistral 3, Kimi-K2.5, Qwen3.5) hold their language model under
``text_config``: that alone is planned, the vision tower is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tpplanner.errors import ModelError, nearest
from tpplanner.io.model_dense import (
    read_gemma2,
    read_gemma3,
    read_llama,
    read_mistral,
    read_qwen2,
    read_qwen3,
)
from tpplanner.io.model_json import one_line
from tpplanner.io.model_keys import Keys
from tpplanner.io.model_layers import Layout
from tpplanner.io.model_moe import (
    read_deepseek,
    read_glm4_moe,
    read_gpt_oss,
    read_llama4,
    read_minimax_m2,
    read_mixtral,
    read_qwen3_moe,
    read_qwen3_next,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row of the table.

    Attributes
    ----------
    read
        Turns the keys into layers.
    architectures, model_types
        Names in config.json that lead here.
    defaults
        What transformers 4.57 assumes for keys that published files of the family leave out. Sizes that
        every file states are not among them: without them the file is refused.
    """

    read: Callable[[Keys], Layout]
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    defaults: Mapping[str, object] = field(default_factory=dict)


_UNTIED: Final = {"tie_word_embeddings": False}
_QWEN: Final = {**_UNTIED, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_QWEN_MOE: Final = {"attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": None}
_GEMMA: Final = {
    "tie_word_embeddings": True, "attention_bias": False, "head_dim": 256, "sliding_window": 4096,
}
_DEEPSEEK: Final = {**_UNTIED, "attention_bias": False, "moe_layer_freq": 1}

FAMILIES: Final[dict[str, Family]] = {
    "llama": Family(
        read=read_llama, architectures=("LlamaForCausalLM",), model_types=("llama",),
        defaults={**_UNTIED, "attention_bias": False, "mlp_bias": False, "num_key_value_heads": None},
    ),
    "mistral": Family(
        read=read_mistral, architectures=("MistralForCausalLM",), model_types=("mistral",),
        defaults={**_UNTIED, "sliding_window": 4096},
    ),
    "phi3": Family(
        read=read_mistral, architectures=("Phi3ForCausalLM",), model_types=("phi3",),
        defaults={**_UNTIED, "num_key_value_heads": None},
    ),
    "qwen2": Family(
        read=read_qwen2, architectures=("Qwen2ForCausalLM",), model_types=("qwen2",), defaults=_QWEN,
    ),
    "qwen3": Family(
        read=read_qwen3, architectures=("Qwen3ForCausalLM",), model_types=("qwen3",),
        defaults={**_QWEN, "attention_bias": False, "head_dim": 128},
    ),
    "gemma2": Family(
        read=read_gemma2, architectures=("Gemma2ForCausalLM",), model_types=("gemma2",), defaults=_GEMMA,
    ),
    "gemma3": Family(
        read=read_gemma3, architectures=("Gemma3ForCausalLM",), model_types=("gemma3_text",),
        # google/gemma-3-4b-it and -12b-it leave all of these out.
        defaults={
            **_GEMMA, "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4,
            "max_position_embeddings": 131072, "sliding_window_pattern": 6,
        },
    ),
    "mixtral": Family(
        read=read_mixtral, architectures=("MixtralForCausalLM",), model_types=("mixtral",), defaults=_UNTIED,
    ),
    "qwen3_moe": Family(
        read=read_qwen3_moe, architectures=("Qwen3MoeForCausalLM",), model_types=("qwen3_moe",),
        # Qwen3MoeAttention takes head_dim from the file, else hidden_size / num_attention_heads.
        defaults={**_QWEN, **_QWEN_MOE},
    ),
    "qwen3_next": Family(
        # Qwen3.5 splits the fused projections of the linear layers: the same parameters in more matrices.
        read=read_qwen3_next, architectures=("Qwen3NextForCausalLM", "Qwen3_5MoeForCausalLM"),
        model_types=("qwen3_next", "qwen3_5_moe_text"),
        defaults={**_UNTIED, **_QWEN_MOE, "head_dim": 256, "full_attention_interval": 4, "attn_output_gate": True},
    ),
    "gpt_oss": Family(
        read=read_gpt_oss, architectures=("GptOssForCausalLM",), model_types=("gpt_oss",),
        defaults={**_UNTIED, "attention_bias": True, "head_dim": 64, "sliding_window": 128},
    ),
    "llama4": Family(
        read=read_llama4, architectures=("Llama4ForCausalLM",), model_types=("llama4_text",),
        defaults={
            **_UNTIED, "attention_bias": False, "attention_chunk_size": 8192, "no_rope_layer_interval": 4,
            "interleave_moe_layer_step": 1, "head_dim": 128,
        },
    ),
    "glm4_moe": Family(
        read=read_glm4_moe, architectures=("Glm4MoeForCausalLM",), model_types=("glm4_moe",),
        defaults={**_UNTIED, "attention_bias": False, "use_qk_norm": False, "moe_layer_freq": 1},
    ),
    "minimax_m2": Family(
        # The first release of MiniMax-M2 says model_type "minimax", as the unrelated MiniMax-01 does.
        read=read_minimax_m2, architectures=("MiniMaxM2ForCausalLM",), model_types=("minimax_m2",),
        defaults={**_UNTIED, "use_qk_norm": True, "use_routing_bias": True, "shared_intermediate_size": 0},
    ),
    "deepseek_v2": Family(
        read=read_deepseek, architectures=("DeepseekV2ForCausalLM",), model_types=("deepseek_v2",),
        defaults={**_DEEPSEEK, "topk_method": "greedy"},
    ),
    "deepseek_v3": Family(
        read=read_deepseek, architectures=("DeepseekV3ForCausalLM",), model_types=("deepseek_v3", "kimi_k2"),
        defaults={**_DEEPSEEK, "topk_method": "noaux_tc"},
    ),
    "glm_moe_dsa": Family(
        read=read_deepseek, architectures=("GlmMoeDsaForCausalLM",), model_types=("glm_moe_dsa",),
        defaults={**_DEEPSEEK, "topk_method": "noaux_tc"},
    ),
}
"""Family name -> its row."""

_BY_NAME: Final[dict[str, str]] = {
    name: family for family, row in FAMILIES.items() for name in (*row.architectures, *row.model_types)
}

WRAPPERS: Final[dict[str, str]] = {
    "Gemma3ForConditionalGeneration": "gemma3",
    "Llama4ForConditionalGeneration": "llama4",
    "Mistral3ForConditionalGeneration": "mistral",
    "KimiK25ForConditionalGeneration": "deepseek_v3",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_next",
    "gemma3": "gemma3",
    "llama4": "llama4",
    "mistral3": "mistral",
    "kimi_k25": "deepseek_v3",
    "qwen3_5_moe": "qwen3_next",
}
"""Multimodal architecture or model_type -> the family of its ``text_config``."""


def known_architectures() -> tuple[str, ...]:
    """Return the names that config.json may give under ``architectures``.

    Examples
    --------
    >>> "LlamaForCausalLM" in known_architectures()
    True
    """
    rows = [name for row in FAMILIES.values() for name in row.architectures]
    return tuple(rows + [name for name in WRAPPERS if name.endswith("Generation")])


def find_family(config: Keys) -> tuple[str, str, Keys]:
    """Return family name, architecture name and the keys of the language model, defaults filled in.

    ``architectures`` decides, as in vLLM; a file without it is known by its ``model_type``.

    Raises
    ------
    ModelError
        If the architecture is unknown, with the list of those known.
    """
    architectures = config.texts("architectures")
    name = architectures[0] if architectures else config.optional_text("model_type")
    if name is None:
        raise ModelError(f"{config.place}: architectures and model_type are both missing")
    text = config
    if name in WRAPPERS:
        child = config.child("text_config")
        if child is None:
            raise ModelError(f"{config.place}: text_config is missing")
        # Some files tie the embeddings in the outer object only.
        outer = {key: config.values[key] for key in ("tie_word_embeddings",) if key in config}
        text, inner = child.with_defaults(outer), child.optional_text("model_type")
        family = WRAPPERS[name] if inner is None else _family_named(inner, child)
    else:
        family = _family_named(name, config)
    return family, name, text.with_defaults(FAMILIES[family].defaults)


def _family_named(name: str, keys: Keys) -> str:
    family = _BY_NAME.get(name)
    if family is None:
        known, shown = known_architectures(), one_line(name, 80)
        hint = nearest(shown, [*known, *_BY_NAME])
        raise ModelError(
            f"{keys.place}: unknown architecture {shown!r}; known: {', '.join(known)}. {hint}".rstrip()
        )
    return family
