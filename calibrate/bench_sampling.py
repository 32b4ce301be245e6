"""T4: the engine's sampler over rows and vocabulary, by policy."""

from collections.abc import Iterator

import torch
from torch import Tensor

from calibrate.bench import Bench, Plan, Prepared, WrongAnswerError
from calibrate.bench_attention import MOST_ROWS
from calibrate.bench_gemm import MAX_SEQS
from calibrate.samples import Case
from tpplanner.engine.sampler import PolicyTable, TokenCounts, sample
from tpplanner.engine.sampling_params import SamplingParams

NAME = "sampling"
POLICIES = {
    "greedy": SamplingParams(temperature=0.0),
    "top-p": SamplingParams(temperature=0.8, top_k=50, top_p=0.9),
    "full": SamplingParams(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.1, presence_penalty=0.5,
                           frequency_penalty=0.2),
}
_HIDDEN = 512
_SEEN = 256
"""Tokens of each row that penalties find."""


def cases(plan: Plan) -> Iterator[Case]:
    """Every policy over every vocabulary and number of rows up to 512."""
    for policy in POLICIES:
        for vocab in dict.fromkeys(model.vocab_size for model in plan.models):
            for rows in plan.num_tok:
                if rows <= MAX_SEQS:
                    yield {"policy": policy, "num_rows": rows, "vocab_size": vocab}


def prepare(case: Case, bench: Bench) -> Prepared:
    """Make logits that look like a model's: a few tokens carry most of the mass."""
    rows, vocab = int(case["num_rows"]), int(case["vocab_size"])
    params = POLICIES[str(case["policy"])]
    table, counts = PolicyTable(rows, bench.device), TokenCounts(rows, vocab, bench.device)
    for slot in range(rows):
        table.set(slot, params)
        if params.penalises:
            seen = torch.randint(0, vocab, (_SEEN,)).tolist()
            counts.enter(slot, seen[: _SEEN // 2], seen[_SEEN // 2:])
    copies = min(bench.rotation(4.0 * rows * vocab), 16) if bench.is_cuda else 1
    logits = [3.0 * torch.randn(rows, vocab, device=bench.device) for _ in range(copies)]
    uniforms = torch.rand(rows, dtype=torch.float64, device=bench.device)
    slots, slots_S = list(range(rows)), torch.arange(rows, device=bench.device)

    last_ids = torch.zeros(rows, dtype=torch.int64, device=bench.device)

    def call(i: int) -> Tensor:
        ids = sample(logits[i % copies], table.select(slots), uniforms, counts, slots_S)
        # As in the engine's step: the next one finds the ids on the device, penalties count them.
        last_ids.index_copy_(0, slots_S, ids)
        counts.count(slots_S, ids)
        return ids

    def check() -> None:
        ids = call(0)
        if params.is_greedy and not torch.equal(ids, logits[0].argmax(-1)):
            raise WrongAnswerError("sampling: greedy is not argmax")
        if not bool(((ids >= 0) & (ids < vocab)).all()):
            raise WrongAnswerError("sampling: an id outside the vocabulary")

    # The sampler comes after the LM head; so many hidden values stand for the model's.
    head = bench.product(vocab, _HIDDEN, min(rows, MOST_ROWS), torch.float32) if not bench.is_cuda else None
    return Prepared(call=call, check=check, pieces=[(head, call)] if head is not None else [])
