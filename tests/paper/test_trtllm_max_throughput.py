"""Best degree with everything queued at once, against TensorRT-LLM's published maximum throughput.

NVIDIA TensorRT-LLM 0.17 performance overview (H100 fp8, A100 fp16; fixed lengths, all requests queued), as collected in the
project's shared facts; skipped where they are absent. No coefficient was fitted on these rows.
"""

import csv
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

import tpplanner

MEASURED = Path(__file__).parents[3] / "shared" / "facts" / "measured_dev.csv"
MODELS = {
    "Llama-3.1-8B": "meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-70B": "meta-llama/Llama-3.1-70B-Instruct",
    "Mixtral-8x7B": "mistralai/Mixtral-8x7B-Instruct-v0.1", "Mixtral-8x22B": "mistralai/Mixtral-8x22B-Instruct-v0.1",
    "Mistral-7B": "mistralai/Mistral-7B-Instruct-v0.3",
}


def groups():
    """(model, gpu, weights, KV, isl, osl) -> {t: measured tok/s}."""
    found = defaultdict(dict)
    for r in csv.DictReader(MEASURED.read_text().splitlines()):
        if r["source_id"] == "trtllm-perf-0.17" and r["metric"] == "output_tok_s":
            key = (r["model"], r["gpu"], r["precision_weights"], r["precision_kv"], int(float(r["isl"])), int(float(r["osl"])))
            found[key][int(r["tp"])] = float(r["value"])
    return found


def predicted(key, tp):
    model, gpu, weights, kv, isl, osl = key
    machine = "h100-sxm" if "H100" in gpu else "a100-sxm"
    answer = tpplanner.recommend(model=MODELS[model], gpus=f"{tp}x{machine}", isl=isl, osl=osl, engine="trtllm", offline=True,
                                 dtype=weights, kv_cache_dtype=kv, gpu_memory_utilization=0.95, flip_points=False, max_tp=tp)
    outcome = answer.plan(tp).outcome
    return 0.0 if outcome is None else outcome.throughput_tok_s


@pytest.mark.skipif(not MEASURED.exists(), reason="the shared facts are not beside this checkout")
def test_published_maximum_throughput_regret(capsys):
    regrets, errors = [], []
    for key, measured in groups().items():
        ours = {tp: predicted(key, tp) for tp in measured}
        errors += [abs(ours[tp] / measured[tp] - 1) for tp in measured]
        if len(measured) > 1:
            best = max(measured[tp] / tp for tp in measured)
            chosen = max(ours, key=lambda tp: ours[tp] / tp)
            regrets.append(1 - measured[chosen] / chosen / best)
    hits = sum(r <= 0.01 for r in regrets) / len(regrets)
    with capsys.disabled():
        print(f"\n{len(regrets)} groups: hit rate {hits:.0%}, mean regret {statistics.mean(regrets):.1%}, worst "
              f"{max(regrets):.1%}; throughput error mean {statistics.mean(errors):.1%}, "
              f"median {statistics.median(errors):.1%} of {len(errors)} runs")
    assert statistics.mean(regrets) < 0.05
