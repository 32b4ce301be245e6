"""What a benchmark of the engine leaves behind."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tpplanner.api.engine_bench import EngineRun
from tpplanner.domain.simulation import Quantiles
from tpplanner.engine.timeline import chrome_trace, json_lines
from tpplanner.io.files import OutputFolder
from tpplanner.report.engine_text import document_json, engine_text, labelled_csv, run_csv
from tpplanner.report.simulation_logs import requests_csv

FILES = ("engine_run.json", "requests.csv", "steps.jsonl", "trace.json", "run.csv")


def _latencies(run: EngineRun) -> dict[str, Quantiles | None]:
    return {"TTFT": run.ttft, "TPOT": run.tpot, "E2E": run.e2e}


def _loop(run: EngineRun) -> str:
    switches = run.config.switches
    names = [name for name in ("early_feedback", "seq_parallel_sampling") if getattr(switches, name)]
    loop = "overlap" if switches.async_sched else "sequential"
    return loop + (f": {', '.join(names)}" if names else "")


def run_document(run: EngineRun) -> dict[str, Any]:
    """Figures of a run as plain values, SI units in the names; ``emulated`` is null where all ``tp`` ranks ran."""
    config = run.config
    return {
        "model": run.model_name, "device": run.device, "tp": config.share_tp, "emulated": run.emulated, "dtype": run.dtype,
        "load_format": config.load_format, "loop": _loop(run), "concurrency": run.concurrency,
        "num_requests": int(run.requests.osl_tok.size), "mean_isl_tok": float(run.requests.isl_tok.mean()),
        "mean_osl_tok": float(run.requests.osl_tok.mean()), "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens, "kv_block_size_tok": config.kv_block_size_tok,
        "num_kv_blocks": run.num_kv_blocks, "weight_bytes": run.weight_bytes, "delays": asdict(config.delays),
        "duration_s": run.duration_s, "throughput_tok_s": run.throughput_tok_s,
        "request_rate_req_s": run.request_rate_req_s, "num_preemptions": run.num_preemptions,
        "num_unused_rows": run.num_unused_rows, "kv_peak_frac": run.kv_peak_frac, "busy_frac": run.busy_frac,
        "latencies": {k: None if q is None else asdict(q) for k, q in _latencies(run).items()},
        "decode_step": None if run.decode is None else asdict(run.decode), "energy_j": run.energy_j,
        "energy_j_per_tok": run.energy_j_per_tok}


def run_text(run: EngineRun) -> str:
    """Figures of a run for people."""
    return engine_text(run_document(run), _latencies(run))


def run_json(run: EngineRun) -> str:
    """Figures of a run as JSON."""
    return document_json(run_document(run))


def check_run_outputs(folder: str | Path, *, overwrite: bool) -> None:
    """Raise `OutputError` where `write_run` would."""
    OutputFolder(path=Path(folder), overwrite=overwrite).check(FILES)


def write_run(run: EngineRun, folder: str | Path, *, model: str, system: str | None, overwrite: bool) -> tuple[Path, ...]:
    """Write figures, request log, steps as JSON lines and as a Chrome trace; with ``system`` also ``run.csv``.

    Parameters
    ----------
    model, system
        Names or paths of model and machine profile that ``tpplanner validate`` shall predict the run with.
    """
    steps, emulated = list(run.steps), run.emulated
    contents = [run_json(run), labelled_csv(requests_csv(run.requests), emulated), json_lines(steps, emulated=emulated),
                chrome_trace(steps, emulated=emulated)]
    files = dict(zip(FILES, contents, strict=False))
    if system is not None:
        engine = "tpplanner-overlap" if run.config.switches.async_sched else "tpplanner-sequential"
        row = run_csv(run_document(run), model=model, system=system, engine=engine, latencies=_latencies(run))
        files |= {"run.csv": row} if row else {}
    return OutputFolder(path=Path(folder), overwrite=overwrite).write(files)
