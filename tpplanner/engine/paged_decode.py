"""Attention of decode rows over the paged KV cache of one GPU rank: split-KV Triton kernel and reduction.

Axis letters: B decode rows, H query heads of this rank, K its KV heads, G = H / K query heads of one KV head, D head_dim,
S slots of the KV cache, M blocks of a table row, N tokens of a tile.

A program reads one part of one row's KV for one KV head, tile by tile, and keeps a running softmax (base 2) of its G query
heads; a second kernel weighs the parts. How many tokens a part has follows from the row's length on the device, so that the
grid and all arguments stay the same while lengths and tables change: a captured CUDA graph can be replayed.
"""

from dataclasses import dataclass
from math import e, log2
from typing import Any, NamedTuple, Self, no_type_check

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

MAX_SPLITS = 64
"""The reduction of 64 parts holds 64 x D values in registers: 80 per thread at D = 128, 164 at 256 (ptxas, sm_90)."""
MIN_SPLIT_TOK = 256
"""Four tiles: a shorter part is mostly waiting for its first loads. A choice, not measured."""
MAX_SPLIT_TOK = 4096
"""Up to twice as many parts are taken to avoid longer ones, of which one long row's would run on alone. Not measured."""
PROGRAMS_PER_SM = 4
"""Three fit on an H200's SM at once (72 of 227 KB each); a few more even out unequal lengths. A choice, not measured."""


class Launch(NamedTuple):
    """How the kernels are compiled: tokens of a tile and least tokens of a part, threads / 32, depth of the pipeline.

    Triton spends two stages per tile in flight where a load waits for another one, K and V for the block table: five stages
    keep two tiles on their way, three or four only one.
    """

    tile_tok: int
    num_warps: int = 4
    num_stages: int = 5
    min_split_tok: int = MIN_SPLIT_TOK

    @classmethod
    def usual(cls, padded_dim: int, element_bytes: int) -> Self:
        """Return tiles with 16 KB of K; float32, which the tensor cores do not multiply, spills in four warps."""
        return cls(max(16, min(64, 16384 // (padded_dim * element_bytes))), num_warps=8 if element_bytes == 4 else 4)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodeScratch:
    """Results of parts before they are weighed: outputs [parts, D], maxima and sums [parts], all float32."""

    outputs: Tensor
    maxima: Tensor
    sums: Tensor

    @classmethod
    def allocate(cls, *, batch: int, num_heads: int, num_splits: int, head_dim: int, device: torch.device | str) -> Self:
        """Allocate enough for any call whose batch * num_splits is at most this one's, with these heads."""
        parts = batch * num_heads * num_splits
        outputs, maxima, sums = (torch.empty(parts * width, dtype=torch.float32, device=device) for width in (head_dim, 1, 1))
        return cls(outputs=outputs, maxima=maxima, sums=sums)


def choose_num_splits(batch: int, num_kv_heads: int, max_context_tok: int, num_sms: int) -> int:
    """Parts per row that keep ``num_sms`` SMs busy, whatever the lengths up to ``max_context_tok`` [tokens].

    Examples
    --------
    Eight programs per part for 132 SMs: 66 parts wanted, but 4,096 tokens have 16 of the least length.

    >>> choose_num_splits(1, 8, 4096, 132), choose_num_splits(32, 8, 4096, 132), choose_num_splits(256, 8, 4096, 132)
    (16, 3, 1)
    """
    busy = -(-PROGRAMS_PER_SM * num_sms // (batch * num_kv_heads))
    even = min(-(-max_context_tok // MAX_SPLIT_TOK), 2 * busy)  # of short rows, most programs of a large grid would be empty
    return max(1, min(max(busy, even), -(-max_context_tok // MIN_SPLIT_TOK), MAX_SPLITS))


@triton.jit
@no_type_check
def _split_tok(length, num_splits, MIN_TOK: tl.constexpr, TILE: tl.constexpr):
    """Tokens of a part: whole tiles, so that only a row's last tile is cut."""
    return tl.cdiv(tl.maximum(tl.cdiv(length, num_splits), MIN_TOK), TILE) * TILE


@triton.jit(do_not_specialize=["num_splits", "table_stride"])
@no_type_check
def _attend(q, k, v, tables, lens, out, maxima, sums, scale_log2, num_splits, q_row_stride, q_head_stride,  # noqa: PLR0917
            kv_head_stride, kv_slot_stride, table_stride, G: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
            SPLIT: tl.constexpr, MIN_TOK: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr):
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    length = tl.load(lens + row)
    start, end = 0, length
    if SPLIT:
        split_tok = _split_tok(length, num_splits, MIN_TOK, TILE)
        start = split * split_tok
        end = tl.minimum(start + split_tok, length)
        if start >= end:
            return  # the reduction does not ask for this part
    g, d = tl.arange(0, ROWS), tl.arange(0, DIM)
    h, in_dim = head * G + g, d < D
    in_q = (g < G)[:, None] & in_dim[None, :]
    q_GD = tl.load(q + row * q_row_stride + h[:, None] * q_head_stride + d[None, :], mask=in_q, other=0.0)
    top_G, sum_G = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    out_GD = tl.zeros([ROWS, DIM], tl.float32)
    for first in range(start, end, TILE):
        n = first + tl.arange(0, TILE)
        live = n < end
        slot = tl.load(tables + row * table_stride + n // BLOCK, mask=live, other=0).to(tl.int64) * BLOCK + n % BLOCK
        at = head * kv_head_stride + slot[:, None] * kv_slot_stride + d[None, :]
        in_kv = live[:, None] & in_dim[None, :]  # what lies in slots past the end may be NaN: V has to be masked too
        k_ND = tl.load(k + at, mask=in_kv, other=0.0)
        score_GN = tl.dot(q_GD, k_ND.T, input_precision="ieee") * scale_log2
        score_GN = tl.where(live[None, :], score_GN, float("-inf"))
        new_top_G = tl.maximum(top_G, tl.max(score_GN, 1))
        weight_GN, fade_G = tl.exp2(score_GN - new_top_G[:, None]), tl.exp2(top_G - new_top_G)
        v_ND = tl.load(v + at, mask=in_kv, other=0.0)
        out_GD = tl.dot(weight_GN.to(v_ND.dtype), v_ND, out_GD * fade_G[:, None], input_precision="ieee")
        sum_G, top_G = sum_G * fade_G + tl.sum(weight_GN, 1), new_top_G
    part = (row * tl.num_programs(1) * G + h) * num_splits + split
    if SPLIT:
        tl.store(maxima + part, top_G, mask=g < G)
        tl.store(sums + part, sum_G, mask=g < G)
    else:
        out_GD = out_GD / tl.where(sum_G > 0, sum_G, 1.0)[:, None]  # a row without tokens: zeros
    tl.store(out + part[:, None] * D + d[None, :], out_GD, mask=in_q)


@triton.jit(do_not_specialize=["num_splits"])
@no_type_check
def _weigh(outputs, maxima, sums, lens, out, num_splits, D: tl.constexpr, MIN_TOK: tl.constexpr,  # noqa: PLR0917
           TILE: tl.constexpr, SPLITS: tl.constexpr, DIM: tl.constexpr):
    row, at = tl.program_id(0), tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    length = tl.load(lens + row)
    split, d = tl.arange(0, SPLITS), tl.arange(0, DIM)
    used, part = split * _split_tok(length, num_splits, MIN_TOK, TILE) < length, at * num_splits + split
    top = tl.load(maxima + part, mask=used, other=float("-inf"))
    weight = tl.where(used, tl.exp2(top - tl.max(top, 0)), 0.0)
    total = tl.sum(weight * tl.load(sums + part, mask=used, other=0.0), 0)
    outputs_PD = tl.load(outputs + part[:, None] * D + d[None, :], mask=used[:, None] & (d < D)[None, :], other=0.0)
    out_D = tl.sum(outputs_PD * weight[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + at * D + d, out_D, mask=d < D)


def paged_decode(q_BHD: Tensor, k_KSD: Tensor, v_KSD: Tensor, tables_BM: Tensor, lens_B: Tensor, *, block_size: int,
                 scale: float, num_splits: int, scratch: DecodeScratch, launch: Launch | None = None) -> Tensor:
    """Attend from one new token per row to the row's ``lens_B`` tokens, the new one included; zeros for length 0.

    Token p of row b lies in slot ``tables_BM[b, p // block_size] * block_size + p % block_size``; query head h belongs to KV
    head h // G. Float32 accumulation; the output has the type of ``q_BHD``. The host never waits for the device.
    """
    (batch, num_heads, dim), num_kv_heads = q_BHD.shape, k_KSD.shape[0]
    if num_heads % num_kv_heads or k_KSD.stride() != v_KSD.stride() or not q_BHD.stride(2) == k_KSD.stride(2) == 1:
        raise AssertionError(f"q {q_BHD.shape} {q_BHD.stride()}, k {k_KSD.shape} {k_KSD.stride()}, v {v_KSD.stride()}")
    parts = batch * num_heads * num_splits if num_splits > 1 else 0
    if not 1 <= num_splits <= MAX_SPLITS or parts > scratch.sums.numel() or parts * dim > scratch.outputs.numel():
        raise AssertionError(f"{num_splits} splits of {q_BHD.shape}, scratch for {scratch.sums.numel()} parts")
    out_BHD = torch.empty(q_BHD.shape, dtype=q_BHD.dtype, device=q_BHD.device)
    groups, padded_dim, is_split = num_heads // num_kv_heads, max(16, triton.next_power_of_2(dim)), num_splits > 1
    launch = launch or Launch.usual(padded_dim, k_KSD.element_size())
    shared: dict[str, Any] = {"D": dim, "MIN_TOK": launch.min_split_tok, "TILE": launch.tile_tok, "DIM": padded_dim}
    _attend[batch, num_kv_heads, num_splits](
        q_BHD, k_KSD, v_KSD, tables_BM, lens_B, scratch.outputs if is_split else out_BHD, scratch.maxima, scratch.sums,
        scale * log2(e), num_splits, *q_BHD.stride()[:2], *k_KSD.stride()[:2], tables_BM.stride(0), G=groups,
        BLOCK=block_size, SPLIT=is_split, ROWS=max(16, triton.next_power_of_2(groups)), num_warps=launch.num_warps,
        num_stages=launch.num_stages, **shared)
    if is_split:
        _weigh[batch, num_heads](scratch.outputs, scratch.maxima, scratch.sums, lens_B, out_BHD, num_splits,
                                 SPLITS=triton.next_power_of_2(num_splits), **shared)
    return out_BHD
