"""Readers of the mixture-of-experts families: config.json keys -> layers.

Sources: the configuration and modelling files of transformers 4.57 of each family, for MiniMax-M2
those of vLLM; for Qwen3.5 and GLM-5 their config.json, whose sizes give the published totals exactly.
"""

from collections.abc import Sequence
from typing import Final

from tpplanner.domain.attention import Attention, LatentAttention, LinearAttention
from tpplanner.domain.model import Mlp, MoeMlp
from tpplanner.io.model_keys import MAX_LAYERS, MAX_TOKENS, Keys
from tpplanner.io.model_layers import (
    CHUNKED,
    FULL,
    LINEAR,
    SLIDING,
    Layout,
    dense_mlp,
    grouped_query,
    head_dim,
    layer_types,
    layout,
    num_layers,
    qwen_windows,
    sliding_window,
    windows,
)

_AUX_FREE_ROUTING: Final = "noaux_tc"
"""Routing with one learned correction per expert (DeepSeek-V3)."""


def experts(
    keys: Keys,
    num_experts_key: str,
    width_key: str,
    *,
    shared_intermediate_size: int = 0,
    router_bias: bool = False,
    expert_bias: bool = False,
    shared_gate: bool = False,
) -> MoeMlp:
    """Read the routed experts; the other parts are the family's."""
    total, active = keys.count(num_experts_key), keys.count("num_experts_per_tok")
    if active > total:
        raise keys.refuse("num_experts_per_tok", f"be at most {num_experts_key} {total}")
    return MoeMlp(
        num_experts=total, num_experts_per_tok=active, expert_intermediate_size=keys.count(width_key),
        shared_intermediate_size=shared_intermediate_size, router_bias=router_bias, expert_bias=expert_bias,
        shared_gate=shared_gate,
    )


def read_mixtral(keys: Keys) -> Layout:
    """Mixtral: every layer routes, no shared expert, no biases."""
    attention = grouped_query(keys, window_tok=sliding_window(keys))
    mlp = experts(keys, "num_local_experts", "intermediate_size")
    return layout(keys, [(attention, mlp)] * num_layers(keys))


def _sparse_layers(keys: Keys, sparse: MoeMlp) -> list[Mlp]:
    """Apply Qwen's rule: every ``decoder_sparse_step``-th layer routes, but for ``mlp_only_layers``."""
    step = keys.count("decoder_sparse_step", maximum=MAX_LAYERS)
    dense_only = set(keys.counts("mlp_only_layers"))
    routes = [index not in dense_only and (index + 1) % step == 0 for index in range(num_layers(keys))]
    # The width of dense layers is needed only where there is one.
    dense = dense_mlp(keys) if not all(routes) else None
    return [sparse if routed or dense is None else dense for routed in routes]


def read_qwen3_moe(keys: Keys) -> Layout:
    """Qwen3-MoE: Qwen3's attention, no shared expert."""
    bias, norms = keys.flag("attention_bias"), 2 * head_dim(keys)
    mlps = _sparse_layers(keys, experts(keys, "num_experts", "moe_intermediate_size"))
    attentions = [
        grouped_query(keys, window_tok=window, qkv_bias=bias, out_bias=bias, qk_norm_params=norms)
        for window in qwen_windows(keys)
    ]
    return layout(keys, zip(attentions, mlps, strict=True))


def read_qwen3_next(keys: Keys) -> Layout:
    """Qwen3-Next and Qwen3.5: gated delta nets, every fourth layer gated full attention, a gated shared expert."""
    interval = keys.count("full_attention_interval", maximum=MAX_LAYERS)
    kinds = layer_types(keys, lambda index: LINEAR if (index + 1) % interval else FULL, (LINEAR, FULL))
    bias = keys.flag("attention_bias")
    full = grouped_query(
        keys, qkv_bias=bias, out_bias=bias, qk_norm_params=2 * head_dim(keys),
        output_gate=keys.flag("attn_output_gate"),
    )
    linear = LinearAttention(
        num_key_heads=keys.count("linear_num_key_heads"),
        num_value_heads=keys.count("linear_num_value_heads"),
        key_head_dim=keys.count("linear_key_head_dim"),
        value_head_dim=keys.count("linear_value_head_dim"),
        conv_kernel_size=keys.count("linear_conv_kernel_dim"),
    )
    shared = keys.count("shared_expert_intermediate_size")
    sparse = experts(
        keys, "num_experts", "moe_intermediate_size", shared_intermediate_size=shared, shared_gate=True
    )
    attentions: list[Attention] = [full if kind == FULL else linear for kind in kinds]
    return layout(keys, zip(attentions, _sparse_layers(keys, sparse), strict=True))


def read_gpt_oss(keys: Keys) -> Layout:
    """gpt-oss: sinks, biases everywhere, every other layer slides, first layer included."""
    bias = keys.flag("attention_bias")
    mlp = experts(keys, "num_local_experts", "intermediate_size", router_bias=True, expert_bias=True)
    return layout(keys, [
        (grouped_query(keys, window_tok=window, qkv_bias=bias, out_bias=bias, sinks=True), mlp)
        for window in windows(keys, lambda index: FULL if index % 2 else SLIDING)
    ])


def read_llama4(keys: Keys) -> Layout:
    """Llama 4: chunked attention but for the layers without rotary embedding; one shared expert.

    A chunk of 8192 tokens is read as a sliding window: the cache of a chunked layer never holds more.
    The norms of q and k have no weights.
    """
    layers, bias = num_layers(keys), keys.flag("attention_bias")
    rotary = _llama4_rotary(keys, layers)
    kinds = layer_types(keys, lambda index: CHUNKED if rotary[index] else FULL, (CHUNKED, FULL))
    chunk = keys.optional_count("attention_chunk_size", maximum=MAX_TOKENS)
    attentions = {
        kind: grouped_query(keys, window_tok=chunk if kind == CHUNKED else None, qkv_bias=bias, out_bias=bias)
        for kind in (CHUNKED, FULL)
    }
    width = keys.count("intermediate_size")
    sparse = experts(keys, "num_local_experts", "intermediate_size", shared_intermediate_size=width)
    step = keys.count("interleave_moe_layer_step", maximum=MAX_LAYERS)
    routed = set(keys.counts("moe_layers") or range(step - 1, layers, step))
    dense = dense_mlp(keys, "intermediate_size_mlp") if len(routed) < layers else None
    return layout(keys, [
        (attentions[kind], sparse if index in routed or dense is None else dense)
        for index, kind in enumerate(kinds)
    ])


def _llama4_rotary(keys: Keys, layers: int) -> Sequence[bool]:
    """Tell which layers have rotary embedding: 1 in ``no_rope_layers``, else three of four."""
    given = keys.counts("no_rope_layers", maximum=1)
    if given and len(given) != layers:
        raise keys.refuse("no_rope_layers", f"name {layers} layers")
    interval = keys.count("no_rope_layer_interval", maximum=MAX_LAYERS)
    return [bool(flag) for flag in given] or [bool((index + 1) % interval) for index in range(layers)]


def _first_dense(keys: Keys, sparse: MoeMlp) -> list[Mlp]:
    """Apply DeepSeek's rule: ``first_k_dense_replace`` dense layers, the rest routes."""
    layers = num_layers(keys)
    first = min(keys.count("first_k_dense_replace", minimum=0, maximum=MAX_LAYERS), layers)
    step = keys.count("moe_layer_freq", maximum=MAX_LAYERS)
    routes = [index >= first and index % step == 0 for index in range(layers)]
    dense = dense_mlp(keys) if not all(routes) else None
    return [sparse if routed or dense is None else dense for routed in routes]


def _shared_width(keys: Keys) -> int:
    """Return the width of all shared experts together; each is as wide as a routed one."""
    shared = keys.optional_count("n_shared_experts", minimum=0, maximum=1000)
    return (shared or 0) * keys.count("moe_intermediate_size")


def read_glm4_moe(keys: Keys) -> Layout:
    """GLM-4.5: ``attention_bias`` covers q, k, v but not o; norms on q and k if ``use_qk_norm``."""
    norms = 2 * head_dim(keys) if keys.flag("use_qk_norm") else 0
    attention = grouped_query(keys, qkv_bias=keys.flag("attention_bias"), qk_norm_params=norms)
    sparse = experts(
        keys, "n_routed_experts", "moe_intermediate_size", shared_intermediate_size=_shared_width(keys),
        router_bias=True,
    )
    return layout(keys, [(attention, mlp) for mlp in _first_dense(keys, sparse)])


def read_minimax_m2(keys: Keys) -> Layout:
    """MiniMax-M2: full attention, norms over all of q and of k, a correction per expert."""
    if any(kind != 1 for kind in keys.counts("attn_type_list")):
        raise keys.refuse("attn_type_list", "hold 1 (full attention) only")
    attention = grouped_query(keys)
    if keys.flag("use_qk_norm"):
        width = (attention.num_heads + attention.num_kv_heads) * attention.head_dim
        attention = grouped_query(keys, qk_norm_params=width)
    mlp = experts(
        keys, "num_local_experts", "intermediate_size", router_bias=keys.flag("use_routing_bias"),
        shared_intermediate_size=keys.count("shared_intermediate_size", minimum=0),
    )
    return layout(keys, [(attention, mlp)] * num_layers(keys))


def read_deepseek(keys: Keys) -> Layout:
    """DeepSeek-V2, V3, R1, Kimi-K2 and GLM-5: latent attention, shared experts, first layers dense.

    GLM-5's sparse attention is read as if every query attended to all tokens. Its indexer picks ``index_topk``
    = 2048 of them: up to that context nothing is skipped, beyond it the reads of the cache are overestimated.
    The indexer's weights (0.1 % of the model) and keys (128 bytes and a scale of 4 per token and layer, an
    eighth of the latent vector in 16 bits) are left out.
    """
    if keys.flag("attention_bias"):
        raise keys.refuse("attention_bias", "be false: latent attention with biases is not modelled")
    keys.require("q_lora_rank")
    attention = LatentAttention(
        num_heads=keys.count("num_attention_heads"), q_lora_rank=keys.optional_count("q_lora_rank"),
        kv_lora_rank=keys.count("kv_lora_rank"), qk_nope_head_dim=keys.count("qk_nope_head_dim"),
        qk_rope_head_dim=keys.count("qk_rope_head_dim"), v_head_dim=keys.count("v_head_dim"),
    )
    sparse = experts(
        keys, "n_routed_experts", "moe_intermediate_size", shared_intermediate_size=_shared_width(keys),
        router_bias=keys.optional_text("topk_method") == _AUX_FREE_ROUTING,
    )
    return layout(keys, [(attention, mlp) for mlp in _first_dense(keys, sparse)])
