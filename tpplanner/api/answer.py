"""An answer with its ways out: table, figures, explanation, files."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tpplanner.domain.checks import check_count
from tpplanner.domain.explain import ExplainLine
from tpplanner.domain.plan import DegreePlan, Recommendation
from tpplanner.errors import OutputError, WorkloadError, reject
from tpplanner.planner.explain import explain as explain_plan
from tpplanner.planner.pareto import pareto_points
from tpplanner.planner.predict import plan_one

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_FIGURES = ("throughput", "step_split", "pareto")
SAVED_FILES = ("plan.json", "plan.csv", "launch.sh", *(f"{kind}.png" for kind in _FIGURES))
"""What ``--save-dir`` holds."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A recommendation with its ways out: a table, a figure, the Pareto points, an explanation.

    ``plans``, ``best`` and everything else of :class:`tpplanner.domain.plan.Recommendation` is
    under ``recommendation``; the most used are repeated here.
    """

    recommendation: Recommendation

    @property
    def best_tp(self) -> int | None:
        """The recommended degree t_e; None where no degree is feasible."""
        return self.recommendation.best_tp

    @property
    def best(self) -> DegreePlan | None:
        """The plan of the recommended degree."""
        return self.recommendation.best

    @property
    def plans(self) -> tuple[DegreePlan, ...]:
        """One plan per degree, ascending."""
        return self.recommendation.plans

    def to_frame(self) -> "pd.DataFrame":
        """One row per degree, times in seconds."""
        from tpplanner.report.frame import to_frame

        return to_frame(self.recommendation)

    def to_json(self) -> str:
        """The documented JSON form (docs/json_schema.md)."""
        from tpplanner.report.json_export import to_json

        return to_json(self.recommendation)

    def pareto(self) -> dict[int, list[tuple[float, float, float]]]:
        """Per degree (tokens/s/user, tokens/s/GPU, concurrency per replica) without a queue."""
        rec = self.recommendation
        return pareto_points(rec.question, [p.tp for p in rec.plans if p.outcome is not None])

    def plot(self, kind: str = "throughput") -> "Figure":
        """Return a figure: ``throughput``, ``step_split`` or ``pareto``.

        Raises
        ------
        WorkloadError
            If the kind is unknown.
        """
        from tpplanner.report.plots import plot_pareto, plot_step_split, plot_throughput

        match kind:
            case "throughput":
                return plot_throughput(self.recommendation)
            case "step_split":
                return plot_step_split(self.recommendation)
            case "pareto":
                return plot_pareto(self.recommendation, self.pareto())
            case _:
                reject(WorkloadError, "kind", "be throughput, step_split or pareto", kind, "plot")

    def explain(self, tp: int | None = None) -> list[ExplainLine]:
        """Terms of one degree's mean step; the recommended degree where ``tp`` is None.

        Raises
        ------
        WorkloadError
            If ``tp`` is no integer from 1 up.
        """
        chosen = self.best_tp if tp is None else tp
        if chosen is None:
            return []
        return explain_plan(self.recommendation.question, self.plan(chosen))

    def plan(self, tp: int) -> DegreePlan:
        """Return the plan of any degree, in the table or not.

        Raises
        ------
        WorkloadError
            If ``tp`` is no integer from 1 up.
        """
        if tp is None:
            reject(WorkloadError, "tp", "be an integer", tp, "plan")
        check_count(WorkloadError, "plan", tp=tp)
        found = next((p for p in self.plans if p.tp == tp), None)
        return found or plan_one(self.recommendation.question, tp)


def check_outputs(folder: str | Path, *, overwrite: bool) -> None:
    """Raise ``OutputError`` where :func:`write_outputs` would; writes nothing."""
    from tpplanner.io.files import OutputFolder

    OutputFolder(path=_named(folder), overwrite=overwrite).check(SAVED_FILES)


def write_outputs(answer: Answer, folder: str | Path, *, overwrite: bool) -> tuple[Path, ...]:
    """Write plan.json, plan.csv, three plots and the launch commands; all of them or none.

    Raises
    ------
    OutputError
        If the folder cannot be written, or holds one of the files and ``overwrite`` is false.
    """
    from tpplanner.io.files import OutputFolder
    from tpplanner.report.frame import to_csv
    from tpplanner.report.launch import launch_script
    from tpplanner.report.plots import figure_png_bytes

    rec = answer.recommendation
    contents: dict[str, str | bytes] = {"plan.json": answer.to_json(), "plan.csv": to_csv(rec)}
    if rec.best is not None:
        contents["launch.sh"] = launch_script(rec, rec.best)
    for kind in _FIGURES:
        contents[f"{kind}.png"] = figure_png_bytes(answer.plot(kind))
    return OutputFolder(path=_named(folder), overwrite=overwrite).write(contents)


def _named(folder: str | Path) -> Path:
    # Path("") is the current folder, which nobody asked for by an empty variable of a shell.
    if not str(folder).strip():
        reject(OutputError, "folder", "be named", str(folder), "--save-dir")
    return Path(folder)
