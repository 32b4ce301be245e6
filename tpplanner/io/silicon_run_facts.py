"""What the rows of ``silicon_sample.csv`` leave out: which weights were served, and the format of the KV cache.

The sample names a model and a precision. The runs of InferenceX were started by scripts in its repository
(github.com/SemiAnalysisAI/InferenceX, folder ``benchmarks``), which name the weights and the cache's format; for
NVIDIA's internal runs there is nothing to read.
"""

from dataclasses import dataclass
from typing import Final

DTYPES_OF_PRECISION: Final[dict[str, str | None]] = {
    "": None, "bf16": "bf16", "fp8": "fp8", "fp4": "nvfp4", "int4": "int4",
}
"""The sample's ``precision`` -> dtype of `load_model`; rows without one hold models published in bf16."""

OWN_FORMATS: Final[dict[tuple[str, str], str]] = {
    ("openai/gpt-oss-120b", "fp4"): "openai/gpt-oss-120b",  # mxfp4 experts, the rest in 16 bits
    ("moonshotai/Kimi-K2.5", "int4"): "moonshotai/Kimi-K2.5",  # int4 experts, the rest in 16 bits
    ("nvidia/Llama-3.1-8B-Instruct-FP8", "fp8"): "nvidia/Llama-3.1-8B-Instruct-FP8",  # with an fp8 cache
    # NVIDIA's copies in nvfp4: attention stays in 16 bits, in DeepSeek's v2 but for its output projection.
    ("moonshotai/Kimi-K2.5", "fp4"): "nvidia/Kimi-K2.5-NVFP4",
    ("MiniMaxAI/MiniMax-M2.5", "fp4"): "nvidia/MiniMax-M2.5-NVFP4",
    ("Qwen/Qwen3.5-397B-A17B", "fp4"): "nvidia/Qwen3.5-397B-A17B-NVFP4",
    ("zhipuai/GLM-5", "fp4"): "nvidia/GLM-5-NVFP4",
    ("deepseek-ai/DeepSeek-R1", "fp4"): "nvidia/DeepSeek-R1-0528-NVFP4-v2",
}
"""(model, precision) -> the checkpoint whose own formats were served, where a dtype for all weights says too much.

Source of the NVFP4 names: InferenceX, ``.github/configs/nvidia-master.yaml``, key ``model``.
"""


def checkpoint_and_dtype(model: str, precision: str) -> tuple[str, str | None]:
    """Return what `load_model` takes as name and dtype.

    Raises
    ------
    KeyError
        If the sample has no such precision.

    Examples
    --------
    >>> checkpoint_and_dtype("meta-llama/Llama-3.1-70B", "fp4")
    ('meta-llama/Llama-3.1-70B', 'nvfp4')
    >>> checkpoint_and_dtype("openai/gpt-oss-120b", "fp4")
    ('openai/gpt-oss-120b', None)
    """
    own = OWN_FORMATS.get((model, precision))
    return (model, DTYPES_OF_PRECISION[precision]) if own is None else (own, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class KvDtypeRule:
    """Runs of ``model`` kept their KV cache in ``kv_cache_dtype``; ``None`` is the engine's default.

    Empty ``engines``, ``machines``, ``precisions`` or ``versions`` mean any.
    """

    model: str
    kv_cache_dtype: str | None
    source: str
    engines: tuple[str, ...] = ()
    machines: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()

    def covers(self, *, model: str, engine: str, machine: str, precision: str, version: str | None) -> bool:
        """Whether the rule speaks of such a run."""
        pairs = ((self.engines, engine), (self.machines, machine), (self.precisions, precision),
                 (self.versions, version))
        return self.model == model and all(not known or value in known for known, value in pairs)


_BLACKWELL: Final = ("b200_sxm", "b300_sxm")

KV_DTYPE_RULES: Final[tuple[KvDtypeRule, ...]] = (
    KvDtypeRule(
        model="meta-llama/Llama-3.1-70B", kv_cache_dtype="fp8",
        source="InferenceX 70b_fp{4,8}_{b200,h100,h200}{,_trt}_*.sh of 2025-10: kv-cache-dtype fp8 (vLLM), "
               "kv_cache_config dtype fp8 (TensorRT-LLM)",
    ),
    KvDtypeRule(
        model="openai/gpt-oss-120b", machines=("b200_sxm",), kv_cache_dtype="fp8",
        source="InferenceX gptoss_fp4_b200{,_docker,_trt}.sh; those of H100 and H200 set none or auto",
    ),
    KvDtypeRule(
        model="deepseek-ai/DeepSeek-R1", engines=("trtllm",), kv_cache_dtype="fp8",
        source="InferenceX dsr1_fp{4,8}_{b200,h200}_trt.sh: kv_cache_config dtype fp8",
    ),
    KvDtypeRule(
        model="deepseek-ai/DeepSeek-R1", engines=("sglang",), machines=_BLACKWELL, kv_cache_dtype="fp8",
        source="InferenceX dsr1_fp{4,8}_{b200,b300}.sh: --kv-cache-dtype fp8_e4m3; dsr1_fp8_h200.sh sets none",
    ),
    KvDtypeRule(
        model="MiniMaxAI/MiniMax-M2.5", precisions=("fp4",), kv_cache_dtype="fp8",
        source="hf_quant_config.json of nvidia/MiniMax-M2.5-NVFP4: kv_cache_quant_algo FP8, which vLLM's auto "
               "follows; since 2026-04 InferenceX minimaxm2.5_fp4_b300.sh says so itself",
    ),
    KvDtypeRule(
        model="MiniMaxAI/MiniMax-M2.5", precisions=("fp8",), machines=("b200_sxm",), versions=("0.17.0",),
        kv_cache_dtype=None, source="InferenceX minimaxm2.5_fp8_b200.sh until 2026-04-02 sets none",
    ),
    KvDtypeRule(
        model="MiniMaxAI/MiniMax-M2.5", precisions=("fp8",), machines=_BLACKWELL, kv_cache_dtype="fp8",
        source="InferenceX minimaxm2.5_fp8_{b200,b300}.sh of 2026-04 (vLLM 0.19): --kv-cache-dtype fp8; that the flag "
               "came with that version is inferred. Those of H100 and H200 set none before 2026-05",
    ),
    KvDtypeRule(
        model="moonshotai/Kimi-K2.5", precisions=("fp4",), kv_cache_dtype="fp8",
        source="config.json of nvidia/Kimi-K2.5-NVFP4: kv_cache_scheme of 8 bits, which vLLM's auto follows; later "
               "InferenceX kimik2.5_fp4_b300.sh says so itself. The int4 scripts set none",
    ),
    KvDtypeRule(
        model="Qwen/Qwen3.5-397B-A17B", precisions=("fp8", "fp4"), kv_cache_dtype="fp8",
        source="InferenceX qwen3.5_fp8_{h200,b200,b300}.sh, qwen3.5_fp4_{b200,b300}.sh: --kv-cache-dtype fp8_e4m3; "
               "qwen3.5_bf16_*.sh set none",
    ),
    KvDtypeRule(
        model="zhipuai/GLM-5", machines=_BLACKWELL, kv_cache_dtype="fp8",
        source="InferenceX glm5_fp8_{b200,b300}.sh, glm5_fp4_b200.sh: --kv-cache-dtype fp8_e4m3; glm5_fp8_h200.sh "
               "sets none",
    ),
    KvDtypeRule(
        model="Qwen/Qwen3-32B", engines=("trtllm",), precisions=("fp8",), kv_cache_dtype="fp8",
        source="inferred: with a cache in 16 bits six of these runs would have to queue for memory and did not; "
               "NVIDIA's FP8 copy states kv_cache_quant_algo FP8, which TensorRT-LLM follows",
    ),
    KvDtypeRule(
        model="nvidia/Llama-3.1-8B-Instruct-FP8", kv_cache_dtype="fp8",
        source="hf_quant_config.json of the checkpoint: kv_cache_quant_algo FP8, which vLLM's auto follows",
    ),
)
"""First match wins; a run that no rule covers had the engine's default."""


def kv_cache_dtype_of(*, model: str, engine: str, machine: str, precision: str, version: str | None) -> str | None:
    """Return the format of the KV cache by the first rule that covers the run, ``None`` for the engine's default."""
    for rule in KV_DTYPE_RULES:
        if rule.covers(model=model, engine=engine, machine=machine, precision=precision, version=version):
            return rule.kv_cache_dtype
    return None
