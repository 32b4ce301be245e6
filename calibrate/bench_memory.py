"""Bandwidth of memory (STREAM's copy and triad) and of the copies between host and device that swapping uses."""

from collections.abc import Iterator

import torch
from torch import Tensor

from calibrate.bench import Bench, Plan, Prepared, close_to
from calibrate.machine import last_level_cache_bytes
from calibrate.samples import Case

NAME, SWAP = "memory", "host_copy"
_CHECKED = 1000
_SIZES = tuple(2**n for n in range(20, 30))


def cases(plan: Plan) -> Iterator[Case]:
    """Both kernels over sizes that caches hold and do not hold."""
    del plan
    far = 4 * last_level_cache_bytes()
    for kernel in ("copy", "triad"):
        for size in (*_SIZES, *((far,) if far > _SIZES[-1] else ())):
            yield {"kernel": kernel, "size_bytes": size}


def prepare(case: Case, bench: Bench) -> Prepared:
    """Make the arrays; ``moved_bytes`` counts what is read and written, as STREAM does."""
    num = int(case["size_bytes"]) // 4
    a, b, c = (torch.ones(num, device=bench.device) for _ in range(3))
    a[:_CHECKED], b[:_CHECKED] = torch.rand(2, _CHECKED, device=bench.device)

    def copy(_: int) -> Tensor:
        return c.copy_(a)

    def triad(_: int) -> Tensor:
        return torch.add(a, b, alpha=3.0, out=c)

    call, arrays = (copy, 2) if case["kernel"] == "copy" else (triad, 3)

    def check() -> None:
        call(0)
        expected = a[:_CHECKED] if arrays == 2 else a[:_CHECKED] + 3.0 * b[:_CHECKED]
        close_to(c[:_CHECKED], expected, tolerance=1e-6, what=str(case["kernel"]))

    return Prepared(call=call, check=check, values={"moved_bytes": float(arrays * num * 4)})


def swap_cases(plan: Plan) -> Iterator[Case]:
    """Directions, pinned and pageable; nothing on a CPU, whose device memory is the host's."""
    del plan
    for direction in ("h2d", "d2h", "both"):
        for kind in ("pinned", "pageable"):
            for size in (2**16, 2**20, 2**24, 2**27):
                yield {"direction": direction, "kind": kind, "size_bytes": size}


def prepare_swap(case: Case, bench: Bench) -> Prepared:
    """Make a buffer on each side; ``both`` runs the directions on two streams."""
    size, pinned = int(case["size_bytes"]), case["kind"] == "pinned"
    host = [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
    device = [torch.zeros(size, dtype=torch.uint8, device=bench.device) for _ in range(2)]
    side = torch.cuda.Stream(bench.device)  # type: ignore[no-untyped-call]

    def call(_: int) -> None:
        if case["direction"] != "d2h":
            device[0].copy_(host[0], non_blocking=True)
        if case["direction"] == "both":
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                host[1].copy_(device[1], non_blocking=True)
            torch.cuda.current_stream().wait_stream(side)
        elif case["direction"] == "d2h":
            host[1].copy_(device[1], non_blocking=True)

    def check() -> None:
        host[0].fill_(7)
        device[1].fill_(9)
        call(0)
        torch.cuda.synchronize()
        if case["direction"] != "d2h":
            close_to(device[0].float(), torch.full_like(device[0], 7).float(), tolerance=0.0, what="host copy")
        if case["direction"] != "h2d":
            close_to(host[1].float(), torch.full_like(host[1], 9).float(), tolerance=0.0, what="host copy back")

    moved = size * (2 if case["direction"] == "both" else 1)
    return Prepared(call=call, check=check, values={"moved_bytes": float(moved)})
