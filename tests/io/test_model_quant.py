"""Number formats inferred from the files, and overridden by the user."""

from collections.abc import Mapping

import pytest

from tpplanner.domain.dtypes import Precision
from tpplanner.errors import ModelError
from tpplanner.io.model_config import load_model, parse_model
from tpplanner.io.model_keys import Keys

DENSE = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10, "max_position_embeddings": 64,
    "torch_dtype": "bfloat16",
}
MOE = {**DENSE, "architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2}


def formats(p: Precision) -> tuple[str, ...]:
    """Name, linears and their operands, experts and their operands, head, cache."""
    rest = (p.linear, p.activation, p.expert, p.expert_activation, p.lm_head, p.kv)
    return (p.name, *(dtype.name for dtype in rest))


def precision(
    quantization: Mapping[str, object] | None = None,
    *,
    file: Mapping[str, object] | None = None,
    moe: bool = False,
    changes: Mapping[str, object] | None = None,
    dtype: str | None = None,
    kv_cache_dtype: str | None = None,
) -> Precision:
    config = {**(MOE if moe else DENSE), **(changes or {})}
    if quantization is not None:
        config["quantization_config"] = quantization
    quant = None if file is None else Keys(values=file, place="hf_quant_config.json")
    keys = Keys(values=config, place="config.json")
    return parse_model(keys, quant, name="m", dtype=dtype, kv_cache_dtype=kv_cache_dtype).precision


def group(
    weights: Mapping[str, object], operands: Mapping[str, object] | None, **rest: object
) -> dict[str, object]:
    inner = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": operands}}
    return {"quant_method": "compressed-tensors", "config_groups": inner, "ignore": ["lm_head"], **rest}


INT8, FP8 = {"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "float"}
INT4 = {"num_bits": 4, "type": "int", "group_size": 128}
FP4 = {"num_bits": 4, "type": "float", "group_size": 16}
W_FP8 = ("fp8", "fp8", "fp8", "fp8", "fp8", "bf16", "bf16")
W_INT8 = ("int8", "int8", "int8", "int8", "int8", "bf16", "bf16")
W_INT4 = ("int4", "int4", "bf16", "int4", "bf16", "bf16", "bf16")
W_NVFP4 = ("nvfp4", "nvfp4", "nvfp4", "nvfp4", "nvfp4", "bf16", "bf16")


@pytest.mark.parametrize(("quantization", "expected"), [
    (None, ("bf16",) * 7),
    ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, W_FP8),
    ({"quant_method": "fbgemm_fp8"}, W_FP8),
    ({"quant_method": "awq", "bits": 4}, W_INT4),
    ({"quant_method": "gptq", "bits": 4}, W_INT4),
    ({"quant_method": "gptq", "bits": 8}, ("int8-a16", "int8", "bf16", "int8", "bf16", "bf16", "bf16")),
    ({"quant_method": "gptq", "bits": 4, "lm_head": True}, (*W_INT4[:5], "int4", "bf16")),
    (group(INT8, INT8), W_INT8),
    (group(FP8, FP8), W_FP8),
    (group(INT4, None), W_INT4),
    (group(FP4, FP4), W_NVFP4),
    (group(INT4, FP8), ("int4-a8", "int4", "fp8", "int4", "fp8", "bf16", "bf16")),
    (group(FP8, FP8, ignore=[]), (*W_FP8[:5], "fp8", "bf16")),
    (group(FP8, FP8, ignore=["re:.*lm_head"]), W_FP8),
    (group(FP8, FP8, kv_cache_scheme=FP8), (*W_FP8[:6], "fp8")),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, W_NVFP4),
    ({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8", "ignore": ["lm_head"]}}, W_FP8),
    ({"quant_algo": "NVFP4", "ignore": ["lm_head"], "kv_cache_scheme": FP8}, (*W_NVFP4[:6], "fp8")),
    ({"quant_method": "mxfp4"}, ("mxfp4", "mxfp4", "bf16", "mxfp4", "bf16", "bf16", "bf16")),
])
def test_quantization_config(quantization: dict[str, object] | None, expected: tuple[str, ...]) -> None:
    assert formats(precision(quantization)) == expected


@pytest.mark.parametrize(("algo", "kv", "expected"), [
    ("FP8", "FP8", (*W_FP8[:6], "fp8")), ("FP8", None, W_FP8), ("NVFP4", "FP8", (*W_NVFP4[:6], "fp8")),
    ("W4A16_AWQ", None, W_INT4),
])
def test_modelopt_file(algo: str, kv: str | None, expected: tuple[str, ...]) -> None:
    inner = {"quant_algo": algo, "kv_cache_quant_algo": kv, "exclude_modules": ["lm_head"]}
    assert formats(precision(file={"producer": {"name": "modelopt"}, "quantization": inner})) == expected


def test_modelopt_file_that_quantises_nothing() -> None:
    assert precision(file={"quantization": {"quant_algo": None}}).name == "bf16"


@pytest.mark.parametrize("skipped", [
    ["model.layers.*.self_attn"], ["re:.*self_attn.*", "lm_head"],
    ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"],
    ["language_model.model.layers.0.self_attn*", "language_model.model.layers.1.self_attn*"],
    # Layers of linear attention count too (Qwen3.5).
    ["model.language_model.layers.0.linear_attn*", "model.language_model.layers.1.self_attn*"],
    ["model.layers.0.linear_attn.in_proj_qkv", "model.layers.1.self_attn.o_proj"],
])
def test_attention_left_out_means_experts_only(skipped: list[str]) -> None:
    found = precision(group(INT4, None, ignore=[*skipped, "lm_head"]), moe=True)
    assert (found.name, found.linear.name, found.expert.name) == ("int4", "bf16", "int4")


@pytest.mark.parametrize("skipped", [
    ["model.layers.0.self_attn.q_proj"], ["model.layers.0.mlp.gate"], [],
    # The indexer alone (GLM-5), the projections of beta and alpha alone (Qwen3-Next).
    ["model.layers.0.self_attn.indexers_proj", "model.layers.1.self_attn.indexers_proj"],
    ["model.layers.0.linear_attn.in_proj_ba", "model.layers.1.linear_attn.in_proj_ba"],
])
def test_a_few_modules_left_out_change_nothing(skipped: list[str]) -> None:
    assert formats(precision(group(FP8, FP8, ignore=[*skipped, "lm_head"]), moe=True)) == W_FP8


def test_tied_head_stays_in_sixteen_bits() -> None:
    found = precision(group(FP8, FP8, ignore=[]), changes={"tie_word_embeddings": True})
    assert found.lm_head.name == "bf16"


@pytest.mark.parametrize(("given", "base"), [
    ("float16", "fp16"), ("torch.bfloat16", "bf16"), ("float32", "bf16"), (None, "bf16"),
])
def test_base_format(given: str | None, base: str) -> None:
    found = precision(changes={"torch_dtype": given})
    assert (found.name, found.base.name, found.kv.name) == (base, base, base)


def test_dtype_key_of_newer_files() -> None:
    assert precision(changes={"torch_dtype": None, "dtype": "float16"}).base.name == "fp16"


@pytest.mark.parametrize(("dtype", "expected"), [
    ("bf16", ("bf16",) * 7), ("fp16", ("fp16",) * 7), ("fp8", W_FP8), ("int8", W_INT8), ("int4", W_INT4),
    ("awq", W_INT4), ("gptq", W_INT4), ("nvfp4", W_NVFP4), ("bfloat16", ("bf16",) * 7), ("FP8", W_FP8),
])
def test_dtype_replaces_the_file(dtype: str, expected: tuple[str, ...]) -> None:
    unreadable = {"quant_method": "something new"}
    assert formats(precision(unreadable, dtype=dtype)) == expected


def test_32_bits_are_for_machines_that_compute_in_them() -> None:
    asked = precision(dtype="fp32")
    assert (asked.linear.name, asked.activation.name, asked.lm_head.name, asked.kv.name) == ("fp32",) * 4


def test_kv_cache_dtype_replaces_the_file() -> None:
    scheme = group(FP8, FP8, kv_cache_scheme=FP8)
    assert precision(scheme, kv_cache_dtype="bf16").kv.name == "bf16"
    assert precision(scheme, kv_cache_dtype="auto").kv.name == "fp8"
    assert precision(scheme, dtype="bf16").kv.name == "bf16"
    assert precision(kv_cache_dtype="int8").kv.name == "int8"


@pytest.mark.parametrize("options", [
    {"dtype": "fp7"}, {"dtype": "fp64"}, {"dtype": ""}, {"kv_cache_dtype": "int4"},
    {"kv_cache_dtype": "x\ny"},
])
def test_unknown_formats_list_the_known(options: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=r"dtype: must be one of auto,( fp32,)? bf16, fp16, fp8, int8") as caught:
        precision(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("quantization", "message"), [
    ({"quant_method": "bitsandbytes"}, "unknown Q.quant_method 'bitsandbytes'; known: fp8"),
    ({}, "Q.quant_method is missing"),
    ({"quant_method": 3}, "Q.quant_method must be a string"),
    ({"quant_method": "gptq", "bits": 3}, "Q.bits must be 4 or 8, got 3"),
    ({"quant_method": "awq"}, "Q.bits is missing"),
    ({"quant_method": "compressed-tensors"}, "Q.config_groups is missing"),
    ({"quant_method": "compressed-tensors", "config_groups": {"a\nb": {}}}, "Q.config_groups.a b"),
    (group({"num_bits": 6, "type": "float"}, None), "Q.config_groups.group_0.weights.num_bits"),
    ({"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": INT4}, "b": {"weights": FP8}}},
     "Q.config_groups must agree on one format"),
    ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "Q.quant_algo must be one of"),
    ({"quant_method": "modelopt", "quantization": {"quantization": {}}}, "Q.quantization."),
])
def test_refusals_name_the_key(quantization: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        precision(quantization)
    expected = message.replace("Q.", "quantization_config.")
    assert str(caught.value).startswith(f"config.json: {expected}")
    assert "\n" not in str(caught.value)


def test_published_formats() -> None:
    gpt_oss = ("mxfp4", "bf16", "bf16", "mxfp4", "bf16", "bf16", "bf16")
    assert formats(load_model("openai/gpt-oss-120b").precision) == gpt_oss
    assert formats(load_model("openai/gpt-oss-120b", dtype="mxfp4").precision) == gpt_oss
    assert load_model("openai/gpt-oss-120b", dtype="nvfp4").precision.linear.name == "bf16"
    assert formats(load_model("deepseek-ai/DeepSeek-V3").precision) == W_FP8
    assert formats(load_model("MiniMaxAI/MiniMax-M2").precision) == W_FP8
    # Integers for the experts alone, with operands in 16 bits.
    assert formats(load_model("moonshotai/Kimi-K2.5").precision) == ("int4", "bf16", "bf16", "int4", *["bf16"] * 3)
