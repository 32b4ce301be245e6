"""Speed of planning, as ratios in one run: cold command line against ``import numpy``, and points per second.

    python benchmarks/bench_planner.py

Machines are shared and noisy: read medians and ratios. Nothing here is a test.
"""

import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

from tpplanner.api.loaded import with_kernels, with_runs
from tpplanner.cost.replica import ReplicaGrid
from tpplanner.domain.workload import LoadMode, Targets
from tpplanner.io.model_config import load_model
from tpplanner.io.profile_engine import load_engine
from tpplanner.io.profile_hardware import load_hardware
from tpplanner.planner.cluster import evaluate

RECOMMEND = [
    sys.executable, "-m", "tpplanner", "recommend", "--model", "meta-llama/Llama-3.1-70B-Instruct", "--gpus",
    "8xh100-sxm", "--isl", "1024", "--osl", "1024", "--batch-per-gpu", "32",
]
NUMPY = [sys.executable, "-c", "import numpy"]


def wall_and_peak(command: list[str], runs: int = 7) -> tuple[float, float]:
    """Median wall time [s] and largest peak memory [MB] of whole processes, after one warm-up."""
    times, peaks = [], []
    for i in range(runs + 1):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = status
        if status:
            sys.exit(f"{command}: exit status {status}")
        if i:
            times.append(time.perf_counter() - start)
            peaks.append(usage.ru_maxrss / 1024)
    return statistics.median(times), max(peaks)


def points_per_second(mode: LoadMode, num_points: int, *, measured: bool) -> float:
    """Plan points per second through the array path: degree x load, all outputs of each."""
    model = load_model("meta-llama/Llama-3.1-70B-Instruct", dtype="fp8", kv_cache_dtype="fp8")
    hardware, engine = load_hardware("h100-sxm"), load_engine("vllm" if measured else "vllm-0.11")
    hardware = with_kernels(hardware, engine)
    engine = with_runs(engine, hardware, model)
    loads = np.geomspace(1, 400, num_points // 4)[None, :]
    # The modes without a load differ in output length instead, so that every point is another problem.
    osl = np.linspace(64, 2048, num_points // 4)[None, :]
    grid = ReplicaGrid(
        model=model, hardware=hardware, engine=engine, sampling=engine.default_sampling,
        tp=np.asarray([1.0, 2.0, 4.0, 8.0])[:, None], isl_tok=1024.0, osl_tok=osl,
        max_num_seqs=1024.0, max_num_batched_tokens=8192.0, gpu_memory_utilization=0.9)
    value = loads if mode is not LoadMode.REQUEST_RATE else loads / 40
    times = []
    for _ in range(5):
        start = time.perf_counter()
        state = evaluate(grid, num_gpus=8.0, mode=mode, value=value, price_usd_h=2.5,
                         targets=Targets(tpot_s=0.05) if mode is LoadMode.SLO_CAPACITY else None)
        times.append(time.perf_counter() - start)
    return state.throughput_tok_s.size / statistics.median(times)


def main() -> None:
    base_s, base_mb = wall_and_peak(NUMPY)
    wall_s, peak_mb = wall_and_peak(RECOMMEND)
    print(f"import numpy        {base_s:6.3f} s  {base_mb:5.0f} MB")
    print(f"tpplanner recommend {wall_s:6.3f} s  {peak_mb:5.0f} MB   {wall_s / base_s:.1f} x import numpy")
    for mode in (LoadMode.CONCURRENCY, LoadMode.OFFLINE, LoadMode.REQUEST_RATE, LoadMode.SLO_CAPACITY):
        for num_points in (400, 20_000):
            plain, fitted = (points_per_second(mode, num_points, measured=measured) for measured in (False, True))
            print(f"{mode.value:14s} {num_points:6d} points in one array: {plain:10,.0f} points/s; "
                  f"with kernels and residuals of runs {fitted:10,.0f} points/s")
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB; one core")


if __name__ == "__main__":
    main()
