"""Readers of the dense families: config.json keys -> layers.

Sources: the configuration and modelling files of transformers 4.57 of each family; biases, norms
and windows are read off the modules that they build.
"""

from tpplanner.io.model_keys import Keys
from tpplanner.io.model_layers import (
    FULL,
    SLIDING,
    Layout,
    dense_mlp,
    grouped_query,
    head_dim,
    layout,
    num_layers,
    qwen_windows,
    sliding_window,
    windows,
)


def read_llama(keys: Keys) -> Layout:
    """Llama 2, 3.x and its kin; ``attention_bias`` covers q, k, v and o."""
    bias = keys.flag("attention_bias")
    attention = grouped_query(keys, qkv_bias=bias, out_bias=bias)
    mlp = dense_mlp(keys, bias=keys.flag("mlp_bias"))
    return layout(keys, [(attention, mlp)] * num_layers(keys))


def read_mistral(keys: Keys) -> Layout:
    """Mistral and Phi-3/4: no biases, one window for all layers or none.

    Phi-3 fuses q, k, v and gate, up: the same parameters in fewer matrices.
    """
    attention = grouped_query(keys, window_tok=sliding_window(keys))
    return layout(keys, [(attention, dense_mlp(keys))] * num_layers(keys))


def read_qwen2(keys: Keys) -> Layout:
    """Qwen2, Qwen2.5, QwQ: biases on q, k, v only."""
    mlp = dense_mlp(keys)
    return layout(
        keys, [(grouped_query(keys, window_tok=window, qkv_bias=True), mlp) for window in qwen_windows(keys)]
    )


def read_qwen3(keys: Keys) -> Layout:
    """Qwen3: norms of one head's width on q and k; ``attention_bias`` covers q, k, v and o."""
    bias, mlp = keys.flag("attention_bias"), dense_mlp(keys)
    norms = 2 * head_dim(keys)
    return layout(keys, [
        (grouped_query(keys, window_tok=window, qkv_bias=bias, out_bias=bias, qk_norm_params=norms), mlp)
        for window in qwen_windows(keys)
    ])


def read_gemma2(keys: Keys) -> Layout:
    """Gemma 2: every other layer slides, first layer included; four norms per layer."""
    return _read_gemma(keys, windows(keys, lambda index: FULL if index % 2 else SLIDING), qk_norm_params=0)


def read_gemma3(keys: Keys) -> Layout:
    """Gemma 3: one full layer in ``sliding_window_pattern``; norms on q and k; four norms per layer."""
    pattern = keys.count("sliding_window_pattern")
    kinds = windows(keys, lambda index: SLIDING if (index + 1) % pattern else FULL)
    return _read_gemma(keys, kinds, qk_norm_params=2 * head_dim(keys))


def _read_gemma(keys: Keys, layer_windows: tuple[int | None, ...], *, qk_norm_params: int) -> Layout:
    bias, mlp = keys.flag("attention_bias"), dense_mlp(keys)
    attentions = [
        grouped_query(keys, window_tok=window, qkv_bias=bias, out_bias=bias, qk_norm_params=qk_norm_params)
        for window in layer_windows
    ]
    return layout(keys, [(attention, mlp) for attention in attentions], num_norms=4)
