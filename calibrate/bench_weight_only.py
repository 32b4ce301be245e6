"""Matrix products whose weights are stored in 8 or 4 bits and widened as they are read; activations are in bf16.

The operations are those of torch; the engine has none of them. Formats are named as the planner names such kernels: ``int8_wo``,
one scale per output feature, and ``int4_wo``, a scale and an offset in bf16 per group of up to 128 inputs (the planner counts
the bytes of groups of 128 with an offset of 4 bits). The LM head is not quantised.
"""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from calibrate.bench import Bench, Plan, Prepared, close_to
from calibrate.bench_gemm import NAME, shapes
from calibrate.samples import Case
from calibrate.timing import Call
from tpplanner.engine.partition import partition

__all__ = ["NAME", "available", "cases", "prepare"]
_MOST_INT8_ROWS = 64
FORMATS = ("int8_wo", "int4_wo")
_GROUPS = (128, 64, 32)
"""Inputs that share a scale: the largest that divides the row."""
_TOLERANCE = 2e-2
_CHECKED_ROWS = 16
_ALIGNED = 32
"""Features that every packing takes."""


@cache
def available(device: torch.device) -> tuple[str, ...]:
    """Formats that this torch multiplies rightly on this device: each is tried once on a small product."""
    return tuple(dtype for dtype in FORMATS if _works(dtype, device))


def _works(dtype: str, device: torch.device) -> bool:
    try:
        _prepared(dtype, rows=4, out=128, inner=256, num_copies=1, device=device).check()
    except Exception:  # no such operation, not for this device, or not in this build: torch has many words for it
        return False
    return True


def cases(plan: Plan, device: torch.device) -> Iterator[Case]:
    """Every quantised shape at every number of rows; none in the quick scope, where half a minute counts."""
    if plan.is_quick:
        return
    heads = {(partition(model, 0, tp).num_tokens, model.hidden_size) for model in plan.models for tp in plan.degrees}
    for dtype in available(device):
        for out_features, in_features in shapes(plan):
            if (out_features, in_features) not in heads and not (out_features % _ALIGNED or in_features % _ALIGNED):
                for num_tok in plan.num_tok:
                    if dtype == "int8_wo" and device.type == "cuda" and num_tok > _MOST_INT8_ROWS:
                        continue  # torch computes each output in one thread there: seconds a product
                    yield {"dtype": dtype, "num_tok": num_tok, "out_features": out_features, "in_features": in_features}


Copy = tuple[Tensor, Tensor]
"""A packed weight and its scales."""


def _int8(out: int, inner: int, device: torch.device) -> tuple[Copy, Tensor]:
    """Return a weight and what it stands for, in double."""
    weight = torch.randint(-128, 128, (out, inner), dtype=torch.int8, device=device)
    scales = ((torch.rand(out, device=device) + 0.5) / (128.0 * inner**0.5)).to(torch.bfloat16)
    return (weight, scales), weight.double() * scales.double()[:, None]


def _group(inner: int) -> int:
    return next(size for size in _GROUPS if inner % size == 0)


def _int4(out: int, inner: int, device: torch.device) -> tuple[Copy, Tensor]:
    """Return the same for (q - 8) scale + offset, q in 0..15."""
    group, shape = _group(inner), (inner // _group(inner), out)
    q = torch.randint(0, 16, (out, inner), dtype=torch.int32, device=device)
    scales = torch.stack([(torch.rand(shape, device=device) + 0.5) / (8.0 * inner**0.5),
                          torch.randn(shape, device=device) / (8.0 * inner**0.5)], -1).to(torch.bfloat16)
    if device.type == "cpu":
        packed = torch._convert_weight_to_int4pack_for_cpu(q, 1)
    else:
        # Two weights a byte, the even one above; so many tiles of 16 inputs lie together as the row holds, up to 8.
        tiles = next(n for n in (8, 4, 2) if inner % (16 * n) == 0)
        packed = torch._convert_weight_to_int4pack((q[:, ::2] << 4 | q[:, 1::2]).to(torch.uint8), tiles)
    scale, offset = (scales[..., i].double().t().repeat_interleave(group, 1) for i in (0, 1))
    return (packed, scales), (q.double() - 8.0) * scale + offset


def _product(dtype: str, x: Tensor, copies: list[Copy]) -> Call:
    if dtype == "int8_wo":
        return lambda i: torch._weight_int8pack_mm(x, *copies[i % len(copies)])
    multiply = torch._weight_int4pack_mm_for_cpu if x.device.type == "cpu" else torch._weight_int4pack_mm
    group = _group(x.shape[1])

    def call(i: int) -> Tensor:
        packed, scales = copies[i % len(copies)]
        return multiply(x, packed, group, scales)

    return call


def _prepared(dtype: str, *, rows: int, out: int, inner: int, num_copies: int, device: torch.device) -> Prepared:
    first, plain = (_int8 if dtype == "int8_wo" else _int4)(out, inner, device)
    x = torch.randn(rows, inner, device=device).to(torch.bfloat16)
    expected = x[:_CHECKED_ROWS].double() @ plain.t()
    call = _product(dtype, x, [first, *((first[0].clone(), first[1].clone()) for _ in range(num_copies - 1))])

    def check() -> None:
        got = call(0)
        assert isinstance(got, Tensor)
        close_to(got[:_CHECKED_ROWS], expected, tolerance=_TOLERANCE, what=f"gemm {dtype}")

    return Prepared(call=call, check=check)


def prepare(case: Case, bench: Bench) -> Prepared:
    """Make activations and enough copies of the packed weights."""
    rows, out, inner = (int(case[n]) for n in ("num_tok", "out_features", "in_features"))
    dtype = str(case["dtype"])
    copies = bench.rotation(out * inner * (1.0 if dtype == "int8_wo" else 0.5))
    return _prepared(dtype, rows=rows, out=out, inner=inner, num_copies=copies, device=bench.device)
