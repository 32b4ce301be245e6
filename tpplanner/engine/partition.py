"""What one rank of t holds: heads, columns and vocabulary, padded with zeros where t does not divide them."""

from dataclasses import dataclass

from tpplanner.engine.model_config import EngineModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Share of rank ``rank`` of ``tp``.

    Attributes
    ----------
    kv_heads, heads
        Model's index of each local head, ``None`` for one of zeros; the local query heads lie group by group.
    columns, vocabulary
        (begin, end) of the model's columns of the MLP and rows of the embedding, ``num_columns`` and ``num_tokens`` of
        the padded local ones.
    """

    rank: int
    tp: int
    kv_heads: tuple[int | None, ...]
    heads: tuple[int | None, ...]
    columns: tuple[int, int]
    num_columns: int
    vocabulary: tuple[int, int]
    num_tokens: int


def _share(total: int, rank: int, tp: int) -> tuple[tuple[int, int], int]:
    each = -(-total // tp)
    return (min(rank * each, total), min((rank + 1) * each, total)), each


def partition(model: EngineModel, rank: int, tp: int) -> Partition:
    """Cut the model for one rank.

    KV heads are padded to a multiple of t; where t is a multiple of them they are copied, and the query heads of a group
    divided over the copies.

    Examples
    --------
    Nine query and three KV heads on two ranks: four KV heads, the last one of zeros.

    >>> from tpplanner.engine.model_config import EngineModel
    >>> model = EngineModel(family="llama", hidden_size=576, num_layers=1, num_heads=9, num_kv_heads=3, head_dim=64,
    ...     intermediate_size=1536, vocab_size=49152, max_context_tok=8192, eps=1e-5, rope_theta=1e5, rope_scaling=None,
    ...     tied_embeddings=True, qkv_bias=False, output_bias=False, qk_norm=False, dtype="float32", eos_ids=(2,))
    >>> partition(model, 1, 2).kv_heads, partition(model, 1, 2).heads
    ((2, None), (6, 7, 8, None, None, None))
    """
    group, kv = model.num_heads // model.num_kv_heads, model.num_kv_heads
    copies = tp // kv if tp > kv and tp % kv == 0 else 1
    each = -(-group // copies)
    padded = -(-kv * copies // tp) * tp
    local = range(rank * padded // tp, (rank + 1) * padded // tp)
    kv_heads = tuple(i // copies if i < kv * copies else None for i in local)
    heads: list[int | None] = []
    for i in local:
        first = (i % copies) * each
        inside = range(first, first + each)
        heads += [(i // copies) * group + j if i < kv * copies and j < group else None for j in inside]
    columns, num_columns = _share(model.intermediate_size, rank, tp)
    vocabulary, num_tokens = _share(model.vocab_size, rank, tp)
    return Partition(rank=rank, tp=tp, kv_heads=kv_heads, heads=tuple(heads), columns=columns, num_columns=num_columns,
                     vocabulary=vocabulary, num_tokens=num_tokens)


def num_weights(model: EngineModel, tp: int) -> int:
    """Weights that each rank of t holds, norms included."""
    part = partition(model, 0, tp)
    q, kv = len(part.heads) * model.head_dim, len(part.kv_heads) * model.head_dim
    attention = model.hidden_size * (2 * q + 2 * kv) + (q + 2 * kv) * model.qkv_bias + 2 * model.head_dim * model.qk_norm
    layer = attention + 3 * model.hidden_size * part.num_columns + 2 * model.hidden_size
    tables = (1 if model.tied_embeddings else 2) * part.num_tokens * model.hidden_size
    return model.num_layers * layer + tables + model.hidden_size


def kv_bytes_per_tok(model: EngineModel, tp: int, element_bytes: int) -> int:
    """Bytes of the KV cache that one token takes on each rank of t."""
    return 2 * model.num_layers * len(partition(model, 0, tp).kv_heads) * model.head_dim * element_bytes
