"""One row per degree: as a pandas frame, and as CSV without pandas."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from tpplanner.domain.plan import Recommendation
from tpplanner.report.headline import tied_degrees
from tpplanner.report.json_export import plan_record
from tpplanner.report.plan_document import MemoryRecord, PlanRecord, Record, StepRecord

if TYPE_CHECKING:
    import pandas as pd

Cell = bool | int | float | str | None

_NESTED: dict[str, type[Record]] = {"memory": MemoryRecord, "step": StepRecord}
_LEADING = ("model", "hardware", "engine", "best", "tied")


def flat_columns(record: type[Record], nested: Mapping[str, type[Record]]) -> tuple[str, ...]:
    """Return the names of a record's fields, those of the nested records behind the name of theirs."""
    return tuple(
        column
        for name in record.__struct_fields__
        for column in ([f"{name}_{inner}" for inner in nested[name].__struct_fields__] if name in nested else [name])
    )


def flat_cells(record: Record, nested: Mapping[str, type[Record]]) -> dict[str, Cell]:
    """Return a record as one row with the keys `flat_columns`; ``None`` where there is no number."""
    row: dict[str, Cell] = {}
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if name in nested:
            for inner in nested[name].__struct_fields__:
                row[f"{name}_{inner}"] = None if value is None else getattr(value, inner)
        else:
            row[name] = "; ".join(value) if isinstance(value, tuple) else value
    return row


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Cell]]) -> str:
    """Return rows as CSV with a header; empty where there is no number."""
    stream = StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _written(value) for name, value in row.items()})
    return stream.getvalue()


COLUMNS: tuple[str, ...] = (*_LEADING, *flat_columns(PlanRecord, _NESTED))
"""Names of the columns: those of the JSON's ``plans``, ``memory_`` and ``step_`` flattened, after five
that tell frames of several questions apart."""

_TEXT = frozenset({"model", "hardware", "engine", "reason", "reason_detail", "binding", "extrapolated"})
_EXACT = frozenset({"best", "tied", "tp", "num_replicas", "num_gpus_idle", "feasible"})


def rows(rec: Recommendation) -> list[dict[str, Cell]]:
    """Return one mapping per degree with the keys `COLUMNS`; ``None`` where there is no number."""
    return [_row(rec, plan_record(plan)) for plan in rec.plans]


def to_frame(rec: Recommendation) -> "pd.DataFrame":
    """Return one row per degree, columns `COLUMNS`, SI units.

    Numbers that do not exist are NaN, ``saturated`` is an object column with ``None``.
    """
    import pandas as pd

    frame = pd.DataFrame(rows(rec), columns=list(COLUMNS))
    numbers = [name for name in COLUMNS if name not in _TEXT and name not in _EXACT and name != "saturated"]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def to_csv(rec: Recommendation) -> str:
    """Return one row per degree as CSV with a header; empty where there is no number."""
    return csv_text(COLUMNS, rows(rec))


def _row(rec: Recommendation, plan: PlanRecord) -> dict[str, Cell]:
    question = rec.question
    row: dict[str, Cell] = {
        "model": question.model.name, "hardware": question.hardware.name, "engine": question.engine.name,
        "best": plan.tp == rec.best_tp, "tied": plan.tp in tied_degrees(rec),
    }
    return row | flat_cells(plan, _NESTED)


def _written(value: Cell) -> Cell:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value
