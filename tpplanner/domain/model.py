"""A decoder-only language model as the matrices it multiplies and the cache it keeps."""

from collections.abc import Iterator
from dataclasses import dataclass

from tpplanner.domain.attention import Attention, GroupedQueryAttention, LatentAttention, LinearAttention
from tpplanner.domain.checks import check_count
from tpplanner.domain.dtypes import Dtype, Precision
from tpplanner.domain.matrix import Matrix, Role
from tpplanner.errors import ModelError, reject

__all__ = [
    "Attention",
    "DenseMlp",
    "GroupedQueryAttention",
    "LatentAttention",
    "LayerGroup",
    "LinearAttention",
    "Mlp",
    "ModelSpec",
    "MoeMlp",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMlp:
    """A feed-forward block: gate, up (``gated``) or up only, then down."""

    intermediate_size: int
    gated: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        check_count(ModelError, "dense MLP", intermediate_size=self.intermediate_size)

    def matrices(self, hidden_size: int) -> Iterator[Matrix]:
        """Yield the linears of one block."""
        up = self.intermediate_size * (2 if self.gated else 1)
        yield Matrix(name="gate_up", in_features=hidden_size, out_features=up, bias=self.bias)
        yield Matrix(name="down", in_features=self.intermediate_size, out_features=hidden_size, bias=self.bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeMlp:
    """A mixture of experts: router, routed experts, optional shared expert (always active).

    ``shared_intermediate_size`` is the width of all shared experts together, 0 for none.
    ``router_bias`` counts one bias per expert (gpt-oss, or the score correction of DeepSeek-V3);
    ``shared_gate`` the scalar gate of Qwen2-MoE and Qwen3-Next.
    """

    num_experts: int
    num_experts_per_tok: int
    expert_intermediate_size: int
    shared_intermediate_size: int = 0
    router_bias: bool = False
    expert_bias: bool = False
    shared_gate: bool = False

    def __post_init__(self) -> None:
        check_count(
            ModelError, "MoE", num_experts=self.num_experts, num_experts_per_tok=self.num_experts_per_tok,
            expert_intermediate_size=self.expert_intermediate_size,
        )
        check_count(ModelError, "MoE", minimum=0, shared_intermediate_size=self.shared_intermediate_size)
        if self.num_experts_per_tok > self.num_experts:
            reject(ModelError, "num_experts_per_tok", f"be <= num_experts {self.num_experts}",
                   self.num_experts_per_tok)

    def matrices(self, hidden_size: int) -> Iterator[Matrix]:
        """Yield the router, the shared expert and the routed experts of one block."""
        yield Matrix(name="router", in_features=hidden_size, out_features=self.num_experts,
                     min_shard_frac=1.0, bias=self.router_bias, role=Role.UNQUANTIZED)
        if self.shared_intermediate_size:
            width = self.shared_intermediate_size
            yield Matrix(name="shared_gate_up", in_features=hidden_size, out_features=2 * width)
            yield Matrix(name="shared_down", in_features=width, out_features=hidden_size)
        if self.shared_gate:
            yield Matrix(name="shared_gate", in_features=hidden_size, out_features=1, min_shard_frac=1.0,
                         role=Role.UNQUANTIZED)
        for name, k, n in (
            ("expert_gate_up", hidden_size, 2 * self.expert_intermediate_size),
            ("expert_down", self.expert_intermediate_size, hidden_size),
        ):
            yield Matrix(name=name, in_features=k, out_features=n, role=Role.EXPERT, bias=self.expert_bias,
                         num_copies=self.num_experts, num_active=self.num_experts_per_tok)


Mlp = DenseMlp | MoeMlp


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """``num_layers`` equal layers. ``num_norms`` counts hidden-wide norm vectors per layer."""

    num_layers: int
    attention: Attention
    mlp: Mlp
    num_norms: int = 2
    norm_bias: bool = False

    def __post_init__(self) -> None:
        check_count(ModelError, "layers", num_layers=self.num_layers)
        check_count(ModelError, "layers", minimum=0, num_norms=self.num_norms)

    def matrices(self, hidden_size: int) -> Iterator[Matrix]:
        """Yield the linears of one layer."""
        yield from self.attention.matrices(hidden_size)
        yield from self.mlp.matrices(hidden_size)

    def num_vector_params(self, hidden_size: int) -> int:
        """Parameters of one layer that are no matrix: norms, sinks, convolutions, decay rates."""
        norms = self.num_norms * hidden_size * (2 if self.norm_bias else 1)
        return norms + self.attention.num_vector_params


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model: layers, embedding, head, context limit and number formats.

    ``final_norm_bias`` belongs to LayerNorm models; ``place`` says where the specification was read.
    """

    name: str
    architecture: str
    hidden_size: int
    vocab_size: int
    layer_groups: tuple[LayerGroup, ...]
    max_context_tok: int
    precision: Precision
    tied_embeddings: bool = False
    lm_head_bias: bool = False
    final_norm_bias: bool = False
    place: str = "<memory>"

    def __post_init__(self) -> None:
        check_count(ModelError, self.place, hidden_size=self.hidden_size, vocab_size=self.vocab_size,
                    max_context_tok=self.max_context_tok)
        if not self.layer_groups:
            reject(ModelError, "layer_groups", "hold at least one layer", self.layer_groups, self.place)
        if self.num_layers > 10_000:
            reject(ModelError, "num_layers", "be at most 10000", self.num_layers, self.place)

    @property
    def num_layers(self) -> int:
        """Layers in all."""
        return sum(group.num_layers for group in self.layer_groups)

    @property
    def is_moe(self) -> bool:
        """Whether any layer routes tokens to experts."""
        return any(isinstance(group.mlp, MoeMlp) for group in self.layer_groups)

    @property
    def lm_head(self) -> Matrix:
        """The output projection, sharded over the vocabulary."""
        return Matrix(name="lm_head", in_features=self.hidden_size, out_features=self.vocab_size,
                      bias=self.lm_head_bias, role=Role.LM_HEAD)

    def matrices(self) -> Iterator[tuple[int, Matrix]]:
        """Yield (number of layers, linear) for every linear inside the layers."""
        for group in self.layer_groups:
            for matrix in group.matrices(self.hidden_size):
                yield group.num_layers, matrix

    def stored_as(self, matrix: Matrix) -> Dtype:
        """Storage format of the matrix' weights."""
        match matrix.role:
            case Role.EXPERT:
                return self.precision.expert
            case Role.LM_HEAD:
                return self.precision.lm_head
            case Role.UNQUANTIZED:
                return self.precision.base
            case Role.LINEAR:
                return self.precision.linear

    def runs_as(self, matrix: Matrix) -> Dtype:
        """Operand format of the matrix' GEMM: it names the peak that bounds it."""
        match matrix.role:
            case Role.EXPERT:
                return self.precision.expert_activation
            case Role.LINEAR:
                return self.precision.activation
            case Role.LM_HEAD | Role.UNQUANTIZED:
                return self.precision.base

    @property
    def num_vector_params(self) -> int:
        """Norms and other parameters outside the matrices."""
        final = self.hidden_size * (2 if self.final_norm_bias else 1)
        return final + sum(g.num_layers * g.num_vector_params(self.hidden_size) for g in self.layer_groups)

    def _count(self, *, active: bool) -> int:
        inside = sum(n * (m.num_active_params if active else m.num_params) for n, m in self.matrices())
        embedding = self.hidden_size * self.vocab_size
        head = 0 if self.tied_embeddings else embedding
        head_bias = self.vocab_size if self.lm_head_bias else 0
        return inside + self.num_vector_params + embedding + head + head_bias

    @property
    def num_params(self) -> int:
        """Parameters in all, embeddings included, tied ones once."""
        return self._count(active=False)

    @property
    def num_active_params(self) -> int:
        """Parameters that one token meets, embeddings included (the count that publishers state)."""
        return self._count(active=True)
