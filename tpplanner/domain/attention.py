"""The kinds of attention: their linears, their heads, and what each token leaves in the cache."""

from collections.abc import Iterator
from dataclasses import dataclass

from tpplanner.domain.checks import check_count
from tpplanner.domain.matrix import Matrix
from tpplanner.errors import ModelError, reject


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedQueryAttention:
    """Softmax attention with ``num_kv_heads`` shared K/V heads (MHA: as many as query heads).

    Attributes
    ----------
    window_tok
        Sliding window in tokens, or ``None`` for full attention.
    output_gate
        The query projection also makes a gate of the same width (Qwen3-Next).
    qk_norm_params
        Parameters of the norms of Q and K (2 x head_dim in Qwen3 and Gemma 3).
    sinks
        One learned logit per head (gpt-oss).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window_tok: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    output_gate: bool = False
    qk_norm_params: int = 0
    sinks: bool = False

    def __post_init__(self) -> None:
        place = "attention"
        check_count(ModelError, place, num_heads=self.num_heads, num_kv_heads=self.num_kv_heads,
                    head_dim=self.head_dim, window_tok=self.window_tok)
        check_count(ModelError, place, minimum=0, qk_norm_params=self.qk_norm_params)
        if self.num_heads % self.num_kv_heads:
            reject(ModelError, "num_heads", f"be a multiple of num_kv_heads {self.num_kv_heads}",
                   self.num_heads, place)

    @property
    def num_shardable_heads(self) -> int:
        """Heads that t must divide."""
        return self.num_heads

    @property
    def num_vector_params(self) -> int:
        """Norm and sink parameters of one layer."""
        return self.qk_norm_params + (self.num_heads if self.sinks else 0)

    def matrices(self, hidden_size: int) -> Iterator[Matrix]:
        """Yield the projections of one layer."""
        q_dim = self.num_heads * self.head_dim
        kv_dim = self.num_kv_heads * self.head_dim
        yield Matrix(name="q", in_features=hidden_size, out_features=q_dim * (2 if self.output_gate else 1),
                     bias=self.qkv_bias)
        yield Matrix(name="kv", in_features=hidden_size, out_features=2 * kv_dim, bias=self.qkv_bias,
                     min_shard_frac=1 / self.num_kv_heads)
        yield Matrix(name="o", in_features=q_dim, out_features=hidden_size, bias=self.out_bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek): one compressed K/V vector per token for all heads.

    The latent is replicated on every rank. ``q_lora_rank`` is ``None`` where Q is not compressed.
    """

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    def __post_init__(self) -> None:
        check_count(
            ModelError, "latent attention", num_heads=self.num_heads, q_lora_rank=self.q_lora_rank,
            kv_lora_rank=self.kv_lora_rank, qk_nope_head_dim=self.qk_nope_head_dim,
            qk_rope_head_dim=self.qk_rope_head_dim, v_head_dim=self.v_head_dim,
        )

    @property
    def num_shardable_heads(self) -> int:
        """Heads that t must divide."""
        return self.num_heads

    @property
    def latent_dim(self) -> int:
        """Elements that one token leaves in the cache of one layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def num_vector_params(self) -> int:
        """Norms of the compressed vectors."""
        return self.kv_lora_rank + (self.q_lora_rank or 0)

    def matrices(self, hidden_size: int) -> Iterator[Matrix]:
        """Yield the projections of one layer; the down-projections are replicated."""
        q_dim = self.num_heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        if self.q_lora_rank is None:
            yield Matrix(name="q", in_features=hidden_size, out_features=q_dim)
        else:
            yield Matrix(name="q_a", in_features=hidden_size, out_features=self.q_lora_rank, min_shard_frac=1.0)
            yield Matrix(name="q_b", in_features=self.q_lora_rank, out_features=q_dim)
        yield Matrix(name="kv_a", in_features=hidden_size, out_features=self.latent_dim, min_shard_frac=1.0)
        yield Matrix(name="kv_b", in_features=self.kv_lora_rank,
                     out_features=self.num_heads * (self.qk_nope_head_dim + self.v_head_dim))
        yield Matrix(name="o", in_features=self.num_heads * self.v_head_dim, out_features=hidden_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """A recurrent layer with a state of fixed size per sequence (gated delta net, lightning attention).

    Attributes
    ----------
    num_key_heads, num_value_heads, key_head_dim, value_head_dim
        The state of one sequence is value heads x key_head_dim x value_head_dim.
    conv_kernel_size
        Width of the short convolution over q, k, v; 0 for none.
    state_bytes_per_element
        The state is kept in 32 bits by most kernels.
    decay_projections
        Extra projections of hidden x num_value_heads (beta and alpha of the gated delta net: 2).
    """

    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel_size: int = 0
    state_bytes_per_element: int = 4
    decay_projections: int = 2

    def __post_init__(self) -> None:
        place = "linear attention"
        check_count(ModelError, place, num_key_heads=self.num_key_heads, num_value_heads=self.num_value_heads,
                    key_head_dim=self.key_head_dim, value_head_dim=self.value_head_dim)
        check_count(ModelError, place, minimum=0, conv_kernel_size=self.conv_kernel_size,
                    decay_projections=self.decay_projections)

    @property
    def num_shardable_heads(self) -> int:
        """Heads that t must divide."""
        return self.num_key_heads

    @property
    def key_dim(self) -> int:
        """Width of all keys."""
        return self.num_key_heads * self.key_head_dim

    @property
    def value_dim(self) -> int:
        """Width of all values."""
        return self.num_value_heads * self.value_head_dim

    @property
    def num_state_elements(self) -> int:
        """Elements of recurrent and convolution state of one sequence in one layer."""
        conv = max(self.conv_kernel_size - 1, 0) * (2 * self.key_dim + self.value_dim)
        return self.num_value_heads * self.key_head_dim * self.value_head_dim + conv

    @property
    def num_vector_params(self) -> int:
        """Convolution, decay rates and the norm of the output."""
        conv = self.conv_kernel_size * (2 * self.key_dim + self.value_dim)
        decay = 2 * self.num_value_heads if self.decay_projections else 0
        return conv + decay + self.value_head_dim

    def matrices(self, hidden_size: int) -> Iterator[Matrix]:
        """Yield the projections of one layer: q, k, v and the output gate, the decay, the output."""
        yield Matrix(name="qkvz", in_features=hidden_size, out_features=2 * self.key_dim + 2 * self.value_dim)
        if self.decay_projections:
            yield Matrix(name="ba", in_features=hidden_size,
                         out_features=self.decay_projections * self.num_value_heads)
        yield Matrix(name="o", in_features=self.value_dim, out_features=hidden_size)


Attention = GroupedQueryAttention | LatentAttention | LinearAttention
