"""A simulated answer with its ways out: tables, figures, logs, files."""

import os
import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tpplanner.domain.plan import DegreePlan, Recommendation
from tpplanner.domain.simulation import SimulatedDegree, Simulation
from tpplanner.errors import OutputError, WorkloadError, reject
from tpplanner.planner.predict import plan_one

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_SUMMARY = ("simulation.json", "simulation.csv", "latency_cdf.png", "degrees.png", "launch.sh")
_OF_A_DEGREE = re.compile(r"requests-tp\d+\.(csv|parquet)|steps-tp\d+\.trace\.json|load-tp\d+\.png")
_LARGE_LOG = 100_000
"""Requests above which a log is written as Parquet where pyarrow is installed: a tenth of the time and size of CSV."""


@dataclass(frozen=True, slots=True, eq=False)
class Simulated:
    """A simulation with its ways out; ``recommendation`` is the closed form's answer to the same question."""

    simulation: Simulation
    recommendation: Recommendation

    @property
    def best_tp(self) -> int | None:
        """The best degree under simulation; ``None`` where none runs and holds the targets."""
        return self.simulation.best_tp

    @property
    def degrees(self) -> tuple[SimulatedDegree, ...]:
        """One entry per degree, ascending."""
        return self.simulation.degrees

    @property
    def best_plan(self) -> DegreePlan | None:
        """The closed form's plan of the best degree: what the launch lines are made of."""
        if self.best_tp is None:
            return None
        listed = next((p for p in self.recommendation.plans if p.tp == self.best_tp), None)
        return listed or plan_one(self.recommendation.question, self.best_tp)

    def degree(self, tp: int) -> SimulatedDegree:
        """Return one degree.

        Raises
        ------
        WorkloadError
            If it was not simulated.
        """
        for degree in self.degrees:
            if degree.tp == tp:
                return degree
        reject(WorkloadError, "tp", f"be among {', '.join(str(d.tp) for d in self.degrees)}", tp, "simulation")

    def to_text(self, *, width: int | None = None, terminal: bool = False) -> str:
        """Headline and tables."""
        from tpplanner.report.simulation_text import simulation_text

        return simulation_text(self.simulation, width=width, terminal=terminal)

    def to_json(self) -> str:
        """The documented JSON form (docs/json_schema.md)."""
        from tpplanner.report.simulation_json import simulation_json

        return simulation_json(self.simulation)

    def to_frame(self) -> "pd.DataFrame":
        """One row per degree, times in seconds."""
        from tpplanner.report.simulation_json import simulation_frame

        return simulation_frame(self.simulation)

    def requests(self, tp: int | None = None) -> "pd.DataFrame":
        """One row per request of a degree, the best one where ``tp`` is None."""
        from tpplanner.report.simulation_logs import requests_frame

        chosen = self.best_tp if tp is None else tp
        if chosen is None:
            reject(WorkloadError, "tp", "be given where no degree is feasible", tp, "simulation")
        detail = self.degree(chosen).detail
        if detail is None:
            reject(WorkloadError, "tp", "be a degree that runs", tp, "simulation")
        return requests_frame(detail.requests)

    def plot(self, kind: str = "latency_cdf", tp: int | None = None) -> "Figure":
        """Return a figure: ``latency_cdf``, ``degrees`` or ``load`` (of ``tp``, the best degree where None).

        Raises
        ------
        WorkloadError
            If the kind is unknown, or the degree was not simulated.
        """
        from tpplanner.report.simulation_plots import plot_degrees, plot_latency_cdf, plot_load

        match kind:
            case "latency_cdf":
                return plot_latency_cdf(self.simulation)
            case "degrees":
                return plot_degrees(self.simulation)
            case "load":
                return plot_load(self.simulation, self.degree(self._chosen(tp)).tp)
            case _:
                reject(WorkloadError, "kind", "be latency_cdf, degrees or load", kind, "plot")

    def _chosen(self, tp: int | None) -> int:
        if tp is not None:
            return tp
        return self.best_tp if self.best_tp is not None else self.degrees[0].tp


def _log_suffix(num_requests: int) -> str:
    from importlib.util import find_spec

    return ".parquet" if num_requests > _LARGE_LOG and find_spec("pyarrow") is not None else ".csv"


def _folder(folder: str | Path) -> Path:
    # Path("") is the current folder, which nobody asked for by an empty variable of a shell.
    if not str(folder).strip():
        reject(OutputError, "folder", "be named", str(folder), "--save-dir")
    return Path(folder)


def check_simulated_outputs(folder: str | Path, *, overwrite: bool) -> None:
    """Raise ``OutputError`` where :func:`write_simulated` would, whatever the degrees turn out to be; writes nothing."""
    from tpplanner.io.files import OutputFolder

    path = _folder(folder)
    found = sorted(entry.name for entry in path.iterdir()) if path.is_dir() and os.access(path, os.R_OK) else []
    logs = [name for name in found if _OF_A_DEGREE.fullmatch(name)]
    OutputFolder(path=path, overwrite=overwrite).check((*_SUMMARY, *logs))


def write_simulated(answer: Simulated, folder: str | Path, *, overwrite: bool) -> tuple[Path, ...]:
    """Write the figures, the plots, and of each degree its request log, step timeline and load over time; all or none.

    With ``overwrite`` the files of another run's degrees are removed once the new ones are in place.

    Raises
    ------
    OutputError
        If the folder cannot be written, or holds one of the files and ``overwrite`` is false.
    """
    from tpplanner.io.files import OutputFolder
    from tpplanner.report.launch import launch_script
    from tpplanner.report.plots import figure_png_bytes
    from tpplanner.report.simulation_json import simulation_csv

    simulation = answer.simulation
    contents: dict[str, str | bytes] = {
        "simulation.json": answer.to_json(), "simulation.csv": simulation_csv(simulation),
        "latency_cdf.png": figure_png_bytes(answer.plot("latency_cdf")),
        "degrees.png": figure_png_bytes(answer.plot("degrees"))}
    if answer.best_plan is not None:
        contents["launch.sh"] = launch_script(answer.recommendation, answer.best_plan)
    for degree in answer.degrees:
        if degree.detail is not None:
            contents |= _degree_contents(answer, degree)
    path = _folder(folder)
    written = OutputFolder(path=path, overwrite=overwrite).write(contents)
    _remove_others(path, contents)
    return written


def _remove_others(folder: Path, kept: Container[str]) -> None:
    """Remove what an earlier run left of degrees or formats that this one has not."""
    stale = [entry for entry in folder.iterdir()
             if entry.name not in kept and (entry.name in _SUMMARY or _OF_A_DEGREE.fullmatch(entry.name))]
    try:
        for entry in stale:
            entry.unlink()
    except OSError as error:
        raise OutputError(f"{folder}: cannot remove files of an earlier run: {error.strerror or error}") from None


def _degree_contents(answer: Simulated, degree: SimulatedDegree) -> dict[str, str | bytes]:
    from io import BytesIO

    from tpplanner.report.plots import figure_png_bytes
    from tpplanner.report.simulation_logs import chrome_trace, requests_csv

    detail, tp = degree.detail, degree.tp
    assert detail is not None  # the caller asks
    suffix = _log_suffix(detail.requests.arrival_s.size)
    if suffix == ".csv":
        log: str | bytes = requests_csv(detail.requests)
    else:
        stream = BytesIO()
        answer.requests(tp).to_parquet(stream, index=False)
        log = stream.getvalue()
    title = f"{answer.simulation.question.model.name}, TP {tp}"
    return {f"requests-tp{tp}{suffix}": log,
            f"steps-tp{tp}.trace.json": chrome_trace(detail.steps, series=detail.series, title=title),
            f"load-tp{tp}.png": figure_png_bytes(answer.plot("load", tp))}
