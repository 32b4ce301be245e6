"""The tables of Albireo (arXiv 2606.01927), typed in; H100 testbed, FP16, prompt ~80, output 1024 tokens.

Engine coefficients were fitted (benchmarks/fit_engine_profiles.py) on the first model of each size class: Llama-2-7B,
Llama-2-13B, Qwen-2.5-32B, Llama-3.1-70B. The other four are predicted. Figures are read off to +-0.1 K tok/s.
"""

import pytest

import tpplanner

ISL_TOK, OSL_TOK, NUM_SEQS = 80, 1024, 256

# model, t_e, throughput gain of Albireo over vLLM 0.11.2 (table 1 / figures 8 and 15), whether it was fitted on
GAINS = [
    ("meta-llama/Llama-2-7b-hf", 1, 1.30, True),
    ("Qwen/Qwen2.5-7B-Instruct", 1, 1.28, False),
    ("meta-llama/Llama-2-13b-hf", 2, 1.38, True),
    ("Qwen/Qwen2.5-14B-Instruct", 2, 1.47, False),
    ("Qwen/Qwen2.5-32B-Instruct", 4, 1.69, True),
    ("Qwen/QwQ-32B", 4, 1.69, False),
    ("meta-llama/Llama-3.1-70B-Instruct", 8, 1.76, True),
    ("Qwen/Qwen2.5-72B-Instruct", 8, 1.92, False),
]
GAIN_TOLERANCE = 0.12
"""Demanded of all eight; reading the figures alone is worth +-3 %."""

GAIN_GAPS = {
    "meta-llama/Llama-2-7b-hf": "predicted 1.13 against 1.30 (-13 %): KV-bound with preemption at t = 1; the closed form charges "
    "recomputation and KV reads to both engines alike, where the paper's vLLM loses more host time than elsewhere",
}

# Figure 10: K tok/s of one engine at t = 1, 2, 4, 8 (None: out of memory or not shown), per engine.
FIGURE_10 = {
    "meta-llama/Llama-2-13b-hf": (2, {"vllm-0.11": (2.5, 4.7, 7.8), "sglang-0.5": (2.7, 5.2, 9.8), "albireo": (2.9, 6.5, 12.4)}),
    "Qwen/Qwen2.5-14B-Instruct": (
        2, {"vllm-0.11": (4.4, 7.1, 8.8), "sglang-0.5": (5.6, 8.8, 13.4), "albireo": (5.1, 10.4, 17.6)}),
    "Qwen/Qwen2.5-32B-Instruct": (
        4, {"vllm-0.11": (None, 4.05, 6.7, 8.3), "sglang-0.5": (None, 4.5, 6.9, 11.1), "albireo": (None, 5.1, 11.2, 18.3)}),
    "Qwen/QwQ-32B": (
        4, {"vllm-0.11": (None, 4.05, 6.7, 8.4), "sglang-0.5": (None, 4.5, 6.9, 11.0), "albireo": (None, 5.1, 11.2, 17.2)}),
    "meta-llama/Llama-3.1-70B-Instruct": (
        8, {"vllm-0.11": (None, 0.9, 3.84, 6.07), "sglang-0.5": (None, 0.4, 4.05, 5.6), "albireo": (None, 0.9, 5.0, 10.7)}),
    "Qwen/Qwen2.5-72B-Instruct": (
        8, {"vllm-0.11": (None, 0.4, 3.7, 6.1), "sglang-0.5": (None, 0.5, 4.0, 5.5), "albireo": (None, 0.5, 4.9, 11.7)}),
}
FIGURE_10_CASES = [(model, engine) for model, (_, engines) in FIGURE_10.items() for engine in engines]
READING_ERROR = 0.1
"""K tok/s per engine: degrees whose measured values lie closer than this after division by t are no order."""

PER_GPU_ORDER_GAPS = {
    ("meta-llama/Llama-2-13b-hf", "albireo"): "t = 4 is put 6 % above t = 2, the paper 5 % below",
}


def throughput(model, engine, tp, **load):
    """K tok/s of one replica, or None where the model does not fit."""
    answer = tpplanner.recommend(model=model, dtype="fp16", gpus="8xh100-sxm", isl=ISL_TOK, osl=OSL_TOK, engine=engine,
                                 sampling="full", flip_points=False, **load)
    outcome = answer.plan(tp).outcome
    return None if outcome is None else outcome.throughput_tok_s / answer.plan(tp).num_replicas / 1e3


def gain(model, tp, num_seqs=NUM_SEQS):
    fast, slow = (throughput(model, e, tp, concurrency_per_replica=num_seqs) for e in ("albireo", "vllm-0.11"))
    return fast / slow


@pytest.mark.parametrize(("model", "tp", "published", "fitted"), GAINS, ids=[g[0].split("/")[1] for g in GAINS])
def test_published_gain_of_overlap(request, model, tp, published, fitted):
    if model in GAIN_GAPS:
        request.node.add_marker(pytest.mark.xfail(reason=GAIN_GAPS[model], strict=True))
    assert gain(model, tp) == pytest.approx(published, rel=GAIN_TOLERANCE)


def test_gain_grows_with_load_from_about_one():
    # Figure 12, QwQ-32B at t = 4: about 1.0 at 2 concurrent requests, 1.43 at 128, 1.69 at 256.
    gains = [gain("Qwen/QwQ-32B", 4, n) for n in (2, 8, 32, 64, 128, 256)]
    assert gains == sorted(gains)
    assert gains[0] == pytest.approx(1.0, abs=0.05)
    assert gains[4] == pytest.approx(1.43, rel=GAIN_TOLERANCE)
    assert gains[5] == pytest.approx(1.69, rel=GAIN_TOLERANCE)


def per_gpu_batch(model):
    """Requests per GPU of figure 10: 256 at t_e, the same per GPU at every other degree.

    The convention is not stated. Holding 256 per engine instead misses the figure by 31 % in the mean where t < t_e, this one
    by 6 % (docs/accuracy.md), and only this one gives the superlinear steps that the paper claims.
    """
    return NUM_SEQS / FIGURE_10[model][0]


@pytest.mark.parametrize(("model", "engine"), FIGURE_10_CASES, ids=lambda v: v.split("/")[-1])
def test_published_order_of_degrees_per_engine(model, engine):
    published = FIGURE_10[model][1][engine]
    degrees = [2**i for i, value in enumerate(published) if value is not None]
    predicted = [throughput(model, engine, t, batch_per_gpu=per_gpu_batch(model)) for t in degrees]
    assert sorted(degrees, key=lambda t: predicted[degrees.index(t)]) == degrees
    # The same order holds at 256 per engine.
    predicted = [throughput(model, engine, t, concurrency_per_replica=NUM_SEQS) for t in degrees]
    assert sorted(degrees, key=lambda t: predicted[degrees.index(t)]) == degrees


@pytest.mark.parametrize(("model", "engine"), FIGURE_10_CASES, ids=lambda v: v.split("/")[-1])
def test_published_order_of_degrees_per_gpu(request, model, engine):
    # What decides t_e: throughput per GPU. Pairs that the figure cannot tell apart are left out.
    if (model, engine) in PER_GPU_ORDER_GAPS:
        request.node.add_marker(pytest.mark.xfail(reason=PER_GPU_ORDER_GAPS[model, engine], strict=True))
    published = FIGURE_10[model][1][engine]
    wrong = []
    for i, low in enumerate(published):
        for j in range(i + 1, len(published)):
            high = published[j]
            if low is None or high is None:
                continue
            small, large = 2**i, 2**j
            if abs(high / large - low / small) <= READING_ERROR * (1 / small + 1 / large):
                continue
            model_low, model_high = (throughput(model, engine, t, batch_per_gpu=per_gpu_batch(model)) / t for t in (small, large))
            if (model_high > model_low) != (high / large > low / small):
                wrong.append((small, large))
    assert not wrong


@pytest.mark.parametrize(("engine", "best"), [("vllm-0.11", 2), ("albireo", 4)])
def test_published_best_degree_at_constant_concurrency_per_node(engine, best):
    # Figure 1, Qwen-2.5-32B on 8 GPUs: overlap moves t_e from 2 to 4.
    answer = tpplanner.recommend(model="Qwen/Qwen2.5-32B-Instruct", dtype="fp16", gpus="8xh100-sxm", isl=ISL_TOK, osl=OSL_TOK,
                                 engine=engine, concurrency=NUM_SEQS, flip_points=False)
    assert answer.best_tp == best


@pytest.mark.parametrize(("model", "tp", "published", "fitted"), GAINS, ids=[g[0].split("/")[1] for g in GAINS])
def test_published_rule_of_thumb(model, tp, published, fitted):
    answer = tpplanner.recommend(model=model, dtype="fp16", gpus="8xh100-sxm", isl=ISL_TOK, osl=OSL_TOK,
                                 concurrency=NUM_SEQS, flip_points=False)
    assert answer.recommendation.rule_of_thumb_tp == tp
