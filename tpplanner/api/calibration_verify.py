"""Calibration closed: predict the engine from the fitted pieces, run it, and set both side by side."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from tpplanner.api.calibration import ENGINE, SAMPLES
from tpplanner.api.calibration_cases import (
    BLOCK_TOK,
    MAX_NUM_BATCHED_TOKENS,
    MEMORY_FRAC,
    Asked,
    Case,
    Group,
    Limits,
    Machine,
    groups,
    predict,
)
from tpplanner.api.calibration_verdict import Compared, verdict
from tpplanner.api.engine_bench import task_times
from tpplanner.domain.engine import LOOPS
from tpplanner.domain.model import ModelSpec
from tpplanner.domain.traffic import Traffic
from tpplanner.engine.config import Delays, EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.engine.load import LoadedRun, run_load
from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.errors import OutputError, TpplannerError, WorkloadError
from tpplanner.io.calibration_samples import ENGINE_DTYPES, PLANNER_DTYPES, TINY_MODEL, read_machine
from tpplanner.io.fitted_files import fitted_name, read_fitted
from tpplanner.io.fitted_write import check_output, write_profile
from tpplanner.io.model_config import load_model

FILES: Final = ("verify.csv", "runs.csv")
_TASKS: Final = ("schedule_s", "prepare_input_s", "forward_s", "sampling_s", "process_output_s", "step_s")
_TINY: Final = "tiny"
_WARM_UP: Final = 4
_REPEATS: Final = 3
"""Of every case on a CPU, in turns with the others of its load."""
_MEMORY_FRAC: Final = 0.3
"""Of the memory that engines which are up at once may take."""
_GREEDY: Final = SamplingParams(temperature=0.0)


def _measured(run: LoadedRun, case: Case, num_kv_blocks: int) -> dict[str, float]:
    """What a run took; without the tasks of a step where the first sequences end before the last prompts are in."""
    times = task_times(run.steps, num_decode_seqs=case.num_seqs)
    done = run.completions
    found = {} if times is None else {name: float(getattr(times, name)) for name in _TASKS}
    found |= {"throughput_tok_s": sum(len(c.output_ids) for c in done) / run.duration_s,
              "tpot_s": float(np.mean([(c.finish_s - c.first_token_s) / (len(c.output_ids) - 1) for c in done])),
              "ttft_s": float(np.mean([c.first_token_s - c.arrival_s for c in done])), "num_kv_blocks": float(num_kv_blocks)}
    if run.energy_j is not None:
        found["energy_j_per_tok"] = run.energy_j / sum(len(c.output_ids) for c in done)
    return found


def _traffic(case: Case, num_requests: int) -> Traffic:
    return Traffic(name="verify", isl_tok=np.full(num_requests, case.isl_tok), osl_tok=np.full(num_requests, case.osl_tok))


def _delays(case: Case) -> Delays:
    third = case.injected_s / 3
    return Delays(schedule_s=third, prepare_input_s=third, process_output_s=third)


def engine_config(machine: Machine, case: Case, limits: Limits) -> EngineConfig:
    """Return the settings of the engine that runs a case."""
    folder = Path(case.model)
    config = EngineConfig(
        model=case.model, tp=1 if case.emulated else case.tp, switches=LOOPS[case.loop], kv_block_size_tok=BLOCK_TOK,
        load_format="auto" if any(folder.glob("*.safetensors")) and not case.emulated else "dummy",
        kv_cache_bytes=limits.kv_cache_bytes, max_num_seqs=limits.max_num_seqs, max_context_tok=limits.max_context_tok,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS, gpu_memory_utilization=MEMORY_FRAC, num_threads=1,
        device=machine.device, dtype=ENGINE_DTYPES[machine.device], delays=_delays(case))
    if not case.emulated:
        return config
    from tpplanner.api.emulation import emulation_of

    return replace(config, emulate=emulation_of(machine.hardware, case.tp))


class _Served:
    """One engine for the cases of a group: started when it is needed, and again after it failed."""

    def __init__(self, machine: Machine, group: Group, stack: ExitStack) -> None:
        self.group, self._machine, self._stack = group, machine, stack
        self._engine: Engine | None = None
        self._refusal: TpplannerError | None = None

    def run(self, case: Case, num_requests: int) -> dict[str, float]:
        """Serve one case.

        Raises
        ------
        TpplannerError
            If the engine cannot start or ends, or refuses the load.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._engine is None or self._engine.failure is not None:
            self._stack.close()
            self._engine = self._started(case)
        # The driver sleeps, and reads this before each task; no step is under way between two loads.
        self._engine.core.config = replace(self._engine.core.config, delays=_delays(case))
        run = run_load(self._engine, _traffic(case, num_requests), _GREEDY, concurrency=case.num_seqs)
        return _measured(run, case, self._engine.num_kv_blocks)

    def _started(self, case: Case) -> Engine:
        try:
            engine = self._stack.enter_context(Engine(engine_config(self._machine, case, self.group.limits)))
        except TpplannerError as error:
            self._refusal = error  # it would not start for the other cases either
            raise
        warm_up = Traffic(name="warm-up", isl_tok=np.full(_WARM_UP, 32), osl_tok=np.full(_WARM_UP, 8))
        run_load(engine, warm_up, _GREEDY, concurrency=_WARM_UP, seed=1)
        return engine


def run_groups(machine: Machine, side_by_side: Sequence[Group]) -> Iterator[Compared]:
    """Predict each case first, then run it; one that fails says why, and the others go on.

    The engines of all groups are up at once and serve the same load in turns, several times over, so that what is compared
    (loops, degrees) lies seconds apart, not minutes in which a machine with other tenants changes its speed.
    """
    with ExitStack() as stack:
        served = [_Served(machine, group, stack.enter_context(ExitStack())) for group in side_by_side]
        for i in range(max(len(group.cases) for group in side_by_side)):
            yield from _in_turn(machine, [(one, one.group.cases[i]) for one in served if i < len(one.group.cases)])


def _in_turn(machine: Machine, runs: Sequence[tuple[_Served, Case]]) -> Iterator[Compared]:
    """Run the cases one after the other, several times over; what is measured is the mean."""
    group = runs[0][0].group
    repeats = _REPEATS if machine.device == "cpu" else 1
    failures: dict[Case, str] = {}
    predicted: dict[Case, tuple[dict[str, float], int]] = {}
    measured: dict[Case, list[dict[str, float]]] = {case: [] for _, case in runs}
    for served, case in [*runs] * repeats:
        if case in failures:
            continue
        try:
            if case not in predicted:
                predicted[case] = predict(machine, group.spec, case, group.limits)
            measured[case].append(served.run(case, predicted[case][1]))
        except TpplannerError as error:
            failures[case] = str(error)
    for _, case in runs:
        if case in failures:
            yield Compared(case=case, predicted={}, measured={}, failure=failures[case])
            continue
        figures, num_requests = predicted[case]
        mean = {name: float(np.mean([one[name] for one in measured[case]])) for name in measured[case][0]}
        yield Compared(case=case, predicted=figures, measured=mean, num_requests=num_requests,
                       max_num_seqs=group.limits.max_num_seqs)


def verified(
    root: Path, name: str, asked: Asked, *, overwrite: bool = False,
    report: Callable[[Mapping[str, object]], None] = lambda row: None,
) -> tuple[dict[str, object], tuple[Path, ...]]:
    """Predict and run every case, and write both sides beside the profile of machine ``name``.

    Parameters
    ----------
    root, name
        Folder of profiles, and the machine, which must have been fitted.
    asked
        Models are directories with config.json; weights are read where there are any, else made up. ``tiny``, and none: a
        small random model. Batches are clients of a closed loop.
    report
        Called after each case with its row.

    Returns
    -------
    The verdict, and the files ``verify.csv`` and ``runs.csv``.

    Raises
    ------
    TpplannerError
        If the machine was not fitted, a model cannot be read, every case fails, or a file cannot be written.
    KeyboardInterrupt
        After Ctrl-C; the files then hold the cases that were done.
    """
    from tpplanner.report.verify_text import comparison_csv, runs_csv

    check_output(root, name, FILES, overwrite=overwrite)
    facts = read_machine(root / name / SAMPLES)
    machine = Machine(root / name, read_fitted(root / name / fitted_name(ENGINE)), device=facts["device"],
                      num_gpus=_counted_gpus(facts))
    dtype = PLANNER_DTYPES[machine.device]
    specs = {model: load_model(model, dtype=dtype) for model in _folders(asked.models or (_TINY,), root / name / "tiny-model")}
    every: list[Compared] = []

    def written() -> tuple[Path, ...]:
        rows = [_row(one) for one in every]
        texts = (comparison_csv(rows), runs_csv(rows, machine=name, dtype=dtype, max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS))
        files = {file: text.encode() for file, text in zip(FILES, texts, strict=True)}
        return write_profile(root, name, files, overwrite=overwrite)

    try:
        for model, spec in specs.items():
            for one in _of_model(machine, model, spec, asked):
                every.append(one)
                report(_row(one))
    except KeyboardInterrupt:
        # What was measured stays.
        if any(not one.failure for one in every):
            written()
        raise
    if all(one.failure for one in every):
        raise WorkloadError(f"calibrate verify: all {len(every)} cases failed; the first one: {every[0].failure}")
    return asdict(verdict(every)), written()


def _of_model(machine: Machine, model: str, spec: ModelSpec, asked: Asked) -> Iterator[Compared]:
    """Compare the cases of one model, with all their engines up at once where they fit."""
    found = list(groups(machine, model, spec, asked))
    # A CPU's memory holds several engines of a small model, each with its embedding and its LM head twice; on a GPU the first
    # one takes all that there is.
    needed_bytes = 3 * len(found) * spec.num_params * spec.precision.base.num_bytes
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    side_by_side = machine.device == "cpu" and needed_bytes < _MEMORY_FRAC * memory_bytes
    for together in [found] if side_by_side else [[group] for group in found]:
        yield from run_groups(machine, together)


def _counted_gpus(facts: Mapping[str, Any]) -> int:
    """GPUs whose energy the meter sums up: all that the driver shows, whichever of them this process may use."""
    shown = facts.get("topology", {}).get("num_gpus")
    return shown if isinstance(shown, int) and shown > 0 else int(facts.get("num_gpus") or 1)


def _row(one: Compared) -> dict[str, object]:
    return {**asdict(one.case), "predicted": dict(one.predicted), "measured": dict(one.measured),
            "num_requests": one.num_requests, "max_num_seqs": one.max_num_seqs, "failure": one.failure}


def _folders(models: Sequence[str], tiny: Path) -> Iterator[str]:
    yield from (tiny_model(tiny) if name == _TINY and not Path(name).exists() else name for name in models)


def tiny_model(folder: Path) -> str:
    """Write the config.json of the small random model, and return its folder."""
    path = folder / "config.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(TINY_MODEL), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from None
    return str(folder)
