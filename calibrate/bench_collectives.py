"""All-reduce, all-gather and all-to-all over size; every rank runs ``python -m calibrate.bench_collectives``.

Sizes are those of nccl-tests: of an all-reduce the buffer of one rank, of the others the whole result over all ranks. Modes:
``eager``, one after the other; ``graph``, inside a CUDA graph; on CPUs also ``between`` products of the kind that an engine runs
there, each rank's wait for the others included, and the mean over the ranks counts: with the products' own time it adds up to
that of a step. ``all_gather`` is the engine's exchange without
sequence-parallel sampling: whole rows on rank 0.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from calibrate.bench import Bench, Plan, WrongAnswerError
from calibrate.machine import Nvml
from calibrate.samples import Case
from calibrate.timing import event_times_s, graph_times_s, host_times_s
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.parallel import Ranks
from tpplanner.engine.shared_ranks import SharedRanks, can_share
from tpplanner.engine.workers import worker_environment
from tpplanner.io.calibration_samples import Sample

NAME = "collective"
OPS = ("all_reduce", "all_gather", "all_to_all")
_SIZES = tuple(2**n for n in range(10, 27))
_START_S = 120.0
_LOOK_S = 0.5
_WIDTH = 1024
"""Logits of one rank in a row of what is exchanged."""


def cases(plan: Plan, *, num_devices: int) -> Iterator[Case]:
    """Every operation, degree and size that this machine's devices allow, on GPUs eagerly and inside graphs."""
    for tp in plan.degrees:
        if 1 < tp <= num_devices:
            for op in OPS:
                for mode in ("eager", "graph") if torch.cuda.is_available() else ("eager", "between"):
                    for size in _SIZES[::2] if plan.is_quick else _SIZES:
                        yield {"op": op, "tp": tp, "mode": mode, "size_bytes": size}


def _operation(case: Case, bench: Bench, ranks: Ranks) -> tuple[Callable[[int], object], Callable[[], None]]:
    """What one rank calls, and a check of its answer."""
    tp, num = ranks.tp, int(case["size_bytes"]) // 4
    op = case["op"]
    # Of the exchanges of logits the size is that of the whole result; rows are a multiple of t.
    num = max(num if op == "all_reduce" else num // tp, tp)
    width = min(_WIDTH, num // tp)
    mine = torch.full((max(num // width // tp, 1) * tp, width), float(ranks.rank + 1), device=bench.device)

    def call(_: int) -> Tensor | None:
        if op == "all_reduce":
            return ranks.all_reduce(mine)
        return ranks.gather_rows(mine) if op == "all_gather" else ranks.scatter_rows(mine)

    def check() -> None:
        got, each = call(0), torch.arange(1.0, tp + 1.0, device=bench.device)
        expected = each.sum().expand(1) if op == "all_reduce" else each
        if got is not None:
            seen = got[0, :1] if op == "all_reduce" else got[0, ::width][:tp]
            if not torch.equal(seen, expected):
                raise WrongAnswerError(f"collective {op}: {seen.tolist()} is not {expected.tolist()}")
        mine.zero_()  # sums of sums must not overflow

    return call, check


def _times(case: Case, bench: Bench, ranks: Ranks, call: Callable[[int], object], budget_s: float) -> tuple[str, list[float]]:
    # Every rank takes the same number of calls.
    each_s = max(host_times_s(call, budget_s=0.0)[-1], 1e-5)
    count = int(ranks.tell(torch.tensor([max(10, min(100, int(budget_s / each_s)))], device=bench.device)))
    if case["mode"] == "graph":
        return "graph", graph_times_s(call, budget_s=0.0, num_replays=count)
    if bench.is_cuda:
        return "event", event_times_s(call, budget_s=0.0, least=count, most=count)
    if case["mode"] == "between":
        return "host", _between_products_s(call, bench, count)
    return "host", host_times_s(call, budget_s=0.0, least=count, most=count)


def _between_products_s(call: Callable[[int], object], bench: Bench, count: int) -> list[float]:
    """Time of the collective after a product that streams its weights, on this rank [s]."""
    product = bench.product(1536, 576, 8, torch.float32)
    return host_times_s([(product, call)], budget_s=0.0, least=count, most=count)


def _be_a_rank() -> None:
    """Time what is asked for on stdin; rank 0 prints samples as JSON lines."""
    rank, tp = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank))) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    store = os.environ["TPPLANNER_CALIBRATE_STORE"]
    shares = device.type == "cpu" and can_share(store)
    ranks = (SharedRanks if shares else Ranks)(rank, tp, _WIDTH * tp)
    ranks.connect(device, store)
    bench = Bench(device=device, nvml=Nvml(device.index if device.type == "cuda" else None))
    for case, budget_s in msgspec.json.decode(sys.stdin.buffer.read()):
        call, check = _operation(case, bench, ranks)
        check()
        timer, times = _times(case, bench, ranks, call, budget_s)
        own_ns = torch.tensor([int(t * 1e9) for t in times], device=device)
        every_ns = ranks.gather_ids(own_ns).view(tp, -1)
        # A collective ends when the slowest rank has ended; between products the others work meanwhile.
        count_ns = every_ns.double().mean(0) if case["mode"] == "between" else every_ns.amax(0)
        if rank == 0:
            sample = bench.sample(NAME, case, [float(ns) * 1e-9 for ns in count_ns.tolist()], timer)
            sys.stdout.write(msgspec.json.encode(sample).decode() + "\n")
            sys.stdout.flush()
    if dist.is_initialized():
        dist.barrier()  # threads of gloo abort where a rank has gone before
        dist.destroy_process_group()


def run_degree(asked: list[Case], *, tp: int, budget_s: float) -> Iterator[Sample]:
    """Start ``tp`` ranks on this machine, and yield samples as rank 0 reports them.

    Raises
    ------
    WrongAnswerError
        If a rank ends with an error: its last line.
    """
    with tempfile.TemporaryDirectory(prefix="tpplanner-collectives-") as folder:
        environment = worker_environment(EngineConfig(model="", tp=tp)) | {
            "WORLD_SIZE": str(tp), "TPPLANNER_CALIBRATE_STORE": f"file://{folder}/store"}
        logs = [Path(folder, f"rank-{rank}.log") for rank in range(tp)]
        ranks = [_start(rank, log, environment) for rank, log in enumerate(logs)]
        watcher = threading.Thread(target=_end_together, args=(ranks,), daemon=True)
        try:
            watcher.start()
            yield from _answers(ranks, logs, msgspec.json.encode([(dict(case), budget_s) for case in asked]))
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
                for pipe in (rank.stdin, rank.stdout):
                    if pipe is not None:
                        with suppress(OSError):
                            pipe.close()


def _start(rank: int, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", "calibrate.bench_collectives"], stdin=subprocess.PIPE, stderr=file,
                                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE)


def _end_together(ranks: list[subprocess.Popen[bytes]]) -> None:
    """End all ranks when one of them fails: the others would wait for it."""
    while all(rank.poll() is None for rank in ranks):
        time.sleep(_LOOK_S)
    if any(rank.poll() for rank in ranks):
        for rank in ranks:
            rank.kill()


def _answers(ranks: list[subprocess.Popen[bytes]], logs: list[Path], asked: bytes) -> Iterator[Sample]:
    for rank in ranks:
        assert rank.stdin is not None
        with suppress(OSError):  # one that is gone says why in its log
            rank.stdin.write(asked)
            rank.stdin.close()
    first = ranks[0]
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith(b"{"):  # NCCL may have a word of its own
            yield msgspec.json.decode(line, type=Sample)
    ends = [rank.wait(_START_S) for rank in ranks]
    if any(ends):
        # One that was killed because of another has a negative code.
        failed = next((i for i, end in enumerate(ends) if end > 0), 0)
        words = logs[failed].read_text(errors="replace").strip().splitlines()
        why = words[-1] if words else "ended without a word"
        raise WrongAnswerError(f"collectives at t = {len(ranks)}: rank {failed}: {why}")


if __name__ == "__main__":
    if "TPPLANNER_CALIBRATE_STORE" in os.environ:
        _be_a_rank()
    else:
        from calibrate.collectives_torchrun import main

        sys.exit(main())
