"""Collectives over all ranks that torchrun started, on one node or several: ``torchrun ... -m calibrate.bench_collectives``.

Each process of torchrun starts one rank of the benchmark, in an environment such as an engine's worker has; the ranks meet in
torchrun's own store. Rank 0 says what is left to measure and appends to the samples; t is the number of ranks, and each case says
over how many nodes they are spread.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch

from calibrate import bench_collectives
from calibrate.bench import Plan
from calibrate.machine import machine_facts
from calibrate.samples import Case, SampleLog, key_of
from calibrate.scopes import plan_of
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.torchrun import Launched, launched_rank
from tpplanner.engine.workers import worker_environment
from tpplanner.errors import TpplannerError
from tpplanner.io.calibration_samples import Sample
from tpplanner.io.machine_names import machine_name

_KEY = f"tpplanner/calibrate/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
"""Where rank 0 says what is left; ranks that torchrun started anew must not find the answer of before."""


def cases(plan: Plan, *, tp: int, num_nodes: int) -> Iterator[Case]:
    """Every operation, mode and size at t = ``tp``; ``num_nodes`` tells them from those of ranks that the suite starts itself."""
    for case in bench_collectives.cases(plan, num_devices=tp):
        yield {**case, "num_nodes": num_nodes}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="torchrun ... -m calibrate.bench_collectives", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("profiles"), metavar="FOLDER", help="Folder of profiles.")
    parser.add_argument("--machine", metavar="NAME", help="Name of the machine's profile. Default: its GPU or processor.")
    parser.add_argument("--quick", dest="scope", action="store_const", const="quick", default="default")
    parser.add_argument("--full", dest="scope", action="store_const", const="full", default="default")
    return parser.parse_args()


def _rank(asked: bytes) -> Iterator[Sample]:
    """Run the rank of this process; yield what it prints, which only rank 0 does."""
    environment = worker_environment(EngineConfig(model="", tp=int(os.environ["WORLD_SIZE"]))) | {
        "TPPLANNER_CALIBRATE_STORE": "env://"}
    command = [sys.executable, "-m", "calibrate.bench_collectives"]
    # torchrun ends its processes by this signal where one of them fails; the rank that this one starts must end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(asked)
            child.stdin.close()
            for line in child.stdout:
                if line.startswith(b"{"):  # NCCL has words of its own
                    yield msgspec.json.decode(line, type=Sample)
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        raise TpplannerError(f"calibrate: rank {os.environ['RANK']} ended with code {child.returncode}; its last words are above")


def _lead(store: Any, arguments: argparse.Namespace, tp: int) -> None:
    """Say what is left in each pass, and append what comes back."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    facts = machine_facts(device, num_threads=1)
    log = SampleLog(arguments.out / (arguments.machine or machine_name(facts)) / "samples", facts)
    plan = plan_of(arguments.scope, device.type, (), degrees=(tp,))
    every = list(cases(plan, tp=tp, num_nodes=int(os.environ["GROUP_WORLD_SIZE"])))
    done = log.done(bench_collectives.NAME)
    left = [(number, case) for number in range(plan.num_rounds) for case in every if (number, key_of(case)) not in done]
    asked = msgspec.json.encode([(case, plan.budget_s) for _, case in left])
    store.set(_KEY, asked)
    for count, ((number, case), sample) in enumerate(zip(left, _rank(asked) if left else (), strict=True), 1):
        log.append(msgspec.structs.replace(sample, round=number))
        words = " ".join(str(value) for value in case.values())
        print(f"collective {count} of {len(left)}: {words}", file=sys.stderr, flush=True)
    print(log.path(bench_collectives.NAME), flush=True)


def main() -> int:
    """Be one of torchrun's processes; 2 where something is wrong, told in one line."""
    try:
        arguments, rank = _arguments(), launched_rank()
        if rank is None or int(os.environ["WORLD_SIZE"]) < 2:
            raise TpplannerError("calibrate.bench_collectives: start it with torchrun and at least 2 ranks: "
                                 "torchrun --nproc-per-node 8 -m calibrate.bench_collectives --out profiles")
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            raise TpplannerError("calibrate.bench_collectives: torchrun must share its store; unset "
                                 "TORCH_DISABLE_SHARE_RDZV_TCP_STORE")
        store = Launched.join(int(os.environ["WORLD_SIZE"])).store
        if rank == 0:
            _lead(store, arguments, int(os.environ["WORLD_SIZE"]))
        else:
            asked = store.get(_KEY)
            for _ in _rank(asked) if msgspec.json.decode(asked) else ():
                pass
    except TpplannerError as error:
        print(f"tpplanner: error: {error}", file=sys.stderr)
        return 2
    return 0
