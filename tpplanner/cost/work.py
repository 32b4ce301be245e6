"""What a model asks of the hardware, summed over its layers once: the sizes that every term multiplies.

All linears that are stored in one format, run in one format and shard alike have one ratio of FLOP to
bytes, so the roofline of their sum is the sum of their rooflines: they are added here.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from tpplanner.domain.attention import Attention, GroupedQueryAttention, LatentAttention, LinearAttention
from tpplanner.domain.matrix import FloatOrArray, Matrix, Role, shard_frac
from tpplanner.domain.model import DenseMlp, LayerGroup, ModelSpec, MoeMlp


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearClass:
    """Linears with one format and one way of sharding, summed.

    ``num_params`` per copy; ``num_copies`` and ``num_active`` are 1 except for experts.
    """

    num_params: float
    bytes_per_param: float
    runs_as: str
    is_expert: bool
    min_shard_frac: float
    num_copies: int
    num_active: int

    def shard_frac(self, tp: FloatOrArray) -> FloatOrArray:
        """Share of the class on one rank of ``tp``."""
        return shard_frac(tp, self.min_shard_frac)

    def num_copies_read(self, num_tok: FloatOrArray) -> FloatOrArray:
        """Copies that at least one of ``num_tok`` tokens meets, routing being balanced and random.

        E * (1 - (1 - k/E)**n): 1 for a dense linear, k at one token, E for many.
        """
        if self.num_copies == 1:
            return 1.0
        miss = 1.0 - self.num_active / self.num_copies
        # One token meets k experts; a fraction of a token (a mean) no fewer than its share.
        return self.num_copies * (1.0 - miss ** np.asarray(num_tok, dtype=float))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWork:
    """The sums over all layers of one model.

    Attributes
    ----------
    linears
        Classes of linears inside the layers.
    lm_head
        The output projection.
    attentions
        (layers, attention) per kind.
    replicated_activation_bytes_per_tok, sharded_activation_bytes_per_tok
        Traffic of norms, residuals and routing, which t does not divide, and of rotary embedding,
        gating and KV writes, which it does.
    num_layers, hidden_bytes, row_logits_bytes, vector_param_bytes, embedding_bytes
        For launches, messages and memory.
    """

    linears: tuple[LinearClass, ...]
    lm_head: LinearClass
    attentions: tuple[tuple[int, Attention], ...]
    replicated_activation_bytes_per_tok: float
    sharded_activation_bytes_per_tok: float
    num_layers: int
    hidden_bytes: float
    row_logits_bytes: float
    vector_param_bytes: float
    embedding_bytes: float


def _classify(model: ModelSpec, matrix: Matrix, num_layers: int) -> LinearClass:
    bias = matrix.out_features if matrix.bias else 0
    return LinearClass(
        num_params=float(num_layers * (matrix.in_features * matrix.out_features + bias)),
        bytes_per_param=model.stored_as(matrix).num_bytes,
        runs_as=model.runs_as(matrix).name,
        is_expert=matrix.role is Role.EXPERT,
        min_shard_frac=matrix.min_shard_frac,
        num_copies=matrix.num_copies,
        num_active=matrix.num_active,
    )


def _merge(classes: list[LinearClass]) -> tuple[LinearClass, ...]:
    """Add the parameters of classes that are alike in everything else."""
    sums: dict[LinearClass, float] = defaultdict(float)
    for c in classes:
        sums[replace(c, num_params=0.0)] += c.num_params
    return tuple(replace(kind, num_params=total) for kind, total in sums.items())


def _replicated_elements(group: LayerGroup, hidden_size: int) -> float:
    # A norm with its residual reads two hidden vectors and writes two.
    elements = 4.0 * max(group.num_norms, 2) * hidden_size
    if isinstance(group.mlp, MoeMlp):
        # Each chosen expert's input is gathered and its output is read back and summed.
        elements += 3.0 * group.mlp.num_experts_per_tok * hidden_size
    return elements


def _sharded_elements(group: LayerGroup) -> float:
    match group.attention:
        case GroupedQueryAttention() as a:
            # Q, K rotated in place; K, V written to the cache; the output written.
            attention = (2 * a.num_heads + 4 * a.num_kv_heads + a.num_heads) * a.head_dim
        case LatentAttention() as a:
            attention = 3 * a.num_heads * (a.qk_nope_head_dim + a.qk_rope_head_dim)
        case LinearAttention() as a:
            attention = 4 * (2 * a.key_dim + a.value_dim)
    match group.mlp:
        case DenseMlp() as mlp:
            width = mlp.intermediate_size * (3 if mlp.gated else 2)
        case MoeMlp() as mlp:
            width = 3 * (mlp.num_experts_per_tok * mlp.expert_intermediate_size + mlp.shared_intermediate_size)
    return float(attention + width)


@lru_cache(maxsize=256)
def work_of(model: ModelSpec) -> ModelWork:
    """Sum the layers of ``model``."""
    base = model.precision.base.num_bytes
    attentions: dict[Attention, int] = defaultdict(int)
    for group in model.layer_groups:
        attentions[group.attention] += group.num_layers
    groups = model.layer_groups
    return ModelWork(
        linears=_merge([_classify(model, m, n) for n, m in model.matrices()]),
        lm_head=_classify(model, model.lm_head, 1),
        attentions=tuple((n, a) for a, n in attentions.items()),
        replicated_activation_bytes_per_tok=base
        * (sum(g.num_layers * _replicated_elements(g, model.hidden_size) for g in groups) + 2 * model.hidden_size),
        sharded_activation_bytes_per_tok=base * sum(g.num_layers * _sharded_elements(g) for g in groups),
        num_layers=model.num_layers,
        hidden_bytes=model.hidden_size * base,
        row_logits_bytes=model.vocab_size * base,
        vector_param_bytes=model.num_vector_params * base,
        embedding_bytes=model.vocab_size * model.hidden_size * base,
    )
