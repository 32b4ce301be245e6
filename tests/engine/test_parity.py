"""Greedy tokens of the engine are those of Hugging Face's own code, token by token, in float32."""

import pytest
from smollm2 import chat_prompt
from tiny_models import hf_choices, hf_greedy, tiny_prompts

from tpplanner.domain.engine import Preemption, Switches
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.engine.sampling_params import SamplingParams

EVERY_SWITCH = Switches(async_sched=True, early_feedback=True, seq_parallel_sampling=True)
WAYS = {"tp1-sequential": (1, Switches()), "tp2-every-switch": (2, EVERY_SWITCH),
        "tp1-every-switch": (1, EVERY_SWITCH), "tp2-sequential": (2, Switches())}
QUICK = ("tp2-every-switch",)

# The best two logits differ by more than 0.01 all along, with each of these.
SMOLLM2_PROMPTS = (
    chat_prompt("What is the capital of France?"),
    chat_prompt("Write a Python function that adds two numbers."),
    "The quick brown fox jumps over the lazy dog. " * 6,
    "import numpy as np\n\ndef",
    "Water boils at",
    "1, 2, 3, 4, 5,",
)


def ways(*quick):
    """Parameters tp and switches: the named ways always, the others with ``-m exhaustive``."""
    return [pytest.param(*way, id=name, marks=() if name in quick else pytest.mark.exhaustive) for name, way in WAYS.items()]


def engine(folder, tp, switches, **settings):
    return Engine(EngineConfig(model=str(folder), tp=tp, switches=switches, device="cpu", dtype="float32", num_threads=1,
                               **({"num_kv_blocks": 64} | settings)))


def greedy(num_tok, **settings):
    return SamplingParams(temperature=0, max_tokens=num_tok, **({"ignore_eos": True} | settings))


def assert_as_hugging_face(folder, prompts, completions, num_tok):
    for prompt, completion in zip(prompts, completions, strict=True):
        assert list(completion.prompt_ids) == prompt
        assert list(completion.output_ids) == hf_greedy(folder, prompt, num_tok)
        assert completion.finish_reason == "length"


@pytest.mark.parametrize(("tp", "switches"), ways(*QUICK))
def test_every_small_model(tiny, variant, tp, switches):
    with engine(tiny(variant), tp, switches) as running:
        completions = running.generate(tiny_prompts(), greedy(48))
    assert_as_hugging_face(tiny(variant), tiny_prompts(), completions, 48)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("tp", "switches"), [WAYS["tp1-every-switch"], WAYS["tp2-every-switch"]])
@pytest.mark.parametrize("preemption", Preemption)
def test_in_chunks_and_with_preemption(tiny, preemption, tp, switches):
    # 13 blocks hold the prompts, 31 what they grow to.
    with engine(tiny("llama"), tp, switches, preemption=preemption, num_kv_blocks=16, max_num_seqs=6,
                max_num_batched_tokens=24) as running:
        completions = running.generate(tiny_prompts(), greedy(48))
    preempted = sum(completion.num_preemptions for completion in completions)
    assert (preempted > 0) == (preemption is not Preemption.RESERVE)
    assert_as_hugging_face(tiny("llama"), tiny_prompts(), completions, 48)


@pytest.mark.parametrize(("tp", "switches"), ways("tp1-sequential", "tp1-every-switch"))
def test_with_blocks_that_are_known_already(tiny, tp, switches):
    text = tiny_prompts()[3]
    prompts = [text, text[:64], [*text[:40], 7, 8, 9], text]
    with engine(tiny("qwen3"), tp, switches, prefix_caching=True) as running:
        first, again = running.generate(prompts, greedy(24)), running.generate(prompts, greedy(24))
    assert_as_hugging_face(tiny("qwen3"), prompts, first, 24)
    assert_as_hugging_face(tiny("qwen3"), prompts, again, 24)


@pytest.mark.parametrize(("tp", "switches"), ways("tp1-sequential", *QUICK))
def test_smollm2(smollm2, tp, switches):
    # The last one ends where the model says so, the others go on.
    params = [greedy(64) for _ in SMOLLM2_PROMPTS] + [greedy(64, ignore_eos=False)]
    with engine(smollm2, tp, switches) as running:
        *completions, answer = running.generate([*SMOLLM2_PROMPTS, SMOLLM2_PROMPTS[0]], params)
        tokenizer = running.tokenizer
    for prompt, completion in zip(SMOLLM2_PROMPTS, completions, strict=True):
        assert list(completion.prompt_ids) == tokenizer.encode(prompt).ids
        assert len(completion.output_ids) == 64
        assert completion.finish_reason == "length"
        said = list(completion.output_ids)
        assert said == hf_choices(smollm2, list(completion.prompt_ids), said)
    assert answer.text == "The capital of France is Paris."
    assert answer.finish_reason == "stop"
    assert [i for i in answer.output_ids if i != 2] == list(completions[0].output_ids[:7])
