import subprocess
import sys

import pytest
from plan_factory import (
    make_infeasible,
    make_model,
    make_outcome,
    make_plan,
    make_question,
    make_rec,
    make_step,
    out_plan,
)

from tpplanner.domain.plan import Reason
from tpplanner.domain.workload import Targets
from tpplanner.report.plots import (
    figure_png_bytes,
    pareto_frontier,
    plot_pareto,
    plot_step_split,
    plot_throughput,
)

POINTS = {2: [(10.0, 900.0, 64.0), (20.0, 300.0, 8.0)], 4: [(15.0, 700.0, 64.0), (30.0, 200.0, 8.0)]}


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def bars(figure):
    return figure.axes[0].patches


@pytest.mark.parametrize("plot", [plot_throughput, plot_step_split, lambda rec: plot_pareto(rec, POINTS)])
def test_png_with_title_and_units_naming_model_machine_and_engine(plot) -> None:
    figure = plot(make_rec())
    png = figure_png_bytes(figure)
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000
    (axes,) = figure.axes
    assert axes.get_title(loc="left")
    assert axes.get_xlabel()
    assert "tokens/s" in axes.get_ylabel() or "[ms]" in axes.get_ylabel()
    assert "meta-llama/Llama-3.1-70B-Instruct (bf16), 8 x h100-sxm, vllm-0.11" in texts(figure)[0]


def test_throughput_has_a_bar_per_degree_that_ran_and_marks_best_and_reason() -> None:
    figure = plot_throughput(make_rec())
    assert [bar.get_height() for bar in bars(figure)] == [301.0, 482.0, 540.1]
    assert "540\nbest 96 %" in texts(figure)
    assert "out: weights" in texts(figure)
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["1\n8 replicas", "2\n4 replicas", "4\n2 replicas", "8\n1 replica\n(rule of\nthumb)"]


def test_throughput_shows_the_tie_and_intervals() -> None:
    figure = plot_throughput(make_rec(tied_tps=(4, 8)))
    assert "482\ntie 4 %" in texts(figure)
    (label,) = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert label == "80 % of single runs"
    ends = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_marker() in "_" and len(line.get_ydata())]
    # 540.1 / 1.25 and 540.1 * 1.25, of the last bar.
    assert sorted(ends)[-1] == pytest.approx(675.125)
    assert min(abs(end - 432.08) for end in ends) < 1e-9


def test_no_interval_no_legend() -> None:
    figure = plot_throughput(make_rec(plans=(make_plan(8, 540.1, uncertainty=None),)))
    assert figure.axes[0].get_legend() is None
    assert "540\nbest" in texts(figure)


def test_a_missed_target_is_hatched() -> None:
    figure = plot_throughput(make_infeasible())
    assert [bar.get_hatch() for bar in bars(figure)] == ["///", "///"]
    assert "540\nout: tpot" in texts(figure)


def test_step_split_stacks_the_terms_to_the_total_with_hidden_above() -> None:
    figure = plot_step_split(make_rec())
    assert len(bars(figure)) == 3 * 5
    of_tp_8 = bars(figure)[10:]
    # TP 8: 10 ms scalable, 2 * (1 + 8/8) = 4 comm, 4 sampling, 7 host of which 2 hidden: 5 exposed
    assert [bar.get_height() for bar in of_tp_8] == pytest.approx([10, 4, 4, 5, 2])
    assert of_tp_8[-1].get_y() == pytest.approx(23)
    assert of_tp_8[-1].get_hatch()
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["hidden by overlap", "host, exposed", "sampling", "communication", "scalable"]


def test_nothing_hidden_is_not_in_the_legend() -> None:
    plan = make_plan(8, 540.1, outcome=make_outcome(8, 540.1, step=make_step(8, 0.0)))
    labels = [t.get_text() for t in plot_step_split(make_rec(plans=(plan,))).axes[0].get_legend().get_texts()]
    assert "hidden by overlap" not in labels


def test_pareto_has_a_curve_per_degree_the_frontier_and_the_target() -> None:
    figure = plot_pareto(make_rec(question=make_question(targets=Targets(tpot_s=0.04))), POINTS)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["Pareto frontier", "TP 2", "TP 4", "TPOT target 40 ms"]
    assert len(figure.axes[0].lines) == 4
    assert figure.axes[0].lines[-1].get_xdata()[0] == pytest.approx(25.0)


def test_frontier_by_hand() -> None:
    # (20, 300) is beaten by nothing: 20 > 15 and 300 > 200; all four stay.
    assert pareto_frontier(POINTS) == [(10, 900), (15, 700), (20, 300), (30, 200)]
    assert pareto_frontier({1: [(10, 10, 1), (10, 20, 2), (5, 15, 3)]}) == [(10, 20)]
    assert pareto_frontier({}) == []


@pytest.mark.parametrize("plans", [(), (out_plan(1),), (out_plan(1), out_plan(2, Reason.HEADS))])
def test_nothing_to_plot_is_still_a_plot(plans) -> None:
    rec = make_rec(plans=plans, best_tp=None)
    for figure in (
        plot_throughput(rec),
        plot_step_split(rec),
        plot_pareto(rec, {}),
        plot_pareto(rec, {1: []}),
    ):
        assert figure_png_bytes(figure).startswith(b"\x89PNG")


def test_dollars_in_a_name_are_no_formula() -> None:
    rec = make_rec(question=make_question(model=make_model("a$_^b$")))
    assert figure_png_bytes(plot_throughput(rec))


def test_reports_load_neither_pandas_nor_matplotlib() -> None:
    code = (
        "import sys, tpplanner.report.plots, tpplanner.report.frame, tpplanner.report.table, "
        "tpplanner.report.json_export; "
        "print([m for m in ('pandas', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
