"""Predictions against measured serving runs: how large the errors are, and how good the decisions."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tpplanner.api.loaded import engine_of, hardware_of
from tpplanner.api.validate_runs import out_of_sample, predict_runs, rules_of_thumb, with_kind
from tpplanner.domain.engine import EngineProfile
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.offline_run import MeasuredRun
from tpplanner.domain.run_prediction import RunPrediction, ScoredRun
from tpplanner.domain.scores import Broken, Drift, LimitFile, Scores
from tpplanner.domain.serving_run import KINDS
from tpplanner.domain.validated import Validated
from tpplanner.errors import TpplannerError, WorkloadError, nearest, reject
from tpplanner.io.measured_runs import read_measured_runs
from tpplanner.io.profile_files import fold
from tpplanner.io.validation_files import accepted_text, predictions_text, read_accepted, read_limits, read_predictions
from tpplanner.units import MS
from tpplanner.validation.drift import DEFAULT_TOLERANCE_FRAC, drift_of
from tpplanner.validation.score import figures, match, score
from tpplanner.validation.thresholds import broken_limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLITS: Final = ("degree", "model", "machine", "load", "shape", "architecture")
DEFAULT_TPOT_LIMITS_MS: Final = (10.0, 20.0, 30.0, 50.0, 100.0)
SAMPLE: Final = "the silicon sample of aiconfigurator-core"
SAVED_FILES: Final = ("validation.json", "validation.txt", "decisions.csv", "accuracy.png", "regret.png")
"""What ``--save-dir`` holds."""

PACKAGED: Final = "packaged"
_GIVEN: Final = "given"
_PLOTS: Final = ("accuracy", "regret")


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """A validation with its ways out: figures by name, text, plain data, plots, limits, drift."""

    validated: Validated

    @property
    def scores(self) -> Scores:
        """The scores that were asked for: held out where there is a split."""
        return self.validated.scores[0]

    @property
    def points(self) -> tuple[ScoredRun, ...]:
        """Every run with its prediction, as scored by `scores`."""
        return self.validated.points[self.scores.name]

    def figures(self) -> dict[str, float]:
        """Return every figure of `scores` by name, ``dense.c.hit``."""
        return figures(self.scores)

    def to_dict(self) -> dict[str, object]:
        """Return every figure as plain data, errors and shares as fractions."""
        from tpplanner.report.validation_json import validation_dict

        return validation_dict(self.validated)

    def to_json(self) -> str:
        """Return the same as JSON text."""
        from tpplanner.report.validation_json import validation_json

        return validation_json(self.to_dict())

    def text(self, *, width: int | None = None, terminal: bool = False) -> str:
        """Return the tables."""
        from tpplanner.report.validation_text import validation_text

        return validation_text(self.validated, width=width, terminal=terminal)

    def plot(self, kind: str = "accuracy") -> "Figure":
        """Return a figure: ``accuracy`` (predicted against measured) or ``regret`` (by group).

        Raises
        ------
        WorkloadError
            If the kind is unknown.
        """
        from tpplanner.report.validation_plots import plot_accuracy, plot_regret

        if kind not in _PLOTS:
            reject(WorkloadError, "kind", f"be one of {', '.join(_PLOTS)}", kind, "plot")
        return plot_regret(self.scores) if kind == "regret" else plot_accuracy(self.scores, self.points)

    def predictions_csv(self) -> str:
        """Return the predictions that were scored, one row per id, as ``tpplanner predict`` writes them."""
        return predictions_text(self.points)

    def broken(self, limits: LimitFile) -> tuple[Broken, ...]:
        """Return every limit that a figure breaks, of all sets of predictions that the file has a table for.

        Raises
        ------
        WorkloadError
            If the file has no table for `scores`, or a limit on a figure that does not exist here.
        """
        if self.scores.name not in limits.limits:
            reject(WorkloadError, "tables", f"include {self.scores.name}.max or .min", list(limits.limits), limits.place)
        return tuple(
            one for scores in self.validated.scores if scores.name in limits.limits
            for one in broken_limits(scores.name, figures(scores), limits.limits[scores.name], limits.place)
        )

    def drift(self, accepted: str | Path, limits: LimitFile | None = None) -> Drift:
        """Compare the predictions with those in a file of accepted ones; the tolerance is that of ``limits``."""
        tolerance_frac = DEFAULT_TOLERANCE_FRAC if limits is None else limits.drift_frac
        return drift_of(self.points, read_accepted(accepted), tolerance_frac=tolerance_frac)

    def accepted_csv(self) -> str:
        """Return the predictions as a file of accepted ones."""
        return accepted_text(self.points)


def validate(
    runs: str | Path | Sequence[MeasuredRun] | None = None, *, split: str | None = None,
    predictions: str | Path | Sequence[RunPrediction] | None = None, only: str | None = None,
    machines: Sequence[str] = (), engines: Sequence[str] = (),
    tpot_limits_ms: Sequence[float] = DEFAULT_TPOT_LIMITS_MS, limits: LimitFile | None = None,
) -> Validation:
    """Judge predictions by measured serving runs.

    Parameters
    ----------
    runs
        A CSV file (docs/cli.md), runs, or ``None`` for the sample in the installed package ``aiconfigurator-core``.
    split
        ``None`` judges the packaged profiles. With one of `SPLITS` the runs are cut by it, and each part is predicted
        by a fit without it; the packaged profiles are scored beside, apart.
    predictions
        Judge these instead: a CSV file or predictions.
    only
        ``dense`` or ``moe``.
    machines, engines
        Only these; held-out fits still see all runs.
    tpot_limits_ms, limits
        Targets of definition b [ms]; what names the terms that are known to be wrong, for the worst groups.

    Raises
    ------
    TpplannerError
        If a file cannot be read, or a name or value makes no sense.
    """
    _check(split, predictions, only, tpot_limits_ms)
    found, dropped, source = _runs(runs)
    every = with_kind(found)
    kept, left_out = _filtered(every, only, machines, engines)
    rules, terms = rules_of_thumb(kept), {} if limits is None else limits.terms
    sets = _predictions(every, kept, split, predictions)
    points = {name: match(kept, own) for name, (_, own) in sets.items()}
    limits_s = [limit * MS for limit in tpot_limits_ms]
    scores = tuple(score(points[name], name=name, label=label, tpot_limits_s=limits_s, rules_of_thumb=rules, terms=terms)
                   for name, (label, _) in sets.items())
    return Validation(Validated(source=source, dropped=dropped, left_out=left_out, scores=scores, points=points))


def _check(split: str | None, predictions: object, only: str | None, tpot_limits_ms: Sequence[float]) -> None:
    if split is not None and split not in SPLITS:
        hint = nearest(str(split), SPLITS)
        reject(WorkloadError, "split", f"be one of {', '.join(SPLITS)}" + (f" ({hint})" if hint else ""), split, "validate")
    if split is not None and predictions is not None:
        reject(WorkloadError, "split", "be absent where predictions are given", split, "validate")
    if only is not None and only not in KINDS:
        reject(WorkloadError, "only", f"be one of {', '.join(KINDS)}", only, "validate")
    for limit in tpot_limits_ms:
        if not 0 < limit < 1e9:
            reject(WorkloadError, "tpot_limits_ms", "be > 0 and < 1e9", limit, "validate")


def _runs(runs: str | Path | Sequence[MeasuredRun] | None) -> tuple[tuple[MeasuredRun, ...], dict[str, int], str]:
    if runs is None or isinstance(runs, str | Path):
        found, dropped = read_measured_runs(runs)
        return found, dropped, SAMPLE if runs is None else Path(runs).name
    if not runs:
        reject(WorkloadError, "runs", "be at least one", 0, "validate")
    return tuple(runs), {}, "the runs given"


def _filtered(
    runs: Sequence[MeasuredRun], only: str | None, machines: Sequence[str], engines: Sequence[str]
) -> tuple[tuple[MeasuredRun, ...], dict[str, int]]:
    """Return the runs that pass all filters, and how many each one left out."""
    filters: dict[str, Callable[[MeasuredRun], bool]] = {}
    if only is not None:
        filters[f"only {only}"] = lambda run: run.kind == only
    if machines:
        on = _alike(machines, {run.machine for run in runs}, hardware_of)
        filters[f"machine {', '.join(machines)}"] = lambda run: run.machine in on
    if engines:
        under = _alike(engines, {run.engine for run in runs}, engine_of)
        filters[f"engine {', '.join(engines)}"] = lambda run: run.engine in under
    left_out = {}
    for name, passes in filters.items():
        before = len(runs)
        runs = [run for run in runs if passes(run)]
        left_out[name] = before - len(runs)
    if not runs:
        reject(WorkloadError, "runs", f"be at least one after the filters {'; '.join(filters)}", 0, "validate")
    return tuple(runs), left_out


def _alike(
    wanted: Sequence[str], present: Set[str], load: Callable[[str], HardwareProfile | EngineProfile]
) -> Set[str]:
    """Return those names in ``present`` that are one of ``wanted``, or an alias of the same profile."""
    def known(name: str) -> str:
        try:
            return load(name).name
        except TpplannerError:
            return fold(name)

    names = {known(name) for name in wanted}
    return {name for name in present if known(name) in names}


_Sets = dict[str, tuple[str, tuple[RunPrediction, ...]]]


def _predictions(
    every: Sequence[MeasuredRun], kept: Sequence[MeasuredRun], split: str | None,
    given: str | Path | Sequence[RunPrediction] | None,
) -> _Sets:
    """Return name -> (label, predictions), what was asked for first."""
    if isinstance(given, str | Path):
        return {_GIVEN: (f"predictions of {Path(given).name}", read_predictions(given))}
    if given is not None:
        return {_GIVEN: ("the predictions given", tuple(given))}
    packaged = {PACKAGED: ("packaged profiles, in-sample where their fit has seen these runs", predict_runs(kept))}
    if split is None:
        return packaged
    label = f"held out by {split}: each part predicted by a fit that has not seen it"
    return {split: (label, out_of_sample(every, split)), **packaged}


def load_limits(path: str | Path) -> LimitFile:
    """Read a file of limits; see docs/cli.md."""
    return read_limits(path)


def check_saved(folder: str | Path, *, overwrite: bool) -> None:
    """Raise ``OutputError`` where :func:`save` would; writes nothing."""
    from tpplanner.io.files import OutputFolder

    OutputFolder(path=Path(folder), overwrite=overwrite).check(SAVED_FILES)


def save(validation: Validation, folder: str | Path, *, overwrite: bool) -> tuple[Path, ...]:
    """Write `SAVED_FILES`, all or none.

    Raises
    ------
    OutputError
        If the folder cannot be written, or holds one of the files and ``overwrite`` is false.
    """
    from tpplanner.io.files import OutputFolder
    from tpplanner.report.plots import figure_png_bytes
    from tpplanner.report.validation_json import decisions_csv

    contents: dict[str, str | bytes] = {
        "validation.json": validation.to_json() + "\n", "validation.txt": validation.text() + "\n",
        "decisions.csv": decisions_csv(validation.validated.scores),
        **{f"{kind}.png": figure_png_bytes(validation.plot(kind)) for kind in _PLOTS},
    }
    return OutputFolder(path=Path(folder), overwrite=overwrite).write(contents)
