"""Tokens from logits: penalties, temperature, min-p / top-k / top-p, and the inverse CDF of one uniform per row.

Axes: S sampled rows, V vocabulary, C columns (V padded to whole blocks, or the largest blocks of it), F policy fields.
Likelihoods are integers, ``exp(logit - largest) * 2**35`` rounded down: their sums are exact in any order, so a row's token
depends neither on the other rows nor on their number. A token less than 3e-11 times as likely as the likeliest is never
drawn. A row without a finite largest logit (NaN, +inf, all -inf) gives what ``argmax`` gives. Top-k keeps all as likely as
the k-th; top-p, of what min-p and top-k keep, the likeliest up to that mass, and all as likely as the last of them.
"""

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
        return [0.0, 1.0, 0.0, 0.0, 1.0, -np.inf, *penalties]
    log_min_p = float(np.log(params.min_p)) if params.min_p > 0.0 else -np.inf
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
            fields = torch.from_numpy(rows[:, :, None])
            if self._device.type == "cuda":  # pinned anew: the copy may still run when the next rows are staged
                fields = fields.pin_memory().to(self._device, non_blocking=True)
            self._selected = list(slots), Policies(
                fields, any_filter=bool(filtered.any()), any_penalty=bool((penalties != [1, 0, 0]).any()),
                all_greedy=not sampled.any(), any_open=bool((sampled & (top_k == 0)).any()))
        return self._selected[1]


class TokenCounts:
    """Per slot and token: -1 where it is in the prompt only, else how often it was generated; on every rank all slots."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device | str) -> None:
        self._shape, self._device = (num_slots, vocab_size), torch.device(device)
        self._counts_SV: Tensor | None = None  # until a request has a penalty

    def enter(self, slot: int, prompt_ids: list[int], output_ids: list[int]) -> None:
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


def _pick_blocks(rows_SC: Tensor, blocks_SN: Tensor) -> Tensor:
    return rows_SC.view(len(rows_SC), -1, BLOCK).gather(1, blocks_SN[:, :, None].expand(-1, -1, BLOCK)).flatten(1)


def _likelihoods(shifted: Tensor) -> Tensor:
    return shifted.exp().mul_(SCALE).to(torch.int64)


def _draw(weights_SC: Tensor, uniforms_S1: Tensor) -> tuple[Tensor, Tensor]:
    """First column where the running sum exceeds the uniform's share of the total, -1 where that is 0; and the total."""
    ends = weights_SC.view(len(weights_SC), -1, BLOCK).sum(-1).cumsum(-1)
    total = ends[:, -1:]
    target = (uniforms_S1 * total.double()).long().clamp_(min=0).minimum(total - 1)
    block = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[1] - 1)
    inside = _pick_blocks(weights_SC, block).cumsum(-1)
    column = torch.searchsorted(inside, target - ends.gather(1, block) + inside[:, -1:], right=True)
    return torch.where(total > 0, block * BLOCK + column, -1), total


def _kept(shifted_SC: Tensor, fields_FS1: Tensor, total_S1: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Likelihoods of what min-p, top-k and top-p keep, from the ``num`` largest; and what missing columns must lie below."""
    top_k, top_p, log_min_p = fields_FS1[3], fields_FS1[4], fields_FS1[5].float()
    if num == shifted_SC.shape[1] and not shifted_SC.is_cuda:
        values = torch.from_numpy(-np.sort(-shifted_SC.numpy()))  # torch takes twice as long or more: it sorts indices too
    else:
        values = shifted_SC.topk(num).values if num < shifted_SC.shape[1] else shifted_SC.sort(descending=True).values
    bound = torch.where(top_k > 0, values.gather(1, (top_k.long() - 1).clamp_(0, num - 1)), -np.inf).maximum(log_min_p)
    is_open = (top_k == 0) & (log_min_p == -np.inf)
    weights = _likelihoods(shifted_SC)
    total = torch.where(is_open, total_S1, (weights * (shifted_SC >= bound)).sum(-1, keepdim=True))
    fewer = (_likelihoods(values).cumsum(-1).double() < top_p * total).sum(-1, keepdim=True)
    # Where the values do not add up to the mass of top-p, what follows equals the bound, or columns are missing.
    last = torch.where((top_p < 1) & (fewer < num), values.gather(1, fewer.clamp(max=num - 1)).maximum(bound), bound)
    return weights * (shifted_SC >= last), torch.where(top_k > num, -np.inf, torch.where(is_open, last, bound))


def _draw_filtered(shifted_SC: Tensor, fields_FS1: Tensor, uniforms_S1: Tensor, total_S1: Tensor) -> Tensor:
    """Columns of rows with a filter, and anything for the others."""
    num_columns = shifted_SC.shape[1]
    if shifted_SC.is_cuda:  # to ask which rows need the sort, the host would have to wait
        return _draw(_kept(shifted_SC, fields_FS1, total_S1, num_columns)[0], uniforms_S1)[0]
    columns_S1 = torch.empty_like(total_S1)
    left = fields_FS1[2, :, 0].nonzero().squeeze(1)
    for num in NUM_CANDIDATES:
        if num < num_columns // BLOCK and len(left):
            part_SC = shifted_SC if len(left) == len(shifted_SC) else shifted_SC[left]
            largest = part_SC.view(len(part_SC), -1, BLOCK).amax(-1).topk(num + 1)  # they hold the num largest values
            blocks = largest.indices[:, :num].sort().values
            weights, lowest = _kept(_pick_blocks(part_SC, blocks), fields_FS1[:, left], total_S1[left], num)
            column, _ = _draw(weights, uniforms_S1[left])
            block = blocks.gather(1, (column // BLOCK).clamp_(min=0))
            columns_S1[left] = torch.where(column < 0, column, block * BLOCK + column % BLOCK)
            left = left[~(largest.values[:, num:] < lowest).squeeze(1)]  # NaN is not settled
    if len(left):
        weights, _ = _kept(shifted_SC[left], fields_FS1[:, left], total_S1[left], num_columns)
        columns_S1[left] = _draw(weights, uniforms_S1[left])[0]
    return columns_S1


def _sample_rows(logits_SV: Tensor, fields_FS1: Tensor, uniforms_S1: Tensor, policies: Policies) -> Tensor:
    """Ids of rows whose logits have been penalised."""
    spare = -logits_SV.shape[1] % BLOCK
    padded_SC = pad(logits_SV, (0, spare), value=-np.inf) if spare else logits_SV
    block = padded_SC.view(len(padded_SC), -1, BLOCK).amax(-1).argmax(-1, keepdim=True)  # twice as fast as argmax alone
    inside = _pick_blocks(padded_SC, block)
    likeliest = block * BLOCK + inside.argmax(-1, keepdim=True)
    if policies.all_greedy:
        return likeliest
    shifted_SC = (padded_SC - inside.amax(-1, keepdim=True)).mul_(fields_FS1[1].float())
    columns = total = torch.zeros_like(likeliest)
    if policies.any_open:
        columns, total = _draw(_likelihoods(shifted_SC), uniforms_S1)
    if policies.any_filter:
        columns = torch.where(fields_FS1[2] > 0, _draw_filtered(shifted_SC, fields_FS1, uniforms_S1, total), columns)
    return torch.where((fields_FS1[0] > 0) & (columns >= 0), columns, likeliest)


def sample(logits_SV: Tensor, policies: Policies, uniforms_S: Tensor, counts: TokenCounts | None, slots_S: Tensor) -> Tensor:
    """Sample one id a row, [S] int64, from logits of any float type, in vLLM's order; top-k and top-p keep all that tie."""
    num_rows = max(1, MAX_LOGITS[logits_SV.is_cuda] // logits_SV.shape[1])
    ids = [slots_S.new_empty(0, 1)]
    for start in range(0, len(logits_SV), num_rows):
        rows = slice(start, start + num_rows)
        part_SV, fields_FS1 = logits_SV[rows].float().contiguous(), policies.fields_FS1[:, rows]
        if counts is not None and policies.any_penalty:
            part_SV = counts.penalise(part_SV, slots_S[rows], fields_FS1)
        ids.append(_sample_rows(part_SV, fields_FS1, uniforms_S[rows, None], policies))
    return torch.cat(ids).squeeze(1)
