"""What a layer does between its products and its attention, and a step around its layers."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from calibrate.bench import Bench, Plan, Prepared, close_to
from calibrate.bench_attention import BLOCK, MOST_ROWS
from calibrate.bench_gemm import MAX_SEQS, TORCH_DTYPES
from calibrate.samples import Case
from tpplanner.engine.partition import partition
from tpplanner.engine.rope import rotate

NAME, STEP = "layer", "step"


def cases(plan: Plan) -> Iterator[Case]:
    """Norms, rotary embedding, cache writes, gating, residuals of every model and degree at every number of rows."""
    dtype = next(d for d in plan.dtypes if d in TORCH_DTYPES)
    found: dict[tuple[int, ...], None] = {}
    for model in plan.models:
        for tp in plan.degrees:
            part = partition(model, 0, tp)
            found[model.hidden_size, len(part.heads), len(part.kv_heads), model.head_dim, part.num_columns] = None
    for hidden, heads, kv, dim, columns in found:
        for num_tok in plan.num_tok:
            yield {"dtype": dtype, "num_tok": num_tok, "hidden_size": hidden, "num_heads": heads, "num_kv_heads": kv,
                   "head_dim": dim, "num_columns": columns}


def step_cases(plan: Plan) -> Iterator[Case]:
    """Embedding, last norm and choice of rows of every model at every number of sequences."""
    dtype = next(d for d in plan.dtypes if d in TORCH_DTYPES)
    for hidden, vocab, dim in dict.fromkeys((m.hidden_size, m.vocab_size, m.head_dim) for m in plan.models):
        for num_seqs in plan.num_tok:
            if num_seqs <= MAX_SEQS:
                yield {"dtype": dtype, "num_seqs": num_seqs, "hidden_size": hidden, "vocab_size": vocab, "head_dim": dim}


def prepare(case: Case, bench: Bench) -> Prepared:
    """Make the tensors that come out of the products; the engine finds them in the cache, so they do not rotate."""
    rows, hidden, heads, kv, dim, columns = (
        int(case[n]) for n in ("num_tok", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "num_columns"))
    kind = TORCH_DTYPES[str(case["dtype"])]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=bench.device).to(kind)

    x, attended, weight = normal(rows, hidden), normal(rows, hidden), normal(hidden)
    qkv, gate_up = normal(rows, heads + 2 * kv, dim), normal(rows, 2 * columns)
    cos_sin = torch.rand(rows, 2, dim // 2, device=bench.device)
    slots = torch.randperm(-(-rows // BLOCK) * BLOCK, device=bench.device)[:rows]
    cache = torch.zeros(2, kv, -(-rows // BLOCK) * BLOCK, dim, device=bench.device, dtype=kind)

    def add_norm(_: int) -> Tensor:
        return functional.rms_norm(x + attended, (hidden,), weight, 1e-5)

    def rotate_write(_: int) -> None:
        v = torch.split(qkv, [heads, kv, kv], dim=1)[2]
        _q, k = torch.split(rotate(qkv[:, : heads + kv], cos_sin), [heads, kv], dim=1)
        cache[0].index_copy_(1, slots, k.transpose(0, 1))
        cache[1].index_copy_(1, slots, v.transpose(0, 1))

    def gated(_: int) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    parts = (add_norm, rotate_write, add_norm, gated)

    def call(i: int) -> None:
        for part in parts:
            part(i)

    def check() -> None:
        call(0)
        close_to(cache[1][:, slots], qkv[:, heads + kv:].transpose(0, 1), tolerance=0.0, what="layer: cache write")

    # As in the engine: the products of down, Q with K and V, out, and gate with up come before the parts.
    before = [] if bench.is_cuda else [bench.product(out, inner, min(rows, MOST_ROWS), kind) for out, inner in (
        (hidden, columns), ((heads + 2 * kv) * dim, hidden), (hidden, heads * dim), (2 * columns, hidden))]
    return Prepared(call=call, check=check, pieces=list(zip(before, parts, strict=False)))


def prepare_step(case: Case, bench: Bench) -> Prepared:
    """Make a table of embeddings and of angles, and hidden values."""
    num_seqs, hidden, vocab, dim = (int(case[n]) for n in ("num_seqs", "hidden_size", "vocab_size", "head_dim"))
    kind = TORCH_DTYPES[str(case["dtype"])]
    table, x = (torch.randn(n, hidden, device=bench.device).to(kind) for n in (vocab, num_seqs))
    weight, angles = torch.ones(hidden, device=bench.device, dtype=kind), torch.rand(4096, 2, dim // 2, device=bench.device)
    ids, rows = torch.randint(0, vocab, (num_seqs,), device=bench.device), torch.arange(num_seqs, device=bench.device)

    def enter(_: int) -> Tensor:
        angles.index_select(0, rows)
        return table.index_select(0, ids)

    def leave(_: int) -> Tensor:
        return functional.rms_norm(x, (hidden,), weight, 1e-5).index_select(0, rows)

    def call(i: int) -> None:
        enter(i)
        leave(i)

    def check() -> None:
        close_to(enter(0)[-1:], table[ids[-1:]], tolerance=0.0, what="step: embedding")

    before = None if bench.is_cuda else bench.product(vocab, hidden, 1, kind)
    return Prepared(call=call, check=check, pieces=[(before, enter), (before, leave)] if before is not None else [])
