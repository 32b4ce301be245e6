"""Attention over the engine's paged cache: decode over batch and context, prompts, and chunks that continue a prompt."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from calibrate.bench import Bench, Plan, Prepared, close_to
from calibrate.bench_gemm import MAX_SEQS, TORCH_DTYPES
from calibrate.samples import Case
from calibrate.timing import Call, Piece
from tpplanner.engine.attention import AttentionPlan, ChunkPlan, PagedAttention
from tpplanner.engine.paged_kernel import DecodeKernel
from tpplanner.engine.partition import partition

DECODE, PREFILL = "decode_attention", "prefill_attention"
BLOCK = 16
_SERVED_TOK = 8192
"""Longest context that the kernel is told of, as an engine tells it: it divides its work by that."""
MOST_ROWS = 64
"""Of a product that runs before what is timed: its weights are what matters."""
MAX_KV_BYTES = 2**31
"""A larger cache is not measured: the time grows with the bytes long before."""


def heads_of(plan: Plan) -> list[tuple[int, int, int]]:
    """(query heads, KV heads, head size) of one rank, of every model and degree."""
    found: dict[tuple[int, int, int], None] = {}
    for model in plan.models:
        for tp in plan.degrees:
            part = partition(model, 0, tp)
            found[len(part.heads), len(part.kv_heads), model.head_dim] = None
    return list(found)


def _kind(plan: Plan) -> str:
    return next(d for d in plan.dtypes if d in TORCH_DTYPES)


def decode_cases(plan: Plan) -> Iterator[Case]:
    """Batches and contexts of every kind of heads."""
    dtype = _kind(plan)
    for heads, kv, dim in heads_of(plan):
        for num_seqs in plan.num_tok:
            for context in plan.context_tok:
                size = 2 * num_seqs * context * kv * dim * TORCH_DTYPES[dtype].itemsize
                if size <= MAX_KV_BYTES and num_seqs <= MAX_SEQS:
                    yield {"kv_dtype": dtype, "num_seqs": num_seqs, "context_tok": context, "num_heads": heads,
                           "num_kv_heads": kv, "head_dim": dim}


def prefill_cases(plan: Plan) -> Iterator[Case]:
    """Prompts from their start, and half of each continued."""
    dtype = _kind(plan)
    for heads, kv, dim in heads_of(plan):
        for isl in plan.context_tok:
            for prefix in (0, isl):
                yield {"kv_dtype": dtype, "isl_tok": isl, "prefix_tok": prefix, "num_heads": heads, "num_kv_heads": kv,
                       "head_dim": dim}


def _cache(case: Case, bench: Bench, num_slots: int) -> PagedAttention:
    """A cache of as many layers as exceed what the device's own caches hold."""
    kv, dim = int(case["num_kv_heads"]), int(case["head_dim"])
    kind = TORCH_DTYPES[str(case["kv_dtype"])]
    layers = min(bench.rotation(2 * kv * num_slots * dim * kind.itemsize), 64)
    kernel = DecodeKernel(
        max_batch=MAX_SEQS, num_heads=int(case["num_heads"]), num_kv_heads=kv, head_dim=dim, block_size=BLOCK,
        max_context_tok=max(_SERVED_TOK, int(case.get("context_tok", 0))), device=bench.device) if bench.is_cuda else None
    cache = torch.empty(layers, 2, kv, num_slots, dim, device=bench.device, dtype=kind)
    cache.copy_(torch.randn(2, kv, num_slots, dim, device=bench.device))
    return PagedAttention(cache, block_size=BLOCK, kernel=kernel)


def prepare_decode(case: Case, bench: Bench) -> Prepared:
    """Make sequences whose blocks lie at random."""
    num_seqs, context, heads, dim = (int(case[n]) for n in ("num_seqs", "context_tok", "num_heads", "head_dim"))
    each = -(-context // BLOCK)
    attention = _cache(case, bench, num_seqs * each * BLOCK)
    layers = attention.cache.shape[0]
    tables = torch.randperm(num_seqs * each, device=bench.device).view(num_seqs, each)
    lens = torch.full((num_seqs,), context, device=bench.device)
    q = torch.randn(num_seqs, heads, dim, device=bench.device).to(attention.cache.dtype)
    gathers = attention.gathers(tables, lens)
    plan = AttentionPlan(positions_N=lens - 1, kv_slots_N=lens, num_decode=num_seqs, lens_B=lens.int(),
                         tables_BM=tables.int(), gathers=gathers, chunks=[])

    def call(i: int) -> Tensor:
        return attention._decode(attention.cache[i % layers, 0], attention.cache[i % layers, 1], q, plan)

    def check() -> None:
        slots = (tables[0, :, None] * BLOCK + torch.arange(BLOCK, device=bench.device)).flatten()[:context]
        k, v = (attention.cache[0, j][:, slots].unsqueeze(0).float() for j in (0, 1))
        expected = scaled_dot_product_attention(q[:1, :, None].float(), k, v, enable_gqa=True)
        close_to(call(0)[:1], expected.reshape(1, -1), tolerance=2e-2, what="decode attention")

    return Prepared(call=call, check=check, pieces=_after_product(case, bench, num_seqs, call))


def _after_product(case: Case, bench: Bench, rows: int, call: Call) -> list[Piece]:
    """On a CPU attention comes after the products of a layer; one as wide as its MLP stands for them."""
    if bench.is_cuda:
        return []
    width = int(case["num_heads"]) * int(case["head_dim"])
    return [(bench.product(4 * width, width, min(rows, MOST_ROWS), TORCH_DTYPES[str(case["kv_dtype"])]), call)]


def prepare_prefill(case: Case, bench: Bench) -> Prepared:
    """Make one prompt, or one that continues what the cache holds."""
    isl, prefix, heads, kv, dim = (int(case[n]) for n in ("isl_tok", "prefix_tok", "num_heads", "num_kv_heads", "head_dim"))
    total = -(-(isl + prefix) // BLOCK) * BLOCK
    attention = _cache(case, bench, total)
    kind, layers = attention.cache.dtype, attention.cache.shape[0]
    q, k, v = (torch.randn(isl, n, dim, device=bench.device).to(kind) for n in (heads, kv, kv))
    context = torch.arange(isl + prefix, device=bench.device) if prefix else None
    chunk = ChunkPlan(rows=slice(0, isl), start_tok=prefix, context_S=context)
    if prefix:
        attention.cache[:, 0, :, prefix:prefix + isl] = k.transpose(0, 1)
        attention.cache[:, 1, :, prefix:prefix + isl] = v.transpose(0, 1)

    def check() -> None:
        keys, values = (attention.cache[0, j, :, :prefix + isl] for j in (0, 1)) if prefix else (
            k.transpose(0, 1), v.transpose(0, 1))
        expected = scaled_dot_product_attention(q[-1:].transpose(0, 1)[None].float(), keys[None].float(), values[None].float(),
                                                enable_gqa=True)
        got = attention._chunk(0, q, k, v, chunk)[-1:]
        close_to(got, expected.reshape(1, -1), tolerance=2e-2, what="prefill attention")

    def call(i: int) -> Tensor:
        return attention._chunk(i % layers, q, k, v, chunk)

    return Prepared(call=call, check=check, pieces=_after_product(case, bench, isl, call))
