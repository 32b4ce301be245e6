"""The clock: warm up, time every iteration, on the host or by events of the device."""

import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[int], object]
"""What is timed; its argument counts the iterations, so that inputs can rotate."""


Piece = tuple[Call, Call]
"""What runs before, untimed, as in the engine; and what is timed after it."""


def pieces_s(pieces: Sequence[Piece], i: int) -> float:
    """Run iteration ``i`` of every piece; the time of the timed parts together [s]."""
    total_s = 0.0
    for before, call in pieces:
        before(i)
        begin_s = time.perf_counter()
        call(i)
        total_s += time.perf_counter() - begin_s
    return total_s


def host_times_s(
    call: Call | Sequence[Piece], *, budget_s: float, num_warmup: int = 3, least: int = 5, most: int = 200
) -> list[float]:
    """Time of each iteration on the host's clock [s]: as many as fit into ``budget_s``, within ``least`` and ``most``."""
    pieces = alone(call) if callable(call) else call
    for i in range(num_warmup):
        pieces_s(pieces, i)
    times: list[float] = []
    end_s = time.perf_counter() + budget_s
    while len(times) < least or (len(times) < most and time.perf_counter() < end_s):
        times.append(pieces_s(pieces, num_warmup + len(times)))
    return times


def alone(call: Call) -> list[Piece]:
    """Return a call before which nothing runs."""
    return [(lambda _: None, call)]


def event_times_s(call: Call, *, budget_s: float, num_warmup: int = 5, least: int = 10, most: int = 200) -> list[float]:
    """Time of each call between two events of the current CUDA stream [s]."""
    for i in range(num_warmup):
        call(i)
    torch.cuda.synchronize()
    begin_s = time.perf_counter()
    call(0)
    torch.cuda.synchronize()
    count = int(min(max(budget_s / max(time.perf_counter() - begin_s, 1e-6), least), most))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2 * count)]  # type: ignore[no-untyped-call]
    # A kernel that keeps the stream busy lets the host run ahead: what is timed is the device, not the launches.
    torch.cuda._sleep(int(2e6))  # type: ignore[no-untyped-call]
    for i in range(count):
        marks[2 * i].record()
        call(num_warmup + i)
        marks[2 * i + 1].record()
    torch.cuda.synchronize()
    return [float(a.elapsed_time(b)) * 1e-3 for a, b in zip(marks[::2], marks[1::2], strict=True)]


def graph_times_s(
    call: Call, *, budget_s: float, num_copies: int = 8, num_replays: int | None = None
) -> list[float]:
    """Time of a call inside a CUDA graph of ``num_copies`` of them [s]: no launch of the host between them.

    ``num_replays`` are as many as all ranks agreed on, where the call is a collective.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(0)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(num_copies):
            call(i)
    few, many = (10, 200) if num_replays is None else (num_replays, num_replays)
    return [time_s / num_copies for time_s in event_times_s(lambda _: graph.replay(), budget_s=budget_s, least=few, most=many)]
