"""Plots of a simulation as matplotlib figures: latencies, load over time, degrees side by side."""

from collections.abc import Sequence
from dataclasses import replace
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np

from tpplanner.domain.simulation import FloatArray, LoadSeries, RequestLog, RunDetail, SimulatedDegree, Simulation
from tpplanner.domain.statistic import statistic
from tpplanner.errors import WorkloadError, reject
from tpplanner.report.numbers import count, degrees, grouped, milliseconds, percent, plural
from tpplanner.report.plots import BLUE, GREY, SERIES, VERMILION, above, deployment_words
from tpplanner.report.simulation_headline import verdict
from tpplanner.units import MS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_POINTS = 2_000
"""Points of a curve: more cannot be told apart on paper."""

_LOG_SPREAD = 20.0
"""Largest over smallest latency from which the axis is logarithmic."""

_CHARS_PER_INCH = 14
_TITLE_INCH = 0.24

_LINES = ("-", "--", "-.", ":")


def plot_latency_cdf(sim: Simulation) -> "Figure":
    """Plot the share of requests up to a TTFT and up to a TPOT [ms], a curve per degree, with the targets.

    Requests that never finish, and for TPOT those of one token, are in no curve.
    """
    figure = _figure(sim, "Latency of the requests, by tensor-parallel degree", (10.5, 4.9))
    limits = (sim.question.targets.ttft_s, sim.question.targets.tpot_s)
    panels = figure.subplots(1, 2, sharey=True)
    runs = [(degree, degree.detail.requests) for degree in sim.degrees if degree.detail is not None]
    for axes, name, limit_s in zip(panels, ("TTFT", "TPOT"), limits, strict=True):
        curves = [(degree, _known(getattr(times, f"{name.lower()}_s"))) for degree, times in runs]
        curves = [(degree, times_s) for degree, times_s in curves if times_s.size]
        _plain(axes)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel(f"{name} [ms]")
        if not curves:
            axes.text(0.5, 0.5, f"no request with a {name}", transform=axes.transAxes, ha="center", color="#444444")
            axes.set_xticks([])
            continue
        _draw_cdf(axes, curves)
        _draw_target(axes, sim, limit_s)
    panels[0].set_ylabel("share of requests")
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    missing = [degree.tp for degree in sim.degrees if degree.detail is None]
    if handles:
        figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False,
                      title=f"without a run:\n{degrees(missing)}" if missing else None, title_fontsize=9)
    return figure


def plot_load(sim: Simulation, tp: int) -> "Figure":
    """Plot running and waiting sequences and the KV cache in use over time, thin lines per replica and their mean.

    Raises
    ------
    WorkloadError
        If ``tp`` is no degree of the simulation.
    """
    degree = next((one for one in sim.degrees if one.tp == tp), None)
    if degree is None:
        reject(WorkloadError, "tp", f"be one of {', '.join(str(one.tp) for one in sim.degrees)}", tp, "plot")
    why = verdict(sim, degree)
    state = "" if why is None else ", saturated" if _is_saturated(degree) else f", out: {why.word}"
    figure = _figure(sim, f"Load over time, TP {tp} ({plural(degree.num_replicas, 'replica')}{state})", (10.5, 6.6))
    if degree.detail is None or not any(one.time_s.size for one in degree.detail.series):
        _say(figure, f"no run at TP {tp}" + (f": {degree.reason_detail}" if degree.reason_detail else ""))
        return figure
    panels = figure.subplots(3, 1, sharex=True)
    series = [_to_the_end(one, degree.detail.requests) for one in degree.detail.series]
    names = (("num_running_seqs", "running\nper replica", 1.0), ("num_waiting_seqs", "waiting\nper replica", 1.0),
             ("kv_used_frac", "KV cache\nin use [%]", 100.0))
    for axes, (name, label, scale) in zip(panels, names, strict=True):
        _draw_series(axes, series, name, scale)
        axes.set_ylabel(label)
    panels[2].set_xlabel("time from the start [s]")
    _mark_load(panels, sim, degree.detail)
    return figure


def plot_degrees(sim: Simulation) -> "Figure":
    """Plot throughput per GPU and, where there are targets, goodput, a bar per degree.

    Degrees that are out stand in the plot with their reason: hatched where they run but miss a target or are saturated.
    """
    known = any(degree.outcome is not None and degree.outcome.goodput_req_s is not None for degree in sim.degrees)
    size = (max(8.0, 0.95 * len(sim.degrees) + 2.5), 8.0 if known else 4.8)
    figure = _figure(sim, "Simulated throughput by tensor-parallel degree", size)
    panels = figure.subplots(1 + known, 1, sharex=True, squeeze=False)[:, 0]
    _draw_bars(panels[0], sim, [None if d.outcome is None else d.outcome.throughput_per_gpu_tok_s for d in sim.degrees])
    panels[0].set_ylabel("output tokens/s per GPU")
    if known:
        _draw_bars(panels[1], sim, [None if d.outcome is None else d.outcome.goodput_req_s for d in sim.degrees],
                   [percent(None if d.outcome is None else d.outcome.goodput_frac) for d in sim.degrees])
        panels[1].set_ylabel("goodput: requests/s that\nmeet the targets")
        _mark_offered(panels[1], sim)
    panels[-1].set_xlabel("tensor-parallel degree t")
    return figure


def _figure(sim: Simulation, title: str, size: tuple[float, float]) -> "Figure":
    """Return a figure with a title, and below it what was deployed and the traffic."""
    from matplotlib.figure import Figure
    from matplotlib.transforms import ScaledTranslation

    traffic = sim.traffic
    arrivals = "" if traffic.rate_req_s is None else f", {grouped(traffic.rate_req_s)} per second"
    below = (deployment_words(sim.question),
             f"{traffic.name}: {plural(traffic.num_requests, 'request')}, mean {count(float(np.mean(traffic.isl_tok)))} in / "
             f"{count(float(np.mean(traffic.osl_tok)))} out{arrivals}")
    lines = [line for part in below for line in wrap(part, int(size[0] * _CHARS_PER_INCH))]
    figure = Figure(figsize=size, layout="constrained")
    # Blank lines of the title keep room for the text below it, which the layout does not see.
    figure.suptitle(title + "\n " * len(lines), x=0.01, ha="left", fontsize=12, fontweight="bold")
    down = figure.transFigure + ScaledTranslation(0.0, -_TITLE_INCH, figure.dpi_scale_trans)
    figure.text(0.01, 0.98, "\n".join(lines), transform=down, va="top", fontsize=9, color="#444444", parse_math=False)
    return figure


def _known(times_s: FloatArray) -> FloatArray:
    """Return the finite ones, ascending."""
    known: FloatArray = np.sort(times_s[np.isfinite(times_s)])
    return known


def _draw_cdf(axes: "Axes", curves: Sequence[tuple[SimulatedDegree, FloatArray]]) -> None:
    for index, (degree, times_s) in enumerate(curves):
        axes.plot(*_cdf_points(times_s), drawstyle="steps-post", linewidth=1.6, color=SERIES[index % len(SERIES)],
                  linestyle=_LINES[index % len(_LINES)], label=f"TP {degree.tp}" + (", saturated" * _is_saturated(degree)))
    smallest, largest = min(times_s[0] for _, times_s in curves), max(times_s[-1] for _, times_s in curves)
    if 0 < smallest * _LOG_SPREAD < largest:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda ms, _: f"{ms:,.10g}")


def _draw_target(axes: "Axes", sim: Simulation, limit_s: float | None) -> None:
    """Draw a target, and the quantile that is compared with it."""
    if limit_s is None:
        return
    axes.axvline(limit_s / MS, color="black", linestyle="--", linewidth=1.2)
    axes.annotate(f"target {milliseconds(limit_s)} ms", (limit_s / MS, 1.0), xycoords=("data", "axes fraction"),
                  xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8)
    if sim.options.slo_quantile is not None:
        axes.axhline(sim.options.slo_quantile, color=GREY, linestyle=":", linewidth=1.2, zorder=1,
                     label=f"{statistic(sim.options.slo_quantile)}, compared\nwith the targets")


def _cdf_points(times_s: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return latencies [ms] and the shares of requests up to them, from a share of 0."""
    chosen = np.unique(np.linspace(0, times_s.size - 1, min(times_s.size, _MAX_POINTS)).round().astype(np.int64))
    return np.r_[times_s[0], times_s[chosen]] / MS, np.r_[0.0, (chosen + 1) / times_s.size]


def _draw_series(axes: "Axes", series: Sequence[LoadSeries], name: str, scale: float) -> None:
    _plain(axes)
    alone = len(series) == 1
    faint = max(0.15, min(0.6, 2.4 / len(series)))
    for index, one in enumerate(series):
        axes.plot(one.time_s, scale * getattr(one, name), drawstyle="steps-post", color=BLUE if alone else GREY,
                  linewidth=1.4 if alone else 0.7, alpha=1.0 if alone else faint, label="" if alone or index else "each replica")
    if not alone:
        times_s = np.unique(np.concatenate([one.time_s for one in series]))
        times_s = times_s[np.unique(np.linspace(0, times_s.size - 1, _MAX_POINTS).round().astype(np.int64))]
        mean = np.mean([_held(one, name, times_s) for one in series], axis=0)
        axes.plot(times_s, scale * mean, drawstyle="steps-post", color=BLUE, linewidth=1.8, label="mean")
    # Room below 0, where a line would lie on the frame.
    top = max(axes.get_ylim()[1], 1.0) if scale == 1.0 else scale
    axes.set_ylim(-0.03 * top, top)


def _to_the_end(series: LoadSeries, log: RequestLog) -> LoadSeries:
    """Return the series with the moment from which its replica is empty: its last request finishes."""
    finish_s = _known(log.finish_s[log.replica == series.replica])
    if not finish_s.size or not series.time_s.size or finish_s[-1] <= series.time_s[-1]:
        return series
    return replace(series, time_s=np.r_[series.time_s, finish_s[-1]], num_running_seqs=np.r_[series.num_running_seqs, 0.0],
                   num_waiting_seqs=np.r_[series.num_waiting_seqs, 0.0], kv_used_frac=np.r_[series.kv_used_frac, 0.0])


def _held(series: LoadSeries, name: str, times_s: FloatArray) -> FloatArray:
    """Return what holds at each time: the value of the last point before it, 0 before the first."""
    values: FloatArray = np.r_[0.0, getattr(series, name)]
    return values[np.searchsorted(series.time_s, times_s, side="right")]


def _mark_load(panels: "Sequence[Axes]", sim: Simulation, detail: RunDetail) -> None:
    """Draw the last arrival of an open loop, and the limit of the batch where it comes near."""
    arrivals_s = _known(detail.requests.arrival_s)
    if sim.traffic.rate_req_s is not None and arrivals_s.size:
        for axes in panels:
            axes.axvline(float(arrivals_s[-1]), color=VERMILION, linestyle=":", linewidth=1.2,
                         label="last arrival")
    peak = max(float(np.max(one.num_running_seqs, initial=0.0)) for one in detail.series)
    if 2 * peak >= sim.question.max_num_seqs:
        panels[0].axhline(sim.question.max_num_seqs, color="black", linestyle="--", linewidth=1.0, label="max_num_seqs")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        legend = panels[0].legend(handles, labels, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(labels),
                                  frameon=False, fontsize=9)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1.0)


def _draw_bars(axes: "Axes", sim: Simulation, values: Sequence[float | None], notes: Sequence[str] = ()) -> None:
    for x, (degree, value) in enumerate(zip(sim.degrees, values, strict=True)):
        best, why = degree.tp == sim.best_tp, verdict(sim, degree)
        colour = BLUE if best else GREY
        if value is not None:
            axes.bar(x, value, width=0.62, color=colour if why is None else "white", edgecolor=colour,
                     hatch="" if why is None else "///")
        out = "" if why is None else "saturated" if _is_saturated(degree) else f"out: {why.word}"
        words = [grouped(value) if value is not None else "", notes[x] if notes and value is not None else "",
                 "best" if best else "", out]
        above(axes, x, value or 0.0, "\n".join(word for word in words if word), bold=best)
    top = max([value for value in values if value], default=0.0)
    axes.set_ylim(0, 1.3 * top or 1.0)
    if not top:
        axes.set_yticks([])
    axes.set_xticks(range(len(sim.degrees)), [f"{d.tp}\n{plural(d.num_replicas, 'replica')}" for d in sim.degrees], fontsize=9)
    axes.set_xlim(-0.6, max(len(sim.degrees), 1) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)


def _mark_offered(axes: "Axes", sim: Simulation) -> None:
    """Draw the rate that is offered, where it is one rate for all degrees."""
    rates = {d.outcome.offered_rate_req_s for d in sim.degrees if d.outcome is not None}
    rate = next(iter(rates)) if len(rates) == 1 else None
    if rate is not None:
        axes.axhline(rate, color="black", linestyle="--", linewidth=1.2, zorder=0, label=f"offered: {grouped(rate)} req/s")
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.15 * rate))
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)
        for text in axes.texts:
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})


def _is_saturated(degree: SimulatedDegree) -> bool:
    return degree.outcome is not None and degree.outcome.saturated


def _plain(axes: "Axes") -> None:
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _say(figure: "Figure", text: str) -> None:
    figure.text(0.5, 0.45, "\n".join(wrap(text, 100)), ha="center", fontsize=11, parse_math=False)
