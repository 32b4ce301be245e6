"""Files of validation: limits (TOML), predictions and accepted predictions (CSV).

A file of limits::

    [packaged.max]             # of the packaged profiles; other tables: degree, model, machine, load, shape, architecture
    "dense.tpot.mean" = 0.20   # names of figures: docs/cli.md
    [packaged.min]
    "dense.c.hit" = 0.85
    [drift]
    tolerance = 0.001
    [terms]                    # what is known to be wrong with a group of runs
    "Llama-3.1-8B fp8, h200_sxm, trtllm, 1024/1024, tp" = "prefix cache hits"
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tpplanner.domain.run_prediction import OK, OUT_OF_MEMORY, QUANTITIES, RunPrediction, ScoredRun
from tpplanner.domain.scores import LimitFile, Limits
from tpplanner.errors import ProfileError, WorkloadError, nearest, reject
from tpplanner.io.csv_rows import CsvRow, read_rows
from tpplanner.io.profile_files import read_toml, shown
from tpplanner.units import MS

SCORES: Final = ("packaged", "degree", "model", "machine", "load", "shape", "architecture", "given")
"""Tables of limits: the packaged profiles, the ways to hold runs out, predictions from a file."""

ACCEPTED_COLUMNS: Final = ("id", "pred_tpot_ms", "pred_ttft_ms", "pred_throughput_tok_s")
PREDICTION_COLUMNS: Final = (
    "id", "status", "pred_ttft_ms", "pred_tpot_ms", "pred_throughput_tok_s", "pred_tpot_low_ms", "pred_tpot_high_ms",
    "pred_ttft_low_ms", "pred_ttft_high_ms", "pred_throughput_low_tok_s", "pred_throughput_high_tok_s", "fold",
)

_NO_DRIFT: Final = 1e-3
_OOM_WORDS: Final = ("OOM", "INFEASIBLE")
_DIGITS: Final = 10
_ACCEPTED_DIGITS: Final = 6


def read_limits(path: str | Path) -> LimitFile:
    """Return the limits in a TOML file of the form above.

    Raises
    ------
    WorkloadError
        If the file cannot be read or is no TOML, a key is unknown, or a limit is no number.
    """
    place = shown(path)
    try:
        data = read_toml(Path(path))
    except ProfileError as error:
        raise WorkloadError(str(error)) from None
    _check_keys(data, (*SCORES, "drift", "terms"), place)
    limits: dict[str, Limits] = {}
    for name in SCORES:
        if name in data:
            table = _table(data[name], name, place)
            _check_keys(table, ("max", "min"), f"{place}: {name}")
            sides = {side: dict(_flat(_table(table.get(side, {}), f"{name}.{side}", place), "", place))
                     for side in ("max", "min")}
            limits[name] = Limits(maxima=sides["max"], minima=sides["min"])
    drift = _table(data.get("drift", {}), "drift", place)
    _check_keys(drift, ("tolerance",), f"{place}: drift")
    tolerance = _real(drift.get("tolerance", _NO_DRIFT), "drift.tolerance", place)
    if tolerance < 0:
        reject(WorkloadError, "drift.tolerance", "be >= 0", tolerance, place)
    terms = _table(data.get("terms", {}), "terms", place)
    for group, term in terms.items():
        if not isinstance(term, str) or not term.isprintable():
            reject(WorkloadError, f"terms.{group}", "be text on one line", term, place)
    return LimitFile(place=place, limits=limits, drift_frac=tolerance, terms={k: str(v) for k, v in terms.items()})


def _check_keys(table: Mapping[str, object], known: Sequence[str], place: str) -> None:
    for key in table:
        if key not in known:
            hint = nearest(key[:100], known)
            reject(WorkloadError, "keys", f"be among {', '.join(known)}" + (f" ({hint})" if hint else ""), key, place)


def _table(value: object, name: str, place: str) -> dict[str, object]:
    if not isinstance(value, dict):
        reject(WorkloadError, name, "be a table", value, place)
    return value


def _real(value: object, name: str, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        reject(WorkloadError, name, "be a finite number", value, place)
    return float(value)


def _flat(table: Mapping[str, object], above: str, place: str) -> Iterator[tuple[str, float]]:
    """Yield limits by full name: TOML reads a bare ``dense.tpot.mean`` as tables within tables."""
    for key, value in table.items():
        name = f"{above}.{key}" if above else key
        if isinstance(value, dict):
            yield from _flat(value, name, place)
        else:
            yield name, _real(value, name, place)


def predictions_text(points: Iterable[ScoredRun]) -> str:
    """Return predictions as CSV text, one row for every id of every run, copies included.

    The columns are those of ``tpplanner predict``, the ends of the 80 % intervals, and the fold.
    """
    def rows() -> Iterator[tuple[object, ...]]:
        for point in points:
            prediction = point.prediction
            if prediction is None:
                continue
            figures = [_cell(point.predicted(q), q, _DIGITS) for q in ("ttft", "tpot", "throughput")]
            ends = [_cell(end, q, _DIGITS) for q in QUANTITIES for end in prediction.interval(q)]
            for name in point.run.ids:
                yield name, prediction.status, *figures, *ends, prediction.fold or ""

    return _csv_text(PREDICTION_COLUMNS, rows())


def accepted_text(points: Iterable[ScoredRun]) -> str:
    """Return the predictions to accept as CSV text, one row per run, six significant digits."""
    return _csv_text(ACCEPTED_COLUMNS, (
        (point.run.run_id, *(_cell(point.predicted(quantity), quantity, _ACCEPTED_DIGITS) for quantity in QUANTITIES))
        for point in points
    ))


def _cell(value: float | None, quantity: str, digits: int) -> str:
    if value is None:
        return ""
    return f"{value if quantity == 'throughput' else value / MS:.{digits}g}"


def _csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def read_accepted(path: str | Path) -> dict[str, RunPrediction]:
    """Return the accepted predictions, by run.

    Raises
    ------
    WorkloadError
        If the file cannot be read, a column is missing or unknown, or a value is no number > 0.
    """
    return {
        row.text("id"): RunPrediction(
            run_id=row.text("id"), tpot_s=_time_s(row, "pred_tpot_ms"), ttft_s=_time_s(row, "pred_ttft_ms"),
            throughput_tok_s=row.optional_positive("pred_throughput_tok_s"),
        )
        for row in read_rows(Path(path), ACCEPTED_COLUMNS[:3], ACCEPTED_COLUMNS[3:])
    }


def read_predictions(path: str | Path) -> tuple[RunPrediction, ...]:
    """Return predictions from a CSV file, of any tool: columns id, pred_ttft_ms, pred_tpot_ms; others may be there.

    ``status`` of ``OOM`` or ``INFEASIBLE`` says that the degree cannot serve; a row without figures and without a
    reason predicts nothing. ``pred_throughput_tok_s`` is read where a time is missing (everything queued); elsewhere
    throughput follows from the times, as it does for the measured runs.

    Raises
    ------
    WorkloadError
        If the file cannot be read, a column is missing, or a value is no number > 0.
    """
    return tuple(map(_prediction, read_rows(Path(path), ("id", "pred_ttft_ms", "pred_tpot_ms"))))


def _prediction(row: CsvRow) -> RunPrediction:
    name, said = row.text("id"), row.cells.get("status", "")
    ttft_s, tpot_s = _time_s(row, "pred_ttft_ms"), _time_s(row, "pred_tpot_ms")
    throughput = row.optional_positive("pred_throughput_tok_s") if ttft_s is None or tpot_s is None else None
    if ttft_s is None and tpot_s is None and throughput is None:
        status = OUT_OF_MEMORY if said.upper() in _OOM_WORDS else "no prediction" if said.lower() in ("", OK) else said
        return RunPrediction(run_id=name, status=status)
    try:
        return RunPrediction(
            run_id=name, ttft_s=ttft_s, tpot_s=tpot_s, throughput_tok_s=throughput, fold=row.optional_text("fold"),
            tpot_low_s=_time_s(row, "pred_tpot_low_ms"), tpot_high_s=_time_s(row, "pred_tpot_high_ms"),
            ttft_low_s=_time_s(row, "pred_ttft_low_ms"), ttft_high_s=_time_s(row, "pred_ttft_high_ms"),
            throughput_low_tok_s=row.optional_positive("pred_throughput_low_tok_s"),
            throughput_high_tok_s=row.optional_positive("pred_throughput_high_tok_s"),
        )
    except WorkloadError as error:
        raise WorkloadError(str(error) if str(error).startswith(row.place) else f"{row.place}: {error}") from None


def _time_s(row: CsvRow, column: str) -> float | None:
    time_ms = row.optional_positive(column)
    return None if time_ms is None else time_ms * MS
