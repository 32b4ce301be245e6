"""Every packaged model against the parameter counts that its publisher states.

Totals: the safetensors total of the model's Hugging Face page (exact, tolerance 0), or the paper's
figure. What a page counts and the planned text model does not have (vision tower, layers for
multi-token prediction, FP8 scales, buffers, a stored copy of a tied head) is worked out by hand below and
subtracted here, never in the code.

Active parameters are published rounded, most to two digits; the tolerance of a row is half a unit of
the last digit unless its note says otherwise. Publishers differ in whether the embedding (a lookup of
one row) and the head count: ``without`` names what a row leaves out.
"""

from dataclasses import dataclass

import pytest

from tpplanner.io.model_config import load_model, packaged_models

HF = "safetensors total of the Hugging Face page"


def _siglip(text_hidden: int) -> int:
    """Gemma 3's vision tower and projector: 27 layers of 1152, MLP 4304, 64 x 64 patches of 14 x 14 x 3."""
    h, m = 1152, 4304
    layer = 4 * (h * h + h) + (h * m + m) + (m * h + h) + 2 * 2 * h
    return 27 * layer + (3 * 14 * 14 * h + h) + 64 * 64 * h + 2 * h + (h * text_hidden + h)


def _llama4_vision() -> int:
    """Llama 4's vision tower: 34 layers of 1408, MLP 5632, 24 x 24 + 1 positions, two projectors."""
    h, m = 1408, 5632
    layer = 4 * (h * h + h) + (h * m + m) + (m * h + h) + 2 * 2 * h
    positions = h + (24 * 24 + 1) * h + 2 * 2 * h
    return 34 * layer + 3 * 14 * 14 * h + positions + m * 4096 + 4096 * 4096 + 4096 * 5120


def _glm_mtp(h: int, num_experts: int, width: int, *, qk_norm: bool) -> int:
    """GLM-4.5's MTP layer: one MoE layer, a 2h -> h projection, three norms, own embedding and head."""
    q, kv = 96 * 128, 8 * 128
    attention = (h * q + q) + 2 * (h * kv + kv) + q * h + (2 * 128 if qk_norm else 0)
    moe = (h * num_experts + num_experts) + (num_experts + 1) * 3 * h * width
    return attention + moe + 2 * h + 2 * h * h + 3 * h + 2 * 151552 * h


def _qwen3_next_mtp() -> int:
    """Qwen3-Next's MTP layer: a full-attention MoE layer, a 2h -> h projection, three norms."""
    h, q, kv = 2048, 16 * 256, 2 * 256
    attention = h * 2 * q + 2 * h * kv + q * h + 2 * 256
    moe = h * 512 + 512 * 3 * h * 512 + 3 * h * 512 + h
    return attention + moe + 2 * h + 2 * h * h + 3 * h


def _qwen35_mtp_and_vision() -> int:
    """Qwen3.5's MTP layer as Qwen3-Next's, and its vision tower.

    The tower: 27 layers of 1152, MLP 4304, two frames of 16 x 16 x 3 to a patch, 2304 positions, a merger
    of 2 x 2 patches to the text's 4096.
    """
    h, q, kv = 4096, 32 * 256, 2 * 256
    attention = h * 2 * q + 2 * h * kv + q * h + 2 * 256
    moe = h * 512 + 512 * 3 * h * 1024 + 3 * h * 1024 + h
    v, m = 1152, 4304
    layer = 4 * (v * v + v) + (v * m + m) + (m * v + v) + 2 * 2 * v
    merger = 2 * v + (4 * v * 4 * v + 4 * v) + (4 * v * h + h)
    vision = 27 * layer + (2 * 3 * 16 * 16 * v + v) + 2304 * v + merger
    return attention + moe + 2 * h + 2 * h * h + 3 * h + vision


GLM5_INDEXER = 2048 * 32 * 128 + 6144 * 128 + 2 * 128 + 6144 * 32
"""One layer's indexer: 32 queries of 128 from the compressed q, one key with a LayerNorm, 32 weights."""


def _glm5_mtp_and_indexers() -> int:
    """GLM-5's MTP layer (attention, indexer, experts, 2h -> h, three norms) and the indexers of 78 layers."""
    h = 6144
    q = h * 2048 + 2048 + 2048 * 64 * 256
    kv = h * 576 + 512 + 512 * 64 * 448
    attention = q + kv + 64 * 256 * h
    moe = (h * 256 + 256) + 257 * 3 * h * 2048
    return attention + moe + 2 * h + 2 * h * h + 3 * h + 79 * GLM5_INDEXER


def _minimax_scales() -> int:
    """One scale per 128 x 128 block of q, kv, o and the experts of 62 layers."""
    h = 3072
    return 62 * (h * 6144 + 2 * h * 1024 + 6144 * h + 256 * 3 * h * 1536) // (128 * 128)


@dataclass(frozen=True, kw_only=True)
class Total:
    """A published total; ``extra`` is in it and not in the text model."""

    published: int
    extra: int = 0
    tolerance: float = 0.0
    source: str = HF


TOTALS = {
    "meta-llama/Llama-2-7b-hf": Total(published=6_738_417_664, extra=32 * 64),  # rotary inv_freq stored
    "meta-llama/Llama-2-13b-hf": Total(published=13_015_866_880, extra=40 * 64),  # rotary inv_freq stored
    "meta-llama/Llama-2-70b-hf": Total(published=68_976_653_312, extra=80 * 64),  # rotary inv_freq stored
    "meta-llama/Meta-Llama-3-8B-Instruct": Total(published=8_030_261_248),
    "meta-llama/Meta-Llama-3-70B-Instruct": Total(published=70_553_706_496),
    "meta-llama/Llama-3.1-8B-Instruct": Total(published=8_030_261_248),
    "meta-llama/Llama-3.1-70B-Instruct": Total(published=70_553_706_496),
    "meta-llama/Llama-3.3-70B-Instruct": Total(published=70_553_706_496),
    "meta-llama/Llama-3.1-405B-Instruct": Total(published=405_853_388_800),
    "meta-llama/Llama-3.2-1B-Instruct": Total(published=1_235_814_400),
    "meta-llama/Llama-3.2-3B-Instruct": Total(published=3_212_749_824),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": Total(published=108_641_793_536, extra=_llama4_vision()),
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": Total(
        published=401_583_781_376, extra=_llama4_vision()
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Total(published=134_515_008),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Total(published=1_711_376_384),
    "mistralai/Mistral-7B-Instruct-v0.1": Total(published=7_241_732_096),
    "mistralai/Mistral-7B-Instruct-v0.3": Total(published=7_248_023_552),
    "mistralai/Mistral-Nemo-Instruct-2407": Total(published=12_247_782_400),
    "mistralai/Mistral-Small-24B-Instruct-2501": Total(published=23_572_403_200),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": Total(published=46_702_792_704),
    "mistralai/Mixtral-8x22B-Instruct-v0.1": Total(published=140_630_071_296),
    "Qwen/Qwen2.5-0.5B-Instruct": Total(published=494_032_768),
    "Qwen/Qwen2.5-1.5B-Instruct": Total(published=1_543_714_304),
    "Qwen/Qwen2.5-3B-Instruct": Total(published=3_085_938_688),
    "Qwen/Qwen2.5-7B-Instruct": Total(published=7_615_616_512),
    "Qwen/Qwen2.5-14B-Instruct": Total(published=14_770_033_664),
    "Qwen/Qwen2.5-32B-Instruct": Total(published=32_763_876_352),
    "Qwen/Qwen2.5-72B-Instruct": Total(published=72_706_203_648),
    "Qwen/QwQ-32B": Total(published=32_763_876_352),
    # The files of 0.6B and 1.7B hold the tied head a second time: 151936 x hidden.
    "Qwen/Qwen3-0.6B": Total(published=751_632_384, extra=151936 * 1024),
    "Qwen/Qwen3-1.7B": Total(published=2_031_739_904, extra=151936 * 2048),
    "Qwen/Qwen3-4B": Total(published=4_022_468_096),
    "Qwen/Qwen3-8B": Total(published=8_190_735_360),
    "Qwen/Qwen3-14B": Total(published=14_768_307_200),
    "Qwen/Qwen3-32B": Total(published=32_762_123_264),
    "Qwen/Qwen3-30B-A3B": Total(published=30_532_122_624),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": Total(published=30_532_122_624),
    "Qwen/Qwen3-235B-A22B": Total(published=235_093_634_560),
    "Qwen/Qwen3-235B-A22B-Instruct-2507": Total(published=235_093_634_560),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": Total(published=480_154_875_392),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": Total(published=81_324_862_720, extra=_qwen3_next_mtp()),
    "Qwen/Qwen3.5-397B-A17B": Total(published=403_397_928_944, extra=_qwen35_mtp_and_vision()),
    "google/gemma-2-2b-it": Total(published=2_614_341_888),
    "google/gemma-2-9b-it": Total(published=9_241_705_984),
    "google/gemma-2-27b-it": Total(published=27_227_128_320),
    "google/gemma-3-1b-it": Total(published=999_885_952),
    "google/gemma-3-4b-it": Total(published=4_300_079_472, extra=_siglip(2560)),
    "google/gemma-3-12b-it": Total(published=12_187_325_040, extra=_siglip(3840)),
    "google/gemma-3-27b-it": Total(published=27_432_406_640, extra=_siglip(5376)),
    "microsoft/Phi-3-mini-4k-instruct": Total(published=3_821_079_552),
    "microsoft/Phi-3-medium-4k-instruct": Total(published=13_960_238_080),
    "microsoft/phi-4": Total(published=14_659_507_200),
    "openai/gpt-oss-20b": Total(published=20_914_757_184, source="model card, 20.91B"),
    "openai/gpt-oss-120b": Total(published=116_829_156_672, source="model card, 116.83B"),
    # Table 1 of the GLM-4.5 report states 355B with MTP and without embedding and head; the page is exact.
    "zai-org/GLM-4.5": Total(published=358_337_791_296, extra=_glm_mtp(5120, 160, 1536, qk_norm=True)),
    "zai-org/GLM-4.6": Total(published=358_337_791_296, extra=_glm_mtp(5120, 160, 1536, qk_norm=True),
                             source="same sizes as GLM-4.5"),
    "zai-org/GLM-4.5-Air": Total(published=110_468_824_832, extra=_glm_mtp(4096, 128, 1408, qk_norm=False)),
    "zai-org/GLM-5": Total(published=753_864_139_008, extra=_glm5_mtp_and_indexers()),
    "MiniMaxAI/MiniMax-M2": Total(published=228_703_644_928, extra=_minimax_scales()),
    "deepseek-ai/DeepSeek-V2-Lite": Total(published=15_706_484_224),
    "deepseek-ai/DeepSeek-V2": Total(published=235_741_434_880),
    # README_WEIGHTS.md: "Main Model Weights ... 671B", MTP (14B) apart: half a unit of 671.
    "deepseek-ai/DeepSeek-V3": Total(published=671 * 10**9, tolerance=0.5 / 671, source="README_WEIGHTS.md"),
    "deepseek-ai/DeepSeek-R1": Total(published=671 * 10**9, tolerance=0.5 / 671, source="model card"),
    # The page counts 3416 more than the linears and norms: 56 per layer, not known what.
    "moonshotai/Kimi-K2-Instruct": Total(published=1_026_408_235_864, tolerance=1e-8),
    # Its own page counts packed integers; the card says 1T.
    "moonshotai/Kimi-K2.5": Total(published=1_026_408_235_864, tolerance=1e-8, source="language model of Kimi-K2"),
}


@dataclass(frozen=True, kw_only=True)
class Active:
    """Published active parameters [10**9], their tolerance and what the publisher leaves out.

    ``extra_b`` is in the figure and not in the text model.
    """

    published_b: float
    tolerance_b: float
    without: tuple[str, ...] = ()
    extra_b: float = 0.0
    source: str = "model card"


_BOTH = ("embedding", "head")

ACTIVE = {
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": Active(published_b=17, tolerance_b=0.5),
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": Active(published_b=17, tolerance_b=0.5),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": Active(published_b=12.9, tolerance_b=0.05, source="mistral.ai"),
    "mistralai/Mixtral-8x22B-Instruct-v0.1": Active(published_b=39, tolerance_b=0.5, source="mistral.ai"),
    # 3.353 with everything: the card cuts digits off instead of rounding, so one whole unit.
    "Qwen/Qwen3-30B-A3B": Active(published_b=3.3, tolerance_b=0.1),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": Active(published_b=3.3, tolerance_b=0.1),
    "Qwen/Qwen3-235B-A22B": Active(published_b=22, tolerance_b=0.5),
    "Qwen/Qwen3-235B-A22B-Instruct-2507": Active(published_b=22, tolerance_b=0.5),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": Active(published_b=35, tolerance_b=0.5),
    # One digit; 3.25 without embedding and head, 3.87 with both.
    "Qwen/Qwen3-Next-80B-A3B-Instruct": Active(published_b=3, tolerance_b=0.5, without=_BOTH),
    "Qwen/Qwen3.5-397B-A17B": Active(published_b=17, tolerance_b=0.5),
    # The card's table counts the unembedding and not the embedding; three digits, 0.5 %.
    "openai/gpt-oss-20b": Active(published_b=3.61, tolerance_b=0.005, without=("embedding",)),
    "openai/gpt-oss-120b": Active(published_b=5.13, tolerance_b=0.005, without=("embedding",)),
    # Report, table 1: "but not word embeddings and the output layer".
    "zai-org/GLM-4.5": Active(published_b=32, tolerance_b=0.5, without=_BOTH),
    "zai-org/GLM-4.6": Active(published_b=32, tolerance_b=0.5, without=_BOTH, source="as GLM-4.5"),
    "zai-org/GLM-4.5-Air": Active(published_b=12, tolerance_b=0.5, without=_BOTH),
    # 39.15 without embedding, head and indexers.
    "zai-org/GLM-5": Active(published_b=40, tolerance_b=0.5, without=_BOTH, extra_b=78 * GLM5_INDEXER / 1e9),
    "MiniMaxAI/MiniMax-M2": Active(published_b=10, tolerance_b=0.5, without=_BOTH),
    # 2.451 without the embedding: again cut off, not rounded.
    "deepseek-ai/DeepSeek-V2-Lite": Active(published_b=2.4, tolerance_b=0.1, without=("embedding",)),
    "deepseek-ai/DeepSeek-V2": Active(published_b=21, tolerance_b=0.5, without=("embedding",)),
    # README_WEIGHTS.md says 36.7B "including" 0.9B of embedding; ours is 36.63 without, 37.55 with it.
    "deepseek-ai/DeepSeek-V3": Active(published_b=36.7, tolerance_b=0.005 * 36.7, without=("embedding",)),
    "deepseek-ai/DeepSeek-R1": Active(published_b=37, tolerance_b=0.5, without=("embedding",)),
    "moonshotai/Kimi-K2-Instruct": Active(published_b=32, tolerance_b=0.5, without=("embedding",)),
    "moonshotai/Kimi-K2.5": Active(published_b=32, tolerance_b=0.5, without=("embedding",)),
}


def test_every_packaged_model_has_a_published_total() -> None:
    assert set(TOTALS) == set(packaged_models())
    assert len(TOTALS) >= 36


@pytest.mark.parametrize("name", TOTALS)
def test_total_is_the_published_one(name: str) -> None:
    row = TOTALS[name]
    expected = row.published - row.extra
    assert abs(load_model(name).num_params - expected) <= row.tolerance * row.published, row.source
    assert row.tolerance <= 0.005


@pytest.mark.parametrize("name", packaged_models())
def test_active_is_the_published_one(name: str) -> None:
    model = load_model(name)
    if not model.is_moe:
        assert name not in ACTIVE
        assert model.num_active_params == model.num_params
        return
    row = ACTIVE[name]
    # Embedding and head have the same size, and no packaged mixture of experts ties them.
    assert not model.tied_embeddings
    left_out = len(row.without) * model.hidden_size * model.vocab_size
    counted_b = (model.num_active_params - left_out) / 1e9 + row.extra_b
    assert counted_b == pytest.approx(row.published_b, abs=row.tolerance_b), row.source
