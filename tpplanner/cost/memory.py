"""Memory of one GPU of a replica: what weights, activations and the runtime leave for the KV cache."""

from dataclasses import dataclass

import numpy as np

from tpplanner.cost.kv import kv_bytes_per_tok
from tpplanner.cost.work import ModelWork, work_of
from tpplanner.domain.engine import EngineProfile
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.model import DenseMlp, ModelSpec

EQUATION = "KV = utilisation * HBM - weights(t) - activations - runtime;  blocks = floor(KV / (block * kv_bytes(t)))"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemorySplit:
    """Memory of one rank [bytes]; ``kv_bytes`` is negative where the weights do not fit."""

    usable_bytes: FloatOrArray
    weight_bytes: FloatOrArray
    activation_bytes: FloatOrArray
    runtime_bytes: FloatOrArray
    kv_bytes: FloatOrArray
    kv_bytes_per_tok: FloatOrArray
    num_kv_blocks: FloatOrArray
    kv_capacity_tok: FloatOrArray


def weight_bytes(work: ModelWork, *, tp: FloatOrArray, tied_embeddings: bool) -> FloatOrArray:
    """Weights that one rank of ``tp`` holds [bytes].

    Linears by their share, embedding and head by 1/t over the vocabulary (one of them where they are
    tied), norms in full. See :class:`tpplanner.domain.matrix.Matrix` for what does not divide.
    """
    total: FloatOrArray = work.vector_param_bytes + work.embedding_bytes / tp
    if not tied_embeddings:
        head = work.lm_head
        total = total + head.num_params * head.bytes_per_param * head.shard_frac(tp)
    for linear in work.linears:
        total = total + linear.num_copies * linear.num_params * linear.bytes_per_param * linear.shard_frac(tp)
    return total


def activation_bytes(
    model: ModelSpec, *, tp: FloatOrArray, max_num_batched_tokens: FloatOrArray, max_num_seqs: FloatOrArray
) -> FloatOrArray:
    """Peak activations of the largest step that the engine allows, on one rank [bytes].

    The larger of two peaks, as the engines profile them at start: the widest MLP (residual, norm
    output, gate-up and down of every token in the budget; an expert layer keeps a row per
    chosen expert), and the logits of ``max_num_seqs`` rows, gathered, in the base format and in 32 bits.
    """
    base = model.precision.base.num_bytes
    hidden = model.hidden_size
    widest: FloatOrArray = 0.0
    for group in model.layer_groups:
        match group.mlp:
            case DenseMlp() as mlp:
                elements: FloatOrArray = 3.0 * hidden + 3.0 * mlp.intermediate_size / tp
            case mlp:
                per_expert = np.maximum(2.0 * mlp.expert_intermediate_size / tp, hidden) + hidden
                elements = 3.0 * hidden + mlp.num_experts_per_tok * per_expert
        widest = np.maximum(widest, elements)
    logits = max_num_seqs * model.vocab_size * (base + 4.0)
    return np.maximum(max_num_batched_tokens * widest * base, logits)


def memory_split(
    model: ModelSpec, hardware: HardwareProfile, engine: EngineProfile, *, tp: FloatOrArray,
    gpu_memory_utilization: FloatOrArray, max_num_seqs: FloatOrArray, max_num_batched_tokens: FloatOrArray,
    non_kv_overhead_bytes: float | None = None, num_gpu_blocks: FloatOrArray | None = None,
) -> MemorySplit:
    """Split the memory of one rank [bytes], and count the KV blocks that fit.

    Parameters
    ----------
    gpu_memory_utilization
        Share of the HBM that the engine may take.
    non_kv_overhead_bytes
        Replaces activations + runtime where it is known from the engine's own log [bytes].
    num_gpu_blocks
        Replaces the number of KV blocks where it is known (vLLM's ``--num-gpu-blocks-override``).

    Notes
    -----
    KV blocks are counted in whole blocks of ``engine.kv_block_size_tok``.
    """
    work = work_of(model)
    usable = gpu_memory_utilization * hardware.hbm_bytes.value
    weights = weight_bytes(work, tp=tp, tied_embeddings=model.tied_embeddings)
    if non_kv_overhead_bytes is None:
        activations = activation_bytes(model, tp=tp, max_num_batched_tokens=max_num_batched_tokens,
                                       max_num_seqs=max_num_seqs)
        runtime: FloatOrArray = (hardware.runtime_bytes.value + engine.graph_bytes.value
                   + np.where(np.greater(tp, 1), hardware.runtime_bytes_per_rank.value, 0.0))
    else:
        activations, runtime = 0.0 * weights, non_kv_overhead_bytes + 0.0 * weights
    left = usable - weights - activations - runtime
    per_tok = kv_bytes_per_tok(work, tp=tp, kv_element_bytes=model.precision.kv.num_bytes)
    block = engine.kv_block_size_tok
    with np.errstate(divide="ignore", invalid="ignore"):
        blocks = np.where(np.greater(per_tok, 0), np.floor(np.maximum(left, 0.0) / (block * per_tok)), np.inf)
    if num_gpu_blocks is not None:
        blocks = np.asarray(num_gpu_blocks + 0.0 * weights)
        left = blocks * block * per_tok
    return MemorySplit(
        usable_bytes=usable + 0.0 * weights, weight_bytes=weights, activation_bytes=activations,
        runtime_bytes=runtime, kv_bytes=left, kv_bytes_per_tok=per_tok, num_kv_blocks=blocks,
        kv_capacity_tok=blocks * block,
    )
