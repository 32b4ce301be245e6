"""The paged decode kernel against gather and softmax: in Triton's interpreter, compiled for Hopper, and on a GPU.

Triton decides at its import whether kernels are interpreted, so those cases run in a process of their own: this file as a
script. What a kernel must not read is poisoned: free slots hold NaN, unused table entries point nowhere, scratch holds NaN.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="the decode kernel needs torch")
pytest.importorskip("triton", reason="the decode kernel needs triton, which cannot be imported here", exc_type=ImportError)

from tpplanner.engine import paged_decode as kernel  # noqa: E402

NOWHERE = 2**30


@dataclass(frozen=True, kw_only=True)
class Case:
    """Shapes of a call; ``min_split_tok`` None leaves the launch to the kernel, ``gain`` sharpens the softmax."""

    lens: tuple[int, ...]
    heads: tuple[int, int] = (8, 2)
    dim: int = 64
    block: int = 16
    splits: int = 1
    tile: int = 32
    min_split_tok: int | None = 32
    gain: float = 1.0
    dtype: str = "float32"
    strided: bool = False


CASES = {
    "one token": Case(lens=(1,)),
    "nothing at all": Case(lens=(0, 0), splits=2),
    "exact blocks, one split": Case(lens=(16, 32, 64, 128)),
    "exact tiles, as many splits": Case(lens=(32, 64, 96, 128), splits=4),
    "one beside a tile": Case(lens=(31, 33, 63, 65, 127, 129), splits=2),
    "0, 1 and 700 together": Case(lens=(0, 1, 700, 17, 0, 64), splits=8),
    "0, 1 and 700, one split": Case(lens=(0, 1, 700, 17, 0, 64)),
    "splits no power of two": Case(lens=(5, 250, 333), splits=3),
    "far more splits than blocks": Case(lens=(0, 1, 40, 200), splits=64),
    "usual launch, one split": Case(lens=(600, 3), min_split_tok=None),
    "usual launch, parts of 256": Case(lens=(600, 257, 256, 3), splits=4, min_split_tok=None),
    "one query head per KV head": Case(lens=(70, 9), heads=(4, 4), splits=2),
    "three query heads per KV head": Case(lens=(70, 9), heads=(9, 3), splits=2),
    "one KV head, more than 16 query heads": Case(lens=(70, 9), heads=(20, 1), splits=2),
    "head_dim 128": Case(lens=(100, 31), heads=(4, 1), dim=128, splits=2),
    "head_dim 80, padded": Case(lens=(100, 31), dim=80, splits=2),
    "head_dim 8, padded to a dot": Case(lens=(100, 31), dim=8),
    "blocks of 8": Case(lens=(100, 31, 8), block=8, splits=2),
    "blocks of 32": Case(lens=(100, 32, 1), block=32, splits=2),
    "blocks larger than a tile": Case(lens=(300, 128, 129), block=128, splits=2),
    "blocks no power of two": Case(lens=(100, 48, 47), block=24, splits=2),
    "softmax of one token": Case(lens=(200, 65), splits=3, gain=40.0),
    "softmax of one token, one split": Case(lens=(200, 65), gain=40.0),
    "strided inputs": Case(lens=(100, 31, 0), splits=2, strided=True),
    "float16": Case(lens=(0, 1, 300, 64), splits=3, dtype="float16"),
    "float16, one split": Case(lens=(0, 1, 300, 64), dtype="float16"),
}
WITHIN = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}
"""Relative error of a row: rounding of the type, and of the weights to it before they meet V."""


class Inputs(NamedTuple):
    """Arguments of a call: [B, H, D], [K, S, D] twice, [B, M], [B]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    tables: torch.Tensor
    lens: torch.Tensor


def drawn(case: Case, seed: int, device: str = "cpu") -> Inputs:
    """Random values in blocks in random order; what no row holds is poison."""
    random = torch.Generator().manual_seed(seed)
    heads, kv_heads = case.heads
    blocks = [-(-length // case.block) for length in case.lens]
    batch, width, num_blocks = len(blocks), max(1, *blocks) + 2, sum(blocks) + 3
    order = torch.randperm(num_blocks, generator=random).to(torch.int32)
    tables = torch.full((batch, width), NOWHERE, dtype=torch.int32)
    cache = torch.full((2, kv_heads, 2, num_blocks * case.block, case.dim), float("nan"))
    for row, (length, count) in enumerate(zip(case.lens, blocks, strict=True)):
        tables[row, :count] = order[sum(blocks[:row]):][:count]
        held = slots_of(tables[row], length, case.block)
        cache[:, :, :, held] = torch.randn(2, kv_heads, 2, length, case.dim, generator=random)
    q = case.gain * torch.randn(batch, heads + 2 * kv_heads, case.dim, generator=random)[:, :heads]
    dtype = getattr(torch, case.dtype)
    q, k, v = (x.to(device, dtype) for x in (q, cache[0, :, 0], cache[1, :, 0]))
    if case.strided:  # heads of a fused projection, and a layer in the middle of a cache
        q = torch.cat((q, q), 1)[:, :heads]
        k, v = (torch.stack((x, x), 1)[:, 1] for x in (k, v))
    else:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return Inputs(q=q, k=k, v=v, tables=tables.to(device), lens=torch.tensor(case.lens, dtype=torch.int32, device=device))


def slots_of(blocks: torch.Tensor, length: int, block: int) -> torch.Tensor:
    token = torch.arange(length, device=blocks.device)
    return blocks[token // block].long() * block + token % block


def expected(inputs: Inputs, block: int) -> torch.Tensor:
    """Gather and softmax, row by row in float64."""
    q_BHD, k_KSD, v_KSD = (x.double() for x in (inputs.q, inputs.k, inputs.v))
    out_BHD = torch.zeros_like(q_BHD)
    group, scale = q_BHD.shape[1] // k_KSD.shape[0], q_BHD.shape[2] ** -0.5
    for row, length in enumerate(inputs.lens.tolist()):
        if length:
            slots = slots_of(inputs.tables[row], length, block)
            k_HND, v_HND = (x[:, slots].repeat_interleave(group, 0) for x in (k_KSD, v_KSD))
            weights_HN = (torch.einsum("hd,hnd->hn", q_BHD[row], k_HND) * scale).softmax(-1)
            out_BHD[row] = torch.einsum("hn,hnd->hd", weights_HN, v_HND)
    return out_BHD


def poisoned(case: Case, device: str = "cpu") -> kernel.DecodeScratch:
    scratch = kernel.DecodeScratch.allocate(batch=len(case.lens), num_heads=case.heads[0], num_splits=case.splits,
                                            head_dim=case.dim, device=device)
    for part in (scratch.outputs, scratch.maxima, scratch.sums):
        part.fill_(float("nan"))
    return scratch


def decoded(case: Case, inputs: Inputs, scratch: kernel.DecodeScratch) -> torch.Tensor:
    launch = None if case.min_split_tok is None else kernel.Launch(case.tile, min_split_tok=case.min_split_tok)
    return kernel.paged_decode(*inputs, block_size=case.block, scale=case.dim**-0.5, num_splits=case.splits, scratch=scratch,
                               launch=launch)


def worst_row(found: torch.Tensor, right: torch.Tensor) -> float:
    """Largest norm of a row's difference relative to the row's; NaN if any is, infinite where zeros should be and are not."""
    apart, size = ((x.flatten(1).norm(dim=1)) for x in (found.double() - right, right))
    return float(torch.where(apart == 0, 0.0, apart / size).max())


def run_interpreted() -> None:
    """Print each case's error and type as a JSON object; for a process with TRITON_INTERPRET=1."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor  # numpy >= 2.4 refuses int(array of one), triton issue 9171

    def patched(tensor: type, scope: object) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN
    found = {}
    for number, (name, case) in enumerate(CASES.items()):
        inputs = drawn(case, number)
        out = decoded(case, inputs, poisoned(case))
        found[name] = {"error": worst_row(out, expected(inputs, case.block)), "dtype": str(out.dtype)}
    print(json.dumps(found))


COMPILED = """
import json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from tpplanner.engine import paged_decode as kernel

def compiled(function, **values):
    kinds = {name: value for name, value in values.items() if isinstance(value, str)}
    places = {name: (at,) for at, name in enumerate(function.arg_names)}
    aligned = [n for n, kind in kinds.items() if kind[0] == "*" or n.endswith("_stride") and n != "table_stride"]
    source = ASTSource(function, {n: kinds.get(n, "constexpr") for n in function.arg_names},
                       {places[n]: v for n, v in values.items() if n not in kinds},
                       {places[n]: [["tt.divisibility", 16]] for n in aligned})
    launch = kernel.Launch.usual(128, 2)
    made = compile(source, GPUTarget("cuda", 90, 32), {"num_warps": launch.num_warps, "num_stages": launch.num_stages})
    return {"shared_bytes": made.metadata.shared, "ptx": made.asm["ptx"], "cubin_bytes": len(made.asm["cubin"])}

tile = {"MIN_TOK": 256, "TILE": kernel.Launch.usual(128, 2).tile_tok, "D": 128, "DIM": 128}
results = {"maxima": "*fp32", "sums": "*fp32", "lens": "*i32", "num_splits": "i32"}
strides = {n + "_stride": "i32" for n in ("q_row", "q_head", "kv_head", "kv_slot", "table")}
inputs = {"q": "*bf16", "k": "*bf16", "v": "*bf16", "tables": "*i32", "scale_log2": "fp32"}
print(json.dumps({
    "parts": compiled(kernel._attend, out="*fp32", SPLIT=True, G=4, ROWS=16, BLOCK=16, **inputs, **strides, **results, **tile),
    "whole": compiled(kernel._attend, out="*bf16", SPLIT=False, G=4, ROWS=16, BLOCK=16, **inputs, **strides, **results, **tile),
    "weigh": compiled(kernel._weigh, outputs="*fp32", out="*bf16", SPLITS=16, **results, **tile),
}))
"""


def in_own_process(*command: str, **environment: str) -> dict[str, dict[str, object]]:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ended = subprocess.run([sys.executable, *command], env=kept | environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def interpreted():
    """What the interpreter found, by name of the case."""
    return in_own_process(__file__, TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The kernels compiled for an H200: no GPU is needed for that."""
    return in_own_process("-c", COMPILED, TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton")))


@pytest.mark.parametrize("name", CASES)
def test_equals_gather_and_softmax(interpreted, name):
    found, case = interpreted[name], CASES[name]
    assert found["dtype"] == f"torch.{case.dtype}"
    assert found["error"] < WITHIN[case.dtype] * case.gain  # a score of 100 is rounded 100 times as coarsely


def test_oracle_by_hand():
    # scores 0 and log 3 (scale 1 / 2 at head_dim 4), so weights 1/4 and 3/4 of V = 0 and 4; the second block comes first.
    k = torch.zeros(1, 3, 4)
    v = torch.full((1, 3, 4), float("nan"))
    k[0, 0, 0], v[0, 0], v[0, 2] = 2 * torch.tensor(3.0).log(), 4.0, 0.0
    q = torch.tensor([[[1.0, 0, 0, 0]]])
    inputs = Inputs(q=q, k=k, v=v, tables=torch.tensor([[2, 0]]), lens=torch.tensor([2]))
    assert torch.allclose(expected(inputs, 1), torch.full((1, 1, 4), 3.0, dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("name", ["parts", "whole"])
def test_compiles_for_hopper(compiled, name):
    ptx = compiled[name]["ptx"]
    assert all(made["cubin_bytes"] > 0 for made in compiled.values())
    assert compiled[name]["shared_bytes"] <= 227 * 1024 // 3 - 1024  # three programs on an SM, a kilobyte of each reserved
    assert "mma.sync" in ptx
    # Two tiles of K and V, 16 KB each, before the loop: 2 * 2 * 16384 / (128 threads * 16 bytes) copies; half of that in it.
    assert len(re.findall(r"cp\.async\.cg\S* \[[^]]+\], \[[^]]+\], 0x10", ptx)) == 48


@pytest.mark.parametrize(("batch", "kv_heads", "context_tok", "splits"), [
    (1, 8, 4096, 16),      # 66 wanted, 4096 / 256 possible
    (1, 8, 1, 1),
    (8, 8, 4096, 9),       # 4 * 132 / 64 = 8.25
    (64, 8, 4096, 2),
    (256, 8, 4096, 1),
    (256, 8, 131072, 2),   # 1 would keep the SMs busy; 32 parts of 4096 would be mostly empty programs
    (128, 8, 8192, 2),     # 8192 / 4096
    (1, 1, 10**6, 64),     # the most there are
])
def test_num_splits(batch, kv_heads, context_tok, splits):
    assert kernel.choose_num_splits(batch, kv_heads, context_tok, 132) == splits


def test_refuses_a_small_scratch_and_odd_heads():
    case = Case(lens=(5, 5), splits=4)
    inputs, small = drawn(case, 0), poisoned(Case(lens=(5,), splits=4))
    with pytest.raises(AssertionError, match="4 splits of"):
        decoded(case, inputs, small)
    with pytest.raises(AssertionError, match="65 splits of"):
        decoded(Case(lens=(5, 5), splits=65), inputs, small)
    odd = drawn(Case(lens=(5,), heads=(5, 5)), 0)
    with pytest.raises(AssertionError, match="q torch"):
        decoded(case, odd._replace(q=odd.q[:, :4]), small)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("splits", [1, 2, 7, 64])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", [((32, 8), 128, 16), ((9, 3), 64, 32), ((20, 1), 80, 64), ((8, 4), 256, 16)])
def test_graph_replays_other_lengths(shape, dtype, splits):
    heads, dim, block = shape
    wanted = [(1, 0, 2000, 64, 255, 256), (4000, 1, 0, 257, 16, 999), (0, 0, 0, 0, 0, 0), (1, 1, 1, 1, 1, 4096)]
    cases = [Case(lens=lens, heads=heads, dim=dim, block=block, splits=splits, min_split_tok=None, dtype=dtype)
             for lens in wanted]
    every = [drawn(case, seed, "cuda") for seed, case in enumerate(cases)]
    fixed = Inputs(*(largest(given) for given in zip(*every, strict=True)))
    scratch = poisoned(cases[0], "cuda")
    decoded(cases[0], fixed, scratch)  # compiles, which a capture may not; all lengths are 0
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decoded(cases[0], fixed, scratch)
    for case, inputs in zip(cases, every, strict=True):
        out.fill_(float("nan"))
        for place, given in zip(fixed, inputs, strict=True):
            place[tuple(slice(size) for size in given.shape)] = given
        graph.replay()
        torch.cuda.synchronize()
        assert worst_row(out, expected(inputs, block)) < max(WITHIN[dtype], 1e-5), case  # exp2 of a GPU is approximate


def largest(given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Zeros as large as the largest along every axis."""
    return torch.zeros([max(sizes) for sizes in zip(*(x.shape for x in given), strict=True)], dtype=given[0].dtype, device="cuda")


if __name__ == "__main__":
    run_interpreted()
