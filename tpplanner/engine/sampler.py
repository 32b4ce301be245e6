"""Tokens from logits: penalties, temperature, min-p / top-k / top-p, and the inverse CDF of one uniform per row.

Axes: S sampled rows, V vocabulary, C columns (V padded to whole blocks, or the largest blocks of it), F policy fields.

Likelihoods are integers, ``exp(logit - largest) * 2**35`` rounded down: their sums are exact in any order, so a row's token
depends neither on the other rows nor on how many share the batch. A token less than 3e-11 times as likely as the likeliest
is never drawn. A row without a finite largest logit (NaN, +inf, all -inf) gives what ``argmax`` gives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from tpplanner.engine.sampling_params import SamplingParams

BLOCK: Final = 32  # columns added up at once, or their largest found; the filters take 1.2 times as long with 64
NUM_CANDIDATES: Final = (128, 1024)  # of the largest values, the filters look at so many before they sort a row (CPU)
MAX_LOGITS: Final = {False: 2**19, True: 2**23}  # rows at a time: temporaries stay in a CPU's cache, or small on a GPU
SCALE: Final = 2.0**35  # the likelihoods of 2^18 tokens add up within the 53 bits of a float64
MAX_TOKEN_COUNT: Final = 2**15 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Policies:
    """Policies of a batch's rows on the device, in the order of `_fields`, and what the host knows of them."""

    fields_FS1: Tensor
    any_filter: bool
    any_penalty: bool
    all_greedy: bool
    any_open: bool  # some row may keep its whole vocabulary until top-p: the likelihood of all of it is needed


def _fields(params: SamplingParams) -> list[float]:
    penalties = [params.repetition_penalty, params.presence_penalty, params.frequency_penalty]
    if params.is_greedy:  # filters change nothing
        return [0.0, 1.0, 0.0, 0.0, 1.0, -math.inf, *penalties]
    log_min_p = math.log(params.min_p) if params.min_p > 0.0 else -math.inf
    return [1.0, 1.0 / params.temperature, params.filters, params.top_k, params.top_p, log_min_p, *penalties]


class PolicyTable:
    """Policies by slot, kept on the host: a batch's rows are one copy to the device, and none if nothing changed."""

    def __init__(self, num_slots: int, device: torch.device | str) -> None:
        self._fields_SF = np.tile(np.array(_fields(SamplingParams(temperature=0.0))), (num_slots, 1))
        self._device = torch.device(device)
        self._selected: tuple[list[int], Policies] | None = None

    def set(self, slot: int, params: SamplingParams) -> None:
        """Give a slot the policy of the request that came into it."""
        self._fields_SF[slot] = _fields(params)
        self._selected = None

    def select(self, slots: list[int]) -> Policies:
        """Policies of the rows of a batch."""
        if self._selected is None or self._selected[0] != slots:
            rows = np.ascontiguousarray(self._fields_SF[slots].T)
            sampled, filtered, top_k, penalties = rows[0] > 0, rows[2] > 0, rows[3], rows[6:].T
            host = torch.from_numpy(rows[:, :, None])
            if self._device.type == "cuda":
                host = host.pin_memory()  # a new buffer each time: the copy may still run when the next rows are staged
            self._selected = list(slots), Policies(
                host.to(self._device, non_blocking=True), any_filter=bool(filtered.any()), all_greedy=not sampled.any(),
                any_penalty=bool((penalties != [1, 0, 0]).any()), any_open=bool((sampled & (top_k == 0)).any()))
        return self._selected[1]


class TokenCounts:
    """What each slot's request has seen of each token: -1 in the prompt only, else how often generated, to MAX_TOKEN_COUNT.

    Every rank keeps all slots, for rows change their rank as the batch changes; 2 bytes a token and slot.
    """

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device | str) -> None:
        self._shape, self._device = (num_slots, vocab_size), torch.device(device)
        self._counts_SV: Tensor | None = None  # until a request has a penalty

    def enter(self, slot: int, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> None:
        """Start a slot anew for a request with a penalty; it has output already where it was preempted."""
        if self._counts_SV is None:
            self._counts_SV = torch.zeros(self._shape, dtype=torch.int16, device=self._device)
        row = np.zeros(self._shape[1], np.int16)
        row[np.asarray(prompt_ids, np.int64)] = -1
        ids, counts = np.unique(np.asarray(output_ids, np.int64), return_counts=True)
        row[ids] = np.minimum(counts, MAX_TOKEN_COUNT)
        self._counts_SV[slot] = torch.from_numpy(row).to(self._device)

    def count(self, slots_S: Tensor, ids_S: Tensor) -> None:
        """Add a step's tokens, no slot twice; slots that never entered may be among them, their policies read nothing."""
        if self._counts_SV is not None:
            self._counts_SV[slots_S, ids_S] = self._counts_SV[slots_S, ids_S].clamp(0, MAX_TOKEN_COUNT - 1) + 1

    def penalise(self, logits_SV: Tensor, slots_S: Tensor, fields_FS1: Tensor) -> Tensor:
        """Return float32 logits after the repetition, presence and frequency penalties."""
        if self._counts_SV is None:
            return logits_SV
        counts_SV, penalties = self._counts_SV.index_select(0, slots_S), fields_FS1[6:].float()
        if logits_SV.is_cuda:
            return torch.where(counts_SV != 0, _penalised(logits_SV, counts_SV, *penalties), logits_SV)
        seen = counts_SV.nonzero(as_tuple=True)  # a small part; on a GPU the host would wait for its size
        penalised = _penalised(logits_SV[seen], counts_SV[seen], *penalties[:, seen[0], 0])
        return logits_SV.index_put(seen, penalised)


def _penalised(logits: Tensor, counts: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor) -> Tensor:
    outputs = counts.clamp(min=0)
    return torch.where(logits > 0, logits / repetition, logits * repetition) - frequency * outputs - presence * (outputs > 0)


def _blocks(rows_SC: Tensor) -> Tensor:
    return rows_SC.view(rows_SC.shape[0], -1, BLOCK)


def _pick_blocks(rows_SC: Tensor, blocks_SN: Tensor) -> Tensor:
    return _blocks(rows_SC).gather(1, blocks_SN[:, :, None].expand(-1, -1, BLOCK)).flatten(1)


def _likelihoods(shifted: Tensor) -> Tensor:
    return shifted.exp().mul_(SCALE).to(torch.int64)


def _draw(weights_SC: Tensor, uniforms_S1: Tensor) -> tuple[Tensor, Tensor]:
    """First column where the running sum exceeds the uniform's share of the total, -1 where that is 0; and the total."""
    ends = _blocks(weights_SC).sum(-1).cumsum(-1)
    total = ends[:, -1:]
    target = (uniforms_S1 * total.double()).long().clamp_(min=0).minimum(total - 1)
    block = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[1] - 1)
    inside = _pick_blocks(weights_SC, block).cumsum(-1)
    column = torch.searchsorted(inside, target - ends.gather(1, block) + inside[:, -1:], right=True)
    return torch.where(total > 0, block * BLOCK + column, -1), total


def _descending(rows_SC: Tensor, num: int) -> Tensor:
    if num < rows_SC.shape[1]:
        return rows_SC.topk(num).values
    if rows_SC.is_cuda:
        return rows_SC.sort(descending=True).values
    return torch.from_numpy(-np.sort(-rows_SC.numpy()))  # torch takes 3.7 times as long: it sorts the indices too


def _draw_filtered(shifted_SC: Tensor, fields_FS1: Tensor, uniforms_S1: Tensor, total_S1: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Draw from what min-p, then top-k, then top-p keep, in the ``num`` blocks with the largest values, or in all.

    These blocks hold the ``num`` largest values of a row. Returns the columns, and which rows are settled: nothing in the
    other blocks could be kept, or counts for the mass of top-p.
    """
    top_k, top_p, log_min_p = fields_FS1[3], fields_FS1[4], fields_FS1[5].float()
    largest = _blocks(shifted_SC).amax(-1).topk(min(num + 1, shifted_SC.shape[1] // BLOCK))
    is_part = num < shifted_SC.shape[1]
    if is_part:
        blocks = largest.indices[:, :num].sort().values
        shifted_SC = _pick_blocks(shifted_SC, blocks)
    values = _descending(shifted_SC, num)
    kth = values.gather(1, (top_k.long() - 1).clamp_(0, num - 1))
    bound = torch.where(top_k > 0, kth, -math.inf).maximum(log_min_p)
    is_open = (top_k == 0) & (log_min_p == -math.inf)
    weights = _likelihoods(shifted_SC)
    total = torch.where(is_open, total_S1, (weights * (shifted_SC >= bound)).sum(-1, keepdim=True))
    fewer = (_likelihoods(values).cumsum(-1).double() < top_p * total).sum(-1, keepdim=True)
    # Where the values do not reach the mass of top-p, those that follow equal the bound, or the row is not settled.
    last = torch.where((top_p < 1) & (fewer < num), values.gather(1, fewer.clamp_(max=num - 1)).maximum(bound), bound)
    return last, is_open
