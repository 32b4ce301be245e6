"""Parts that the readers of all families share: heads, windows, equal layers counted together."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from tpplanner.domain.attention import Attention, GroupedQueryAttention
from tpplanner.domain.model import DenseMlp, LayerGroup, Mlp
from tpplanner.io.model_keys import MAX_LAYERS, MAX_TOKENS, Keys

SLIDING: Final = "sliding_attention"
CHUNKED: Final = "chunked_attention"
FULL: Final = "full_attention"
LINEAR: Final = "linear_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a family's reader finds: the layers, and whether one matrix is embedding and head."""

    layer_groups: tuple[LayerGroup, ...]
    tied_embeddings: bool


def num_layers(keys: Keys) -> int:
    """Return the number of decoder layers; layers for multi-token prediction are counted elsewhere."""
    return keys.count("num_hidden_layers", maximum=MAX_LAYERS)


def layout(keys: Keys, layers: Iterable[tuple[Attention, Mlp]], *, num_norms: int = 2) -> Layout:
    """Count equal layers together, in the order of their first appearance."""
    groups = tuple(
        LayerGroup(num_layers=count, attention=attention, mlp=mlp, num_norms=num_norms)
        for (attention, mlp), count in Counter(layers).items()
    )
    return Layout(layer_groups=groups, tied_embeddings=keys.flag("tie_word_embeddings"))


def head_dim(keys: Keys) -> int:
    """Return ``head_dim``, or hidden_size / num_attention_heads where it is null or absent."""
    given = keys.optional_count("head_dim")
    if given is not None:
        return given
    hidden, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    if hidden % heads:
        raise keys.refuse("hidden_size", f"be a multiple of num_attention_heads {heads} (no head_dim)")
    return hidden // heads


def grouped_query(
    keys: Keys,
    *,
    window_tok: int | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm_params: int = 0,
    sinks: bool = False,
    output_gate: bool = False,
) -> GroupedQueryAttention:
    """Read the heads; ``num_key_value_heads`` of null means as many as query heads."""
    heads = keys.count("num_attention_heads")
    kv_heads = heads if keys.require("num_key_value_heads") is None else keys.count("num_key_value_heads")
    if heads % kv_heads:
        raise keys.refuse("num_attention_heads", f"be a multiple of num_key_value_heads {kv_heads}")
    return GroupedQueryAttention(
        num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim(keys), window_tok=window_tok,
        qkv_bias=qkv_bias, out_bias=out_bias, qk_norm_params=qk_norm_params, sinks=sinks,
        output_gate=output_gate,
    )


def dense_mlp(keys: Keys, key: str = "intermediate_size", *, bias: bool = False) -> DenseMlp:
    """Read a gated feed-forward block of width ``key``."""
    return DenseMlp(intermediate_size=keys.count(key), bias=bias)


def sliding_window(keys: Keys, key: str = "sliding_window") -> int | None:
    """Return the window in tokens, ``None`` for full attention."""
    return keys.optional_count(key, maximum=MAX_TOKENS)


def layer_types(keys: Keys, default: Callable[[int], str], allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Return the kind of attention of every layer.

    ``layer_types`` of newer files, or the family's rule ``default`` (layer index from 0 -> kind).
    """
    layers = num_layers(keys)
    given = keys.texts("layer_types")
    if not given:
        return tuple(default(index) for index in range(layers))
    if len(given) != layers or not set(given) <= set(allowed):
        raise keys.refuse("layer_types", f"name {layers} layers out of {', '.join(allowed)}")
    return given


def windows(keys: Keys, default: Callable[[int], str]) -> tuple[int | None, ...]:
    """Return the window of every layer of a family that mixes sliding and full attention."""
    kinds = layer_types(keys, default, (SLIDING, FULL))
    window = sliding_window(keys) if SLIDING in kinds else None
    return tuple(window if kind == SLIDING else None for kind in kinds)


def qwen_windows(keys: Keys) -> tuple[int | None, ...]:
    """Return the windows of Qwen: off by default, else from layer ``max_window_layers`` on."""
    if not keys.flag("use_sliding_window") or sliding_window(keys) is None:
        return (None,) * num_layers(keys)
    first = keys.count("max_window_layers", minimum=0, maximum=MAX_LAYERS)
    return windows(keys, lambda index: SLIDING if index >= first else FULL)
