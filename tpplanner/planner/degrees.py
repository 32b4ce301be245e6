"""Which degrees a model can be cut into on a machine."""

from dataclasses import dataclass

from tpplanner.domain.attention import GroupedQueryAttention
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.model import DenseMlp, LayerGroup, ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Degree:
    """A degree, and why the model cannot be cut into it (empty where it can)."""

    tp: int
    obstacle: str


def _layer_obstacle(group: LayerGroup, tp: int) -> str:
    attention = group.attention
    heads = attention.num_shardable_heads
    if heads % tp:
        return f"{tp} does not divide {heads} heads"
    if isinstance(attention, GroupedQueryAttention):
        kv = attention.num_kv_heads
        if kv % tp and tp % kv:
            return f"{tp} ranks, {kv} KV heads: neither divides the other"
    match group.mlp:
        case DenseMlp() as mlp:
            if mlp.intermediate_size % tp:
                return f"{tp} does not divide the MLP width {mlp.intermediate_size}"
        case moe:
            # Engines cut experts by width or, failing that, share them out whole.
            if moe.expert_intermediate_size % tp and moe.num_experts % tp:
                return f"{tp} divides neither the expert width {moe.expert_intermediate_size} nor {moe.num_experts} experts"
    return ""


def degree_obstacle(model: ModelSpec, tp: int) -> str:
    """Return why ``model`` cannot run at ``tp``, or an empty string."""
    if tp == 1:
        return ""
    for group in model.layer_groups:
        obstacle = _layer_obstacle(group, tp)
        if obstacle:
            return obstacle
    return ""


def candidate_degrees(
    model: ModelSpec, hardware: HardwareProfile, num_gpus: int, max_tp: int | None = None
) -> tuple[Degree, ...]:
    """Return the degrees to plan for, ascending.

    Powers of two, whether the model divides by them or not (the table says so), and other degrees that
    it does divide by; up to the node, or to ``max_tp`` where the user asks for more or less.
    """
    limit = min(num_gpus, hardware.gpus_per_node if max_tp is None else max_tp)
    found = []
    for tp in range(1, limit + 1):
        obstacle = degree_obstacle(model, tp)
        if not obstacle or tp & (tp - 1) == 0:
            found.append(Degree(tp=tp, obstacle=obstacle))
    return tuple(found)
