import re

import pytest
from plan_factory import (
    make_engine,
    make_infeasible,
    make_memory,
    make_outcome,
    make_plan,
    make_question,
    make_rec,
    make_uncertainty,
    out_plan,
)

from tpplanner.domain.engine import Switches
from tpplanner.domain.plan import Recommendation
from tpplanner.report.comparison import comparison_text, shift_sentence
from tpplanner.report.table import table_text

HUGE_OUTCOME = make_outcome(
    1,
    123_456.0,
    1024,
    ttft_s=999.9,
    tpot_s=0.9999,
    cost_usd_per_mtok=1234.5,
    saturated=True,
    preemptions_per_req=1.234,
    num_queued_seqs=98_765.0,
)
HUGE = make_plan(
    1,
    123_456.0,
    1024,
    memory=make_memory(123_456_789),
    outcome=HUGE_OUTCOME,
    uncertainty=make_uncertainty(HUGE_OUTCOME),
)


def rows(text: str, tp: int) -> list[str]:
    return [line for line in text.splitlines() if re.match(rf" *{tp}[*=]?( |$)", line)]


def overlapped(**changes: object) -> Recommendation:
    engine = make_engine("albireo", switches=Switches(async_sched=True))
    rec = {
        "best_tp": 4,
        "plans": (out_plan(1), make_plan(2, 400), make_plan(4, 900), make_plan(8, 800)),
    } | changes
    return make_rec(question=make_question(engine=engine), **rec)


@pytest.mark.parametrize(("width", "tables"), [(80, 3), (119, 3), (120, 2), (200, 2), (None, 2)])
def test_every_degree_has_one_row_in_every_table(width: int | None, tables: int) -> None:
    text = table_text(make_rec(), width=width)
    for tp in (1, 2, 4, 8):
        assert len(rows(text, tp)) == tables


@pytest.mark.parametrize("width", [20, 80, 100, 120, 140, 200])
def test_no_line_is_wider_than_asked_and_no_number_is_cut(width: int) -> None:
    rec = make_rec(plans=(HUGE, *make_rec().plans[1:]))
    text = table_text(rec, width=width)
    table_lines = [line for line in text.splitlines() if not line.startswith(("Split", "TP 1 is"))]
    assert max(map(len, table_lines)) <= max(width, 80)
    assert "…" not in text
    for shown in ("123,456", "126,418,944", "999,900", "123,456,789", "98,765", "1,234", "1.2"):
        assert shown in text


def test_outcome_row_by_hand() -> None:
    # TP 4: scalable 20 ms, comm 2 * 1.5 = 3, sampling 4, host 7, hidden 2: total 32; 12/32 not scalable.
    plan, batch, step = rows(table_text(make_rec(), width=80), 4)
    assert plan.split() == ["4", "2", "4", "%", "482", "3,856", "310", "32.0", "31.2", "offered", "load"]
    assert batch.split() == ["4", "128", "0", "667,216", "0", "1.2", "1.39", "0"]
    assert step.split() == ["4", "20.0", "3.00", "4.00", "7.00", "2.00", "32.0", "38", "%"]


@pytest.mark.parametrize(("width", "shown"), [(80, False), (99, False), (100, True), (120, False), (140, True), (None, True)])
def test_the_interval_of_the_throughput_where_there_is_room(width: int | None, shown: bool) -> None:
    # 482 / 1.25 = 385.6 and 482 * 1.25 = 602.5
    assert ("482 (386-602)" in table_text(make_rec(), width=width)) is shown


def test_a_degree_without_intervals_has_its_figure() -> None:
    rec = make_rec(plans=(make_plan(8, 540.1, uncertainty=None),))
    assert rows(table_text(rec), 8)[0].split()[:4] == ["8*", "1", "-", "540"]


def test_marks() -> None:
    text = table_text(make_rec(tied_tps=(4, 8)), width=80)
    assert len(rows(text, 8)) == sum(row.startswith("8*") for row in rows(text, 8)) == 3
    assert all(row.startswith("4=") for row in rows(text, 4))
    assert "= tied with it" in text
    assert "= tied" not in table_text(make_rec(), width=80)


def test_infeasible_degrees_stay_with_their_reason() -> None:
    text = table_text(make_rec(), width=80)
    assert "out: weights" in rows(text, 1)[0]
    assert "TP 1 is out (weights): weights need 131 GiB per GPU, 72 GiB are usable" in text
    assert "TP 4 is out (tpot): TPOT 32.0 ms exceeds the target of 10.0 ms; feasible with 30 % probability" in table_text(
        make_infeasible())
    missed = rows(table_text(make_infeasible(), width=80), 8)[0]
    assert "540" in missed
    assert "out: tpot" in missed


def test_plain_text_is_ascii_and_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert table_text(make_rec()).isascii()
    assert "\x1b" not in table_text(make_rec())
    assert "\x1b[1;32m" in table_text(make_rec(), terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;32m" not in table_text(make_rec(), terminal=True)


def test_markup_in_names_is_shown_as_it_is() -> None:
    rec = make_rec(plans=(out_plan(1, detail="[bold]weights[/bold]"), *make_rec().plans[1:]))
    assert "[bold]weights[/bold]" in table_text(rec, terminal=True)
    engine = make_engine("[red]x[/red]")
    text = comparison_text([make_rec(question=make_question(engine=engine)), overlapped()], width=120)
    assert "[red]x[/red]" in text


def test_comparison_has_both_engines_and_the_gain() -> None:
    text = comparison_text([make_rec(), overlapped()], width=80)
    # 900 / 482 = 1.867
    (row,) = rows(text, 4)
    assert row.split() == ["4", "482", "32.0", "4", "%", "900*", "32.0", "4", "%", "1.87x"]
    (out,) = rows(text, 1)
    assert out.split() == ["1", "out:", "weights", "-", "-", "out:", "weights", "-", "-", "-"]
    assert max(map(len, text.split("\n\n", 1)[1].splitlines())) <= 80


def test_shift_sentence() -> None:
    # 900 / 540.1 = 1.666
    assert shift_sentence([make_rec(), overlapped()]) == (
        "t_e moves from 8 (vllm-0.11) to 4 (albireo); each at its own t_e, albireo gives 1.67x the "
        "throughput per GPU of vllm-0.11."
    )
    assert shift_sentence([make_rec(), overlapped(best_tp=8)]).startswith(
        "t_e stays at 8 from vllm-0.11 to albireo;"
    )
    assert "(ties: vllm-0.11: TP 8 (96 %), TP 4 (4 %))" in shift_sentence(
        [make_rec(tied_tps=(4, 8)), overlapped()]
    )
    assert shift_sentence([make_infeasible(), overlapped()]) == (
        "No shift of t_e to name: no feasible plan on vllm-0.11."
    )


def test_a_comparison_needs_two() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        comparison_text([make_rec()])
