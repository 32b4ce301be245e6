"""Times of fitted kernels: a latency and a roofline at fitted efficiencies, times the surface, never under the peaks.

The floor is the arithmetic at the peak rate, and the bytes that must come from HBM at the peak
bandwidth: weights and the KV cache, which a step reads once. Activations are counted in the
roofline but not in the floor, since the kernel before may have left them in the cache.
"""

from collections.abc import Mapping

import numpy as np

from tpplanner.cost.roofline import roofline_s
from tpplanner.cost.surface import surface_log_ratio
from tpplanner.domain.kernels import DecodeAttentionKernel, GemmKernel, Kernel, MoeKernel, PrefillAttentionKernel
from tpplanner.domain.matrix import FloatOrArray

EQUATION = "max(peak time, (latency + ((flop/(c peak))^p + (bytes/(m bw))^p)^(1/p)) * exp(surface))"

ACTIVATION_BYTES = 2.0
"""Activations enter and leave in bf16 or fp16; where they are quantised on the way, the surface holds the rest."""


def _kernel_s(
    kernel: Kernel, *, work_flop: FloatOrArray, moved_bytes: FloatOrArray, hbm_bytes: FloatOrArray,
    flop_s: float, hbm_bytes_s: float, coordinates: Mapping[str, FloatOrArray], serial_bytes: FloatOrArray = 0.0,
) -> FloatOrArray:
    """Time of one call [s]; ``serial_bytes`` are moved by other kernels before and after the arithmetic."""
    bytes_s = hbm_bytes_s * kernel.memory_frac.value
    time_s = kernel.latency_s.value + serial_bytes / bytes_s + roofline_s(
        compute_s=work_flop / (flop_s * kernel.compute_frac.value), memory_s=moved_bytes / bytes_s,
        sharpness=kernel.sharpness.value,
    )
    if kernel.surface is not None:
        time_s = time_s * np.exp(surface_log_ratio(kernel.surface, coordinates))
    return np.maximum(time_s, np.maximum(work_flop / flop_s, hbm_bytes / hbm_bytes_s))


def gemm_kernel_s(
    kernel: GemmKernel, *, num_tok: FloatOrArray, out_features: FloatOrArray, in_features: FloatOrArray,
    weight_bytes_per_param: float, flop_s: float, hbm_bytes_s: float,
) -> FloatOrArray:
    """Time of multiplying ``num_tok`` rows by one rank's ``in_features`` x ``out_features`` weights [s].

    Parameters
    ----------
    num_tok, out_features, in_features
        Shape of the multiplication, scalars or arrays.
    weight_bytes_per_param
        Storage of one weight [bytes].
    flop_s, hbm_bytes_s
        Peak rates of the machine [flop/s, bytes/s].

    Notes
    -----
    Coordinates for the surface: ``num_tok``, ``out_features``, ``in_features``. Not modelled: the
    sawtooth of tile quantisation, which the surface averages.
    """
    weight_bytes = in_features * out_features * weight_bytes_per_param
    return _kernel_s(
        kernel, work_flop=2.0 * num_tok * out_features * in_features,
        moved_bytes=weight_bytes + ACTIVATION_BYTES * num_tok * (in_features + out_features),
        hbm_bytes=weight_bytes, flop_s=flop_s, hbm_bytes_s=hbm_bytes_s,
        coordinates={"num_tok": num_tok, "out_features": out_features, "in_features": in_features},
    )


def decode_coordinates(
    *, num_seqs: FloatOrArray, context_tok: FloatOrArray, num_heads: FloatOrArray, num_kv_heads: FloatOrArray,
    head_dim: FloatOrArray, window_tok: FloatOrArray = np.inf,
) -> dict[str, FloatOrArray]:
    """Coordinates of a decode attention's surface.

    ``seq_kv_heads``, the caches to be read independently; ``read_tok``, the context inside the
    window; ``heads_per_kv_head``; ``head_dim``; ``windowed``, 2 with a sliding window and 1 without:
    some kernels share a KV head among its query heads only without.
    """
    return {"seq_kv_heads": num_seqs * num_kv_heads, "read_tok": np.minimum(context_tok, window_tok),
            "heads_per_kv_head": num_heads / num_kv_heads, "head_dim": head_dim,
            "windowed": np.where(np.isfinite(window_tok), 2.0, 1.0)}


def decode_attention_kernel_s(
    kernel: DecodeAttentionKernel, *, num_seqs: FloatOrArray, context_tok: FloatOrArray, num_heads: FloatOrArray,
    num_kv_heads: FloatOrArray, head_dim: FloatOrArray, kv_element_bytes: float, flop_s: float, hbm_bytes_s: float,
    window_tok: FloatOrArray = np.inf,
) -> FloatOrArray:
    """Time of decode attention of one layer on one rank [s].

    Parameters
    ----------
    num_seqs, context_tok
        Sequences, and tokens in the cache of each.
    num_heads, num_kv_heads, head_dim
        Of this rank.
    kv_element_bytes
        Storage of one element of the cache [bytes].
    flop_s, hbm_bytes_s
        Peak rates of the machine [flop/s, bytes/s].
    window_tok
        Tokens that a sliding window sees; infinity is none.
    """
    coordinates = decode_coordinates(num_seqs=num_seqs, context_tok=context_tok, num_heads=num_heads,
                                     num_kv_heads=num_kv_heads, head_dim=head_dim, window_tok=window_tok)
    read_tok = coordinates["read_tok"]
    kv_bytes = 2.0 * num_seqs * num_kv_heads * read_tok * head_dim * kv_element_bytes
    return _kernel_s(
        kernel, work_flop=4.0 * num_seqs * num_heads * read_tok * head_dim,
        moved_bytes=kv_bytes + 2.0 * ACTIVATION_BYTES * num_seqs * num_heads * head_dim,
        hbm_bytes=kv_bytes, flop_s=flop_s, hbm_bytes_s=hbm_bytes_s, coordinates=coordinates,
    )


def visible_pairs(
    isl_tok: FloatOrArray, *, past_tok: FloatOrArray = 0.0, window_tok: FloatOrArray = np.inf
) -> FloatOrArray:
    """Pairs of a new token and a key that it sees: itself, those before it, at most a window [1].

    Examples
    --------
    4 tokens see 1 + 2 + 3 + 4; within a window of 2, 1 + 2 + 2 + 2; after 10 others, 11 + 12 + 13 + 14.

    >>> [float(visible_pairs(4)), float(visible_pairs(4, window_tok=2)), float(visible_pairs(4, past_tok=10))]
    [10.0, 7.0, 50.0]
    """
    growing = np.clip(window_tok - past_tok, 0.0, isl_tok)
    full = np.where(growing < isl_tok, window_tok, 0.0)
    return growing * past_tok + growing * (growing + 1.0) / 2.0 + (isl_tok - growing) * full


def prefill_coordinates(
    *, num_seqs: FloatOrArray, isl_tok: FloatOrArray, num_heads: FloatOrArray, num_kv_heads: FloatOrArray,
    head_dim: FloatOrArray, window_tok: FloatOrArray = np.inf, past_tok: FloatOrArray = 0.0,
) -> dict[str, FloatOrArray]:
    """Coordinates of a prefill attention's surface.

    ``seq_heads``, the independent heads of all prompts; ``isl_tok``; ``window_frac``, the share of
    the context inside the window; ``heads_per_kv_head``; ``head_dim``.
    """
    context_tok = isl_tok + past_tok
    return {"seq_heads": num_seqs * num_heads, "isl_tok": isl_tok,
            "window_frac": np.minimum(context_tok, window_tok) / context_tok,
            "heads_per_kv_head": num_heads / num_kv_heads, "head_dim": head_dim}


def prefill_attention_kernel_s(
    kernel: PrefillAttentionKernel, *, num_seqs: FloatOrArray, isl_tok: FloatOrArray, num_heads: FloatOrArray,
    num_kv_heads: FloatOrArray, head_dim: FloatOrArray, kv_element_bytes: float, flop_s: float, hbm_bytes_s: float,
    window_tok: FloatOrArray = np.inf, past_tok: FloatOrArray = 0.0,
) -> FloatOrArray:
    """Time of causal attention of ``num_seqs`` prompts (or chunks) in one layer on one rank [s].

    Parameters
    ----------
    num_seqs, isl_tok
        Prompts, and new tokens of each.
    num_heads, num_kv_heads, head_dim
        Of this rank.
    kv_element_bytes
        Storage of one element of the cache [bytes].
    flop_s, hbm_bytes_s
        Peak rates of the machine [flop/s, bytes/s].
    window_tok
        Tokens that a sliding window sees; infinity is none.
    past_tok
        Tokens already in the cache: earlier chunks or a shared prefix. The tables that the kernels
        are fitted to have none, so this part rests on the arithmetic alone.
    """
    pairs = visible_pairs(isl_tok, past_tok=past_tok, window_tok=window_tok)
    kv_tok = isl_tok + np.minimum(past_tok, window_tok)
    kv_bytes = 2.0 * num_seqs * num_kv_heads * head_dim * kv_element_bytes * kv_tok
    return _kernel_s(
        kernel, work_flop=4.0 * num_seqs * num_heads * head_dim * pairs,
        moved_bytes=kv_bytes + 2.0 * ACTIVATION_BYTES * num_seqs * isl_tok * num_heads * head_dim,
        hbm_bytes=0.0, flop_s=flop_s, hbm_bytes_s=hbm_bytes_s,
        coordinates=prefill_coordinates(num_seqs=num_seqs, isl_tok=isl_tok, num_heads=num_heads,
                                        num_kv_heads=num_kv_heads, head_dim=head_dim, window_tok=window_tok,
                                        past_tok=past_tok),
    )


def experts_read(
    num_tok: FloatOrArray, *, num_experts: FloatOrArray, num_experts_per_tok: FloatOrArray,
    effective_frac: float = 1.0,
) -> FloatOrArray:
    """Experts that at least one of ``num_tok`` tokens meets [1].

    E' (1 - (1 - k/E')**n) with E' = max(k, effective_frac E): random routing over E' experts.

    Examples
    --------
    2 tokens that each choose 2 of 8 experts meet 8 (1 - 0.75**2) = 3.5.

    >>> float(experts_read(2, num_experts=8, num_experts_per_tok=2))
    3.5
    """
    met: FloatOrArray = np.maximum(effective_frac * num_experts, num_experts_per_tok)
    missed: FloatOrArray = (1.0 - num_experts_per_tok / met) ** np.asarray(num_tok, dtype=float)
    return met * (1.0 - missed)


def moe_coordinates(
    *, num_tok: FloatOrArray, hidden_size: FloatOrArray, expert_intermediate_size: FloatOrArray,
    num_experts_per_tok: FloatOrArray, num_experts: FloatOrArray, moe_tp: FloatOrArray = 1.0, moe_ep: FloatOrArray = 1.0,
) -> dict[str, FloatOrArray]:
    """Coordinates of an expert layer's surface.

    ``num_tok``; ``routed_frac`` = k / E; ``local_experts`` = E / moe_ep; ``shard_size``, an expert's
    intermediate size on one rank; ``hidden_size``.
    """
    return {"num_tok": num_tok, "routed_frac": num_experts_per_tok / num_experts, "local_experts": num_experts / moe_ep,
            "shard_size": expert_intermediate_size / moe_tp, "hidden_size": hidden_size}


def moe_kernel_s(
    kernel: MoeKernel, *, num_tok: FloatOrArray, hidden_size: FloatOrArray, expert_intermediate_size: FloatOrArray,
    num_experts_per_tok: FloatOrArray, num_experts: FloatOrArray, weight_bytes_per_param: float, flop_s: float,
    hbm_bytes_s: float, moe_tp: FloatOrArray = 1.0, moe_ep: FloatOrArray = 1.0,
) -> FloatOrArray:
    """Time of the routed experts of one layer on one rank [s].

    Parameters
    ----------
    num_tok
        Tokens of the whole group of moe_tp * moe_ep ranks.
    hidden_size, expert_intermediate_size, num_experts_per_tok, num_experts
        Of the model, unsharded; three matrices per expert (gate, up, down).
    weight_bytes_per_param
        Storage of one weight [bytes].
    flop_s, hbm_bytes_s
        Peak rates of the machine [flop/s, bytes/s].
    moe_tp, moe_ep
        Ranks that share each expert, and groups of experts.

    Notes
    -----
    Gathering, gating and summing move the activations in kernels of their own, before and after the
    weights are read.
    """
    shard_size = expert_intermediate_size / moe_tp
    rows = num_tok * num_experts_per_tok / moe_ep
    read = experts_read(num_tok, num_experts=num_experts, num_experts_per_tok=num_experts_per_tok,
                        effective_frac=kernel.effective_experts_frac.value) / moe_ep
    weight_bytes = 3.0 * hidden_size * shard_size * weight_bytes_per_param * read
    return _kernel_s(
        kernel, work_flop=6.0 * rows * hidden_size * shard_size, moved_bytes=weight_bytes, hbm_bytes=weight_bytes,
        serial_bytes=ACTIVATION_BYTES * (2.0 * num_tok * hidden_size + rows * (2.0 * hidden_size + 3.0 * shard_size)),
        flop_s=flop_s, hbm_bytes_s=hbm_bytes_s,
        coordinates=moe_coordinates(num_tok=num_tok, hidden_size=hidden_size, num_experts=num_experts,
                                    expert_intermediate_size=expert_intermediate_size, moe_tp=moe_tp, moe_ep=moe_ep,
                                    num_experts_per_tok=num_experts_per_tok),
    )
