"""Calibration closed: predict the engine from the fitted pieces, run it, and set both side by side."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from tpplanner.api.calibration import ENGINE, SAMPLES
from tpplanner.api.engine_bench import EngineRun, engine_bench, task_times
from tpplanner.api.simulation import simulate_question
from tpplanner.domain.attention import GroupedQueryAttention
from tpplanner.domain.engine import LOOPS, EngineProfile
from tpplanner.domain.engine_fit import with_engine_fit
from tpplanner.domain.fitted_profile import FittedProfile, apply_kernels
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.model import ModelSpec
from tpplanner.engine.config import Delays, EngineConfig
from tpplanner.errors import ProfileError, WorkloadError, reject
from tpplanner.io.calibration_samples import ENGINE_DTYPES, PLANNER_DTYPES, TINY_MODEL, read_machine
from tpplanner.io.fitted_files import fitted_name, read_fitted
from tpplanner.io.fitted_write import check_output, write_profile
from tpplanner.io.model_config import load_model
from tpplanner.io.profile_engine import load_engine
from tpplanner.io.profile_hardware import load_hardware

ISL_TOK: Final = 64
OSL_TOK: Final = 32
FILES: Final = ("verify.csv", "runs.csv")
_INJECTED_FRAC: Final = 0.25
"""Host time that is injected, as a share of the predicted forward: where the host's own share is small, overlap shows nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run of the engine; ``injected_s`` is slept in T1, T2 and T5 together."""

    model: str
    tp: int
    loop: str
    num_seqs: int
    injected_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A case, predicted and measured: the tasks of a decode step [s], throughput [tok/s], TPOT and TTFT [s]."""

    case: Case
    predicted: dict[str, float]
    measured: dict[str, float]

    def error_frac(self, name: str) -> float:
        """Predicted over measured, less one."""
        return self.predicted[name] / self.measured[name] - 1.0


def padded(model: ModelSpec, tp: int) -> ModelSpec:
    """Return the model with the heads that the engine adds where t does not divide them."""
    def wider(attention: Any) -> Any:
        if not isinstance(attention, GroupedQueryAttention) or tp > attention.num_kv_heads:
            return attention
        kv = -(-attention.num_kv_heads // tp) * tp
        return replace(attention, num_kv_heads=kv, num_heads=kv * (attention.num_heads // attention.num_kv_heads))

    groups = tuple(replace(group, attention=wider(group.attention)) for group in model.layer_groups)
    return replace(model, layer_groups=groups)


class Machine:
    """A calibrated machine: its profile with the fitted kernels, and the engine with its measured terms."""

    def __init__(self, folder: Path, fitted: FittedProfile) -> None:
        if fitted.host is None:
            raise ProfileError(f"{folder}: has no measured terms of the engine; run tpplanner calibrate fit")
        sheet = folder / "datasheet.toml"
        self.hardware: HardwareProfile = apply_kernels(
            load_hardware(str(sheet) if sheet.exists() else fitted.machine), fitted)
        self._fit = fitted.host

    def engine(self, loop: str, injected_s: float) -> EngineProfile:
        """Return the engine of a loop; ``injected_s`` is divided over its three host tasks."""
        engine = replace(with_engine_fit(load_engine(f"tpplanner-{loop}"), self._fit), measured_as=None)
        tasks = {}
        for name in ("schedule", "prepare_input", "process_output"):
            task = getattr(engine, name)
            tasks[name] = replace(task, fixed_s=replace(task.fixed_s, value=task.fixed_s.value + injected_s / 3))
        return replace(engine, **tasks)


def predict(machine: Machine, model: ModelSpec, case: Case, *, num_kv_blocks: int, num_requests: int) -> dict[str, float]:
    """Predict a case with the cost model alone and, for what requests meet, with the simulator on it."""
    from tpplanner.cost.step_time import step_time
    from tpplanner.domain.step import Batch

    engine, shape = machine.engine(case.loop, case.injected_s), padded(model, case.tp)
    step = step_time(shape, machine.hardware, engine, tp=float(case.tp),
                     batch=Batch(num_decode_seqs=float(case.num_seqs), decode_context_tok=ISL_TOK + OSL_TOK / 2))
    degree = simulate_question(
        tp=case.tp, traffic={"isl": ISL_TOK, "osl": OSL_TOK, "num_requests": num_requests}, options={"ramp_s": 0.0},
        asked={"model": shape, "gpus": (case.tp, machine.hardware), "engine": engine, "concurrency": case.num_seqs,
               "num_gpu_blocks": num_kv_blocks, "max_num_seqs": case.num_seqs, "max_num_batched_tokens": 2048},
    ).degree(case.tp)
    simulated = degree.outcome
    if simulated is None or simulated.tpot is None or simulated.ttft is None:
        raise WorkloadError(f"calibrate verify: {case.model} at TP {case.tp}: the planner cannot run it: {degree.reason_detail}")
    forward = step.linear_s + step.attention_s + step.elementwise_s + step.launch_s + step.comm_s
    return {"schedule_s": float(step.schedule_s), "prepare_input_s": float(step.prepare_input_s), "forward_s": float(forward),
            "sampling_s": float(step.sampling_s), "process_output_s": float(step.process_output_s),
            "step_s": float(step.total_s), "throughput_tok_s": simulated.throughput_tok_s,
            "tpot_s": simulated.tpot.mean_s, "ttft_s": simulated.ttft.mean_s}


def _measured(run: EngineRun, case: Case) -> dict[str, float]:
    times = task_times(run.steps, num_decode_seqs=case.num_seqs)
    if times is None or run.tpot is None or run.ttft is None:
        raise WorkloadError(f"calibrate verify: no step decoded all {case.num_seqs} sequences at once; give a smaller --batch")
    names = ("schedule_s", "prepare_input_s", "forward_s", "sampling_s", "process_output_s", "step_s")
    return {**{name: getattr(times, name) for name in names}, "throughput_tok_s": run.throughput_tok_s,
            "tpot_s": run.tpot.mean_s, "ttft_s": run.ttft.mean_s, "num_kv_blocks": float(run.num_kv_blocks)}


def run_case(machine: Machine, model: ModelSpec, case: Case, *, device: str) -> Compared:
    """Predict first, then run."""
    num_requests, blocks = 2 * case.num_seqs, case.num_seqs * (-(-(ISL_TOK + OSL_TOK) // 16) + 2)
    predicted = predict(machine, model, case, num_kv_blocks=blocks, num_requests=num_requests)
    folder, third = Path(case.model), case.injected_s / 3
    config = EngineConfig(
        model=case.model, tp=case.tp, load_format="auto" if any(folder.glob("*.safetensors")) else "dummy",
        switches=LOOPS[case.loop], num_kv_blocks=blocks, max_num_seqs=case.num_seqs, max_num_batched_tokens=2048, num_threads=1,
        max_context_tok=1024, device=device, dtype=ENGINE_DTYPES[device],
        delays=Delays(schedule_s=third, prepare_input_s=third, process_output_s=third))
    run = engine_bench(config, {"isl": ISL_TOK, "osl": OSL_TOK, "num_requests": num_requests}, concurrency=case.num_seqs)
    return Compared(case=case, predicted=predicted, measured=_measured(run, case))


def _cases(machine: Machine, models: Sequence[str], degrees: Sequence[int], batches: Sequence[int],
           dtype: str) -> Iterator[tuple[ModelSpec, Case]]:
    """Yield every model, degree, batch and loop, then both loops with injected host time at the middle batch."""
    for name in models:
        spec = load_model(name, dtype=dtype)
        yield from ((spec, Case(model=name, tp=tp, loop=loop, num_seqs=n)) for tp in degrees for n in batches for loop in LOOPS)
        middle = sorted(batches)[len(batches) // 2]
        forward_s = predict(machine, spec, Case(model=name, tp=degrees[0], loop="sequential", num_seqs=middle),
                            num_kv_blocks=4096, num_requests=middle)["forward_s"]
        yield from ((spec, Case(model=name, tp=degrees[0], loop=loop, num_seqs=middle,
                                injected_s=_INJECTED_FRAC * forward_s)) for loop in LOOPS)


def verified(
    root: Path, name: str, *, models: Sequence[str], degrees: Sequence[int], batches: Sequence[int], overwrite: bool = False,
    report: Callable[[Mapping[str, object]], None] = lambda row: None,
) -> tuple[dict[str, object], tuple[Path, ...]]:
    """Predict and run every case, and write both sides beside the profile of machine ``name``.

    Parameters
    ----------
    root, name
        Folder of profiles, and the machine, which must have been fitted.
    models
        Directories with config.json; weights are read where there are any, else made up. None: a small random model.
    degrees, batches
        Tensor-parallel degrees, and clients of the closed loop.
    report
        Called after each case with its row.

    Returns
    -------
    The verdict, and the files ``verify.csv`` and ``runs.csv``.

    Raises
    ------
    TpplannerError
        If the machine was not fitted, a model cannot be run, or a file cannot be written.
    """
    from tpplanner.report.verify_text import comparison_csv, runs_csv

    if not degrees or not batches:
        reject(WorkloadError, "degrees and batches", "hold at least one number", (degrees, batches), "verify")
    check_output(root, name, FILES, overwrite=overwrite)
    machine = Machine(root / name, read_fitted(root / name / fitted_name(ENGINE)))
    device = read_machine(root / name / SAMPLES)["device"]
    dtype = PLANNER_DTYPES[device]
    compared: list[Compared] = []
    for spec, case in _cases(machine, list(models) or [tiny_model(root / name / "tiny-model")], degrees, batches, dtype):
        compared.append(run_case(machine, spec, case, device=device))
        report(_row(compared[-1]))
    rows = [_row(c) for c in compared]
    texts = (comparison_csv(rows), runs_csv(rows, machine=name, dtype=dtype, isl_tok=ISL_TOK, osl_tok=OSL_TOK))
    files = {file: text.encode() for file, text in zip(FILES, texts, strict=True)}
    return asdict(verdict(compared)), write_profile(root, name, files, overwrite=overwrite)


def _row(compared: Compared) -> dict[str, object]:
    return {**asdict(compared.case), "predicted": compared.predicted, "measured": compared.measured}


def tiny_model(folder: Path) -> str:
    """Write the config.json of the small random model, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY_MODEL), encoding="utf-8")
    return str(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How the prediction did: mean absolute errors, models whose best degree was ranked right, errors of the speed-up."""

    throughput_error_frac: float
    step_error_frac: float
    best_tp_right: int
    num_ranked: int
    speedup_errors_frac: tuple[float, ...]


def verdict(every: Sequence[Compared]) -> Verdict:
    """Sum up compared cases: errors over those without injected time, the speed-up of overlap over those with it."""
    plain = [c for c in every if not c.case.injected_s]
    groups: dict[tuple[str, str, int], list[Compared]] = {}
    for c in plain:
        groups.setdefault((c.case.model, c.case.loop, c.case.num_seqs), []).append(c)
    ranked = [g for g in groups.values() if len(g) > 1]

    def best(group: list[Compared], side: str) -> int:
        # Throughput per device: a replica of t takes t of them.
        return max(group, key=lambda c: getattr(c, side)["throughput_tok_s"] / c.case.tp).case.tp

    injected = {(c.case.model, c.case.loop): c for c in every if c.case.injected_s}
    speedups = []
    for model in dict.fromkeys(name for name, _ in injected):
        pair = [injected.get((model, loop)) for loop in ("overlap", "sequential")]
        if pair[0] is not None and pair[1] is not None:
            predicted, measured = (getattr(pair[0], side)["throughput_tok_s"] / getattr(pair[1], side)["throughput_tok_s"]
                                   for side in ("predicted", "measured"))
            speedups.append(predicted / measured - 1.0)
    return Verdict(
        throughput_error_frac=float(np.mean([abs(c.error_frac("throughput_tok_s")) for c in plain])),
        step_error_frac=float(np.mean([abs(c.error_frac("step_s")) for c in plain])),
        best_tp_right=sum(best(g, "predicted") == best(g, "measured") for g in ranked), num_ranked=len(ranked),
        speedup_errors_frac=tuple(speedups))
