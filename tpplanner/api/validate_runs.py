"""Predictions of the packaged profiles for measured runs, a whole array at a time."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tpplanner.api.loaded import engine_of, hardware_of, model_of, with_kernels, with_runs
from tpplanner.api.serving_fit import served_runs
from tpplanner.cost.amdahl import rule_of_thumb_degree
from tpplanner.cost.memory import weight_bytes
from tpplanner.cost.outside import latency_std
from tpplanner.cost.replica import ReplicaGrid
from tpplanner.cost.steady_state import running_limit
from tpplanner.cost.work import work_of
from tpplanner.domain.contention import with_busy
from tpplanner.domain.engine import EngineProfile
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.model import ModelSpec, MoeMlp
from tpplanner.domain.offline_run import MeasuredRun, OfflineRun
from tpplanner.domain.run_prediction import OUT_OF_MEMORY, RunPrediction, with_interval
from tpplanner.domain.serving_fit import STEADY, LoadGenerator
from tpplanner.domain.workload import LoadMode
from tpplanner.errors import TpplannerError, WorkloadError, reject
from tpplanner.planner.cluster import ClusterState, evaluate
from tpplanner.planner.degrees import degree_obstacle

FloatArray = NDArray[np.float64]
Run = TypeVar("Run", bound=MeasuredRun)


def predict_runs(runs: Sequence[MeasuredRun]) -> tuple[RunPrediction, ...]:
    """Predict measured runs with the packaged profiles, one prediction per run, in order.

    Runs of one checkpoint, in the same formats, on the same machine and engine are evaluated as one array, under the
    load of the benchmark that measured them and with their way of sharing out experts. A run that cannot be predicted
    (unknown names, a degree that the model cannot be cut into) says why in its status and stops no other. In a closed
    loop the throughput is left to `ScoredRun`, which computes it from the times as for the measured runs.
    """
    together: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, run in enumerate(runs):
        load = _load_of(run)
        together[(*_served(run), run.machine, run.engine, isinstance(run, OfflineRun), _family(run),
                  load.prompts_per_client, load.length_frac)].append(place)
    predicted: dict[int, RunPrediction] = {}
    for places in together.values():
        predicted.update(zip(places, _predict_alike([runs[place] for place in places]), strict=True))
    return tuple(predicted[place] for place in range(len(runs)))


def _served(run: MeasuredRun) -> tuple[str, str | None, str | None]:
    return run.checkpoint, run.dtype, run.kv_cache_dtype


def _family(run: MeasuredRun) -> str | None:
    return None if isinstance(run, OfflineRun) else run.family


def _load_of(run: MeasuredRun) -> LoadGenerator:
    return STEADY if isinstance(run, OfflineRun) else run.load


def _predict_alike(runs: Sequence[MeasuredRun]) -> list[RunPrediction]:
    """Predict runs that differ in degree, lengths, load and limits only."""
    first = runs[0]
    try:
        model, hardware, engine = model_of(*_served(first)), hardware_of(first.machine), engine_of(first.engine)
    except TpplannerError as error:
        return [RunPrediction(run_id=run.run_id, status=f"error: {error}") for run in runs]
    hardware = with_kernels(hardware, engine)
    engine = with_runs(engine, hardware, model, family=_family(first))
    obstacles = [degree_obstacle(model, run.tp) for run in runs]
    possible = [run for run, obstacle in zip(runs, obstacles, strict=True) if not obstacle]
    found = iter(_by_degree(model, hardware, engine, possible) if possible else ())
    return [
        RunPrediction(run_id=run.run_id, status=f"error: tp {run.tp}: {obstacle}") if obstacle else next(found)
        for run, obstacle in zip(runs, obstacles, strict=True)
    ]


def _by_degree(
    model: ModelSpec, hardware: HardwareProfile, engine: EngineProfile, runs: Sequence[MeasuredRun]
) -> list[RunPrediction]:
    """Predict runs; where devices share a memory, each degree on the machine as its ranks see it."""
    if not hardware.contention:
        return _evaluated(model, hardware, engine, runs)
    degrees = {tp: [run for run in runs if run.tp == tp] for tp in dict.fromkeys(run.tp for run in runs)}
    found = {tp: iter(_evaluated(model, with_busy(hardware, tp), engine, own)) for tp, own in degrees.items()}
    return [next(found[run.tp]) for run in runs]


def _evaluated(
    model: ModelSpec, hardware: HardwareProfile, engine: EngineProfile, runs: Sequence[MeasuredRun]
) -> list[RunPrediction]:
    def column(name: str, default: float = 0.0) -> FloatArray:
        values = [getattr(run, name) for run in runs]
        return np.asarray([default if value is None else value for value in values], dtype=float)

    load = _load_of(runs[0])
    grid = ReplicaGrid(
        model=model, hardware=hardware, engine=engine, sampling=engine.default_sampling, tp=column("tp"),
        isl_tok=load.length_frac * column("isl_tok"), osl_tok=np.maximum(load.length_frac * column("osl_tok"), 1.0),
        ep=column("ep"),
        load=replace(load, batch_wait_steps=np.asarray([_load_of(run).batch_wait_steps for run in runs], dtype=float)),
        # Recipes of benchmarks raise the limit to the clients that they start.
        max_num_seqs=np.asarray([run.max_num_seqs or max(engine.max_num_seqs, getattr(run, "concurrency", 0))
                                 for run in runs], dtype=float),
        max_num_batched_tokens=column("max_num_batched_tokens", engine.max_num_batched_tokens),
        gpu_memory_utilization=column("gpu_memory_utilization", engine.gpu_memory_utilization),
    )
    is_offline = isinstance(runs[0], OfflineRun)
    mode = LoadMode.OFFLINE if is_offline else LoadMode.CONCURRENCY_PER_REPLICA
    state = evaluate(grid, num_gpus=grid.tp, mode=mode, value=0.0 if is_offline else column("concurrency"))
    std = None if is_offline else latency_std(
        grid, np.minimum(column("concurrency"), running_limit(grid, state.room)))
    return [_prediction(run, state, i, std=None if std is None else (float(std[0][i]), float(std[1][i])))
            for i, run in enumerate(runs)]


def _prediction(run: MeasuredRun, state: ClusterState, i: int, *, std: tuple[float, float] | None) -> RunPrediction:
    if not state.runs[i]:
        return RunPrediction(run_id=run.run_id, status=OUT_OF_MEMORY)

    def finite(values: object) -> float | None:
        value = float(np.broadcast_to(np.asarray(values, dtype=float), state.runs.shape)[i])
        return value if np.isfinite(value) else None

    ttft, tpot = finite(state.latency.ttft_s), finite(state.latency.tpot_s)
    if std is None or ttft is None or tpot is None or isinstance(run, OfflineRun):
        return RunPrediction(run_id=run.run_id, ttft_s=ttft, tpot_s=tpot,
                             throughput_tok_s=finite(state.throughput_tok_s) if isinstance(run, OfflineRun) else None)
    return with_interval(run_id=run.run_id, tpot_s=tpot, ttft_s=ttft, tpot_std=std[0], ttft_std=std[1],
                         concurrency=float(run.concurrency), osl_tok=float(run.osl_tok))


def out_of_sample(runs: Sequence[MeasuredRun], split: str) -> tuple[RunPrediction, ...]:
    """Return predictions of runs by fits that have not seen the run's part of ``split``.

    A run that no fit can see (unknown names) says why in its status; one that is in no part (a light load of ``load``)
    has no prediction.

    Raises
    ------
    WorkloadError
        If a run has no latency to fit to, or no run can be fitted.
    """
    from tpplanner.fit import serving_splits

    for run in runs:
        if isinstance(run, OfflineRun):
            reject(WorkloadError, "split", "be absent where runs are offline: fits need TTFT and TPOT", split, "validate")
    served, failed = served_runs([run for run in runs if not isinstance(run, OfflineRun)])
    if not served:
        raise WorkloadError(f"validate: split {split} needs a run that can be fitted: {failed[0].status}")
    return (*serving_splits.out_of_sample(served, split), *failed)


def with_kind(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Say of runs whose ``kind`` is not known whether their model is dense; it stays unknown where none is found."""
    return tuple(run if run.kind is not None else replace(run, kind=_kind(run)) for run in runs)


def _kind(run: MeasuredRun) -> str | None:
    try:
        model = model_of(*_served(run))
    except TpplannerError:
        return None
    return "moe" if any(isinstance(group.mlp, MoeMlp) for group in model.layer_groups) else "dense"


def rules_of_thumb(runs: Sequence[MeasuredRun]) -> dict[str, int]:
    """Return ``run_id`` -> the degree at which weights take a quarter of the memory, where model and machine are known."""
    found: dict[tuple[object, ...], int | None] = {}
    for run in runs:
        key = (*_served(run), run.machine)
        if key not in found:
            found[key] = _rule(run)
    named = ((run.run_id, found[(*_served(run), run.machine)]) for run in runs)
    return {name: tp for name, tp in named if tp is not None}


def _rule(run: MeasuredRun) -> int | None:
    try:
        model, hardware = model_of(*_served(run)), hardware_of(run.machine)
    except TpplannerError:
        return None
    weights = float(weight_bytes(work_of(model), tp=1.0, tied_embeddings=model.tied_embeddings))
    return rule_of_thumb_degree(weight_bytes=weights, hbm_bytes=hardware.hbm_bytes.value)
