"""Which degrees a model can be cut into on a machine."""

from dataclasses import dataclass

import numpy as np

from tpplanner.domain.attention import GroupedQueryAttention
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.model import DenseMlp, LayerGroup, ModelSpec


def num_replicas_of(num_gpus: FloatOrArray, *, tp: FloatOrArray, gpus_per_node: int) -> FloatOrArray:
    """Replicas of degree ``tp`` that ``num_gpus`` GPUs hold, nodes being filled one after the other.

    A replica within a node does not straddle two; one that is larger takes whole nodes.

    Examples
    --------
    16 GPUs in two nodes of 8 hold one TP 5 replica each, and one TP 12 replica over both.

    >>> [float(num_replicas_of(16, tp=t, gpus_per_node=8)) for t in (5, 8, 12, 16)]
    [2.0, 2.0, 1.0, 1.0]
    """
    t = np.asarray(tp, dtype=float)
    nodes = np.floor(np.asarray(num_gpus, dtype=float) / gpus_per_node)
    rest = num_gpus - nodes * gpus_per_node
    within = nodes * np.floor(gpus_per_node / t) + np.floor(rest / t)
    # The last replica over several nodes may end in a node that is not full.
    across = np.maximum(np.floor(nodes / np.ceil(t / gpus_per_node)), np.where(num_gpus >= t, 1.0, 0.0))
    return np.where(t > gpus_per_node, across, within)


def num_gpus_of(num_replicas: FloatOrArray, *, tp: FloatOrArray, gpus_per_node: int) -> FloatOrArray:
    """Fewest GPUs that hold ``num_replicas`` replicas of degree ``tp``: the inverse of `num_replicas_of`."""
    t = np.asarray(tp, dtype=float)
    per_node = np.maximum(np.floor(gpus_per_node / t), 1.0)
    full = np.floor(np.asarray(num_replicas, dtype=float) / per_node)
    within = full * gpus_per_node + (num_replicas - full * per_node) * t
    return np.where(t > gpus_per_node, num_replicas * np.ceil(t / gpus_per_node) * gpus_per_node, within)


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
