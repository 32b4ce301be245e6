"""Matrix products of the models' own shapes, as the engine runs them; weights rotate so that no cache holds them."""

from collections.abc import Iterator

import torch
from torch.nn import functional

from calibrate.bench import Bench, Plan, Prepared, close_to
from calibrate.samples import Case
from tpplanner.engine.partition import partition

NAME, MAX_SEQS = "gemm", 512
_FP8_UNIT = 16
"""Features of a product in 8 bits are multiples of it."""
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 4e-3, "fp8": 0.1}


def shapes(plan: Plan) -> list[tuple[int, int]]:
    """(out, in) features of every product that one rank of any degree runs."""
    found: dict[tuple[int, int], None] = {}
    for model in plan.models:
        for tp in plan.degrees:
            part, hidden = partition(model, 0, tp), model.hidden_size
            heads, kv = len(part.heads) * model.head_dim, len(part.kv_heads) * model.head_dim
            for shape in ((heads + 2 * kv, hidden), (hidden, heads), (2 * part.num_columns, hidden),
                          (hidden, part.num_columns), (part.num_tokens, hidden)):
                found[shape] = None
    return list(found)


def cases(plan: Plan) -> Iterator[Case]:
    """Every shape at every number of rows; an LM head multiplies no more rows than sequences are sampled."""
    heads = {(partition(model, 0, tp).num_tokens, model.hidden_size) for model in plan.models for tp in plan.degrees}
    for dtype in plan.dtypes:
        for out_features, in_features in shapes(plan):
            for num_tok in plan.num_tok:
                if (out_features, in_features) in heads and num_tok > MAX_SEQS:
                    continue
                if dtype == "fp8" and (out_features % _FP8_UNIT or in_features % _FP8_UNIT):
                    continue
                yield {"dtype": dtype, "num_tok": num_tok, "out_features": out_features, "in_features": in_features}


def prepare(case: Case, bench: Bench) -> Prepared:
    """Make activations and enough copies of the weights."""
    rows, out, inner, dtype = (case[n] for n in ("num_tok", "out_features", "in_features", "dtype"))
    assert isinstance(rows, int)
    assert isinstance(out, int)
    assert isinstance(inner, int)
    if dtype == "fp8":
        return _prepare_fp8(rows, out, inner, bench)
    kind = TORCH_DTYPES[str(dtype)]
    linears = bench.linears(out, inner, kind)
    x = torch.randn(rows, inner, device=bench.device).to(kind)

    def check() -> None:
        close_to(linears[0](x), functional.linear(x.double(), linears[0].weight.double()), tolerance=_TOLERANCE[str(dtype)],
                 what=f"gemm {dtype}")

    return Prepared(call=lambda i: linears[i % len(linears)](x), check=check)


def _prepare_fp8(rows: int, out: int, inner: int, bench: Bench) -> Prepared:
    """Make operands in 8 bits, scaled per tensor; rows are padded to 16 as the product asks."""
    fp8, one = torch.float8_e4m3fn, torch.ones((), device=bench.device)
    copies = bench.rotation(out * inner)
    x = torch.randn(-(-rows // 16) * 16, inner, device=bench.device).to(fp8)
    weights = [(torch.randn(out, inner, device=bench.device) / inner**0.5).to(fp8) for _ in range(copies)]

    def call(i: int) -> torch.Tensor:
        return torch._scaled_mm(x, weights[i % copies].t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    def check() -> None:
        close_to(call(0), x.double() @ weights[0].double().t(), tolerance=_TOLERANCE["fp8"], what="gemm fp8")

    return Prepared(call=call, check=check)
