"""Attention: reading the KV cache in decode, quadratic arithmetic in prefill."""

import numpy as np

from tpplanner.cost.kernel_time import decode_kernel_s, prefill_kernel_s
from tpplanner.cost.kv import layer_kv_bytes_per_seq
from tpplanner.cost.roofline import roofline_s
from tpplanner.cost.work import ModelWork
from tpplanner.domain.attention import Attention, GroupedQueryAttention, LatentAttention, LinearAttention
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.step import Batch

EQUATION = (
    "decode: L n kv_bytes(context, t) / (ea bw) against 4 L n context heads/t d / (ep peak);  "
    "prefill: 4 L n context heads/t d / (ep peak)"
)


def flop_per_query(attention: Attention, *, tp: FloatOrArray, context_tok: FloatOrArray, absorbed: bool) -> FloatOrArray:
    """Arithmetic of one query token against ``context_tok`` keys in one layer on one rank [flop].

    2 for Q.K and 2 for P.V per head, key and dimension. Latent attention decodes in its
    compressed space (``absorbed``), with latent_dim wide keys and kv_lora_rank wide values. A
    recurrent layer updates and reads its state once per token.

    Examples
    --------
    64 heads of 128 against 1,000 keys: 4 * 64 * 128 * 1000 = 32.768 MFLOP.

    >>> llama = GroupedQueryAttention(num_heads=64, num_kv_heads=8, head_dim=128)
    >>> float(flop_per_query(llama, tp=1, context_tok=1000, absorbed=False))
    32768000.0
    """
    context: FloatOrArray = np.asarray(context_tok, dtype=float)
    match attention:
        case GroupedQueryAttention():
            window = np.inf if attention.window_tok is None else attention.window_tok
            context = np.minimum(context, window)
            per_key = 4.0 * attention.num_heads * attention.head_dim
        case LatentAttention() if absorbed:
            per_key = 2.0 * attention.num_heads * (attention.latent_dim + attention.kv_lora_rank)
        case LatentAttention():
            per_key = 2.0 * attention.num_heads * (
                attention.qk_nope_head_dim + attention.qk_rope_head_dim + attention.v_head_dim)
        case LinearAttention():
            context = np.ones_like(context)
            per_key = 6.0 * attention.num_value_heads * attention.key_head_dim * attention.value_head_dim
    return context * per_key / tp


def _bytes_per_query(
    attention: Attention, *, tp: FloatOrArray, context_tok: FloatOrArray, kv_element_bytes: float
) -> FloatOrArray:
    """Traffic of one decoding sequence in one layer on one rank [bytes]: its cache; a state is also written back."""
    held = layer_kv_bytes_per_seq(attention, tp=tp, context_tok=context_tok, kv_element_bytes=kv_element_bytes)
    return 2.0 * held if isinstance(attention, LinearAttention) else held


def decode_attention_s(
    work: ModelWork, hardware: HardwareProfile, *, tp: FloatOrArray, num_seqs: FloatOrArray,
    context_tok: FloatOrArray, kv_element_bytes: float, arithmetic: str = "bf16",
) -> FloatOrArray:
    """Time of decode attention of ``num_seqs`` sequences with ``context_tok`` tokens each [s].

    By the fitted kernel where the machine has one, else by the roofline.
    """
    efficiency = hardware.efficiency
    bytes_s = hardware.hbm_bytes_s.value * efficiency.decode_attention_memory.value
    flop_s = hardware.peak_for(arithmetic).value * efficiency.prefill_attention_compute.value
    total: FloatOrArray = 0.0
    for num_layers, attention in work.attentions:
        if isinstance(attention, GroupedQueryAttention) and hardware.kernels is not None:
            one = decode_kernel_s(attention, hardware, tp=tp, num_seqs=num_seqs, context_tok=context_tok,
                                  kv_element_bytes=kv_element_bytes)
            if one is not None:
                total = total + num_layers * np.where(np.greater(num_seqs, 0), one, 0.0)
                continue
        read = _bytes_per_query(attention, tp=tp, context_tok=context_tok, kv_element_bytes=kv_element_bytes)
        flop = flop_per_query(attention, tp=tp, context_tok=context_tok, absorbed=True)
        total = total + num_layers * roofline_s(
            compute_s=num_seqs * flop / flop_s, memory_s=num_seqs * read / bytes_s,
            sharpness=efficiency.roofline_sharpness.value,
        )
    return total


def prefill_attention_s(
    work: ModelWork, hardware: HardwareProfile, *, tp: FloatOrArray, num_tok: FloatOrArray,
    context_tok: FloatOrArray, kv_element_bytes: float = 2.0, arithmetic: str = "bf16",
) -> FloatOrArray:
    """Time of prefill attention of ``num_tok`` tokens that see ``context_tok`` keys in the mean [s].

    By the fitted kernel where the machine has one: a token costs its share of a whole prompt of twice the mean context.
    """
    flop_s = hardware.peak_for(arithmetic).value * hardware.efficiency.prefill_attention_compute.value
    total: FloatOrArray = 0.0
    for num_layers, attention in work.attentions:
        if isinstance(attention, GroupedQueryAttention) and hardware.kernels is not None:
            prompt_tok = np.maximum(2.0 * np.asarray(context_tok, dtype=float), 1.0)
            one = prefill_kernel_s(attention, hardware, tp=tp, isl_tok=prompt_tok, kv_element_bytes=kv_element_bytes)
            if one is not None:
                total = total + num_layers * num_tok / prompt_tok * one
                continue
        flop = flop_per_query(attention, tp=tp, context_tok=context_tok, absorbed=False)
        total = total + num_layers * num_tok * flop / flop_s
    return total


def attention_bytes(
    work: ModelWork, *, tp: FloatOrArray, batch: Batch, kv_element_bytes: float
) -> FloatOrArray:
    """KV cache that one rank reads for the decode rows of a batch [bytes]."""
    total: FloatOrArray = 0.0
    for num_layers, attention in work.attentions:
        total = total + num_layers * batch.num_decode_seqs * _bytes_per_query(
            attention, tp=tp, context_tok=batch.decode_context_tok, kv_element_bytes=kv_element_bytes
        )
    return total


def attention_flop(work: ModelWork, *, tp: FloatOrArray, batch: Batch) -> FloatOrArray:
    """Arithmetic of the attention of a batch on one rank [flop]."""
    total: FloatOrArray = 0.0
    for num_layers, attention in work.attentions:
        decode = flop_per_query(attention, tp=tp, context_tok=batch.decode_context_tok, absorbed=True)
        prefill = flop_per_query(attention, tp=tp, context_tok=batch.prefill_context_tok, absorbed=False)
        total = total + num_layers * (batch.num_decode_seqs * decode + batch.num_prefill_tok * prefill)
    return total
