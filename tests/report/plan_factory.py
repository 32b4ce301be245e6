"""Recommendations made by hand: what the planner would answer, without the planner."""

from dataclasses import replace

from tpplanner.domain.dtypes import uniform_precision
from tpplanner.domain.engine import EngineProfile, SamplingPolicy, Switches, TaskCost
from tpplanner.domain.hardware import Efficiency, HardwareProfile, Link, Power
from tpplanner.domain.model import DenseMlp, GroupedQueryAttention, LayerGroup, ModelSpec
from tpplanner.domain.plan import (
    Binding,
    DegreePlan,
    FlipPoint,
    MemoryBudget,
    Outcome,
    Question,
    Reason,
    Recommendation,
    StepSplit,
    Uncertainty,
)
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.domain.workload import Load, LoadMode, Targets, Workload


def q(value: float, unit: str = "1") -> Quantity:
    return Quantity(value=value, unit=unit, provenance=Provenance.DATASHEET, source="H100 datasheet, page 2")


def make_hardware(name: str = "h100-sxm", gpus_per_node: int = 8) -> HardwareProfile:
    def link(title: str, bandwidth: float) -> Link:
        return Link(
            name=title, bandwidth_bytes_s=q(bandwidth, "bytes/s"), alpha_s=q(5e-6, "s"), busbw_frac=q(0.8)
        )

    return HardwareProfile(
        name=name,
        title="NVIDIA H100 SXM 80GB",
        vendor="nvidia",
        hbm_bytes=q(80 * 2**30, "bytes"),
        hbm_bytes_s=q(3.35e12, "bytes/s"),
        peak_flop_s={"bf16": q(989e12, "flop/s")},
        intra_link=link("NVLink 4", 450e9),
        inter_link=link("InfiniBand NDR", 50e9),
        host_link=link("PCIe 5.0", 63e9),
        gpus_per_node=gpus_per_node,
        efficiency=Efficiency(
            gemm_compute=q(0.7),
            gemm_memory=q(0.8),
            expert_compute=q(0.5),
            expert_memory=q(0.7),
            decode_attention_memory=q(0.7),
            prefill_attention_compute=q(0.5),
            elementwise_memory=q(0.7),
            roofline_sharpness=q(3.0),
        ),
        power=Power(
            idle_w=q(90, "w"), board_w=q(700, "w"), busy_frac=q(0.3), memory_frac=q(0.4), compute_frac=q(0.6)
        ),
        runtime_bytes=q(2**30, "bytes"),
        runtime_bytes_per_rank=q(2**29, "bytes"),
        price_usd_h=q(2.5, "usd/h"),
    )


def make_engine(
    name: str = "vllm-0.11", *, switches: Switches | None = None, launcher: str = "vllm"
) -> EngineProfile:
    task = TaskCost(
        fixed_s=q(1e-3, "s"),
        per_seq_s=Quantity(
            value=2e-5,
            unit="s",
            provenance=Provenance.FITTED,
            source="samples.csv",
            std_error=1e-6,
            num_samples=12,
            valid_min=1,
            valid_max=512,
            valid_for="num_seqs",
        ),
    )
    return EngineProfile(
        name=name,
        title="vLLM 0.11",
        schedule=task,
        prepare_input=task,
        process_output=task,
        sampling=dict.fromkeys(SamplingPolicy, task),
        layer_overhead_s=q(1e-6, "s"),
        overlap_overhead_s=q(8e-5, "s"),
        graph_bytes=q(2**30, "bytes"),
        ratio_error_frac=q(0.06),
        switches=switches or Switches(),
        launcher=launcher,
    )


def make_model(
    name: str = "meta-llama/Llama-3.1-70B-Instruct", weights: str = "bf16", kv: str | None = None
) -> ModelSpec:
    group = LayerGroup(
        num_layers=80,
        attention=GroupedQueryAttention(num_heads=64, num_kv_heads=8, head_dim=128),
        mlp=DenseMlp(intermediate_size=28672),
    )
    return ModelSpec(
        name=name,
        architecture="LlamaForCausalLM",
        hidden_size=8192,
        vocab_size=128256,
        layer_groups=(group,),
        max_context_tok=131072,
        precision=uniform_precision(weights, kv=kv),
    )


def make_step(tp: int, hidden_s: float = 0.002) -> StepSplit:
    scalable, comm, sampling, host = 0.08 / tp, 0.002 * (tp > 1) * (1 + tp / 8), 0.004, 0.007
    return StepSplit(
        scalable_s=scalable,
        comm_s=comm,
        sampling_s=sampling,
        host_s=host,
        hidden_s=hidden_s,
        total_s=scalable + comm + sampling + host - hidden_s,
        linear_s=0.7 * scalable,
        attention_s=0.2 * scalable,
        elementwise_s=0.06 * scalable,
        launch_s=0.04 * scalable,
        schedule_s=0.003,
        prepare_input_s=0.003,
        process_output_s=0.001,
        overlap_overhead_s=0.0,
    )


def make_memory(kv_capacity_tok: int = 667_216) -> MemoryBudget:
    return MemoryBudget(
        hbm_bytes=80 * 2**30,
        usable_bytes=72 * 2**30,
        weight_bytes=35e9,
        activation_bytes=1e9,
        runtime_bytes=2e9,
        kv_bytes=40e9,
        kv_bytes_per_tok=81_920.0,
        kv_capacity_tok=kv_capacity_tok,
        num_kv_blocks=kv_capacity_tok // 16,
    )


def make_outcome(tp: int = 4, per_gpu: float = 500.0, num_gpus: int = 8, **changes: object) -> Outcome:
    step = make_step(tp)
    outcome = Outcome(
        throughput_tok_s=per_gpu * num_gpus,
        throughput_per_gpu_tok_s=per_gpu,
        request_rate_req_s=4.2,
        capacity_req_s=4.3,
        ttft_s=0.31,
        tpot_s=step.total_s,
        e2e_s=0.31 + 1023 * step.total_s,
        concurrency_total=256.0,
        concurrency_per_replica=256.0 * tp / num_gpus,
        num_running_seqs=32.0 * tp,
        num_decode_seqs=31.5 * tp,
        num_queued_seqs=0.0,
        preemptions_per_req=0.0,
        recompute_tok_per_req=0.0,
        swap_bytes_per_req=0.0,
        kv_used_frac=0.4,
        busy_frac=1.0,
        mixed_frac=0.12,
        mixed_prefill_tok=1100.0,
        swap_stall_s=0.0,
        step=step,
        power_w=5000.0,
        energy_j_per_tok=1.2,
        cost_usd_per_mtok=1.39,
        binding=Binding.OFFERED_LOAD,
        saturated=False,
        extrapolated=(),
    )
    return replace(outcome, **changes)


def make_uncertainty(outcome: Outcome, best_prob_frac: float = 0.5, **changes: object) -> Uncertainty:
    """Intervals from 20 % below to 25 % above the figures."""
    ends = {}
    for name, unit in (("tpot", "s"), ("ttft", "s"), ("throughput", "tok_s")):
        value = getattr(outcome, f"{name}_{unit}")
        ends[f"{name}_low_{unit}"] = None if value is None else value / 1.25
        ends[f"{name}_high_{unit}"] = None if value is None else value * 1.25
    return replace(Uncertainty(best_prob_frac=best_prob_frac, meets_targets_prob_frac=1.0, **ends), **changes)


CHANCES = {2: 0.0, 4: 0.04, 8: 0.96}


def make_plan(tp: int, per_gpu: float, num_gpus: int = 8, **changes: object) -> DegreePlan:
    outcome = make_outcome(tp, per_gpu, num_gpus)
    plan = DegreePlan(
        tp=tp,
        num_replicas=num_gpus // tp,
        num_gpus_idle=num_gpus % tp,
        feasible=True,
        reason=None,
        reason_detail="",
        memory=make_memory(),
        outcome=outcome,
        uncertainty=make_uncertainty(outcome, CHANCES.get(tp, 0.5)),
    )
    return replace(plan, **changes)


def out_plan(tp: int, reason: Reason = Reason.WEIGHTS, detail: str = "", num_gpus: int = 8) -> DegreePlan:
    return DegreePlan(
        tp=tp,
        num_replicas=num_gpus // tp,
        num_gpus_idle=0,
        feasible=False,
        reason=reason,
        memory=None,
        outcome=None,
        reason_detail=detail or "weights need 131 GiB per GPU, 72 GiB are usable",
    )


def make_question(**changes: object) -> Question:
    question = Question(
        model=make_model(),
        hardware=make_hardware(),
        engine=make_engine(),
        num_gpus=8,
        workload=Workload(isl_tok=1024, osl_tok=1024),
        load=Load(mode=LoadMode.BATCH_PER_GPU, value=32.0),
        targets=Targets(),
        sampling=SamplingPolicy.GREEDY,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        gpu_memory_utilization=0.9,
    )
    return replace(question, **changes)


def make_rec(**changes: object) -> Recommendation:
    """TP 1 does not fit, TP 8 wins over TP 4 by 12 %."""
    rec = Recommendation(
        question=make_question(),
        plans=(out_plan(1), make_plan(2, 301.0), make_plan(4, 482.0), make_plan(8, 540.1)),
        best_tp=8,
        best_prob_frac=0.96,
        runner_up_tp=4,
        margin_frac=0.12,
        tied_tps=(),
        best_energy_tp=8,
        best_cost_tp=8,
        rule_of_thumb_tp=8,
        flip_points=(
            FlipPoint(
                variable="concurrency", unit="requests", tp_before=8, tp_after=4, previous=256.0, value=512.0
            ),
        ),
        ranked_by="throughput per GPU",
        assumptions=("prompts share no prefix",),
        warnings=(),
    )
    return replace(rec, **changes)


def make_infeasible() -> Recommendation:
    return make_rec(
        question=make_question(targets=Targets(tpot_s=0.01)),
        best_tp=None,
        best_prob_frac=None,
        runner_up_tp=None,
        margin_frac=None,
        best_energy_tp=None,
        best_cost_tp=None,
        flip_points=(),
        plans=(
            out_plan(1),
            make_plan(
                4,
                482.0,
                uncertainty=make_uncertainty(make_outcome(4, 482.0), meets_targets_prob_frac=0.3),
                feasible=False,
                reason=Reason.TPOT,
                reason_detail="TPOT 32.0 ms exceeds the target of 10.0 ms",
            ),
            make_plan(
                8,
                540.0,
                uncertainty=make_uncertainty(make_outcome(8, 540.0), meets_targets_prob_frac=0.3),
                feasible=False,
                reason=Reason.TPOT,
                reason_detail="TPOT 23.0 ms exceeds the target of 10.0 ms",
            ),
        ),
    )
