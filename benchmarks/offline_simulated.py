"""Everything queued at once: the best degree by closed form and by simulation, against measured maxima.

    python benchmarks/offline_simulated.py [--preemption reserve] [--engine trtllm]

The runs are those of benchmarks/validation/public_runs.csv (TensorRT-LLM 0.17, H100 in fp8 and A100 in fp16), each simulated
with the number of requests that its source names. Nothing was fitted on them.
"""

import argparse
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from tpplanner.api.loaded import engine_of, hardware_of, model_of, with_kernels, with_runs
from tpplanner.api.validate import Validation, validate
from tpplanner.cost.replica import ReplicaGrid
from tpplanner.domain.engine import Preemption
from tpplanner.domain.offline_run import OfflineRun
from tpplanner.domain.run_prediction import OUT_OF_MEMORY, RunPrediction
from tpplanner.domain.scores import OURS
from tpplanner.domain.simulation import SimulationOptions
from tpplanner.domain.traffic import Traffic
from tpplanner.io.measured_runs import read_measured_runs
from tpplanner.sim.run import Deployment, kv_pool, simulate

RUNS = Path(__file__).parent / "validation" / "public_runs.csv"


def grid_of(run: OfflineRun, engine_name: str | None, preemption: str | None) -> ReplicaGrid:
    """Return the replica of a run."""
    model = model_of(run.model, run.dtype, run.kv_cache_dtype)
    engine, hardware = engine_of(engine_name or run.engine), hardware_of(run.machine)
    hardware = with_kernels(hardware, engine)
    engine = with_runs(engine, hardware, model)
    if preemption is not None:
        engine = replace(engine, preemption=Preemption(preemption))
    return ReplicaGrid(
        model=model, hardware=hardware, engine=engine, sampling=engine.default_sampling, tp=float(run.tp),
        isl_tok=float(run.isl_tok), osl_tok=float(run.osl_tok), ep=float(run.ep),
        max_num_seqs=float(run.max_num_seqs or engine.max_num_seqs),
        max_num_batched_tokens=float(run.max_num_batched_tokens or engine.max_num_batched_tokens),
        gpu_memory_utilization=run.gpu_memory_utilization or engine.gpu_memory_utilization)


def num_requests_of(run: OfflineRun) -> int:
    """Return the requests that the source names."""
    found = re.search(r"(\d+) requests", run.source)
    assert found is not None, run.source
    return int(found[1])


def simulated(run: OfflineRun, engine_name: str | None, preemption: str | None) -> tuple[RunPrediction, int]:
    """Predict a run by simulation; also how many sequences lost their place."""
    grid = grid_of(run, engine_name, preemption)
    if kv_pool(grid).num_blocks * grid.engine.kv_block_size_tok < run.isl_tok + run.osl_tok:
        return RunPrediction(run_id=run.run_id, status=OUT_OF_MEMORY), 0
    count = num_requests_of(run)
    traffic = Traffic(name=run.run_id, isl_tok=np.full(count, run.isl_tok), osl_tok=np.full(count, run.osl_tok),
                      arrival_s=np.zeros(count))
    outcome, _ = simulate(Deployment(grid=grid, num_replicas=1, num_gpus=run.tp), traffic, options=SimulationOptions())
    return RunPrediction(run_id=run.run_id, throughput_tok_s=outcome.throughput_tok_s), outcome.num_preemptions


def print_decisions(closed: Validation, sim: Validation) -> None:
    """Print per group what was measured, predicted and simulated, and each one's best degree."""
    print("| group | tok/s per GPU: measured / closed form / simulated | best: measured, closed form, simulated |")
    print("|---|---|---|")
    for before, after in zip(closed.scores.choices, sim.scores.choices, strict=True):
        cells = [f"TP {tp}: " + " / ".join("-" if v is None else f"{v:,.0f}" for v in (
            before.measured[tp], before.predicted.get(tp), after.predicted.get(tp))) for tp in sorted(before.measured)]
        print(f"| {before.group.name} | {'; '.join(cells)} | {before.best_tp}, {before.chosen[OURS]}, {after.chosen[OURS]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preemption", choices=[p.value for p in Preemption])
    parser.add_argument("--engine")
    args = parser.parse_args()
    runs = [run for run in read_measured_runs(RUNS)[0] if isinstance(run, OfflineRun)]
    found = [simulated(run, args.engine, args.preemption) for run in runs]
    closed, sim = validate(runs), validate(runs, predictions=[prediction for prediction, _ in found])
    print_decisions(closed, sim)
    for name, judged in (("closed form", closed), ("simulated", sim)):
        figures = {key: round(value, 4) for key, value in judged.figures().items()
                   if key.startswith(("all.offline", "all.throughput"))}
        print(f"\n{name}: {figures}")
    print(f"\n{sum(n for _, n in found):,} sequences lost their place")


if __name__ == "__main__":
    main()
