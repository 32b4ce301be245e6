"""Engines side by side: the shift of the best degree that overlap buys."""

from collections.abc import Sequence

from rich.table import Table

from tpplanner.domain.plan import DegreePlan, Outcome, Recommendation
from tpplanner.report.headline import tie_sentence, tied_degrees
from tpplanner.report.numbers import MISSING, grouped, milliseconds, probability
from tpplanner.report.render import add_columns, cell, new_table, render


def comparison_table(recs: Sequence[Recommendation]) -> Table:
    """Return throughput, TPOT and probability to be the best per degree for each engine, and the gain over the first.

    Parameters
    ----------
    recs
        Recommendations for the same question on different engines, at least two; the first is the
        one that the gains refer to. The best degree of each is marked ``*``, those tied with it ``=``.
    """
    if len(recs) < 2:
        raise ValueError(f"recs must hold at least 2 recommendations, got {len(recs)}")
    table = new_table()
    headers = ["TP"]
    for position, rec in enumerate(recs):
        name = rec.question.engine.name
        headers += [f"{name}\ntok/s/GPU ", f"{name}\nTPOT ms", f"{name}\nP(best)"] + ([f"{name}\ngain"] if position else [])
    add_columns(table, headers)
    for tp in sorted({plan.tp for rec in recs for plan in rec.plans}):
        table.add_row(cell(str(tp)), *(cell(text) for text in _row(recs, tp)))
    return table


def comparison_text(
    recs: Sequence[Recommendation], *, width: int | None = None, terminal: bool = False
) -> str:
    """Return the comparison as text: the sentence about the shift, then the table."""
    caption = "Engines side by side, * best degree of the engine"
    if any(tied_degrees(rec) for rec in recs):
        caption += ", = tied with it"
    table = render(comparison_table(recs), width=width, terminal=terminal)
    return f"{shift_sentence(recs)}\n\n{caption}\n{table}"


def shift_sentence(recs: Sequence[Recommendation]) -> str:
    """Say how the best degree t_e and its throughput move from the first engine to the last."""
    first, last = recs[0], recs[-1]
    names = first.question.engine.name, last.question.engine.name
    without = [name for name, rec in zip(names, (first, last), strict=True) if rec.best_tp is None]
    if without:
        return f"No shift of t_e to name: no feasible plan on {' and '.join(without)}."
    if first.best_tp == last.best_tp:
        shift = f"t_e stays at {first.best_tp} from {names[0]} to {names[1]}"
    else:
        shift = f"t_e moves from {first.best_tp} ({names[0]}) to {last.best_tp} ({names[1]})"
    tied = [rec for rec in (first, last) if tied_degrees(rec)]
    if tied and first.best_tp != last.best_tp:
        shift += f" (ties: {'; '.join(f'{rec.question.engine.name}: {tie_sentence(rec)}' for rec in tied)})"
    gain = _gain(_outcome(first.best), _outcome(last.best))
    return f"{shift}; each at its own t_e, {names[1]} gives {gain} the throughput per GPU of {names[0]}."


def _row(recs: Sequence[Recommendation], tp: int) -> list[str]:
    base = _outcome(_plan(recs[0], tp))
    row = []
    for position, rec in enumerate(recs):
        plan = _plan(rec, tp)
        outcome = _outcome(plan)
        mark = "*" if tp == rec.best_tp else "=" if tp in tied_degrees(rec) else " "
        if plan is None or outcome is None:
            reason = plan.reason.value if plan is not None and plan.reason is not None else ""
            row += [f"out: {reason} " if reason else f"{MISSING} ", MISSING, _chance(plan)]
        else:
            row += [grouped(outcome.throughput_per_gpu_tok_s) + mark, milliseconds(outcome.tpot_s), _chance(plan)]
        if position:
            row.append(_gain(base, outcome))
    return row


def _plan(rec: Recommendation, tp: int) -> DegreePlan | None:
    return next((plan for plan in rec.plans if plan.tp == tp), None)


def _chance(plan: DegreePlan | None) -> str:
    return MISSING if plan is None or plan.uncertainty is None else probability(plan.uncertainty.best_prob_frac)


def _outcome(plan: DegreePlan | None) -> Outcome | None:
    """Return the outcome of a plan that can be used."""
    return plan.outcome if plan is not None and plan.feasible else None


def _gain(base: Outcome | None, other: Outcome | None) -> str:
    if base is None or other is None or base.throughput_per_gpu_tok_s <= 0:
        return MISSING
    return f"{other.throughput_per_gpu_tok_s / base.throughput_per_gpu_tok_s:.2f}x"
