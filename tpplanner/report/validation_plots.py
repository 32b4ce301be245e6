"""Plots of a validation: predicted against measured figures, and regret by group."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from tpplanner.domain.run_prediction import QUANTITIES, ScoredRun
from tpplanner.domain.scores import OFFLINE, OURS, SAME_LOAD, SMALLEST, Decision, GroupKey, Scores
from tpplanner.report.numbers import plural
from tpplanner.report.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from tpplanner.units import MS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS: Final = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY, GREY)
_MARKERS: Final = {"dense": "o", "moe": "^", "other": "s"}
_KINDS: Final = {"dense": "dense", "moe": "MoE", "other": "other"}
_AXES: Final = {"tpot": ("TPOT", "ms", MS), "ttft": ("TTFT", "ms", MS), "throughput": ("throughput", "tok/s", 1.0)}
_BAND: Final = 1.25
_NUM_BARS: Final = 30


def plot_accuracy(scores: Scores, points: Sequence[ScoredRun]) -> "Figure":
    """Plot predicted against measured TPOT, TTFT and throughput, both axes logarithmic.

    On the line they agree; the band is +-25 %. Colours are engines, markers kinds of models.
    """
    from matplotlib.figure import Figure

    present = [q for q in QUANTITIES if any(point.ratio(q) is not None for point in points)]
    figure = Figure(figsize=(max(4.9 * len(present), 6.0), 6.1), layout="constrained")
    if not present:
        figure.suptitle("No run is predicted")
        return figure
    engines = sorted({point.run.engine for point in points})
    colours = {engine: _COLOURS[i % len(_COLOURS)] for i, engine in enumerate(engines)}
    panels = figure.subplots(1, len(present), squeeze=False)[0]
    for axes, quantity in zip(panels, present, strict=True):
        _scatter(axes, quantity, points, colours)
        _error_note(axes, scores, quantity)
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 8), frameon=False, markerscale=1.8)
    figure.suptitle(f"Predicted against measured\n{scores.label}", x=0.01, ha="left", fontsize=10)
    return figure


def _scatter(axes: "Axes", quantity: str, points: Sequence[ScoredRun], colours: Mapping[str, str]) -> None:
    name, unit, scale = _AXES[quantity]
    series: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for point in points:
        measured, predicted = point.measured(quantity), point.predicted(quantity)
        if measured and predicted:
            series[point.run.engine, point.run.kind or "other"].append((measured / scale, predicted / scale))
    every = [value for pairs in series.values() for pair in pairs for value in pair]
    ends = (min(every) / 1.3, max(every) * 1.3)
    axes.fill_between(ends, [x / _BAND for x in ends], [x * _BAND for x in ends], color=GREY, alpha=0.18, linewidth=0,
                      label="within 25 %")
    axes.plot(ends, ends, color="black", linewidth=1.0)
    for (engine, kind), pairs in sorted(series.items()):
        axes.scatter([x for x, _ in pairs], [y for _, y in pairs], s=10, alpha=0.4, linewidths=0, color=colours[engine],
                     marker=_MARKERS[kind], label=f"{engine}, {_KINDS[kind]}")
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal", xlabel=f"measured {name} [{unit}]",
             ylabel=f"predicted {name} [{unit}]")
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _error_note(axes: "Axes", scores: Scores, quantity: str) -> None:
    lines = []
    for row in scores.accuracy:
        stats = {"tpot": row.tpot, "ttft": row.ttft, "throughput": row.throughput}[quantity]
        if row.partition in _KINDS and stats is not None:
            lines.append(f"{_KINDS[row.partition]}: {100 * stats.mean_frac:.1f} % mean, {100 * stats.median_frac:.1f} % median "
                         f"(n = {stats.num:,})")
    axes.text(0.03, 0.98, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=9)


def plot_regret(scores: Scores) -> "Figure":
    """Plot the mean regret of every group at equal load per GPU (offline: everything queued), the worst first.

    Bars are our choices; diamonds what the smallest measured degree would have lost.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    bars = _regrets(scores.choices)
    shown = [bar for bar in bars[:_NUM_BARS] if bar[2] > 0]
    figure = Figure(figsize=(11.0, 2.0 + 0.27 * max(len(shown), 3)), layout="constrained")
    axes = figure.add_subplot()
    colours = {"dense": BLUE, "moe": ORANGE, "other": GREY}
    diamond: dict[str, Any] = {"marker": "D", "markersize": 4.5, "color": "white", "markeredgecolor": "black",
                               "linestyle": "none"}
    for y, (name, kind, ours, smallest) in enumerate(shown):
        axes.barh(y, 100 * ours, height=0.7, color=colours[kind])
        axes.plot(100 * smallest, y, zorder=3, clip_on=False, **diamond)
        axes.text(-0.014, y, name, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8, parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_yticks([])
    axes.set_xlim(0, max([100 * max(ours, smallest) for _, _, ours, smallest in shown], default=1.0) * 1.05 or 1.0)
    axes.set_xlabel("mean regret: throughput per GPU lost against the measured best degree [%]")
    kinds = sorted({kind for _, kind, _, _ in shown})
    handles = [*(Patch(color=colours[kind], label=f"ours, {_KINDS[kind]}") for kind in kinds),
               Line2D([], [], label="smallest degree measured", **diamond)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    axes.set_title(f"Regret by group, {_regret_subtitle(bars, len(shown))}\n{scores.label}", loc="left", fontsize=10)
    axes.grid(visible=True, axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


_Bar = tuple[str, str, float, float]


def _regrets(choices: Sequence[Decision]) -> list[_Bar]:
    """Return (group, kind, our mean regret, that of the smallest degree), worst first."""
    found: dict[GroupKey, list[Decision]] = defaultdict(list)
    for one in choices:
        if one.definition in (SAME_LOAD, OFFLINE):
            found[one.group].append(one)
    bars = [(key.name, own[0].kind, fmean(d.regret_frac(OURS) for d in own), fmean(d.regret_frac(SMALLEST) for d in own))
            for key, own in found.items()]
    return sorted(bars, key=lambda bar: (-bar[2], bar[0]))


def _regret_subtitle(bars: Sequence[_Bar], num_shown: int) -> str:
    without = sum(ours == 0 for _, _, ours, _ in bars)
    told = f"the worst {num_shown} of {plural(len(bars), 'group')}; {without} are without regret"
    hidden = len(bars) - without - num_shown
    return told + (f", {hidden} more lose {100 * bars[num_shown][2]:.1f} % or less" if hidden else "")
