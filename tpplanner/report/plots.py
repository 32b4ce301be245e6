"""Plots of a recommendation as matplotlib figures, without pyplot and its global state."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from tpplanner.domain.plan import DegreePlan, Question, Recommendation
from tpplanner.report.headline import tied_degrees
from tpplanner.report.numbers import grouped, percent, plural, probability
from tpplanner.units import MS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with every common colour vision deficiency.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A000", "#8C8C8C",
)
SERIES = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, GREY)
_MARKERS = "osD^vPX*"
_DPI = 150

Curves = Mapping[int, Sequence[tuple[float, float, float]]]
"""Per degree: (tokens/s/user, tokens/s/GPU, concurrency per replica)."""


def figure_png_bytes(figure: "Figure") -> bytes:
    """Return the figure as a PNG file."""
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)
    return stream.getvalue()


def plot_throughput(rec: Recommendation) -> "Figure":
    """Plot output tokens per second per GPU against t with 80 % intervals; the best and those tied with it are marked.

    Degrees that are out stand in the plot with their reason: hatched where they run but miss a target.
    """
    figure, axes = _figure(rec, "Throughput per GPU by tensor-parallel degree")
    top = max([_draw_throughput(axes, x, rec, plan) for x, plan in enumerate(rec.plans)], default=0.0)
    if axes.containers and any(plan.uncertainty for plan in rec.plans):
        axes.errorbar([], [], yerr=[], color="black", capsize=4, linewidth=1.2, label="80 % of single runs")
        axes.legend(loc="upper left", frameon=False)
    axes.set_ylim(0, max(top, 1e-9) * 1.28)
    axes.set_ylabel("output tokens/s per GPU")
    _degree_axis(axes, rec)
    return figure


def _draw_throughput(axes: "Axes", x: int, rec: Recommendation, plan: DegreePlan) -> float:
    """Draw the bar of one degree with its interval and return the height of both [tok/s per GPU]."""
    tied, outcome, doubt = tied_degrees(rec), plan.outcome, plan.uncertainty
    colour = BLUE if plan.tp == rec.best_tp else SKY if plan.tp in tied else GREY
    value = tip = 0.0
    if outcome is not None:
        value = tip = outcome.throughput_per_gpu_tok_s
        axes.bar(x, value, width=0.62, color=colour if plan.feasible else "white",
                 edgecolor=colour if plan.feasible else GREY, hatch="" if plan.feasible else "///")
        if doubt is not None and doubt.throughput_low_tok_s is not None and doubt.throughput_high_tok_s is not None:
            scale = value / outcome.throughput_tok_s
            low, tip = doubt.throughput_low_tok_s * scale, doubt.throughput_high_tok_s * scale
            axes.errorbar(x, value, yerr=[[value - low], [tip - value]], color="black", capsize=4, linewidth=1.2)
    chance = "" if doubt is None else f" {probability(doubt.best_prob_frac)}"
    word = f"\nbest{chance}" if plan.tp == rec.best_tp else f"\ntie{chance}" if plan.tp in tied else ""
    out = "" if plan.feasible else f"\n{_out(plan)}"
    number = grouped(value) if outcome is not None else ""
    above(axes, x, tip, f"{number}{word}{out}".strip(), bold=plan.tp == rec.best_tp)
    return tip


def plot_step_split(rec: Recommendation) -> "Figure":
    """Plot the mean step [ms] of every degree, stacked by term; what overlap hides is hatched on top.

    The black line is the wall time of the step; all above it runs at the same time as what is below.
    """
    figure, axes = _figure(rec, "Mean step, term by term")
    top = max([_draw_step(axes, x, plan) for x, plan in enumerate(rec.plans)], default=0.0)
    axes.set_ylim(0, max(top, 1e-9) * 1.4)
    axes.set_ylabel("time of one step [ms]")
    handles, labels = axes.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    order = [label for label, _ in reversed(_TERMS) if label in first]
    if order:
        axes.legend([first[label] for label in order], order, loc="center left", bbox_to_anchor=(1.0, 0.5),
                    frameon=False)
    _degree_axis(axes, rec)
    return figure


_TERMS = (("scalable", BLUE), ("communication", ORANGE), ("sampling", GREEN), ("host, exposed", VERMILION),
          ("hidden by overlap", GREY))


def _draw_step(axes: "Axes", x: int, plan: DegreePlan) -> float:
    """Stack the terms of one degree and return the height of the stack [ms]."""
    if plan.outcome is None:
        above(axes, x, 0.0, _out(plan))
        return 0.0
    step = plan.outcome.step
    exposed_s = max(0.0, step.total_s - step.scalable_s - step.comm_s - step.sampling_s)
    heights = (step.scalable_s, step.comm_s, step.sampling_s, exposed_s, step.hidden_s)
    tip = 0.0
    for (label, colour), height_s in zip(_TERMS, heights, strict=True):
        hidden = label == _TERMS[-1][0]
        if height_s > 0:
            axes.bar(x, height_s / MS, width=0.62, bottom=tip, label=label, linewidth=0.6,
                     color="white" if hidden else colour, edgecolor=colour if hidden else "white",
                     hatch="////" if hidden else "")
        tip += height_s / MS
    wall = step.total_s / MS
    axes.plot([x - 0.36, x + 0.36], [wall, wall], color="black", linewidth=1.4, zorder=3)
    out = "" if plan.feasible else f"\n{_out(plan)}"
    above(axes, x, tip, f"{wall:.1f} ms\n{percent(step.non_scalable_frac)}\nnot scalable{out}")
    return tip


def plot_pareto(rec: Recommendation, points: Curves) -> "Figure":
    """Plot throughput per GPU against speed per user: a curve per degree, and the frontier over all.

    Parameters
    ----------
    rec
        Names the model and the machine; a TPOT target is drawn as a limit.
    points
        Per degree, one (tokens/s/user, tokens/s/GPU, concurrency per replica) for each load.
    """
    figure, axes = _figure(rec, "Throughput per GPU against speed per user")
    frontier = pareto_frontier(points)
    if frontier:
        axes.plot([p[0] for p in frontier], [p[1] for p in frontier], color="black", linewidth=7, alpha=0.18,
                  solid_capstyle="round", label="Pareto frontier", zorder=1)
    for index, (tp, curve) in enumerate(sorted(points.items())):
        ordered = sorted(curve, key=lambda point: point[2])
        if not ordered:
            continue
        colour = SERIES[index % len(SERIES)]
        axes.plot([p[0] for p in ordered], [p[1] for p in ordered], color=colour, linewidth=1.6, markersize=5,
                  marker=_MARKERS[index % len(_MARKERS)], label=f"TP {tp}", zorder=2)
        for point in {ordered[0], ordered[-1]}:
            axes.annotate(grouped(point[2]), point[:2], xytext=(5, 5), textcoords="offset points",
                          fontsize=8, color="#333333")
    target = rec.question.targets.tpot_s
    if target is not None:
        axes.axvline(1 / target, color=VERMILION, linestyle="--", linewidth=1.2,
                     label=f"TPOT target {grouped(target / MS)} ms")
    axes.set_xlabel("output tokens/s per user (1 / TPOT); at the ends: requests in flight per replica")
    axes.set_ylabel("output tokens/s per GPU")
    axes.margins(0.08)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    if frontier:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def pareto_frontier(points: Curves) -> list[tuple[float, float]]:
    """Return the (tokens/s/user, tokens/s/GPU) that no other point beats in both, by rising speed.

    Examples
    --------
    >>> pareto_frontier({1: [(10, 900, 64), (30, 400, 8)], 2: [(20, 800, 64), (15, 700, 96)]})
    [(10, 900), (20, 800), (30, 400)]
    """
    every = sorted({(point[0], point[1]) for curve in points.values() for point in curve}, reverse=True)
    frontier: list[tuple[float, float]] = []
    for user, gpu in every:
        if not frontier or gpu > frontier[-1][1]:
            frontier.append((user, gpu))
    return frontier[::-1]


def above(axes: "Axes", x: float, y: float, text: str, *, bold: bool = False) -> None:
    """Write ``text`` just above a point."""
    axes.annotate(text, (x, y), xytext=(0, 4), textcoords="offset points", ha="center", va="bottom",
                  fontsize=9, fontweight="bold" if bold else "normal")


def _out(plan: DegreePlan) -> str:
    return f"out: {plan.reason.value if plan.reason is not None else 'unknown'}"


def _figure(rec: Recommendation, title: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    question = rec.question
    figure = Figure(figsize=(max(8.0, 0.95 * len(rec.plans) + 2.5), 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontweight="bold", pad=24)
    subtitle = f"{deployment_words(question)}, {question.workload.isl_tok} in / {question.workload.osl_tok} out"
    axes.text(0, 1.03, subtitle, transform=axes.transAxes, fontsize=9, color="#444444", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def deployment_words(question: Question) -> str:
    """Name model, GPUs and engine below a title."""
    return (f"{question.model.name} ({question.model.precision.name}), {question.num_gpus} x "
            f"{question.hardware.name}, {question.engine.name}")


def _degree_axis(axes: "Axes", rec: Recommendation) -> None:
    axes.set_xticks(range(len(rec.plans)), [_tick(rec, plan) for plan in rec.plans], fontsize=9)
    axes.set_xlim(-0.6, max(len(rec.plans), 1) - 0.4)
    axes.set_xlabel("tensor-parallel degree t")


def _tick(rec: Recommendation, plan: DegreePlan) -> str:
    rule = "\n(rule of\nthumb)" if plan.tp == rec.rule_of_thumb_tp else ""
    return f"{plan.tp}\n{plural(plan.num_replicas, 'replica')}{rule}"
