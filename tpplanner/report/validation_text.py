"""A validation as text: errors, decisions, gain of doubling, intervals, the worst groups, limits, drift."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.table import Table

from tpplanner.domain.scores import (
    LARGEST,
    OFFLINE,
    OURS,
    RULE_OF_THUMB,
    SAME_LOAD,
    SMALLEST,
    Broken,
    Change,
    Drift,
    ErrorStats,
    PolicyScore,
    Scores,
    WorstGroup,
)
from tpplanner.domain.validated import Validated
from tpplanner.report.numbers import MISSING, plural
from tpplanner.report.render import add_columns, cell, new_table, render

POLICY_NAMES: Mapping[str, str] = {
    OURS: "ours", SMALLEST: "smallest", LARGEST: "largest", RULE_OF_THUMB: "rule of thumb",
}
_ERROR_HEADERS = ("mean", "median", "p90", "ratio")


def validation_text(validated: Validated, *, width: int | None = None, terminal: bool = False) -> str:
    """Return all tables, the sets of predictions one after the other and never mixed."""
    def shown(table: Table) -> str:
        return render(table, width=width, terminal=terminal)

    parts = [_heading(validated)]
    for scores in validated.scores:
        parts += list(_sections(scores, shown))
    return "\n\n".join(parts)


def _heading(validated: Validated) -> str:
    num_runs = validated.scores[0].num_runs
    lines = [f"{plural(num_runs, 'measured run')} of {validated.source}"]
    if dropped := _counts(validated.dropped):
        lines.append(f"rows dropped: {dropped}")
    if left_out := _counts(validated.left_out):
        lines.append(f"left out by filters: {left_out}")
    return "\n".join(lines)


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {num:,}" for name, num in numbers.items() if num)


def scores_heading(scores: Scores) -> str:
    """Name the set of predictions: in-sample or held out, what was predicted and what was not."""
    lines = [f"=== {scores.label} ===",
             f"{scores.num_predicted:,} of {scores.num_runs:,} runs predicted, {scores.num_oom:,} said not to fit; "
             f"{plural(scores.num_groups, 'group')} with two or more degrees"]
    lines += [f"not predicted: {num:,} ({' '.join(why.split())})" for why, num in scores.not_predicted.items()]
    if scores.folds:
        lines.append(f"parts held out: {_counts(scores.folds)}")
    return "\n".join(lines)


def _sections(scores: Scores, shown: Callable[[Table], str]) -> Iterator[str]:
    yield scores_heading(scores)
    if scores.accuracy:
        yield ("Absolute relative error [%], and median of predicted / measured (ratio)\n"
               + shown(_accuracy_table(scores)))
    if scores.decisions:
        yield ("Degrees chosen: hit rate (best, or within 1 %) and regret (throughput per GPU lost, as measured) [%]\n"
               + shown(_decision_table(scores)))
    if scores.doubling:
        yield ("Gain of doubling the degree at equal load per GPU, T(2t) / T(t): absolute relative error [%]\n"
               + shown(_doubling_table(scores)))
    yield ("Share of runs inside the 80 % interval [%]\n" + shown(_coverage_table(scores)) if scores.coverage
           else "Share of runs inside the 80 % interval: no intervals are predicted")
    for title, worst in (("Worst groups by mean regret", scores.worst_by_regret),
                         ("Worst groups by error of throughput", scores.worst_by_throughput)):
        if worst:
            yield f"{title} [%]\n{shown(_worst_table(worst))}"


def _number(frac: float | None) -> str:
    return MISSING if frac is None else f"{100 * frac:.1f}"


def _errors(stats: ErrorStats | None) -> list[str]:
    if stats is None:
        return [MISSING] * len(_ERROR_HEADERS)
    return [_number(stats.mean_frac), _number(stats.median_frac), _number(stats.p90_frac), f"{stats.median_ratio:.2f}"]


def _accuracy_table(scores: Scores) -> Table:
    table = new_table()
    names = [name for name, has in (
        ("TPOT", any(row.tpot for row in scores.accuracy)), ("TTFT", any(row.ttft for row in scores.accuracy)),
        ("tok/s", any(row.throughput for row in scores.accuracy)),
    ) if has]
    add_columns(table, ["runs of", "n", *(f"{name}\n{header}" for name in names for header in _ERROR_HEADERS)],
                left=["runs of"])
    for row in scores.accuracy:
        by_name = {"TPOT": row.tpot, "TTFT": row.ttft, "tok/s": row.throughput}
        figures = [text for name in names for text in _errors(by_name[name])]
        table.add_row(cell(row.partition), cell(f"{row.num_runs:,}"), *map(cell, figures))
    return table


def definition_words(definition: str) -> str:
    """Say what a definition of a decision means.

    Examples
    --------
    >>> definition_words("b20"), definition_words("c")
    ('b20: TPOT <= 20 ms', 'c: equal load per GPU')
    """
    match definition:
        case "a":
            return "a: any load"
        case _ if definition == SAME_LOAD:
            return "c: equal load per GPU"
        case _ if definition == OFFLINE:
            return "offline: everything queued"
        case _:
            return f"{definition}: TPOT <= {definition[1:]} ms"


def _decision_table(scores: Scores) -> Table:
    table = new_table()
    rows = [row for row in scores.decisions if "/" not in row.partition]
    policies = [policy for policy in POLICY_NAMES if any(policy in row.policies for row in rows)]
    ours = [f"{POLICY_NAMES[OURS]}\n{header}" for header in ("hit", "regret", "p90", "max", "cannot")]
    others = [f"{POLICY_NAMES[policy]}\n{header}" for policy in policies[1:] for header in ("hit", "regret")]
    add_columns(table, ["load", "decisions of", "n", *ours, *others], left=["load", "decisions of"])
    before = ""
    for row in rows:
        words = definition_words(row.definition)
        mine = row.policies[OURS]
        figures = [f"{mine.num:,}", *_hit_and_regret(mine), _number(mine.regret_p90_frac),
                   _number(mine.regret_max_frac), f"{mine.num_infeasible:,}"]
        for policy in policies[1:]:
            figures += _hit_and_regret(row.policies.get(policy))
        table.add_row(cell("" if words == before else words), cell(row.partition), *map(cell, figures))
        before = words
    return table


def _hit_and_regret(score: PolicyScore | None) -> list[str]:
    return [MISSING] * 2 if score is None else [_number(score.hit_frac), _number(score.regret_mean_frac)]


def _doubling_table(scores: Scores) -> Table:
    table = new_table()
    add_columns(table, ["pairs of", "n", *_ERROR_HEADERS], left=["pairs of"])
    for row in scores.doubling:
        table.add_row(cell(row.partition), cell(f"{row.errors.num:,}"), *map(cell, _errors(row.errors)))
    return table


def _coverage_table(scores: Scores) -> Table:
    table = new_table()
    add_columns(table, ["runs of", "n", "TPOT", "TTFT", "tok/s"], left=["runs of"])
    for row in scores.coverage:
        shares = (row.tpot_frac, row.ttft_frac, row.throughput_frac)
        table.add_row(cell(row.partition), cell(f"{row.num_runs:,}"), *(cell(_number(share)) for share in shares))
    return table


def _worst_table(worst: Sequence[WorstGroup]) -> Table:
    table = new_table()
    add_columns(table, ["group", "n", "mean", "what", "wrong term"], left=["group", "what", "wrong term"])
    for row in worst:
        table.add_row(cell(row.group), cell(f"{row.num:,}"), cell(_number(row.value_frac)), cell(row.detail),
                      cell(row.term or "?"))
    return table


def broken_lines(broken: Sequence[Broken]) -> list[str]:
    """Return one line per broken limit: all of them."""
    return [
        f"broken: {one.scores}: {one.figure} is {one.value:.4g}, {'above' if one.is_maximum else 'below'} its "
        f"{'maximum' if one.is_maximum else 'minimum'} {one.limit:g}"
        for one in broken
    ]


def drift_lines(drift: Drift) -> list[str]:
    """Return the largest changes since predictions were accepted, largest first, and a verdict."""
    lines = [_changed(change) for change in drift.largest]
    tolerance = f"{100 * drift.tolerance_frac:g} %"
    verdict = (f"broken: {plural(drift.num_beyond, 'prediction')} of {drift.num_compared:,} changed by more than {tolerance}"
               if drift.num_beyond else f"no prediction of {drift.num_compared:,} changed by more than {tolerance}")
    return [*lines, verdict]


def _changed(change: Change) -> str:
    unit = "tok/s" if change.quantity == "throughput" else "s"
    before, after = (MISSING if x is None else f"{x:.6g}" for x in (change.before, change.after))
    how_much = f"{100 * change.relative_frac:.2g} %" if change.before is not None and change.after is not None else "new or gone"
    return f"changed: {change.run_id}: {change.quantity} [{unit}] {before} -> {after} ({how_much})"
