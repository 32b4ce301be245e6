"""Small models and machines with round numbers, so that a test's arithmetic fits in a comment beside it."""

import math
from dataclasses import replace

from plan_factory import make_engine, make_hardware, make_model, make_question, q

from tpplanner.cost.replica import ReplicaGrid
from tpplanner.domain.attention import Attention, GroupedQueryAttention, LatentAttention, LinearAttention
from tpplanner.domain.dtypes import uniform_precision
from tpplanner.domain.engine import EngineProfile, SamplingPolicy, Switches, TaskCost
from tpplanner.domain.hardware import CollectiveCurve, CollectiveOp, Efficiency, HardwareProfile, Link, Power
from tpplanner.domain.kernels import Kernel, MoeKernel, Surface
from tpplanner.domain.model import DenseMlp, LayerGroup, Mlp, ModelSpec, MoeMlp
from tpplanner.domain.serving_fit import SERVING_TERMS, ServingTerms

__all__ = ["make_engine", "make_hardware", "make_model", "make_question", "q"]

GQA = GroupedQueryAttention(num_heads=8, num_kv_heads=2, head_dim=64)
WINDOWED = GroupedQueryAttention(num_heads=8, num_kv_heads=2, head_dim=64, window_tok=100)
MLA = LatentAttention(num_heads=8, q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
                      v_head_dim=128)
LINEAR = LinearAttention(num_key_heads=4, num_value_heads=8, key_head_dim=16, value_head_dim=32, conv_kernel_size=4)

ALL_SWITCHES = tuple(
    Switches(async_sched=a, early_feedback=e, seq_parallel_sampling=s)
    for a, e in ((False, False), (True, False), (True, True)) for s in (False, True)
)
"""The six legal settings: early feedback needs asynchronous scheduling."""


def tiny_model(*attentions: Attention, mlp: Mlp | None = None, weights: str = "bf16", kv: str | None = None,
               tied: bool = False, num_layers: int = 2, vocab_size: int = 32_000) -> ModelSpec:
    """Hidden 1,024, gated MLP of 4,096, ``num_layers`` layers per attention given (GQA where none is)."""
    groups = tuple(LayerGroup(num_layers=num_layers, attention=a, mlp=mlp or DenseMlp(intermediate_size=4096))
                   for a in attentions or (GQA,))
    return ModelSpec(name="tiny", architecture="LlamaForCausalLM", hidden_size=1024, vocab_size=vocab_size,
                     layer_groups=groups, max_context_tok=8192, tied_embeddings=tied,
                     precision=uniform_precision(weights, kv=kv))


def tiny_moe() -> MoeMlp:
    """8 experts of 512, 2 of them per token."""
    return MoeMlp(num_experts=8, num_experts_per_tok=2, expert_intermediate_size=512)


def round_hardware(*, gpus_per_node: int = 4, curves: tuple[CollectiveCurve, ...] = ()) -> HardwareProfile:
    """1 TB/s, 100 TFLOP/s in bf16 (200 in fp8), 10 GB; links of 100 and 25 GB/s; a knee with p = 2."""
    def link(name: str, bandwidth: float, alpha: float, busbw: float) -> Link:
        return Link(name=name, bandwidth_bytes_s=q(bandwidth, "bytes/s"), alpha_s=q(alpha, "s"), busbw_frac=q(busbw))

    return replace(
        make_hardware(gpus_per_node=gpus_per_node), hbm_bytes=q(10e9, "bytes"), hbm_bytes_s=q(1e12, "bytes/s"),
        peak_flop_s={"bf16": q(1e14, "flop/s"), "fp8": q(2e14, "flop/s")},
        intra_link=link("fast", 100e9, 10e-6, 0.75), inter_link=link("slow", 25e9, 20e-6, 0.8),
        host_link=link("host", 20e9, 5e-6, 1.0), collectives=curves,
        efficiency=Efficiency(
            gemm_compute=q(0.5), gemm_memory=q(0.8), expert_compute=q(0.4), expert_memory=q(0.5),
            decode_attention_memory=q(0.5), prefill_attention_compute=q(0.25), elementwise_memory=q(0.5),
            roofline_sharpness=q(2.0),
        ),
        power=Power(idle_w=q(100, "w"), board_w=q(600, "w"), busy_frac=q(0.2), memory_frac=q(0.4),
                    compute_frac=q(0.6)),
        runtime_bytes=q(5e8, "bytes"), runtime_bytes_per_rank=q(1e8, "bytes"), price_usd_h=q(3.0, "usd/h"),
    )


def task(fixed_s: float = 0.0, per_seq_s: float = 0.0, per_log2_tp_s: float | None = None,
         per_seq_per_log2_tp_s: float | None = None) -> TaskCost:
    """A host or sampling task."""
    def some(value: float | None) -> object:
        return None if value is None else q(value, "s")

    return TaskCost(fixed_s=q(fixed_s, "s"), per_seq_s=q(per_seq_s, "s"), per_log2_tp_s=some(per_log2_tp_s),
                    per_seq_per_log2_tp_s=some(per_seq_per_log2_tp_s))


def round_engine(switches: Switches | None = None, **changes: object) -> EngineProfile:
    """T1 1 ms + 10 us/seq, T2 2 ms + (0.5 ms + 5 us/seq) log2 t, T5 20 us/seq, T4 0.1 ms + 30 us/row."""
    profile = replace(
        make_engine(switches=switches), schedule=task(1e-3, 10e-6), prepare_input=task(2e-3, 0.0, 5e-4, 5e-6),
        process_output=task(0.0, 20e-6), sampling=dict.fromkeys(SamplingPolicy, task(1e-4, 30e-6)),
        layer_overhead_s=q(5e-5, "s"), overlap_overhead_s=q(8e-5, "s"), graph_bytes=q(2e8, "bytes"),
        max_num_seqs=64, max_num_batched_tokens=2048,
    )
    return replace(profile, **changes)


def curve(tp: int = 4, op: CollectiveOp = CollectiveOp.ALL_REDUCE) -> CollectiveCurve:
    """10 us at 1 kB, 40 us at 16 kB: a slope of 1/2 in the logarithms."""
    return CollectiveCurve(op=op, tp=tp, size_bytes=(1e3, 16e3), latency_s=(10e-6, 40e-6), source="by hand")


def make_grid(model: ModelSpec, hardware: HardwareProfile, engine: EngineProfile, **changes: object) -> ReplicaGrid:
    """A replica of degree 1 with the engine's limits, 256 prompt and 128 output tokens."""
    grid = ReplicaGrid(
        model=model, hardware=hardware, engine=engine, sampling=engine.default_sampling, tp=1.0, isl_tok=256.0,
        osl_tok=128.0, max_num_seqs=float(engine.max_num_seqs),
        max_num_batched_tokens=float(engine.max_num_batched_tokens), gpu_memory_utilization=0.9,
    )
    return replace(grid, **changes)


def kernel(kind: type[Kernel], *, surface: Surface | None = None, **changes: object) -> Kernel:
    """2 us, half of the arithmetic, 80 % of the bandwidth, a knee with p = 2."""
    ready: dict[str, object] = {
        "dtype": "bf16", "latency_s": q(2e-6, "s"), "compute_frac": q(0.5), "memory_frac": q(0.8), "sharpness": q(2.0),
        "surface": surface, "held_out_median_frac": None, "held_out_p90_frac": None, "num_samples": 0, "source": "by hand",
    }
    if kind is MoeKernel:
        ready |= {"distribution": "balanced", "effective_experts_frac": q(1.0)}
    return kind(**ready | changes)


def wavy(axis: str, amplitude: float = 0.4) -> Surface:
    """A surface over one axis that goes up and down, with knots at powers of 4 up to 16,384."""
    knots = tuple(float(4**i) for i in range(8))
    return Surface(axes=(axis,), knots=(knots,), log_ratio=tuple(amplitude * math.sin(i) for i in range(8)))


def serving_terms(**changes: float) -> ServingTerms:
    """What changes nothing: factors of 1, no time beside the engine's own, no wait."""
    ready = dict.fromkeys(SERVING_TERMS, 0.0) | {name: 1.0 for name in SERVING_TERMS if name.endswith("_factor")}
    ready |= {"prefill_interference": 1.0, "prefill_delay": 1.0} | changes
    return ServingTerms(**{name: q(value, "s" if name.endswith("_s") else "1") for name, value in ready.items()})
