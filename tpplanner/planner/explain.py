"""One degree's mean step, term by term: the equation, the numbers put in, and where they come from."""

from collections.abc import Iterator
from dataclasses import replace

from tpplanner.cost import (
    attention,
    communication,
    elementwise,
    energy,
    host,
    linear,
    memory,
    overlap,
    preemption,
    sampling,
)
from tpplanner.cost.work import work_of
from tpplanner.domain.engine import EngineProfile
from tpplanner.domain.explain import ExplainLine
from tpplanner.domain.plan import DegreePlan, Outcome, Question
from tpplanner.domain.quantity import Quantity
from tpplanner.units import GB, GIB, MIB, TERA, US


def _origin(*quantities: Quantity | None) -> tuple[str, str]:
    """Weakest provenance of the coefficients, and their sources."""
    known = [q for q in quantities if q is not None]
    order = ["measured", "fitted", "datasheet", "extrapolated"]
    worst = max((q.provenance.value for q in known), key=order.index)
    return worst, "; ".join(dict.fromkeys(q.source for q in known))


def _line(
    term: str, equation: str, inputs: str, value: float, quantities: tuple[Quantity | None, ...],
    *, unit: str = "s", level: int = 1, extrapolated: bool = False,
) -> ExplainLine:
    provenance, source = _origin(*quantities)
    return ExplainLine(term=term, equation=equation, inputs=inputs, value=value, unit=unit,
                       provenance="extrapolated" if extrapolated else provenance, source=source, level=level)


def _rows(outcome: Outcome, *, per_tok: float = 1.0, unit: str = "rows") -> str:
    """Rows of a step that only decodes and of one that also carries prompt tokens, each with its share of the steps."""
    working = min(outcome.num_running_seqs, 1.0)
    decode = outcome.num_decode_seqs / max(working, 1e-12)
    mixed = decode + outcome.mixed_prefill_tok
    return (f"{decode * per_tok:.4g} {unit} in {1 - outcome.mixed_frac:.1%} of the steps, "
            f"{mixed * per_tok:.4g} in {outcome.mixed_frac:.1%}")


def _forward(question: Question, plan: DegreePlan, outcome: Outcome) -> Iterator[ExplainLine]:
    hw, model, tp = question.hardware, question.model, plan.tp
    work, eff, step = work_of(model), hw.efficiency, outcome.step
    peak = hw.peak_for(model.precision.activation.name)
    context = question.workload.isl_tok + question.workload.osl_tok / 2
    rows = outcome.num_decode_seqs
    weights = plan.memory.weight_bytes if plan.memory else 0.0
    yield _line("linear", linear.EQUATION,
                f"n = {_rows(outcome)}; {model.num_active_params / 1e9:.2f}e9 active parameters, weights "
                f"{weights / GIB:.2f} GiB/rank, peak {peak.value / TERA:.0f} TFLOP/s x {eff.gemm_compute.value:g}, "
                f"bw {hw.hbm_bytes_s.value / GB:.0f} GB/s x {eff.gemm_memory.value:g}, p = {eff.roofline_sharpness.value:g}",
                step.linear_s, (peak, hw.hbm_bytes_s, eff.gemm_compute, eff.gemm_memory), level=2)
    per_tok = plan.memory.kv_bytes_per_tok if plan.memory else 0.0
    yield _line("attention", attention.EQUATION,
                f"n = {rows:.4g} decoding, context {context:.0f} tok; {outcome.mixed_prefill_tok:.0f} prompt tokens in "
                f"{outcome.mixed_frac:.1%} of the steps, context {question.workload.isl_tok / 2:.0f}; "
                f"kv {per_tok / 1024:.1f} KiB/tok/rank, "
                f"ea = {eff.decode_attention_memory.value:g}, ep = {eff.prefill_attention_compute.value:g}",
                step.attention_s, (eff.decode_attention_memory, eff.prefill_attention_compute), level=2)
    yield _line("element-wise", elementwise.EQUATION,
                f"n = {_rows(outcome)}; replicated {work.replicated_activation_bytes_per_tok / MIB:.2f} + sharded "
                f"{work.sharded_activation_bytes_per_tok / MIB:.2f}/{tp} MiB per token, ee = {eff.elementwise_memory.value:g}",
                step.elementwise_s, (eff.elementwise_memory,), level=2)
    overhead = question.engine.layer_overhead_s
    yield _line("launch", elementwise.LAUNCH_EQUATION,
                f"L = {work.num_layers}, {overhead.value / US:.0f} us per layer", step.launch_s, (overhead,), level=2)


def _device(question: Question, plan: DegreePlan, outcome: Outcome) -> Iterator[ExplainLine]:
    hw, engine, tp, step = question.hardware, question.engine, plan.tp, outcome.step
    work, link = work_of(question.model), hw.intra_link
    rows = outcome.num_decode_seqs
    yield from _forward(question, plan, outcome)
    curves = [c for c in hw.collectives if c.tp == tp]
    sizes = _rows(outcome, per_tok=work.hidden_bytes / MIB, unit="MiB")
    how = "measured curve" if curves else f"x {link.busbw_frac.value:g}, alpha {link.alpha_s.value / US:.1f} us"
    inputs = (f"2 x {work.num_layers} all-reduces of {sizes} over {tp} ranks, {how}; logits "
              f"{rows * work.row_logits_bytes / MIB:.3g} MiB; {link.name} {link.bandwidth_bytes_s.value / GB:.0f} GB/s")
    used: tuple[Quantity | None, ...] = (link.bandwidth_bytes_s, link.alpha_s, link.busbw_frac)
    line = _line("communication", communication.EQUATION, "t = 1: none" if tp == 1 else inputs, step.comm_s, used)
    # The logits go over the modelled link also where the all-reduce is a measured curve: the weaker evidence is named.
    yield replace(line, source=f"all-reduce: {curves[0].source}; logits: {line.source}") if curves and tp > 1 else line
    task = engine.sampling[question.sampling]
    spread = engine.switches.seq_parallel_sampling and tp > 1
    yield _line("sampling (T4)", sampling.EQUATION,
                f"a = {task.fixed_s.value / US:.0f} us, b = {task.per_seq_s.value / US:.1f} us, {rows:.1f} rows"
                + (f" over {tp} ranks" if spread else " on one rank"),
                step.sampling_s, (task.fixed_s, task.per_seq_s))


def _host_quantities(engine: EngineProfile) -> tuple[Quantity | None, ...]:
    tasks = (engine.schedule, engine.prepare_input, engine.process_output)
    return tuple(q for task in tasks for q in (task.fixed_s, task.per_seq_s, task.per_seq_per_log2_tp_s))


def _host(question: Question, outcome: Outcome) -> Iterator[ExplainLine]:
    engine, step = question.engine, outcome.step
    for term, task, value in (
        ("T1 schedule", engine.schedule, step.schedule_s),
        ("T2 prepare input", engine.prepare_input, step.prepare_input_s),
        ("T5 process output", engine.process_output, step.process_output_s),
    ):
        growth = task.per_seq_per_log2_tp_s
        inputs = f"a = {task.fixed_s.value / US:.0f} us, b = {task.per_seq_s.value / US:.1f} us"
        if growth is not None:
            inputs += f", d = {growth.value / US:.1f} us per log2 t"
        name = {"T1 schedule": "schedule", "T2 prepare input": "prepare_input", "T5 process output": "process_output"}[term]
        yield _line(term, host.EQUATION, f"{inputs}, n = {outcome.num_running_seqs:.1f}", value,
                    (task.fixed_s, task.per_seq_s, growth), level=2, extrapolated=name in outcome.extrapolated)
    if step.overlap_overhead_s:
        yield _line("overlap overhead", "constant", "queues of the asynchronous engine", step.overlap_overhead_s,
                    (engine.overlap_overhead_s,), level=2)


def _around(question: Question, plan: DegreePlan, outcome: Outcome) -> Iterator[ExplainLine]:
    hw, engine, step = question.hardware, question.engine, outcome.step
    on = [n for n in ("async_sched", "early_feedback") if getattr(engine.switches, n)]
    yield _line("hidden", overlap.EQUATION, f"on: {', '.join(on) or 'none'}", -step.hidden_s, _host_quantities(engine))
    yield ExplainLine(term="step", equation="scalable + communication + sampling + host - hidden", level=0,
                      inputs=f"non-scalable share {step.non_scalable_frac:.1%}", value=step.total_s, unit="s",
                      provenance="", source="")
    if outcome.swap_stall_s:
        link = hw.host_link
        yield _line("swap stall", "on top of the mean step: X T swapped bytes / t / (share * host link)",
                    f"{link.name} {link.bandwidth_bytes_s.value / GB:.0f} GB/s x {link.busbw_frac.value:g}", outcome.swap_stall_s,
                    (link.bandwidth_bytes_s, link.busbw_frac), level=0)
    if outcome.preemptions_per_req:
        yield _line("preemption", preemption.EQUATION,
                    f"{outcome.preemptions_per_req:.1f} per request, {outcome.recompute_tok_per_req:.0f} tokens recomputed, "
                    f"{outcome.swap_bytes_per_req / MIB:.0f} MiB swapped", outcome.preemptions_per_req,
                    (hw.host_link.bandwidth_bytes_s,), unit="1/request")
    m = plan.memory
    if m is not None:
        yield _line("KV capacity", memory.EQUATION,
                    f"{m.usable_bytes / GIB:.1f} usable - {m.weight_bytes / GIB:.1f} weights - {m.activation_bytes / GIB:.2f} "
                    f"activations - {m.runtime_bytes / GIB:.2f} runtime = {m.kv_bytes / GIB:.1f} GiB per rank; "
                    f"{m.num_kv_blocks:,} blocks of {engine.kv_block_size_tok}", float(m.kv_capacity_tok),
                    (hw.hbm_bytes, hw.runtime_bytes), unit="tokens", level=0)
    yield _line("power", energy.EQUATION, f"busy {outcome.busy_frac:.0%}, idle {hw.power.idle_w.value:.0f} W, "
                f"board {hw.power.board_w.value:.0f} W, {plan.num_replicas} x {plan.tp} GPUs", outcome.power_w,
                (hw.power.busy_frac, hw.power.memory_frac, hw.power.compute_frac), unit="w", level=0)


def explain(question: Question, plan: DegreePlan) -> list[ExplainLine]:
    """Return the terms of the mean step of ``plan``; an empty list where the degree has no outcome.

    The values are those of the plan itself; the inputs are those of its mean step.
    """
    outcome = plan.outcome
    if outcome is None:
        return []
    engine, step = question.engine, outcome.step
    lines = [
        ExplainLine(term="scalable", equation="linear + attention + element-wise + launch (T3)", inputs="sum of the four",
                    value=step.scalable_s, unit="s", provenance="", source="", level=1),
        *_device(question, plan, outcome),
        _line("host", host.EQUATION, "T1 + T2 + T5", step.host_s, _host_quantities(engine)),
        *_host(question, outcome),
        *_around(question, plan, outcome),
    ]
    return lines
