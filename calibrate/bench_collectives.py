"""All-reduce, all-gather and all-to-all over size; every rank runs ``python -m calibrate.bench_collectives``.

Sizes are those of nccl-tests: of an all-reduce the buffer of one rank, of the others the whole result over all ranks.
"""

import datetime
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from calibrate.bench import Bench, Plan, WrongAnswerError
from calibrate.machine import Nvml
from calibrate.samples import Case
from calibrate.timing import event_times_s, graph_times_s, host_times_s
from tpplanner.io.calibration_samples import Sample

NAME = "collective"
OPS = ("all_reduce", "all_gather", "all_to_all")
_SIZES = tuple(2**n for n in range(10, 27))
_START_S = 120.0


def cases(plan: Plan, *, num_devices: int) -> Iterator[Case]:
    """Every operation, degree and size that this machine's devices allow, on GPUs eagerly and inside graphs."""
    for tp in plan.degrees:
        if 1 < tp <= num_devices:
            for op in OPS:
                for mode in ("eager", "graph") if torch.cuda.is_available() else ("eager",):
                    for size in _SIZES if plan.budget_s >= 0.1 else _SIZES[::2]:
                        yield {"op": op, "tp": tp, "mode": mode, "size_bytes": size}


def _operation(case: Case, bench: Bench, rank: int, tp: int) -> tuple[Callable[[int], object], Callable[[], None]]:
    """What one rank calls, and a check of its answer."""
    num = max(int(case["size_bytes"]) // 4 // tp, 1)
    mine = torch.full((num * (tp if case["op"] == "all_reduce" else 1),), float(rank + 1), device=bench.device)
    if case["op"] == "all_to_all":
        mine = mine.new_full((max(num // tp, 1) * tp,), float(rank + 1))
    parts = [torch.empty_like(mine) for _ in range(tp)]
    other = torch.empty_like(mine)

    def call(_: int) -> object:
        if case["op"] == "all_reduce":
            return dist.all_reduce(mine)
        if case["op"] == "all_gather":
            return dist.all_gather(parts, mine)
        return dist.all_to_all_single(other, mine)

    def check() -> None:
        call(0)
        each = torch.arange(1.0, tp + 1.0, device=bench.device)
        got: Tensor
        if case["op"] == "all_reduce":
            got, expected = mine[:1], each.sum()[None]
        elif case["op"] == "all_gather":
            got, expected = torch.stack([part[0] for part in parts]), each
        else:
            got, expected = other.view(tp, -1)[:, 0], each
        if not torch.equal(got, expected):
            raise WrongAnswerError(f"collective {case['op']}: {got.tolist()} is not {expected.tolist()}")
        mine.zero_()  # sums of sums must not overflow

    return call, check


def _times(case: Case, bench: Bench, call: Callable[[int], object], budget_s: float) -> tuple[str, list[float]]:
    def together(i: int) -> object:
        dist.barrier()
        return call(i)

    if case["mode"] == "graph":
        return "graph", graph_times_s(call, budget_s=budget_s)
    if bench.is_cuda:
        return "event", event_times_s(call, budget_s=budget_s)
    # Every rank takes the same number of calls.
    count = torch.tensor([max(10, min(100, int(budget_s / max(host_times_s(call, budget_s=0.0)[-1], 1e-5))))])
    dist.broadcast(count, src=0)
    return "host", host_times_s(call, budget_s=0.0, least=int(count), most=int(count))


def _be_a_rank() -> None:
    """Time what the environment asks for; rank 0 prints samples as JSON lines."""
    rank, tp = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=datetime.timedelta(seconds=_START_S))
    bench = Bench(device=device, nvml=Nvml(device.index if on_gpu else None))
    asked = msgspec.json.decode(sys.stdin.buffer.read() if rank == 0 else b"[]")
    shared = [asked]
    _share(shared, rank)
    for case, budget_s in shared[0]:
        call, check = _operation(case, bench, rank, tp)
        check()
        timer, times = _times(case, bench, call, budget_s)
        # A collective ends when the slowest rank has ended.
        slowest = torch.tensor(times, dtype=torch.float64, device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        if rank == 0:
            sample = bench.sample(NAME, case, slowest.tolist(), timer)
            sys.stdout.write(msgspec.json.encode(sample).decode() + "\n")
            sys.stdout.flush()
    dist.destroy_process_group()


def _share(cases_: list[object], rank: int) -> None:
    """Give every rank the cases of rank 0, as bytes: nothing is unpickled."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    data = msgspec.json.encode(cases_[0])
    length = torch.tensor([len(data)], device=device)
    dist.broadcast(length, src=0)
    body = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if rank == 0:
        body.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    dist.broadcast(body, src=0)
    cases_[0] = msgspec.json.decode(bytes(body.cpu().tolist()))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def run_degree(asked: list[Case], *, tp: int, budget_s: float) -> Iterator[Sample]:
    """Start ``tp`` ranks on this machine, and yield samples as rank 0 reports them.

    Raises
    ------
    WrongAnswerError
        If a rank ends with an error: its last line.
    """
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(tp),
                                "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    ranks = [subprocess.Popen([sys.executable, "-m", __spec__.name if __spec__ else "calibrate.bench_collectives"],
                              env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in range(tp)]
    first = ranks[0]
    assert first.stdin is not None
    assert first.stdout is not None
    assert first.stderr is not None
    try:
        first.stdin.write(msgspec.json.encode([(dict(case), budget_s) for case in asked]))
        first.stdin.close()
        for line in first.stdout:
            yield msgspec.json.decode(line, type=Sample)
        if first.wait(_START_S):
            words = first.stderr.read().decode(errors="replace").strip().splitlines()
            raise WrongAnswerError(f"collectives at t = {tp}: {words[-1] if words else 'ended without a word'}")
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
            for pipe in (rank.stdin, rank.stdout, rank.stderr):
                if pipe is not None:
                    pipe.close()


if __name__ == "__main__":
    _be_a_rank()
