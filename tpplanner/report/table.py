"""The tables of ``recommend``: one row per degree, first the outcome, then the split of the mean step."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table

from tpplanner.domain.plan import DegreePlan, Outcome, Reason, Recommendation
from tpplanner.report.headline import tied_degrees
from tpplanner.report.numbers import (
    MISSING,
    count,
    grouped,
    milliseconds,
    per_user_tok_s,
    percent,
    probability,
    with_interval,
)
from tpplanner.report.render import MIN_WIDTH, add_columns, cell, new_table, render

WIDE = 120
"""Columns from which the memory figures stand beside the outcome instead of below it."""

ROOM_FOR_INTERVALS = 20
"""Columns beyond the least of a layout from which the throughput per GPU has its interval."""


def _queued(num_seqs: float | None) -> str:
    """Mean queue, unbounded where the load exceeds the capacity; less than a hundredth is none."""
    if num_seqs is None:
        return "no end"
    return grouped(num_seqs if num_seqs >= 0.01 else 0.0)


@dataclass(frozen=True, slots=True)
class Column:
    """A header, and how the cell of a plan is written."""

    header: str
    text: Callable[[DegreePlan], str]


def _of(show: Callable[[Outcome], str]) -> Callable[[DegreePlan], str]:
    """Return a cell writer that shows a dash where the plan has no outcome."""
    return lambda plan: MISSING if plan.outcome is None else show(plan.outcome)


def _binding(plan: DegreePlan) -> str:
    if not plan.feasible:
        return f"out: {plan.reason.value if plan.reason is not None else 'unknown'}"
    if plan.outcome is None:
        return MISSING
    return plan.outcome.binding.value + (", saturated" if plan.outcome.saturated else "")


def _with_interval(plan: DegreePlan) -> str:
    """Throughput per GPU and the ends of its interval."""
    outcome, doubt = plan.outcome, plan.uncertainty
    if outcome is None or doubt is None:
        return MISSING if outcome is None else grouped(outcome.throughput_per_gpu_tok_s)
    per_gpu = outcome.throughput_per_gpu_tok_s / outcome.throughput_tok_s
    low, high = (None if end is None else end * per_gpu for end in (doubt.throughput_low_tok_s, doubt.throughput_high_tok_s))
    return with_interval(outcome.throughput_per_gpu_tok_s, low, high)


REPLICAS = (
    Column("repl.", lambda plan: f"{plan.num_replicas:,}"),
    Column("P(best)", lambda plan: MISSING if plan.uncertainty is None else probability(plan.uncertainty.best_prob_frac)),
)
PER_GPU = Column("tok/s\n/GPU", _of(lambda o: grouped(o.throughput_per_gpu_tok_s)))
PER_GPU_INTERVAL = Column("tok/s/GPU\n(80 % interval)", _with_interval)
OUTCOME = (
    Column("tok/s\ntotal", _of(lambda o: grouped(o.throughput_tok_s))),
    Column("TTFT\nms", _of(lambda o: milliseconds(o.ttft_s))),
    Column("TPOT\nms", _of(lambda o: milliseconds(o.tpot_s))),
    Column("tok/s\n/user", _of(lambda o: grouped(per_user_tok_s(o.tpot_s)))),
)
BATCH = (
    Column("running\n/repl.", _of(lambda o: grouped(o.num_running_seqs))),
    Column("queued\n/repl.", _of(lambda o: _queued(o.num_queued_seqs))),
    Column("KV tokens\n/repl.", lambda plan: count(plan.memory.kv_capacity_tok) if plan.memory else MISSING),
    Column("preempt\n/req", _of(lambda o: grouped(o.preemptions_per_req, 2))),
)
COST = (
    Column("J\n/token", _of(lambda o: grouped(o.energy_j_per_tok))),
    Column("$/M\ntokens", _of(lambda o: grouped(o.cost_usd_per_mtok))),
    Column("GPUs\nidle", lambda plan: f"{plan.num_gpus_idle:,}"),
)
BINDING = Column("limited by", _binding)
STEP = (
    Column("scalable", _of(lambda o: milliseconds(o.step.scalable_s))),
    Column("comm", _of(lambda o: milliseconds(o.step.comm_s))),
    Column("sampling", _of(lambda o: milliseconds(o.step.sampling_s))),
    Column("host", _of(lambda o: milliseconds(o.step.host_s))),
    Column("hidden", _of(lambda o: milliseconds(o.step.hidden_s))),
    Column("total", _of(lambda o: milliseconds(o.step.total_s))),
    Column("non-\nscalable", _of(lambda o: percent(o.step.non_scalable_frac))),
)


def plan_table(rec: Recommendation, *, wide: bool = True, intervals: bool = True) -> Table:
    """Return replicas, throughput, latencies and limit per degree; with ``wide`` the batch and memory too."""
    per_gpu = PER_GPU_INTERVAL if intervals else PER_GPU
    return _table(rec, (*REPLICAS, per_gpu, *OUTCOME, *(BATCH if wide else ()), BINDING))


def batch_table(rec: Recommendation) -> Table:
    """Return batch, KV cache, preemption, energy and cost per degree."""
    return _table(rec, (*BATCH, *COST))


def step_table(rec: Recommendation, *, wide: bool = True) -> Table:
    """Return the split of the mean step [ms] per degree; with ``wide`` energy and cost too."""
    return _table(rec, (*STEP, *(COST if wide else ())))


def table_text(rec: Recommendation, *, width: int | None = None, terminal: bool = False) -> str:
    """Return all tables of a recommendation as text.

    Parameters
    ----------
    rec
        The answer of the planner.
    width
        Columns of the terminal, ``None`` for no limit. Below `WIDE` the figures of batch, memory and cost move to a
        table of their own. With `ROOM_FOR_INTERVALS` to spare the throughput has its interval.
    terminal
        Whether to use colours.

    Returns
    -------
    str
        Tables with their captions, the legend of the marks, and the reason of every degree that is out.
    """
    wide = width is None or width >= WIDE
    intervals = width is None or width >= (WIDE if wide else MIN_WIDTH) + ROOM_FOR_INTERVALS
    legend = "* best, = tied with it" if tied_degrees(rec) else "* best"
    blocks = [(f"Plans: {legend}", plan_table(rec, wide=wide, intervals=intervals))]
    if not wide:
        blocks.append(("Batch, memory and cost", batch_table(rec)))
    blocks.append(("Split of the mean step [ms]: total = scalable + comm + sampling + host - hidden",
                   step_table(rec, wide=wide)))
    parts = [f"{caption}\n{render(table, width=width, terminal=terminal)}" for caption, table in blocks]
    parts[0] += "".join(f"\n{line}" for line in reason_lines(rec))
    return "\n\n".join(parts)


def reason_lines(rec: Recommendation) -> tuple[str, ...]:
    """Return one sentence for each degree that is out, with its chance where the reason is a target or the load."""
    return tuple(f"TP {plan.tp} is out ({plan.reason.value if plan.reason is not None else 'unknown'})"
                 + (f": {plan.reason_detail}" if plan.reason_detail else "") + _chance(plan)
                 for plan in rec.plans if not plan.feasible)


def _chance(plan: DegreePlan) -> str:
    doubt = plan.uncertainty
    if doubt is None or plan.reason not in (Reason.TTFT, Reason.TPOT, Reason.LOAD) or not doubt.meets_targets_prob_frac:
        return ""
    return f"; feasible with {probability(doubt.meets_targets_prob_frac)} probability"


def _table(rec: Recommendation, columns: tuple[Column, ...]) -> Table:
    table = new_table()
    add_columns(table, ["TP", *(column.header for column in columns)], left=(BINDING.header,))
    tied = tied_degrees(rec)
    for plan in rec.plans:
        mark = "*" if plan.tp == rec.best_tp else "=" if plan.tp in tied else " "
        style = "dim" if not plan.feasible else "bold green" if plan.tp == rec.best_tp else ""
        texts = [f"{plan.tp}{mark}", *(column.text(plan) for column in columns)]
        table.add_row(*(cell(text, style) for text in texts))
    return table
