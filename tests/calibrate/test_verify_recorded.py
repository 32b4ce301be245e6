"""The recorded comparison of `calibrate verify`: what its own path predicts today, against what was measured then."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tpplanner.api.calibration_cases import Case, Machine, limits_of, predict
from tpplanner.io.fitted_files import read_fitted
from tpplanner.io.model_config import load_model

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RECORDED = BENCHMARKS / "validation" / "calibrated"
ROOM_FRAC = 0.05
"""Of the error that was recorded: only a change of the prediction moves it."""


def rows():
    with (RECORDED / "verify.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if not row["failure"] and row["emulated"] == "False"]


def case_of(row):
    return Case(model=str(RECORDED / row["model"]), tp=int(row["tp"]), loop=row["loop"], num_seqs=int(row["num_seqs"]),
                isl_tok=int(row["isl_tok"]), osl_tok=int(row["osl_tok"]), injected_s=float(row["injected_s"]))


def test_the_prediction_is_no_worse_than_when_it_was_recorded():
    (folder,) = (path.parent for path in RECORDED.glob("*/fitted-tpplanner.json"))
    machine = Machine(folder, read_fitted(folder / "fitted-tpplanner.json"))
    errors, before = [], []
    for model in dict.fromkeys(row["model"] for row in rows()):
        spec = load_model(str(RECORDED / model), dtype="fp32")
        own = [row for row in rows() if row["model"] == model]
        limits = limits_of(machine, spec, [case_of(row) for row in own])
        for row in own:
            measured = float(row["measured_throughput_tok_s"])
            before.append(float(row["predicted_throughput_tok_s"]) / measured - 1.0)
            errors.append(predict(machine, spec, case_of(row), limits)[0]["throughput_tok_s"] / measured - 1.0)
    assert len(errors) >= 24
    assert np.mean(np.abs(errors)) <= (1.0 + ROOM_FRAC) * np.mean(np.abs(before))


@pytest.fixture(scope="module")
def gpu_session():
    spec = importlib.util.spec_from_file_location("gpu_session", BENCHMARKS / "gpu_session.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gpu_session_has_every_step_and_real_options(gpu_session, tmp_path, run):
    steps = list(gpu_session.steps("cuda", "h200", "before.json", tmp_path))
    names = [step.name for step in steps]
    assert names[:2] == ["calibrate", "fit"]
    assert {"engine", "tests", "diff"} < set(names)
    assert sum(name.startswith("verify") for name in names) == len(gpu_session.VERIFIED)
    assert all((Path(folder) / "config.json").is_file() for step in steps for flag, folder in
               zip(step.command, step.command[1:], strict=False) if flag == "--model")
    # Every flag is known to the command that gets it.
    for step in steps:
        if "tpplanner" in step.command:
            words = step.command[step.command.index("tpplanner") + 1:]
            depth = 2 if words[1] in ("fit", "verify", "diff") else 1
            help_text = run(*words[:depth], "--help")[1]
            assert all(word in help_text for word in words[depth:] if word.startswith("--")), step
