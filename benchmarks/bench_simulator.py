"""Speed of the request-level simulator, as Markdown: short runs, cost per request from a thousand to a million, fast-forward.

    python benchmarks/bench_simulator.py [--sizes 1000 10000] [--rates 10 100] [--engines vllm] [--repeats 5]

Llama-3.1-70B on four of 8xh100-sxm, ShareGPT-like lengths, Poisson arrivals, one replica. Runs of a size are processes of
their own, so that their peak memory is theirs. Machines are shared and noisy: read medians and ratios. Nothing here is a test.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

import tpplanner
from tpplanner.api.question import question
from tpplanner.api.simulated import Simulated
from tpplanner.domain.simulation import RunDetail, SimulatedOutcome, SimulationOptions
from tpplanner.domain.traffic import Arrivals, Traffic
from tpplanner.planner.plans import grid_of
from tpplanner.sim.lengths import mean_tok
from tpplanner.sim.presets import preset
from tpplanner.sim.run import Deployment, simulate
from tpplanner.sim.traffic import drawn

MODEL, GPUS, TP = "meta-llama/Llama-3.1-70B-Instruct", "8xh100-sxm", 4
WORKLOAD = "sharegpt"
SHORT_RATES = (2.0, 10.0, 40.0)
NUM_SHORT = 300
BASE_SIZE = 10_000
"""Cost per request is shown relative to this many requests."""


def deployment(engine: str) -> Deployment:
    """One replica with the mean lengths of the workload."""
    chosen = preset(WORKLOAD)
    asked = question(model=MODEL, gpus=GPUS, isl=round(mean_tok(chosen.isl)), osl=round(mean_tok(chosen.osl)),
                     request_rate=1.0, engine=engine)
    grid = replace(grid_of(asked, [TP]), tp=float(TP), isl_tok=mean_tok(chosen.isl), osl_tok=mean_tok(chosen.osl))
    return Deployment(grid=grid, num_replicas=1, num_gpus=TP)


def traffic(num_requests: int, rate_req_s: float) -> Traffic:
    chosen = preset(WORKLOAD)
    return drawn(isl=chosen.isl, osl=chosen.osl, num_requests=num_requests, seed=1, arrivals=Arrivals.POISSON,
                 rate_req_s=rate_req_s, name=WORKLOAD)


class Took(NamedTuple):
    """Wall and CPU time [s]."""

    wall_s: float
    cpu_s: float


Ran = tuple[SimulatedOutcome, RunDetail]
Found = TypeVar("Found")


def timed(run: Callable[[], Found]) -> tuple[Took, Found]:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    found = run()
    return Took(time.perf_counter() - wall_s, time.process_time() - cpu_s), found


def served(served_by: Deployment, requests: Traffic, *, step_by_step: bool = False) -> Ran:
    """One run with a clock of its own."""
    return simulate(served_by, requests, options=SimulationOptions(step_by_step=step_by_step))


def whole_call(engine: str, rate_req_s: float) -> Simulated:
    return tpplanner.simulate(model=MODEL, gpus=GPUS, tp=TP, engine=engine, workload=WORKLOAD, request_rate=rate_req_s,
                              num_requests=NUM_SHORT)


def median_of(run: Callable[[], object], repeats: int) -> str:
    """Medians of ``repeats`` times after one that warms up."""
    run()
    took = [timed(run)[0] for _ in range(repeats)]
    return f"{statistics.median(t.wall_s for t in took):.3f} / {statistics.median(t.cpu_s for t in took):.3f}"


def short_runs(engines: list[str], repeats: int) -> None:
    print(f"\n{NUM_SHORT} requests, one degree, wall / CPU time, medians of {repeats} [s]; asked: under 0.15\n")
    print("| engine | req/s | run with a fresh clock | whole `tpplanner.simulate` | steps |\n|---|---|---|---|---|")
    for engine in engines:
        served_by = deployment(engine)
        for rate in SHORT_RATES:
            run = partial(served, served_by, traffic(NUM_SHORT, rate))
            steps = run()[0].num_steps
            print(f"| {engine} | {rate:g} | {median_of(run, repeats)} | {median_of(partial(whole_call, engine, rate), repeats)} "
                  f"| {steps:,} |", flush=True)


def peak_mb() -> float:
    """Largest memory of this process so far [MB].

    ``ru_maxrss`` would count the process that started this one, as far as Linux is concerned.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return float(line.split()[1]) / 1024


def one_size(engine: str, num_requests: int, rate_req_s: float) -> None:
    """Print figures of one long run as JSON; for a process of its own."""
    took, (outcome, _) = timed(partial(served, deployment(engine), traffic(num_requests, rate_req_s)))
    print(json.dumps({"wall_s": took.wall_s, "cpu_s": took.cpu_s, "steps": outcome.num_steps,
                      "running": outcome.mean_running_seqs, "saturated": outcome.saturated, "peak_mb": peak_mb()}))


def in_own_process(engine: str, num_requests: int, rate_req_s: float) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", engine, str(num_requests), str(rate_req_s)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def long_runs(engines: list[str], sizes: list[int], rates: list[float]) -> None:
    print(f"\ncost in requests, one core; asked: 1,000,000 in under 120 s and 2 GB, linear (last column: us/request "
          f"over that of {BASE_SIZE:,}; both in CPU time, which others on the machine change less)\n")
    print("| engine | req/s | requests | wall s | CPU s | us/request | steps | sequences in the batch | peak MB | linear |\n"
          "|---|---|---|---|---|---|---|---|---|---|")
    for engine in engines:
        for rate in rates:
            found = {size: in_own_process(engine, size, rate) for size in sizes}
            base = found.get(BASE_SIZE)
            for size, row in found.items():
                each = row["cpu_s"] / size
                linear = "-" if base is None else f"{each / (base['cpu_s'] / BASE_SIZE):.2f}"
                load = f"{rate:g}, saturated" if row["saturated"] else f"{rate:g}"
                print(f"| {engine} | {load} | {size:,} | {row['wall_s']:.2f} | {row['cpu_s']:.2f} | {1e6 * each:.1f} | "
                      f"{row['steps']:,} | {row['running']:.0f} | {row['peak_mb']:.0f} | {linear} |", flush=True)


def fast_forward(engines: list[str]) -> None:
    print(f"\nfast-forward against step by step, {NUM_SHORT} requests\n")
    print("| engine | req/s | fast, CPU s | step by step, CPU s | ratio | largest relative difference of a finish time |\n"
          "|---|---|---|---|---|---|")
    for engine in engines:
        served_by = deployment(engine)
        for rate in SHORT_RATES:
            requests = traffic(NUM_SHORT, rate)
            fast_took, (_, fast) = timed(partial(served, served_by, requests))
            slow_took, (_, slow) = timed(partial(served, served_by, requests, step_by_step=True))
            apart = np.max(np.abs(fast.requests.finish_s / slow.requests.finish_s - 1.0))
            print(f"| {engine} | {rate:g} | {fast_took.cpu_s:.3f} | {slow_took.cpu_s:.2f} "
                  f"| {slow_took.cpu_s / fast_took.cpu_s:.0f} | {apart:.1e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, BASE_SIZE, 100_000, 1_000_000], help="requests")
    parser.add_argument("--rates", type=float, nargs="+", default=[10.0, 100.0], help="for the sizes: moderate, saturating")
    parser.add_argument("--engines", nargs="+", default=["vllm", "albireo"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", nargs=3, metavar=("ENGINE", "REQUESTS", "RATE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        engine, size, rate = asked.one
        one_size(engine, int(size), float(rate))
        return
    print(f"{MODEL}, {GPUS}, t = {TP}, {WORKLOAD}; {os.cpu_count()} cores ({platform.machine()}), load "
          f"{os.getloadavg()[0]:.1f}, Python {platform.python_version()}, numpy {np.__version__}")
    short_runs(asked.engines, asked.repeats)
    long_runs(asked.engines, asked.sizes, asked.rates)
    fast_forward(asked.engines)


if __name__ == "__main__":
    main()
