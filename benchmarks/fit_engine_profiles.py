"""Fit the host, broadcast and sampling terms of vllm-0.11 / albireo and of sglang, and judge them.

Fits on the first model of each size class of the Albireo paper (arXiv 2606.01927, figures 8 and 15, read off to
+-0.1 K tok/s) and predicts the second. Run from the repository: python benchmarks/fit_engine_profiles.py
"""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

import tpplanner
from tpplanner.domain.engine import Switches
from tpplanner.fit.engine_terms import NAMES, EngineRun, fit_engine_terms
from tpplanner.io.model_config import load_model
from tpplanner.io.profile_engine import load_engine
from tpplanner.io.profile_hardware import load_hardware

SAMPLES = Path(__file__).parents[1] / "profiles" / "engines" / "samples" / "albireo_h100.csv"
ISL_TOK, OSL_TOK, NUM_SEQS = 80, 1024, 256
OFF = Switches()
ASYNC = Switches(async_sched=True, early_feedback=True)
ALL = Switches(async_sched=True, early_feedback=True, seq_parallel_sampling=True)
SGLANG = Switches(async_sched=True)
COLUMNS = {"vllm_tok_s": OFF, "vllm_async_tok_s": ASYNC, "albireo_tok_s": ALL}


def run_of(row: dict[str, str], column: str, switches: Switches) -> EngineRun:
    """The running batch is the planner's own steady state: KV-bound models run fewer than 256."""
    answer = tpplanner.recommend(
        model=row["model"], gpus=f"{row['tp']}xh100-sxm", isl=ISL_TOK, osl=OSL_TOK, max_tp=int(row["tp"]),
        concurrency_per_replica=NUM_SEQS, engine="vllm-0.11", dtype="fp16", flip_points=False)
    outcome = next(p for p in answer.plans if p.tp == int(row["tp"])).outcome
    finished = outcome.num_decode_seqs / (OSL_TOK - 1)
    return EngineRun(
        model=load_model(row["model"], dtype="fp16"), tp=int(row["tp"]), switches=switches,
        num_seqs=outcome.num_decode_seqs, context_tok=ISL_TOK + OSL_TOK / 2,
        prefill_tok_per_step=finished * (ISL_TOK + outcome.recompute_tok_per_req), isl_tok=ISL_TOK,
        throughput_tok_s=float(row[column]))


def report(title: str, runs, fit) -> None:
    print(f"\n{title}: {fit.num_samples} samples, residual rms {np.sqrt(np.mean(fit.residuals**2)):.3f}")
    for c in fit.coefficients:
        print(f"  {c.name:34s} {c.value * 1e6:7.2f} +- {c.std_error * 1e6:.2f} us")
    for run, residual in zip(runs, fit.residuals, strict=True):
        print(f"  {run.model.name:38s} t{run.tp} {run.throughput_tok_s:8.0f} tok/s predicted {100 * np.expm1(residual):+6.1f} %")
    for warning in fit.warnings:
        print("  warning:", warning)


def fits():
    """Return (runs, fit) of vllm-0.11 with albireo, and of sglang-0.5, each on the rows marked ``fit``."""
    rows = [r for r in csv.DictReader(SAMPLES.read_text().splitlines()) if r["split"] == "fit"]
    hardware, engine = load_hardware("h100-sxm"), load_engine("vllm-0.11")
    # The columns mix engines that pay for their queues with one that does not.
    engine = replace(engine, overlap_overhead_s=load_engine("albireo").overlap_overhead_s)
    runs = [run_of(r, c, s) for r in rows for c, s in COLUMNS.items()]
    sglang = [run_of(r, "sglang_tok_s", SGLANG) for r in rows]
    return [
        (runs, fit_engine_terms(runs, hardware, engine)[0]),
        (sglang, fit_engine_terms(sglang, hardware, load_engine("sglang-0.5"), names=NAMES[1:])[0]),
    ]


def main() -> None:
    for title, (runs, fit) in zip(("vllm-0.11 and albireo", "sglang"), fits(), strict=True):
        report(title, runs, fit)


if __name__ == "__main__":
    main()
