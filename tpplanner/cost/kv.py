"""What each token leaves in the KV cache of one rank."""

import numpy as np

from tpplanner.cost.work import ModelWork
from tpplanner.domain.attention import Attention, GroupedQueryAttention, LatentAttention, LinearAttention
from tpplanner.domain.matrix import FloatOrArray


def layer_kv_bytes_per_tok(attention: Attention, *, tp: FloatOrArray, kv_element_bytes: float) -> FloatOrArray:
    """Cache of one token in one layer on one rank [bytes]; 0 for a recurrent layer.

    K and V of max(kv_heads / t, 1) heads: once t exceeds the KV heads they are replicated. A
    latent cache is replicated on every rank.

    Examples
    --------
    Llama-3.1-70B has 8 KV heads of 128: 4 KiB per layer in bf16 at t = 1, 512 bytes from t = 8 on.

    >>> llama = GroupedQueryAttention(num_heads=64, num_kv_heads=8, head_dim=128)
    >>> [float(layer_kv_bytes_per_tok(llama, tp=t, kv_element_bytes=2)) for t in (1, 8, 16)]
    [4096.0, 512.0, 512.0]
    """
    match attention:
        case GroupedQueryAttention():
            heads = attention.num_kv_heads * np.maximum(1.0 / np.asarray(tp, dtype=float), 1 / attention.num_kv_heads)
            return 2.0 * heads * attention.head_dim * kv_element_bytes
        case LatentAttention():
            return attention.latent_dim * kv_element_bytes * np.ones_like(np.asarray(tp, dtype=float))
        case LinearAttention():
            return np.zeros_like(np.asarray(tp, dtype=float))


def layer_kv_bytes_per_seq(
    attention: Attention, *, tp: FloatOrArray, context_tok: FloatOrArray, kv_element_bytes: float
) -> FloatOrArray:
    """Cache of one sequence of ``context_tok`` tokens in one layer on one rank [bytes].

    A sliding window keeps at most its width, a recurrent layer its state whatever the length.
    """
    match attention:
        case LinearAttention():
            return attention.num_state_elements * attention.state_bytes_per_element / np.asarray(tp, dtype=float)
        case GroupedQueryAttention(window_tok=int(window)):
            kept: FloatOrArray = np.minimum(context_tok, window)
        case _:
            kept = context_tok
    return kept * layer_kv_bytes_per_tok(attention, tp=tp, kv_element_bytes=kv_element_bytes)


def kv_bytes_per_seq(
    work: ModelWork, *, tp: FloatOrArray, context_tok: FloatOrArray, kv_element_bytes: float
) -> FloatOrArray:
    """Cache of one sequence of ``context_tok`` tokens on one rank, all layers [bytes]."""
    total: FloatOrArray = 0.0
    for num_layers, attention in work.attentions:
        total = total + num_layers * layer_kv_bytes_per_seq(
            attention, tp=tp, context_tok=context_tok, kv_element_bytes=kv_element_bytes
        )
    return total


def kv_bytes_per_tok(work: ModelWork, *, tp: FloatOrArray, kv_element_bytes: float) -> FloatOrArray:
    """Cache that one more token takes in the engine's count of its pool, on one rank [bytes].

    The engines count a pool in tokens of full attention in every layer: windows are not credited,
    and a recurrent layer takes the page of an attention layer (vLLM's hybrid groups share one page
    size). For a model with full attention only this is exact; for others it is the engine's figure,
    and :func:`kv_bytes_per_seq` says what a sequence takes.
    """
    paged = [
        (n, layer_kv_bytes_per_tok(a, tp=tp, kv_element_bytes=kv_element_bytes))
        for n, a in work.attentions
        if not isinstance(a, LinearAttention)
    ]
    if not paged:
        return np.zeros_like(np.asarray(tp, dtype=float))
    total: FloatOrArray = 0.0
    for num_layers, page in paged:
        total = total + num_layers * page
    num_recurrent = sum(n for n, a in work.attentions if isinstance(a, LinearAttention))
    page = paged[0][1]
    for _, other in paged[1:]:
        page = np.maximum(page, other)
    return total + num_recurrent * page
