"""Reading config.json: parameters by hand for each family, windows, refusals."""

from collections.abc import Mapping

import pytest

from tpplanner.domain.attention import GroupedQueryAttention, LatentAttention, LinearAttention
from tpplanner.domain.model import ModelSpec
from tpplanner.errors import ModelError
from tpplanner.io.model_config import load_model, packaged_models, parse_model
from tpplanner.io.model_families import FAMILIES, known_architectures
from tpplanner.io.model_keys import Keys

# Hidden 8, 2 heads of 4, 1 KV head, MLP 16, vocabulary 10, 2 layers: small enough to count by hand.
SMALL = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 10, "max_position_embeddings": 64,
}
# q 8x8 = 64, kv 8x(2x4) = 64, o 8x8 = 64.
ATTENTION = 192
# gate and up 8x32 = 256, down 16x8 = 128.
MLP = 384
# Embedding and head 80 each, final norm 8.
ENDS = 168
UNTIED_BASE = 2 * (ATTENTION + MLP + 2 * 8) + ENDS


def small(model_type: str, **changes: object) -> dict[str, object]:
    return {"model_type": model_type, **SMALL, **changes}


def parsed(config: Mapping[str, object], **options: str) -> ModelSpec:
    return parse_model(Keys(values=config, place="config.json"), name="small", **options)


def attentions(model: ModelSpec) -> list[tuple[int, object]]:
    return [(group.num_layers, group.attention) for group in model.layer_groups]


@pytest.mark.parametrize(("config", "by_hand"), [
    (small("llama"), UNTIED_BASE),
    (small("llama", tie_word_embeddings=True), UNTIED_BASE - 80),
    # Biases: q 8, kv 8, o 8 per layer; gate and up 32, down 8 per layer.
    (small("llama", attention_bias=True, mlp_bias=True), UNTIED_BASE + 2 * (24 + 40)),
    # As many KV heads as heads: kv is 8 x 16 instead of 8 x 8.
    (small("llama", num_key_value_heads=None), UNTIED_BASE + 2 * 64),
    (small("mistral", sliding_window=None), UNTIED_BASE),
    (small("phi3"), UNTIED_BASE),
    # Biases on q, k, v only: 8 + 8 per layer.
    (small("qwen2"), UNTIED_BASE + 2 * 16),
    # Norms of q and k: 2 x 4 per layer.
    (small("qwen3"), UNTIED_BASE + 2 * 8),
    # Four norms of 8 instead of two, tied.
    (small("gemma2"), UNTIED_BASE + 2 * 16 - 80),
    (small("gemma3_text"), UNTIED_BASE + 2 * (16 + 8) - 80),
])
def test_dense_families_by_hand(config: dict[str, object], by_hand: int) -> None:
    model = parsed(config)
    assert model.num_params == by_hand
    assert model.num_active_params == by_hand


# Four experts of width 6: gate and up 8x12 = 96, down 6x8 = 48: 144 each; the router is 8 x 4 = 32.
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 6}
MOE_BASE = 2 * (ATTENTION + 2 * 8 + 32) + ENDS
DEEPSEEK = {
    **EXPERTS, "n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1, "q_lora_rank": None,
    "kv_lora_rank": 5, "qk_nope_head_dim": 3, "qk_rope_head_dim": 2, "v_head_dim": 4,
}
# q 8 x 2(3+2) = 80, kv_a 8 x (5+2) = 56, its norm 5, kv_b 5 x 2(3+4) = 70, o 2x4 x 8 = 64.
LATENT = 275
# Layer 0 dense (384); layer 1: router 32, 4 experts of 144, shared of 2x6: 8x24 + 12x8 = 288.
DEEPSEEK_TOTAL = 2 * (LATENT + 16) + MLP + 32 + 4 * 144 + 288 + ENDS


@pytest.mark.parametrize(("config", "total", "active"), [
    # Experts of the MLP's width: 384 each.
    (small("mixtral", num_local_experts=4, num_experts_per_tok=2), MOE_BASE + 8 * 384, MOE_BASE + 4 * 384),
    (small("qwen3_moe", num_experts=4, **EXPERTS), MOE_BASE + 16 + 8 * 144, MOE_BASE + 16 + 4 * 144),
    # Layer 0 dense: no router, no experts there.
    (small("qwen3_moe", num_experts=4, mlp_only_layers=[0], **EXPERTS),
     MOE_BASE + 16 - 32 + MLP + 4 * 144, MOE_BASE + 16 - 32 + MLP + 2 * 144),
    # Biases: q, kv, o 24, router 4, each expert 2x16 + 8 = 40; sinks 2.
    (small("gpt_oss", num_local_experts=4, num_experts_per_tok=2),
     MOE_BASE + 2 * 30 + 8 * 424, MOE_BASE + 2 * 30 + 4 * 424),
    # q, k, v biases 16, qk norm 8; layer 0 dense; layer 1: correction 4, shared of 6: 144.
    (small("glm4_moe", n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1, attention_bias=True,
           use_qk_norm=True, **EXPERTS),
     MOE_BASE + 2 * 24 - 32 + MLP + 4 + 5 * 144, MOE_BASE + 2 * 24 - 32 + MLP + 4 + 3 * 144),
    # Norms over all of q (8) and k (4), corrections 4.
    (small("minimax_m2", num_local_experts=4, num_experts_per_tok=2, architectures=["MiniMaxM2ForCausalLM"]),
     MOE_BASE + 2 * 16 + 8 * 384, MOE_BASE + 2 * 16 + 4 * 384),
    (small("deepseek_v2", **DEEPSEEK), DEEPSEEK_TOTAL, DEEPSEEK_TOTAL - 2 * 144),
    # The correction of V3: one per expert.
    (small("deepseek_v3", **DEEPSEEK), DEEPSEEK_TOTAL + 4, DEEPSEEK_TOTAL + 4 - 2 * 144),
    # The same layers; the indexer is not counted.
    (small("glm_moe_dsa", index_n_heads=2, index_head_dim=4, index_topk=8, **DEEPSEEK),
     DEEPSEEK_TOTAL + 4, DEEPSEEK_TOTAL + 4 - 2 * 144),
    # Compressed q: 8x6 + 6x10 and a norm of 6 instead of 8 x 10.
    (small("deepseek_v2", **{**DEEPSEEK, "q_lora_rank": 6}), DEEPSEEK_TOTAL + 2 * (48 + 60 + 6 - 80),
     DEEPSEEK_TOTAL + 2 * (48 + 60 + 6 - 80) - 2 * 144),
])
def test_moe_families_by_hand(config: dict[str, object], total: int, active: int) -> None:
    model = parsed(config)
    assert (model.num_params, model.num_active_params) == (total, active)


def test_llama4_by_hand() -> None:
    text = small("llama4_text", num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=20,
                 interleave_moe_layer_step=2, num_hidden_layers=4, attention_chunk_size=16)
    model = parsed({"architectures": ["Llama4ForConditionalGeneration"], "text_config": text})
    # Layers 0, 2 dense of width 20: 8x40 + 20x8 = 480. Layers 1, 3: router 32, four experts and one
    # shared of width 16 (384). No weights in the norms of q and k.
    assert model.num_params == 4 * (ATTENTION + 16) + 2 * 480 + 2 * (32 + 5 * 384) + ENDS
    assert model.num_active_params == model.num_params - 2 * 3 * 384
    # Layer 3 alone has full attention.
    assert {(n, a.window_tok) for n, a in attentions(model)} == {(2, 16), (1, 16), (1, None)}


def test_qwen3_next_by_hand() -> None:
    model = parsed(small(
        "qwen3_next", num_hidden_layers=4, num_experts=4, shared_expert_intermediate_size=5,
        linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=3, linear_value_head_dim=4,
        linear_conv_kernel_dim=4, **EXPERTS,
    ))
    # Full layer: q and its gate 8x16, kv 64, o 64, norms 8. Linear layer: qkvz 8 x (2x3 + 2x8) = 176,
    # ba 8 x 4 = 32, o 8x8 = 64, convolution 4 x (6 + 8) = 56, decay 2 x 2, norm 4.
    full, linear = 128 + 64 + 64 + 8, 176 + 32 + 64 + 56 + 4 + 4
    # Router 32, experts 4 x 144, shared of 5: 8x10 + 5x8 = 120, its gate 8.
    assert model.num_params == full + 3 * linear + 4 * (32 + 576 + 120 + 8 + 16) + ENDS
    assert [(n, type(a)) for n, a in attentions(model)] == [(3, LinearAttention), (1, GroupedQueryAttention)]


def test_qwen3_5_is_qwen3_next_under_a_wrapper() -> None:
    text = small(
        "qwen3_5_moe_text", num_hidden_layers=4, num_experts=4, shared_expert_intermediate_size=5,
        linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=3, linear_value_head_dim=4,
        linear_conv_kernel_dim=4, **EXPERTS,
    )
    wrapped = parsed({"architectures": ["Qwen3_5MoeForConditionalGeneration"], "text_config": text})
    assert wrapped.layer_groups == parsed({**text, "model_type": "qwen3_next"}).layer_groups
    # Without the gate q is 8 x 8 instead of 8 x 16 in the one full layer.
    assert parsed({**text, "attn_output_gate": False}).num_params == wrapped.num_params - 64


def test_windows_of_gemma_and_gpt_oss() -> None:
    def window(name: str) -> dict[int | None, int]:
        return {a.window_tok: n for n, a in attentions(load_model(name))}  # type: ignore[attr-defined]

    assert window("google/gemma-2-27b-it") == {4096: 23, None: 23}
    assert window("google/gemma-3-27b-it") == {1024: 52, None: 10}  # 62 layers, each sixth full
    assert window("openai/gpt-oss-120b") == {128: 18, None: 18}
    assert window("mistralai/Mistral-7B-Instruct-v0.1") == {4096: 32}
    assert window("Qwen/Qwen2.5-7B-Instruct") == {None: 28}


def test_qwen_windows_begin_at_max_window_layers() -> None:
    model = parsed(small("qwen2", use_sliding_window=True, sliding_window=32, max_window_layers=1))
    assert [(n, a.window_tok) for n, a in attentions(model)] == [(1, None), (1, 32)]


def test_absent_sliding_window_of_mistral_is_transformers_default() -> None:
    assert attentions(parsed(small("mistral")))[0][1].window_tok == 4096


@pytest.mark.parametrize(("name", "kib"), [
    ("Qwen/Qwen2.5-32B-Instruct", 256), ("meta-llama/Llama-3.1-70B-Instruct", 320),
    ("meta-llama/Llama-2-7b-hf", 512), ("meta-llama/Llama-2-13b-hf", 800),
    ("deepseek-ai/DeepSeek-V3", 61 * 576 * 2 / 1024),
])
def test_published_kv_bytes_per_token(name: str, kib: float) -> None:
    elements = 0
    for layers, attention in attentions(load_model(name)):
        if isinstance(attention, LatentAttention):
            elements += layers * attention.latent_dim
        else:
            elements += layers * 2 * attention.num_kv_heads * attention.head_dim
    assert elements * 2 / 1024 == kib


def test_every_family_is_packaged_and_every_packaged_model_loads() -> None:
    seen = {load_model(name).architecture for name in packaged_models()}
    assert len(packaged_models()) >= 36
    assert {"Gemma3ForConditionalGeneration", "Llama4ForConditionalGeneration"} <= seen
    inside = {"llama4"}  # packaged with its vision wrapper only
    for family, row in FAMILIES.items():
        assert family in inside or seen & set(row.architectures), family


@pytest.mark.parametrize(("changes", "message"), [
    ({"hidden_size": "8"}, "hidden_size must be an integer, got '8'"),
    ({"hidden_size": True}, "hidden_size must be an integer, got True"),
    ({"hidden_size": 8.0}, "hidden_size must be an integer, got 8.0"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be between 1 and 10000, got 0"),
    ({"num_hidden_layers": 10_001}, "num_hidden_layers must be between 1 and 10000, got 10001"),
    ({"num_hidden_layers": 1e30}, "num_hidden_layers must be an integer, got 1e+30"),
    ({"vocab_size": -5}, "vocab_size must be between 1 and 10000000, got -5"),
    ({"num_attention_heads": 3, "num_key_value_heads": 2}, "num_attention_heads must be a multiple of"),
    ({"num_attention_heads": 3, "head_dim": None, "num_key_value_heads": 3},
     "hidden_size must be a multiple of num_attention_heads 3 (no head_dim), got 8"),
    ({"attention_bias": 1}, "attention_bias must be true or false, got 1"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, got 'no'"),
    ({"torch_dtype": "float8"}, "torch_dtype must be one of bfloat16, float16, float32, got 'float8'"),
    ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of strings"),
    ({"quantization_config": []}, "quantization_config must be an object, got []"),
])
def test_wrong_values_name_file_key_rule_and_value(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        parsed(small("llama", **changes))
    assert str(caught.value).startswith(f"config.json: {message}")


@pytest.mark.parametrize("key", [key for key in SMALL if key not in ("num_key_value_heads", "head_dim")])
def test_missing_keys_are_not_guessed(key: str) -> None:
    config = small("llama")
    del config[key]
    with pytest.raises(ModelError, match=f"config.json: {key} is missing"):
        parsed(config)


def test_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(ModelError) as caught:
        parsed(small("llama", architectures=["MambaForCausalLM"]))
    message = str(caught.value)
    assert "'MambaForCausalLM'" in message
    assert all(name in message for name in known_architectures())
    assert "\n" not in message


@pytest.mark.parametrize(("changes", "message"), [
    ({"architectures": ["MiniMaxM2ForCausalLM"], "attn_type_list": [1, 0]}, "attn_type_list must hold 1"),
    ({"model_type": "deepseek_v2", **DEEPSEEK, "attention_bias": True}, "attention_bias must be false"),
    ({"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 4},
     "num_experts_per_tok must be at most num_experts 2, got 3"),
    ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types must name 2 layers"),
    ({"model_type": "gemma2", "layer_types": ["full_attention", "round"]}, "layer_types must name 2 layers"),
    ({"model_type": "gemma3"}, "text_config is missing"),
    ({"model_type": None}, "architectures and model_type are both missing"),
])
def test_families_refuse_what_they_do_not_model(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        parsed({**small("llama"), **changes})
    assert str(caught.value).startswith(f"config.json: {message}")
