"""Every dataclass refuses nonsense with the field, the rule and the value."""

import math
from dataclasses import replace

import pytest
from builders import GQA, LINEAR, MLA, curve, make_question, round_engine, round_hardware, task, tiny_model, tiny_moe

from tpplanner.domain.dtypes import dtype_named, uniform_precision
from tpplanner.domain.engine import SamplingPolicy, Switches
from tpplanner.domain.matrix import Matrix
from tpplanner.domain.model import DenseMlp, LayerGroup
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.domain.workload import Load, LoadMode, Targets, Workload
from tpplanner.errors import ModelError, ProfileError, TpplannerError, WorkloadError

MATRIX = Matrix(name="w", in_features=8, out_features=8)
MLP, MOE = DenseMlp(intermediate_size=8), tiny_moe()
LAYERS = LayerGroup(num_layers=1, attention=GQA, mlp=MLP)
MODEL, HARDWARE, ENGINE, QUESTION = tiny_model(), round_hardware(), round_engine(), make_question()
NUMBER = Quantity(value=1.0, unit="s", provenance=Provenance.MEASURED, source="bench.csv")
EFFICIENCY, POWER, LINK, CURVE = HARDWARE.efficiency, HARDWARE.power, HARDWARE.intra_link, curve()
WORK, RATE, TARGETS = Workload(isl_tok=1, osl_tok=1), Load(mode=LoadMode.REQUEST_RATE, value=1.0), Targets()


def amount(value: float) -> Quantity:
    return replace(NUMBER, value=value)


COUNTS = [
    (GQA, "num_heads"), (GQA, "num_kv_heads"), (GQA, "head_dim"), (GQA, "window_tok"), (MLA, "num_heads"),
    (MLA, "q_lora_rank"), (MLA, "kv_lora_rank"), (MLA, "qk_nope_head_dim"), (MLA, "qk_rope_head_dim"),
    (MLA, "v_head_dim"), (LINEAR, "num_key_heads"), (LINEAR, "num_value_heads"), (LINEAR, "key_head_dim"),
    (LINEAR, "value_head_dim"), (MATRIX, "in_features"), (MATRIX, "out_features"), (MATRIX, "num_copies"),
    (MATRIX, "num_active"), (MLP, "intermediate_size"), (MOE, "num_experts"), (MOE, "num_experts_per_tok"),
    (MOE, "expert_intermediate_size"), (LAYERS, "num_layers"), (MODEL, "hidden_size"), (MODEL, "vocab_size"),
    (MODEL, "max_context_tok"), (ENGINE, "kv_block_size_tok"), (ENGINE, "max_num_seqs"),
    (ENGINE, "max_num_batched_tokens"), (HARDWARE, "gpus_per_node"), (WORK, "isl_tok"), (WORK, "osl_tok"),
    (QUESTION, "num_gpus"), (QUESTION, "max_num_seqs"), (QUESTION, "max_num_batched_tokens"), (QUESTION, "max_tp"),
]


@pytest.mark.parametrize(("value", "rule"), [
    (0, "be between 1 and"), (-1, "be between 1 and"), (10**30, "be between 1 and"), (1.5, "be an integer"),
    ("7", "be an integer"), (True, "be an integer"), (math.nan, "be an integer"),
])
@pytest.mark.parametrize(("noun", "field"), COUNTS, ids=[f"{type(n).__name__}.{f}" for n, f in COUNTS])
def test_counts(noun, field, value, rule):
    with pytest.raises(TpplannerError) as refusal:
        replace(noun, **{field: value})
    message = str(refusal.value)
    assert f"{field} must {rule}" in message
    assert message.endswith(f"got {value!r}")


ZERO_OR_MORE = [(GQA, "qk_norm_params"), (LINEAR, "conv_kernel_size"), (LINEAR, "decay_projections"),
                (MOE, "shared_intermediate_size"), (LAYERS, "num_norms")]


@pytest.mark.parametrize(("noun", "field"), ZERO_OR_MORE)
def test_counts_that_may_be_zero(noun, field):
    assert getattr(replace(noun, **{field: 0}), field) == 0
    with pytest.raises(ModelError, match=f"{field} must be between 0 and 1e\\+13, got -1"):
        replace(noun, **{field: -1})


REALS = [
    (RATE, "value", "request_rate", 1e9), (TARGETS, "ttft_s", "ttft_s", 1e6), (TARGETS, "tpot_s", "tpot_s", 1e6),
    (MATRIX, "min_shard_frac", "min_shard_frac", 1.0), (ENGINE, "gpu_memory_utilization", "gpu_memory_utilization", 1),
    (QUESTION, "gpu_memory_utilization", "gpu_memory_utilization", 1.0),
    (QUESTION, "non_kv_overhead_bytes", "non_kv_overhead_bytes", 1e15), (QUESTION, "price_usd_h", "price_usd_h", 1e6),
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", True])
@pytest.mark.parametrize(("noun", "field", "shown", "most"), REALS)
def test_numbers_must_be_finite(noun, field, shown, most, value):
    with pytest.raises(TpplannerError, match=f"{shown} must be a finite number, got "):
        replace(noun, **{field: value})


@pytest.mark.parametrize(("noun", "field", "shown", "most"), REALS)
def test_numbers_have_a_range(noun, field, shown, most):
    replace(noun, **{field: most})
    for value in (-1.0, most * 1.001):
        with pytest.raises(TpplannerError, match=f"{shown} must be between .* and .*, got {value}"):
            replace(noun, **{field: value})


@pytest.mark.parametrize(("noun", "changes", "error", "message"), [
    (GQA, {"num_kv_heads": 3}, ModelError, "attention: num_heads must be a multiple of num_kv_heads 3, got 8"),
    (MOE, {"num_experts_per_tok": 9}, ModelError, "num_experts_per_tok must be <= num_experts 8, got 9"),
    (MODEL, {"layer_groups": ()}, ModelError, "<memory>: layer_groups must hold at least one layer, got ()"),
    (MODEL, {"layer_groups": (replace(LAYERS, num_layers=10_001),)}, ModelError,
     "<memory>: num_layers must be at most 10000, got 10001"),
    (NUMBER, {"value": math.nan}, ProfileError, "bench.csv: value must be a finite number, got nan"),
    (NUMBER, {"std_error": -1.0}, ProfileError, "bench.csv: std_error must be >= 0, got -1.0"),
    (NUMBER, {"source": " "}, ProfileError, "source must name a datasheet, paper or sample file, got ' '"),
    (NUMBER, {"provenance": Provenance.FITTED}, ProfileError,
     "bench.csv: std_error and num_samples must be given for a fit, got None"),
    (NUMBER, {"valid_min": 2.0, "valid_max": 1.0}, ProfileError, "bench.csv: valid_min must not exceed valid_max, got 2.0"),
    (task(), {"fixed_s": amount(-1.0)}, ProfileError, "bench.csv: fixed_s must be >= 0 s, got -1.0"),
    (task(), {"per_seq_per_log2_tp_s": amount(-2.0)}, ProfileError,
     "bench.csv: per_seq_per_log2_tp_s must be >= 0 s, got -2.0"),
    (Switches(), {"early_feedback": True}, ProfileError,
     "early_feedback must be off where async_sched is off, got 'on'"),
    (ENGINE, {"sampling": {SamplingPolicy.GREEDY: task()}}, ProfileError,
     "<memory>: sampling must give every policy, got 'none for top-p, full'"),
    (EFFICIENCY, {"gemm_compute": amount(0.0)}, ProfileError, "gemm_compute must be in (0, 1], got 0.0"),
    (EFFICIENCY, {"elementwise_memory": amount(1.01)}, ProfileError, "elementwise_memory must be in (0, 1], got 1.01"),
    (EFFICIENCY, {"roofline_sharpness": amount(0.5)}, ProfileError, "roofline_sharpness must be >= 1, got 0.5"),
    (POWER, {"idle_w": amount(700.0)}, ProfileError, "idle_w must be in [0, board_w = 600), got 700.0"),
    (POWER, {"idle_w": amount(-1.0)}, ProfileError, "idle_w must be in [0, board_w = 600), got -1.0"),
    (HARDWARE, {"hbm_bytes": amount(0.0)}, ProfileError, "<memory>: hbm_bytes must be > 0, got 0.0"),
    (HARDWARE, {"hbm_bytes_s": amount(-1.0)}, ProfileError, "<memory>: hbm_bytes_s must be > 0, got -1.0"),
    (HARDWARE, {"peak_flop_s": {"fp8": amount(1.0)}}, ProfileError, "<memory>: peak_flop_s must give bf16, got ['fp8']"),
    (HARDWARE, {"peak_flop_s": {"bf16": amount(0.0)}}, ProfileError, "<memory>: peak_flop_s.bf16 must be > 0, got 0.0"),
    (LINK, {"bandwidth_bytes_s": amount(0.0)}, ProfileError, "got 0.0"),
    (LINK, {"busbw_frac": amount(2.0)}, ProfileError, "fast: busbw_frac must be in (0, 1.5], got 2.0"),
    (CURVE, {"tp": 1}, ProfileError, "by hand: tp must be between 2 and 1e+13, got 1"),
    (CURVE, {"latency_s": (1.0,)}, ProfileError,
     "by hand: size_bytes and latency_s must have one length of at least 2, got (2, 1)"),
    (CURVE, {"size_bytes": (2.0, 2.0)}, ProfileError, "by hand: size_bytes must be positive and ascending, got (2.0, 2.0)"),
    (CURVE, {"size_bytes": (0.0, 2.0)}, ProfileError, "by hand: size_bytes must be positive and ascending, got (0.0, 2.0)"),
    (CURVE, {"latency_s": (1.0, 0.0)}, ProfileError, "by hand: latency_s must be positive, got 0.0"),
    (RATE, {"value": None}, WorkloadError, "request_rate must have a value, got None"),
    (RATE, {"value": 0}, WorkloadError, "load: request_rate must be > 0, got 0"),
    (RATE, {"mode": LoadMode.OFFLINE}, WorkloadError, "offline must have no value, got 1.0"),
    (TARGETS, {"tpot_s": 0}, WorkloadError, "targets: tpot_s must be > 0, got 0"),
    (WORK, {"osl_tok": 10**8 + 1}, WorkloadError, "workload: isl_tok and osl_tok must be at most 1e8, got 100000001"),
    (QUESTION, {"num_gpus": 10**6 + 1}, WorkloadError, "--gpus: num_gpus must be at most 1000000, got 1000001"),
    (QUESTION, {"max_num_batched_tokens": 255}, WorkloadError,
     "question: max_num_batched_tokens must be >= max_num_seqs 256, got 255"),
])
def test_rules_between_fields(noun, changes, error, message):
    with pytest.raises(error) as refusal:
        replace(noun, **changes)
    assert message in str(refusal.value)


def test_a_long_value_is_cut():
    with pytest.raises(ProfileError) as refusal:
        replace(CURVE, size_bytes=tuple(float(i % 7) for i in range(1000)), latency_s=(1.0,) * 1000)
    assert len(str(refusal.value)) < 160


@pytest.mark.parametrize("name", ["fp7", "", "torch.", "bf16 "])
def test_unknown_formats_are_listed(name):
    with pytest.raises(ModelError, match=r"unknown dtype .*; known: fp32, bf16, fp16, fp8"):
        dtype_named(name)


def test_precision_by_hand():
    # int4 in groups of 128 with a 16-bit scale and a 4-bit zero: 4 + 20/128 = 4.15625 bits.
    int4 = uniform_precision("awq", kv="fp8")
    assert (int4.linear.num_bytes, int4.activation.name, int4.kv.name) == (4.15625 / 8, "bf16", "fp8")
    assert uniform_precision("fp16").kv.name == "fp16"


def test_a_quantity_knows_its_range():
    fit = Quantity(value=1.0, unit="s", provenance=Provenance.FITTED, source="bench.csv", std_error=0.1, num_samples=9,
                   valid_min=1.0, valid_max=256.0, valid_for="num_decode_seqs")
    found = [fit.provenance_at(n) for n in (0.5, 1, 256, 257)]
    assert found == [Provenance.EXTRAPOLATED, Provenance.FITTED, Provenance.FITTED, Provenance.EXTRAPOLATED]


def test_switches_follow_each_other():
    on = round_engine(Switches(async_sched=True, early_feedback=True))
    assert on.with_switch("async_sched", False).switches == Switches()
    assert on.with_switch("seq_parallel_sampling", True).switches.early_feedback
    with pytest.raises(ProfileError, match=r"unknown switch 'async'; known: async_sched, .* did you mean async_sched"):
        on.with_switch("async", True)
    with pytest.raises(ProfileError, match="early_feedback must be off"):
        round_engine().with_switch("early_feedback", True)


def test_parameters_by_hand():
    # GQA 13,631,488 + 262,144 per layer and two norms of 1,024; embedding and head 32,768,000; last norm.
    assert tiny_model().num_params == 2 * (13_893_632 + 2_048) + 2 * 32_768_000 + 1_024
    assert tiny_model(tied=True).num_params == tiny_model().num_params - 32_768_000
    # Experts: 8 of 1,572,864 and a router of 8,192 in place of 12,582,912; two of them active.
    moe = tiny_model(mlp=MOE)
    assert moe.num_params - moe.num_active_params == 2 * 6 * 1_572_864
    assert moe.is_moe
    assert not tiny_model().is_moe
