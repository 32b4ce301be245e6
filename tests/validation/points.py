"""Measured runs with round numbers, and predictions that are off by a stated factor."""

from tpplanner.domain.offline_run import OfflineRun
from tpplanner.domain.run_prediction import RunPrediction, ScoredRun
from tpplanner.domain.serving_run import ServingRun


def run(run_id: str = "a", *, tp: int = 1, concurrency: int = 8, ttft_s: float = 0.5, tpot_s: float = 0.02,
        **changes: object) -> ServingRun:
    """101 output tokens: a request takes ttft + 100 tpot."""
    values: dict[str, object] = {
        "run_id": run_id, "model": "org/Model-7B", "checkpoint": "org/Model-7B", "machine": "h100_sxm", "engine": "vllm",
        "isl_tok": 1024, "osl_tok": 101, "tp": tp, "concurrency": concurrency, "ttft_s": ttft_s, "tpot_s": tpot_s,
        "family": "own", "source": "", "kind": "dense", **changes,
    }
    return ServingRun(**values)  # type: ignore[arg-type]


def offline(run_id: str, *, tp: int, throughput_tok_s: float, **changes: object) -> OfflineRun:
    values: dict[str, object] = {
        "run_id": run_id, "model": "org/Model-7B", "checkpoint": "org/Model-7B", "machine": "h100-sxm", "engine": "trtllm",
        "isl_tok": 128, "osl_tok": 128, "tp": tp, "throughput_tok_s": throughput_tok_s, "family": "own", "source": "",
        "kind": "dense", **changes,
    }
    return OfflineRun(**values)  # type: ignore[arg-type]


def scored(measured: ServingRun | OfflineRun, factor: float | None = 1.0, **changes: object) -> ScoredRun:
    """``factor`` times the measured TPOT and TTFT, so that throughput is 1 / factor; ``None`` predicts OOM."""
    if factor is None:
        prediction = RunPrediction(run_id=measured.run_id, status="OOM")
    elif isinstance(measured, OfflineRun):
        prediction = RunPrediction(run_id=measured.run_id, throughput_tok_s=measured.throughput_tok_s / factor)
    else:
        values: dict[str, object] = {"ttft_s": factor * measured.ttft_s, "tpot_s": factor * measured.tpot_s, **changes}
        prediction = RunPrediction(run_id=measured.run_id, **values)  # type: ignore[arg-type]
    return ScoredRun(run=measured, prediction=prediction)
