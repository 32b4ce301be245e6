"""The tables of ``recommend``: one row per degree, first the outcome, then the split of the mean step."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table

from tpplanner.domain.plan import DegreePlan, Outcome, Recommendation
from tpplanner.report.headline import tied_degrees
from tpplanner.report.numbers import MISSING, count, grouped, milliseconds, per_user_tok_s, percent
from tpplanner.report.render import add_columns, cell, new_table, render

WIDE = 112
"""Columns from which the memory figures stand beside the outcome instead of below it."""


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


OUTCOME = (
    Column("repl.", lambda plan: f"{plan.num_replicas:,}"),
    Column("tok/s\n/GPU", _of(lambda o: grouped(o.throughput_per_gpu_tok_s))),
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


def plan_table(rec: Recommendation, *, wide: bool = True) -> Table:
    """Return replicas, throughput, latencies and limit per degree; with ``wide`` the batch and memory too."""
    return _table(rec, (*OUTCOME, *(BATCH if wide else ()), BINDING))


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
        Columns of the terminal, ``None`` for no limit. Below `WIDE` the figures of batch, memory
        and cost move to a table of their own.
    terminal
        Whether to use colours.

    Returns
    -------
    str
        Tables with their captions, the legend of the marks, and the reason of every degree that is out.
    """
    wide = width is None or width >= WIDE
    legend = "* best, = tied with it" if tied_degrees(rec) else "* best"
    blocks = [(f"Plans: {legend}", plan_table(rec, wide=wide))]
    if not wide:
        blocks.append(("Batch, memory and cost", batch_table(rec)))
    blocks.append(("Split of the mean step [ms]: total = scalable + comm + sampling + host - hidden",
                   step_table(rec, wide=wide)))
    parts = [f"{caption}\n{render(table, width=width, terminal=terminal)}" for caption, table in blocks]
    parts[0] += "".join(f"\n{line}" for line in reason_lines(rec))
    return "\n\n".join(parts)


def reason_lines(rec: Recommendation) -> tuple[str, ...]:
    """Return one sentence for each degree that is out."""
    return tuple(
        f"TP {plan.tp} is out ({plan.reason.value if plan.reason is not None else 'unknown'})"
        + (f": {plan.reason_detail}" if plan.reason_detail else "")
        for plan in rec.plans if not plan.feasible
    )


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
