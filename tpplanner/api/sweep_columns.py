"""The columns of a sweep's result: what was asked, the figures of the degree, and how the point ended."""

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tpplanner.domain.sweep import Cell, ColumnKind, PointResult, Settings, SweepKind, SweepPlan, shown_setting

OK: Final = "ok"

_LAST: Final = {"is_best": ColumnKind.FLAG, "status": ColumnKind.TEXT, "wall_s": ColumnKind.REAL}
_LEADING: Final = {
    **dict.fromkeys(("model", "hardware", "engine", "traffic"), ColumnKind.TEXT), "seed": ColumnKind.INTEGER,
    "tied": ColumnKind.FLAG,
}
_KINDS: Final[Mapping[object, ColumnKind]] = {bool: ColumnKind.FLAG, int: ColumnKind.INTEGER, str: ColumnKind.TEXT}
_OF_THE_DEGREE: Final = ("tp", "num_requests")
"""Settings whose column holds what ran: a plan asks for several degrees, a trace may hold fewer requests."""


def columns_of(plan: SweepPlan) -> dict[str, ColumnKind]:
    """Return the columns of a plan's result, the same whatever its points answer.

    The settings of the plan come first, in its order; then the columns of ``plan.csv`` or ``simulation.csv`` that are no
    settings, without ``best``; then ``is_best``, ``status`` and ``wall_s``.
    """
    figures = _figures(plan.kind)
    inputs = {name: kind for name, kind in plan.inputs().items() if name not in _OF_THE_DEGREE}
    return {**inputs, **{name: kind for name, kind in figures.items() if name not in inputs}, **_LAST}


def table_rows(settings: Settings, result: PointResult, columns: Mapping[str, ColumnKind]) -> Iterator[dict[str, Cell]]:
    """Yield the rows of a point: one per degree, or one with its error."""
    asked = {name: shown_setting(value, columns[name]) for name, value in settings.items() if name not in _OF_THE_DEGREE}
    last: dict[str, Cell] = {"is_best": False, "status": OK if result.error is None else f"error: {result.error}",
                             "wall_s": result.wall_s}
    if result.error is not None:
        # One degree, and a number of requests, are known without an answer.
        numbers = {name: settings[name] for name in _OF_THE_DEGREE if isinstance(settings.get(name), int)}
        yield {**dict.fromkeys(columns), **asked, **numbers, **last}  # type: ignore[dict-item]
    for row in result.rows:
        figures = {name: cell for name, cell in row.items() if name in columns}
        yield {**dict.fromkeys(columns), **figures, **asked, **last, "is_best": bool(row["best"])}


def _figures(kind: SweepKind) -> dict[str, ColumnKind]:
    if kind is SweepKind.RECOMMEND:
        from tpplanner.report.frame import COLUMNS
        from tpplanner.report.plan_document import PlanRecord

        names, hints = COLUMNS, typing.get_type_hints(PlanRecord)
    else:
        from tpplanner.report.simulation_document import SimulatedDegreeRecord
        from tpplanner.report.simulation_json import SIMULATION_COLUMNS

        names, hints = SIMULATION_COLUMNS, typing.get_type_hints(SimulatedDegreeRecord)
    return {name: _LEADING.get(name) or _kind_of(hints.get(name, float)) for name in names if name != "best"}


def _kind_of(hint: Any) -> ColumnKind:
    """Return the kind of a record's field; a list of texts is text, and what is no field of its own a number."""
    if isinstance(hint, types.UnionType):
        (hint,) = (one for one in typing.get_args(hint) if one is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return ColumnKind.TEXT
    return _KINDS.get(hint, ColumnKind.REAL)
