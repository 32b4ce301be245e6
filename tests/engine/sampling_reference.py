"""Sampling of one row in plain Python."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tpplanner.engine import sampler
from tpplanner.engine.sampler import PolicyTable, TokenCounts, sample
from tpplanner.engine.sampling_params import SamplingParams

INF = math.inf
GREEDY = SamplingParams(temperature=0.0)


# ---- the naive implementation -------------------------------------------------------------------------------------------

def penalised(logits, params, prompt, outputs):
    values = list(logits)
    for token in range(len(values)):
        count = outputs.count(token)
        if token in prompt or count:
            values[token] *= 1 / params.repetition_penalty if values[token] > 0 else params.repetition_penalty
        values[token] -= params.frequency_penalty * count + (params.presence_penalty if count else 0.0)
    return values


def probabilities(values, params):
    """Probability of each token: an independent reading of min-p, top-k and top-p, on sorted tokens."""
    top = max(values)
    weights = {token: math.exp((value - top) / params.temperature) for token, value in enumerate(values)}
    kept = [token for token in weights if weights[token] >= params.min_p]
    kept.sort(key=lambda token: -values[token])
    if 0 < params.top_k < len(kept):
        kept = [token for token in kept if values[token] >= values[kept[params.top_k - 1]]]
    if params.top_p < 1.0:
        total, mass = sum(weights[token] for token in kept), 0.0
        for token in kept:
            mass += weights[token]
            if mass >= params.top_p * total:
                kept = [other for other in kept if values[other] >= values[token]]
                break
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(values))]


def naive_ids(logits, params, uniform, prompt=(), outputs=()):
    """Ids that the uniform may give; two or three where it lies on a border but for rounding."""
    values = penalised(logits, params, list(prompt), list(outputs))
    if params.is_greedy:
        return {values.index(max(values))}
    chances = probabilities(values, params)
    found, end = set(), 0.0
    for token, chance in enumerate(chances):
        start, end = end, end + chance
        if chance and start - 1e-7 <= uniform <= end + 1e-7:
            found.add(token)
    return found


# ---- one call ------------------------------------------------------------------------------------------------------------

def ids_of(logits, params, draws, seen=None):
    """Ids of rows of logits: params are one, or one a row; ``seen`` gives the prompt and the outputs of some rows."""
    logits = torch.as_tensor(logits)
    num_rows, vocab_size = logits.shape
    table, counts = PolicyTable(num_rows, "cpu"), TokenCounts(num_rows, vocab_size, "cpu")
    for slot in range(num_rows):
        table.set(slot, params[slot] if isinstance(params, list) else params)
    for slot, (prompt, outputs) in (seen or {}).items():
        counts.enter(slot, prompt, outputs)
    drawn = torch.as_tensor(draws, dtype=torch.float64)
    return sample(logits, table.select(list(range(num_rows))), drawn, counts, torch.arange(num_rows)).tolist()


def kept_of(row, params):
    """Tokens that can be drawn from a row, found by a fine comb of uniforms."""
    draws = np.linspace(0.0, 1.0, 4001)[:-1]
    return sorted(set(ids_of(torch.tensor([row]).expand(len(draws), -1), params, draws)))


@contextmanager
def constants(**values):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(sampler, name, value)
        yield


def logs(*chances):
    return [math.log(chance) if chance else -INF for chance in chances]
