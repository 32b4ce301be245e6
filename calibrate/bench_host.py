"""T1, T2 and T5 of the engine and the ways of its messages, over the batch, with both loops: a small model is served."""

import json
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from calibrate.bench import Bench, Plan
from calibrate.samples import Case
from tpplanner.domain.engine import LOOPS
from tpplanner.domain.traffic import Traffic
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.engine.load import run_load
from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.engine.timeline import StepRecord
from tpplanner.io.calibration_samples import ENGINE_DTYPES, HOST_MODEL, Sample

NAME = "host"
_ISL, _OSL, _WARM_OSL = 64, 40, 8
_NO_STEP = "no step decoded the whole batch"
_MOST_SEQS = {"cpu": 64, "cuda": 256}
"""Of what is measured: tasks are lines over the sequences, and a CPU's steps grow long."""


def cases(plan: Plan, bench: Bench, *, num_devices: int) -> Iterator[Case]:
    """Both loops at batches up to a limit, at t = 1 and at the other degrees that this machine can run."""
    for tp in plan.degrees:
        if tp <= num_devices:
            for loop in LOOPS:
                for num_seqs in plan.num_tok[::2] if plan.is_quick else plan.num_tok:
                    if num_seqs <= _MOST_SEQS[bench.device.type]:
                        yield {"loop": loop, "tp": tp, "num_seqs": num_seqs}


def _tasks(steps: tuple[StepRecord, ...], num_seqs: int) -> dict[str, list[float]]:
    """Times of the steps that decode the whole batch [s]; the ways of the messages beside the tasks."""
    chosen = [step for before, step in pairwise(steps)
              if step.num_decode_seqs == num_seqs and not step.num_prefill_tok and not before.num_prefill_tok]
    return {
        "schedule": [s.schedule_s for s in chosen], "prepare_input": [s.prepare_input_s for s in chosen],
        "process_output": [s.process_output_s for s in chosen], "exposed": [s.exposed_s for s in chosen],
        "deliver": [max(s.device_begin_s - s.submitted_s, 0.0) for s in chosen],
        "reply": [max(s.process_output_begin_s - s.device_end_s, 0.0) for s in chosen],
        "device": [s.device_s for s in chosen]}


def measure(asked: list[Case], bench: Bench) -> Iterator[list[Sample]]:
    """Serve each case; one sample per task. Engines of one loop and degree are started once."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(HOST_MODEL))
        for loop, tp in dict.fromkeys((str(case["loop"]), int(case["tp"])) for case in asked):
            own = [case for case in asked if case["loop"] == loop and case["tp"] == tp]
            most = max(int(case["num_seqs"]) for case in own)
            config = EngineConfig(model=folder, tp=tp, load_format="dummy", switches=LOOPS[loop], max_num_seqs=most,
                                  num_kv_blocks=most * 8, device=bench.device.type, num_threads=1,
                                  dtype=ENGINE_DTYPES[bench.device.type])
            with Engine(config) as engine:
                for case in own:
                    batch = int(case["num_seqs"])
                    warm, traffic = (Traffic(name="host tasks", isl_tok=np.full(batch, _ISL), osl_tok=np.full(batch, osl))
                                     for osl in (_WARM_OSL, _OSL))
                    run_load(engine, warm, SamplingParams(temperature=0.0), concurrency=batch)
                    steps = run_load(engine, traffic, SamplingParams(temperature=0.0), concurrency=batch).steps
                    yield [bench.sample(NAME, {**case, "task": task}, times, "host", note="" if times else _NO_STEP)
                           for task, times in _tasks(steps, batch).items()]
