"""One run of the suite on the machine at hand."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from calibrate.bench import Bench
from calibrate.machine import Nvml, machine_facts
from calibrate.samples import SampleLog
from calibrate.scopes import DEFAULT_MODELS, engine_model, plan_of
from calibrate.suite import parts, run_suite
from tpplanner.engine.model_config import EngineModel, read_model, read_object
from tpplanner.errors import TpplannerError
from tpplanner.io.calibration_samples import TINY_MODEL, Progress, SessionAsked
from tpplanner.io.machine_names import machine_name
from tpplanner.io.model_registry import find_packaged

_FP8_CAPABILITY = (8, 9)
"""Ada and later multiply numbers of 8 bits."""


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise TpplannerError("--device cuda: this machine has no CUDA device")
    return torch.device("cuda", 0) if name == "cuda" else torch.device("cpu")


def _model(name: str) -> EngineModel:
    """Facts of a model directory, or of a packaged model."""
    if Path(name).is_dir():
        return read_model(name)
    packaged = find_packaged(name)
    if packaged is None:
        raise TpplannerError(f"--model: {name!r} is no model directory and no packaged model (tpplanner models lists them)")
    return engine_model(read_object(packaged.config))


def run_session(asked: SessionAsked, report: Callable[[Progress], None]) -> tuple[str, list[str]]:
    """Measure what is left of a scope; return the machine's name and what went wrong."""
    chosen = _device(asked.device)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    on_gpu = chosen.type == "cuda"
    num_devices = torch.cuda.device_count() if on_gpu else len(os.sched_getaffinity(0))
    models = tuple(_model(name) for name in asked.models or DEFAULT_MODELS[chosen.type])
    if not on_gpu:
        # A second shape, far from the first: efficiencies and the fixed cost of a call are told apart by it.
        models = (*models, engine_model(TINY_MODEL))
    plan = plan_of(asked.scope, chosen.type, models, degrees=asked.degrees or ((1, 2, 4, 8) if on_gpu else (1, 2)),
                   has_fp8=on_gpu and torch.cuda.get_device_capability(chosen) >= _FP8_CAPABILITY)
    bench = Bench(device=chosen, nvml=Nvml(0 if on_gpu else None))
    facts = machine_facts(chosen, num_threads=1)
    name = asked.machine or machine_name(facts)
    log = SampleLog(Path(asked.root) / name / "samples", facts)
    return name, run_suite(parts(plan, bench, num_devices=num_devices), log, report, bench=bench, num_rounds=plan.num_rounds)
