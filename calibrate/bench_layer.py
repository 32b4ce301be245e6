"""What a layer does between its products and its attention: norms, rotary embedding, cache writes, gating, residuals."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from calibrate.bench import Bench, Plan, Prepared, close_to
from calibrate.bench_attention import BLOCK
from calibrate.bench_gemm import TORCH_DTYPES
from calibrate.samples import Case
from tpplanner.engine.partition import partition
from tpplanner.engine.rope import rotate

NAME = "layer"


def cases(plan: Plan) -> Iterator[Case]:
    """Every model and degree at every number of rows."""
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


def prepare(case: Case, bench: Bench) -> Prepared:
    """Make the tensors that come out of the products; the engine finds them in the cache, so they do not rotate."""
    rows, hidden, heads, kv, dim, columns = (
        int(case[n]) for n in ("num_tok", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "num_columns"))
    kind = TORCH_DTYPES[str(case["dtype"])]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=bench.device).to(kind)

    x, attended, down, weight = normal(rows, hidden), normal(rows, hidden), normal(rows, hidden), normal(hidden)
    qkv, gate_up = normal(rows, heads + 2 * kv, dim), normal(rows, 2 * columns)
    cos_sin = torch.rand(rows, 2, dim // 2, device=bench.device)
    slots = torch.randperm(-(-rows // BLOCK) * BLOCK, device=bench.device)[:rows]
    cache = torch.zeros(2, kv, -(-rows // BLOCK) * BLOCK, dim, device=bench.device, dtype=kind)

    def call(_: int) -> Tensor:
        functional.rms_norm(x, (hidden,), weight, 1e-5)
        v = torch.split(qkv, [heads, kv, kv], dim=1)[2]
        _q, k = torch.split(rotate(qkv[:, : heads + kv], cos_sin), [heads, kv], dim=1)
        cache[0].index_copy_(1, slots, k.transpose(0, 1))
        cache[1].index_copy_(1, slots, v.transpose(0, 1))
        after = x + attended
        functional.rms_norm(after, (hidden,), weight, 1e-5)
        gate, up = gate_up.chunk(2, dim=-1)
        _activated = functional.silu(gate) * up
        return after + down

    def check() -> None:
        call(0)
        close_to(cache[1][:, slots], qkv[:, heads + kv:].transpose(0, 1), tolerance=0.0, what="layer: cache write")

    return Prepared(call=call, check=check)
