"""Power of the board by the counter of energy: idle, and while caches, memory, arithmetic or decoding keep it busy."""

import time
from collections.abc import Callable, Iterator
from statistics import stdev

import torch
from torch import Tensor

from calibrate import bench_attention, bench_gemm
from calibrate.bench import Bench, Plan
from calibrate.samples import Case
from calibrate.timing import Call
from tpplanner.io.calibration_samples import Sample

NAME = "power"
STATES = ("idle", "cache", "memory", "compute", "decode")
"""``cache``: kernels that find all they read in the last cache, so that what it takes to be busy at all is told apart."""
_SETTLE_S = {"idle": 2.0}
"""Clocks stay up for a while after work."""
_SLICE_S = 0.5
"""The counter moves every 20 to 100 ms: shorter parts of the time would show that and not the power."""
_CALLS = 20
_DECODE: Case = {"kv_dtype": "bf16", "num_seqs": 64, "context_tok": 1024, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128}
_PRODUCT: Case = {"dtype": "bf16", "num_tok": 64, "out_features": 8192, "in_features": 8192}
_PRODUCTS = 4
"""A step of 64 sequences of 1,024 tokens in a model of 8 billion weights reads about twice as much of weights as of cache."""


def cases(plan: Plan) -> Iterator[Case]:
    """Every state, for the time in which the counter moves often."""
    for state in STATES:
        yield {"state": state, "duration_ms": 2000 if plan.is_quick else 5000}


Work = tuple[Callable[[], object], dict[str, float]]
"""One call, and the bytes and operations that it takes, counted as the cost model counts a step's."""


def _in_cache(bench: Bench) -> Work:
    """Run small kernels in a graph: their launches would leave the device idle between them."""
    x = torch.randn(2**20, device=bench.device, dtype=torch.bfloat16)
    y = torch.empty_like(x)
    side = torch.cuda.Stream(bench.device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.mul(x, x, out=y)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(100):
            torch.mul(x, x, out=y)

    def replay(_held: tuple[torch.Tensor, torch.Tensor] = (x, y)) -> None:  # the graph works on their memory
        graph.replay()

    return replay, {}


def _decode(bench: Bench) -> Work:
    """Paged attention and the products of a decode step, without the small kernels between them."""
    attention, product = bench_attention.prepare_decode(_DECODE, bench), bench_gemm.prepare(_PRODUCT, bench)
    attention.check()
    product.check()
    seqs, context, heads, kv, dim = (
        int(_DECODE[n]) for n in ("num_seqs", "context_tok", "num_heads", "num_kv_heads", "head_dim"))
    weights = int(_PRODUCT["out_features"]) * int(_PRODUCT["in_features"])
    return _turns([attention.call] + _PRODUCTS * [product.call]), {
        "moved_bytes": 2.0 * (_PRODUCTS * weights + 2 * seqs * context * kv * dim),
        "work_flop": 2.0 * _PRODUCTS * int(_PRODUCT["num_tok"]) * weights + 4.0 * seqs * context * heads * dim}


def _turns(calls: list[Call]) -> Callable[[], object]:
    """Run all of them, with inputs that rotate."""
    count = 0

    def call() -> None:
        nonlocal count
        for one in calls:
            one(count)
            count += 1

    return call


def _memory(bench: Bench) -> Work:
    a = torch.randn(2**28, device=bench.device)  # zeros would draw less: power depends on the bits that change
    b = torch.empty_like(a)
    return (lambda: b.copy_(a)), {"moved_bytes": 2.0 * a.numel() * 4}


def _compute(bench: Bench) -> Work:
    n = 8192
    x, y = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(x)

    def call() -> Tensor:
        return torch.mm(x, y, out=out)

    return call, {"moved_bytes": 2.0 * n**2, "work_flop": 2.0 * n**3}


def _idle(bench: Bench) -> Work:
    del bench
    return (lambda: time.sleep(0.01)), {}


_WORK = {"idle": _idle, "cache": _in_cache, "memory": _memory, "compute": _compute, "decode": _decode}


def _run_s(call: Callable[[], object], duration_s: float, bench: Bench) -> list[float]:
    """Call for so long; the time of each call, measured over several [s]."""
    end_s = time.perf_counter() + duration_s
    times: list[float] = []
    while not times or time.perf_counter() < end_s:
        at_s = time.perf_counter()
        for _ in range(_CALLS):
            call()
        if bench.is_cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - at_s) / _CALLS)
    return times


def measure(case: Case, bench: Bench) -> Sample:
    """Run for the duration; power is the difference of the counter over the time, its error from the spread over slices."""
    before_j = bench.nvml.energy_j
    if before_j is None:
        return bench.sample(NAME, case, [], "counter", note="no counter of energy on this machine: power is not measured")
    state = str(case["state"])
    try:
        call, work = _WORK[state](bench)
        _run_s(call, _SETTLE_S.get(state, _SLICE_S), bench)
    except torch.OutOfMemoryError:
        return bench.sample(NAME, case, [], "counter", note="out of memory")
    times: list[float] = []
    slices_w: list[float] = []
    before_j = first_j = bench.nvml.energy_j
    begin_s = at_s = time.perf_counter()
    while time.perf_counter() - begin_s < int(case["duration_ms"]) * 1e-3:
        times += _run_s(call, _SLICE_S, bench)
        now_j, now_s = bench.nvml.energy_j, time.perf_counter()
        if before_j is None or now_j is None:
            return bench.sample(NAME, case, [], "counter", note="the counter of energy stopped answering")
        slices_w.append((now_j - before_j) / (now_s - at_s))
        before_j, at_s = now_j, now_s
    assert first_j is not None
    assert before_j is not None
    span_s = at_s - begin_s
    values = {f"{name}_per_s": value * len(times) * _CALLS / span_s for name, value in work.items()}
    if len(slices_w) > 1:
        values["std_error_w"] = stdev(slices_w) / len(slices_w) ** 0.5
    return bench.sample(NAME, case, times, "counter", values={"mean_w": (before_j - first_j) / span_s, **values})
