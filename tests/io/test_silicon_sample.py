"""The measured runs as the package holds them, where it or its ``silicon_sample.csv`` ($SILICON_SAMPLE) is there."""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "validation"))

from sample_files import sample, scorer

from tpplanner.domain.serving_run import ServingRun
from tpplanner.io.model_config import load_model
from tpplanner.io.profile_engine import load_engine
from tpplanner.io.profile_hardware import load_hardware
from tpplanner.io.silicon_run_facts import KV_DTYPE_RULES, OWN_FORMATS
from tpplanner.io.silicon_runs import read_silicon_runs


@pytest.fixture(scope="module")
def cleaned() -> tuple[tuple[ServingRun, ...], dict[str, int]]:
    return read_silicon_runs(sample())


def test_the_package_holds_what_its_description_counts(
    cleaned: tuple[tuple[ServingRun, ...], dict[str, int]]
) -> None:
    # Version 0.12, counted with the scorer's cleaning.
    runs, dropped = cleaned
    assert dropped == {"not_agg": 1602, "attention_dp": 169, "moe_tp_x_ep": 19, "multi_node": 55, "no_measurement": 0,
                       "several_replicas": 29, "copies": 729, "suspected_mtp": 156}
    assert (len(runs), sum(run.is_repaired for run in runs), sum(run.is_saturated for run in runs)) == (2462, 166, 54)
    assert Counter(run.kind for run in runs) == {"dense": 1047, "moe": 1415}
    covered = {
        next((r for r in KV_DTYPE_RULES if r.covers(model=run.model, engine=run.engine, machine=run.machine,
                                                    precision=run.precision, version=run.engine_version)), None)
        for run in runs
    }
    assert set(KV_DTYPE_RULES) <= covered  # every rule is the first that covers some run
    assert set(OWN_FORMATS) <= {(run.model, run.precision) for run in runs}


def test_every_model_machine_and_engine_of_the_package_loads(
    cleaned: tuple[tuple[ServingRun, ...], dict[str, int]]
) -> None:
    runs, _ = cleaned
    expected = {"fp8": "fp8", "fp4": "nvfp4", "int4": "int4", "bf16": "bf16", "": "bf16"}
    for name, dtype, cache, model, precision in {
        (run.checkpoint, run.dtype, run.kv_cache_dtype, run.model, run.precision) for run in runs
    }:
        loaded = load_model(name, dtype=dtype, kv_cache_dtype=cache)
        own = "mxfp4" if "gpt-oss" in model else expected[precision]
        assert (loaded.precision.name, loaded.precision.kv.name) == (own, cache or "bf16"), name
        assert loaded.num_params == load_model(model).num_params
    for machine in {run.machine for run in runs}:
        assert load_hardware(machine).name
    for engine in {run.engine for run in runs}:
        assert load_engine(engine).name


def test_agreement_with_the_scorer(cleaned: tuple[tuple[ServingRun, ...], dict[str, int]]) -> None:
    runs, _ = cleaned
    rows, _ = scorer().load_rows(sample())
    assert len(rows) == len(runs)
    for run, row in zip(runs, rows, strict=True):
        assert list(run.ids) == row["ids"]
        assert (run.model, run.machine, run.engine, run.engine_version or "?", run.precision or "bf16", run.kind) == (
            row["model"], row["system"], row["backend"], row["version"], row["precision"], row["kind"])
        assert (run.isl_tok, run.osl_tok, run.tp, run.ep, run.parallel, run.concurrency) == (
            row["isl"], row["osl"], row["tp"], row["ep"], row["par"], row["conc"])
        assert (run.is_saturated, run.is_repaired, run.family) == (row["saturated"], row["repaired"], row["family"])
        assert (run.ttft_s * 1e3, run.tpot_s * 1e3, run.throughput_tok_s) == pytest.approx(
            (row["ttft"], row["tpot"], row["thr"]), rel=1e-12)
