"""Whether a rank's weights fit, and how many KV blocks are left room for."""

import torch

from tpplanner.engine.config import EngineConfig
from tpplanner.engine.model_config import EngineModel
from tpplanner.engine.partition import kv_bytes_per_tok, num_weights
from tpplanner.errors import ModelError

_GRAPH_BYTES = 1 << 30
_CPU_SHARE = 0.5
"""Of the memory that is free, over all ranks: others work on the machine too, and on a CPU weights lie there twice."""


def free_bytes(device: torch.device, config: EngineConfig) -> int:
    """Bytes that this rank may use in all."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free - (1.0 - config.gpu_memory_utilization) * total)
    with open("/proc/meminfo", encoding="ascii") as file:
        lines = dict(line.split(":") for line in file)
    return int(_CPU_SHARE * int(lines["MemAvailable"].split()[0]) * 1024 / config.share_tp)


def weight_bytes(model: EngineModel, tp: int, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of one rank's weights; on a CPU with tied embeddings and head once more, as laid out for products."""
    size = num_weights(model, tp) * dtype.itemsize
    if device.type == "cpu" and model.tied_embeddings:
        size += -(-model.vocab_size // tp) * model.hidden_size * dtype.itemsize
    return size


def activation_bytes(model: EngineModel, config: EngineConfig, dtype: torch.dtype) -> int:
    """Bytes of the widest intermediate results of a step, logits in 32 bits and three of their like for sampling."""
    wide = 2 * model.intermediate_size // config.share_tp + 4 * model.hidden_size + 3 * model.num_heads * model.head_dim
    return config.max_num_batched_tokens * wide * dtype.itemsize + 4 * config.max_num_seqs * model.vocab_size * 4


def check_fits(model: EngineModel, config: EngineConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Raise `ModelError` where weights and one block do not fit; say how many bytes are short and which t would do."""
    have, own = free_bytes(device, config), config.share_tp

    def short(tp: int) -> int:
        need = weight_bytes(model, tp, dtype, device) + config.kv_block_size_tok * kv_bytes_per_tok(model, tp, dtype.itemsize)
        # Ranks on a CPU share its memory; each on a GPU has its own.
        return need - (have * own // tp if device.type == "cpu" else have)

    if short(own) <= 0:
        return
    fitting = [tp for tp in (1, 2, 4, 8, 16, 32) if tp > own and short(tp) <= 0]
    advice = f"t = {fitting[0]} would fit" if fitting else "no degree up to 32 would fit"
    raise ModelError(f"{config.model}: the weights of a rank at t = {own} are {short(own):,} bytes too large for "
                     f"the {have:,} bytes that it may use; {advice}")


def num_kv_blocks(model: EngineModel, config: EngineConfig, dtype: torch.dtype, device: torch.device) -> int:
    """KV blocks that fit beside the weights, which are loaded; what the settings say where they say it."""
    block_bytes = config.kv_block_size_tok * kv_bytes_per_tok(model, config.share_tp, dtype.itemsize)
    if config.num_kv_blocks is not None:
        return config.num_kv_blocks
    if config.kv_cache_bytes is not None:
        return max(config.kv_cache_bytes // block_bytes, 1)
    left = free_bytes(device, config) - activation_bytes(model, config, dtype)
    left -= _GRAPH_BYTES if device.type == "cuda" and config.cuda_graphs else 0
    # More than every sequence at its longest is of no use.
    longest = -(-(config.max_context_tok or model.max_context_tok) // config.kv_block_size_tok)
    return min(max(left // block_bytes, 1), config.max_num_seqs * longest)
