"""How the runs of ``silicon_sample.csv`` were loaded, and which of them cannot be what they say."""

from typing import Final

from tpplanner.domain.serving_fit import LoadGenerator

_LENGTH_FRAC: Final = 0.9
"""InferenceX draws prompts and outputs uniformly from [0.8 L, L] (``--random-range-ratio 0.8``)."""

_PROMPTS_PER_CLIENT: Final = 10.0
"""InferenceX: ``--num-prompts`` is ten times ``--max-concurrency``."""

_OTHER_PROMPTS: Final[dict[tuple[str, str], float]] = {
    ("MiniMaxAI/MiniMax-M2.5", "b300_sxm"): 1.0,  # InferenceX minimaxm2.5_fp{4,8}_b300.sh
    ("zhipuai/GLM-5", "h200_sxm"): 5.0,  # InferenceX glm5_fp8_h200.sh
}

PREFIX_CACHE: Final = "prefills 94,000 tokens per second and GPU: looks like hits in a prefix cache"


def load_generator_of(
    *, model: str, machine: str, engine: str, precision: str, isl_tok: int, osl_tok: int, tp: int, concurrency: int,
    is_inferencex: bool,
) -> LoadGenerator:
    """Return the benchmark behind a run.

    InferenceX's TensorRT-LLM recipes for Llama-3.1-70B make the engine wait 20 steps for more prompts at 1024/1024 below
    t = 8 (``batch_wait_timeout_iters``), those for DeepSeek-R1 in fp8 on B200 40 steps from 64 to 255 clients. How
    NVIDIA's internal runs were loaded is not documented: ten prompts of full length per client are assumed.
    """
    if not is_inferencex:
        return LoadGenerator(prompts_per_client=_PROMPTS_PER_CLIENT)
    wait = 0.0
    if engine == "trtllm" and (isl_tok, osl_tok) == (1024, 1024):
        if model == "meta-llama/Llama-3.1-70B" and tp < 8 and machine in ("b200_sxm", "h200_sxm"):
            wait = 20.0
        elif model == "deepseek-ai/DeepSeek-R1" and precision == "fp8" and machine == "b200_sxm" and 64 <= concurrency < 256:
            wait = 40.0
    return LoadGenerator(prompts_per_client=_OTHER_PROMPTS.get((model, machine), _PROMPTS_PER_CLIENT),
                         length_frac=_LENGTH_FRAC, batch_wait_steps=wait)


def doubt_of(*, model: str, machine: str) -> str | None:
    """Return why a run cannot be what it says; ``None`` for no reason."""
    if model == "nvidia/Llama-3.1-8B-Instruct-FP8" and machine == "h200_sxm":
        return PREFIX_CACHE
    return None
