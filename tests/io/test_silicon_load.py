"""How the published runs were loaded, and which of them cannot be what they say."""

from collections import Counter

import pytest

from tpplanner.domain.serving_fit import STEADY
from tpplanner.errors import ProfileError
from tpplanner.io.silicon_load import PREFIX_CACHE, doubt_of, load_generator_of
from tpplanner.io.silicon_package import known_systems, silicon_root
from tpplanner.io.silicon_runs import read_silicon_runs

LLAMA, R1 = "meta-llama/Llama-3.1-70B", "deepseek-ai/DeepSeek-R1"
USUAL = {"model": LLAMA, "machine": "h200_sxm", "engine": "trtllm", "precision": "fp8", "isl_tok": 1024, "osl_tok": 1024,
         "tp": 4, "concurrency": 64, "is_inferencex": True}


def has_sample():
    try:
        read_silicon_runs()
    except ProfileError:
        return False
    return "h200_sxm" in known_systems(silicon_root())


def load(**changes):
    found = load_generator_of(**{**USUAL, **changes})
    return found.prompts_per_client, found.length_frac, found.batch_wait_steps


def test_inferencex_sends_ten_prompts_per_client_nine_tenths_long():
    # --num-prompts is ten times --max-concurrency; lengths are uniform in [0.8 L, L].
    assert load(engine="vllm") == (10.0, 0.9, 0.0)
    assert load(osl_tok=8192) == (10.0, 0.9, 0.0)


def test_nvidia_s_own_runs_are_taken_as_ten_full_prompts():
    assert load(is_inferencex=False) == (10.0, 1.0, 0.0)
    assert load(is_inferencex=False, model="MiniMaxAI/MiniMax-M2.5", machine="b300_sxm") == (10.0, 1.0, 0.0)


@pytest.mark.parametrize(("changes", "prompts"), [
    ({"model": "MiniMaxAI/MiniMax-M2.5", "machine": "b300_sxm"}, 1.0),
    ({"model": "MiniMaxAI/MiniMax-M2.5", "machine": "b200_sxm"}, 10.0),
    ({"model": "zhipuai/GLM-5", "machine": "h200_sxm"}, 5.0), ({"model": "zhipuai/GLM-5", "machine": "b200_sxm"}, 10.0),
])
def test_recipes_with_fewer_prompts(changes, prompts):
    assert load(**changes) == (prompts, 0.9, 0.0)


@pytest.mark.parametrize(("changes", "steps"), [
    ({}, 20.0), ({"machine": "b200_sxm"}, 20.0), ({"tp": 1}, 20.0),
    ({"tp": 8}, 0.0), ({"machine": "h100_sxm"}, 0.0), ({"isl_tok": 8192}, 0.0), ({"engine": "vllm"}, 0.0),
    ({"model": R1, "machine": "b200_sxm"}, 40.0), ({"model": R1, "machine": "b200_sxm", "concurrency": 255, "tp": 8}, 40.0),
    ({"model": R1, "machine": "b200_sxm", "concurrency": 63}, 0.0),
    ({"model": R1, "machine": "b200_sxm", "concurrency": 256}, 0.0),
    ({"model": R1, "machine": "b200_sxm", "precision": "fp4"}, 0.0), ({"model": R1}, 0.0),
])
def test_recipes_that_wait_for_more_prompts(changes, steps):
    assert load(**changes) == (10.0, 0.9, steps)


def test_doubt_has_a_reason_and_names_one_model_on_one_machine():
    model = "nvidia/Llama-3.1-8B-Instruct-FP8"
    assert doubt_of(model=model, machine="h200_sxm") == PREFIX_CACHE
    assert "prefix cache" in PREFIX_CACHE
    assert doubt_of(model=model, machine="b200_sxm") is None
    assert doubt_of(model=LLAMA, machine="h200_sxm") is None


@pytest.mark.skipif(not has_sample(), reason="aiconfigurator-core is not installed")
def test_every_run_of_the_sample_has_its_load():
    runs, _ = read_silicon_runs()
    assert not any(run.load == STEADY for run in runs)
    assert {run.load.length_frac for run in runs if run.family == "InferenceX"} == {0.9}
    assert {run.load.length_frac for run in runs if run.family != "InferenceX"} == {1.0}
    waits = Counter(run.load.batch_wait_steps for run in runs)
    assert set(waits) == {0.0, 20.0, 40.0}
    assert {run.engine for run in runs if run.load.batch_wait_steps} == {"trtllm"}
    doubtful = [run for run in runs if run.doubt]
    assert {(run.model, run.machine) for run in doubtful} == {("nvidia/Llama-3.1-8B-Instruct-FP8", "h200_sxm")}
    # What the doubt says: more prompt tokens a second and GPU than the peak allows, 16e9 FLOP each at 1,979 TFLOP/s.
    fastest = max(run.concurrency * run.isl_tok / run.e2e_s / run.tp for run in doubtful)
    assert fastest > 60_000
