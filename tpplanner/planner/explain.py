"""One degree's mean step, term by term: the equation, the numbers put in, and where they come from."""

from collections.abc import Iterator
from dataclasses import replace

from tpplanner.cost import (
    communication,
    energy,
    host,
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
from tpplanner.planner.explain_forward import factor_text, forward_lines, line, rows_text
from tpplanner.units import GB, GIB, MIB, US


def _device(question: Question, plan: DegreePlan, outcome: Outcome) -> Iterator[ExplainLine]:
    hw, engine, tp, step = question.hardware, question.engine, plan.tp, outcome.step
    work, link = work_of(question.model), hw.intra_link
    rows = outcome.num_decode_seqs
    yield from forward_lines(question, plan, outcome)
    curves = [c for c in hw.collectives if c.tp == tp]
    sizes = rows_text(outcome, per_tok=work.hidden_bytes / MIB, unit="MiB")
    how = "measured curve" if curves else f"x {link.busbw_frac.value:g}, alpha {link.alpha_s.value / US:.1f} us"
    inputs = (f"2 x {work.num_layers} all-reduces of {sizes} over {tp} ranks, {how}; logits "
              f"{rows * work.row_logits_bytes / MIB:.3g} MiB; {link.name} {link.bandwidth_bytes_s.value / GB:.0f} GB/s"
              f"{factor_text(engine, 'collective')}")
    used: tuple[Quantity | None, ...] = (link.bandwidth_bytes_s, link.alpha_s, link.busbw_frac)
    if tp > (hw.link_domain_gpus or hw.gpus_per_node):
        far = hw.inter_link
        inputs += (f"; between domains {far.name} {far.bandwidth_bytes_s.value / GB:.0f} GB/s x {far.busbw_frac.value:g}, "
                   f"alpha {far.alpha_s.value / US:.1f} us")
        used = (*used, far.bandwidth_bytes_s, far.alpha_s, far.busbw_frac)
    moved = line("communication", communication.EQUATION, "t = 1: none" if tp == 1 else inputs, step.comm_s, used)
    # The logits go over the modelled link also where the all-reduce is a measured curve: the weaker evidence is named.
    yield replace(moved, source=f"all-reduce: {curves[0].source}; logits: {moved.source}") if curves and tp > 1 else moved
    task = engine.sampling[question.sampling]
    spread = engine.switches.seq_parallel_sampling and tp > 1
    yield line("sampling (T4)", sampling.EQUATION,
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
        yield line(term, host.EQUATION, f"{inputs}, n = {outcome.num_running_seqs:.1f}", value,
                    (task.fixed_s, task.per_seq_s, growth), level=2, extrapolated=name in outcome.extrapolated)
    if step.overlap_overhead_s:
        exposed = engine.exposed
        yield (line("overlap overhead", "constant", "queues of the asynchronous engine", step.overlap_overhead_s,
                     (engine.overlap_overhead_s,), level=2) if exposed is None else
               line("exposed host work", "a + b n", f"a = {exposed.fixed_s.value / US:.0f} us, b = "
                     f"{exposed.per_seq_s.value / US:.1f} us, n = {outcome.num_running_seqs:.1f}: what runs found exposed",
                     step.overlap_overhead_s, (exposed.fixed_s, exposed.per_seq_s), level=2))


def _around(question: Question, plan: DegreePlan, outcome: Outcome) -> Iterator[ExplainLine]:
    hw, engine, step = question.hardware, question.engine, outcome.step
    on = [n for n in ("async_sched", "early_feedback") if getattr(engine.switches, n)]
    yield line("hidden", overlap.EQUATION, f"on: {', '.join(on) or 'none'}", -step.hidden_s, _host_quantities(engine))
    yield ExplainLine(term="step", equation="scalable + communication + sampling + host - hidden", level=0,
                      inputs=f"non-scalable share {step.non_scalable_frac:.1%}", value=step.total_s, unit="s",
                      provenance="", source="")
    if outcome.swap_stall_s:
        link = hw.host_link
        yield line("swap stall", "on top of the mean step: X T swapped bytes / t / (share * host link)",
                    f"{link.name} {link.bandwidth_bytes_s.value / GB:.0f} GB/s x {link.busbw_frac.value:g}", outcome.swap_stall_s,
                    (link.bandwidth_bytes_s, link.busbw_frac), level=0)
    if outcome.preemptions_per_req:
        yield line("preemption", preemption.EQUATION,
                    f"{outcome.preemptions_per_req:.1f} per request, {outcome.recompute_tok_per_req:.0f} tokens recomputed, "
                    f"{outcome.swap_bytes_per_req / MIB:.0f} MiB swapped", outcome.preemptions_per_req,
                    (hw.host_link.bandwidth_bytes_s,), unit="1/request")
    m = plan.memory
    if m is not None:
        yield line("KV capacity", memory.EQUATION,
                    f"{m.usable_bytes / GIB:.1f} usable - {m.weight_bytes / GIB:.1f} weights - {m.activation_bytes / GIB:.2f} "
                    f"activations - {m.runtime_bytes / GIB:.2f} runtime = {m.kv_bytes / GIB:.1f} GiB per rank; "
                    f"{m.num_kv_blocks:,} blocks of {engine.kv_block_size_tok}", float(m.kv_capacity_tok),
                    (hw.hbm_bytes, hw.runtime_bytes), unit="tokens", level=0)
    yield line("power", energy.EQUATION, f"busy {outcome.busy_frac:.0%}, idle {hw.power.idle_w.value:.0f} W, "
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
        line("host", host.EQUATION, "T1 + T2 + T5", step.host_s, _host_quantities(engine)),
        *_host(question, outcome),
        *_around(question, plan, outcome),
    ]
    return lines
