"""Plans of sweeps: a TOML file, or a mapping of the same form.

A plan::

    [run]
    kind = "simulate"                    # the default; or "recommend", the closed form
    [fixed]                              # of every point
    engine = "vllm-0.11"
    [grid]                               # every combination of the values, the last key fastest
    model = ["Qwen/Qwen3-8B", "Qwen/Qwen3-32B"]
    gpus = "8xh100-sxm"
    loads = [{request_rate = 4}, {concurrency = 64}]    # settings that go together
    workloads = [{isl = 512, osl = 128}, {trace = "requests.csv"}]
    [[points]]                           # points beside the grid, with the fixed settings
    model = "Qwen/Qwen3-8B"
    gpus = "1xl40s"
    workload = "sharegpt"
"""

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import product
from pathlib import Path
from typing import Final

from tpplanner.domain.sweep import Setting, Settings, SweepKind, SweepPlan
from tpplanner.errors import ProfileError, WorkloadError, nearest, reject
from tpplanner.io.profile_files import read_toml, shown
from tpplanner.io.sweep_settings import SETTINGS, Form, check_name, read_setting

GROUPS: Final = ("deployments", "workloads", "loads")
"""Keys of a grid whose values are tables of settings that go together."""

_TABLES: Final = ("run", "fixed", "grid", "points")
_LOADS: Final = ("request_rate", "concurrency", "batch_per_gpu", "concurrency_per_replica")

_Axis = tuple[Settings, ...]


def read_plan(plan: str | Path | Mapping[str, object]) -> SweepPlan:
    """Return a plan from a TOML file, or from a mapping of the same form.

    Raises
    ------
    WorkloadError
        The file cannot be read or is no TOML; a key is unknown, given twice or missing; a value is of a wrong type; a
        list is empty; or the points are too many. One line with the file, the key, the rule and the value.
    """
    if isinstance(plan, Mapping):
        return _plan(plan, "plan")
    try:
        return _plan(read_toml(Path(plan)), shown(plan))
    except ProfileError as error:
        raise WorkloadError(str(error)) from None


def _plan(data: Mapping[str, object], place: str) -> SweepPlan:
    for name in data:
        if name not in _TABLES:
            hint = nearest(str(name)[:100], _TABLES)
            reject(WorkloadError, "keys", f"be among {', '.join(_TABLES)}" + (f" ({hint})" if hint else ""), name, place)
    kind = _kind(_table(data.get("run", {}), "run", place), place)
    fixed = _settings(_table(data.get("fixed", {}), "fixed", place), kind, "fixed", place)
    axes = _axes(_table(data["grid"], "grid", place), kind, place) if "grid" in data else ()
    explicit = _points(data.get("points", []), kind, place)
    plan = SweepPlan(place=place, kind=kind, fixed=fixed, axes=axes, explicit=explicit)
    _check_overlap(axes, place)
    # Points of a grid differ in their keys where tables do.
    for names in product(*({frozenset(part) for part in axis} for axis in axes)) if axes else ():
        _check_point(fixed, frozenset().union(*names), kind, "grid", place)
    for number, point in enumerate(explicit, 1):
        _check_point(fixed, frozenset(point), kind, f"points[{number}]", place)
    return plan


def _table(value: object, field: str, place: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        reject(WorkloadError, field, "be a table", value, place)
    return value


def _kind(run: Mapping[str, object], place: str) -> SweepKind:
    for name in run:
        if name != "kind":
            reject(WorkloadError, "keys of run", "be kind", name, place)
    known = [kind.value for kind in SweepKind]
    value = run.get("kind", SweepKind.SIMULATE.value)
    if value not in known:
        reject(WorkloadError, "run.kind", f"be {' or '.join(known)}", value, place)
    return SweepKind(str(value))


def _settings(table: Mapping[str, object], kind: SweepKind, field: str, place: str) -> dict[str, Setting]:
    """Return a table of single values."""
    found: dict[str, Setting] = {}
    for given, value in table.items():
        name = check_name(given, kind, field, place)
        found[name] = read_setting(value, SETTINGS[kind][name], f"{field}.{name}", place)
    return found


def _axes(grid: Mapping[str, object], kind: SweepKind, place: str) -> tuple[_Axis, ...]:
    if not grid:
        reject(WorkloadError, "grid", "have a key at least", dict(grid), place)
    return tuple(_axis(name, value, kind, place) for name, value in grid.items())


def _axis(given: str, value: object, kind: SweepKind, place: str) -> _Axis:
    field = f"grid.{given}"
    if given in GROUPS:
        tables = _list(value, field, "be a list of tables", place)
        parts = [_settings(_table(table, field, place), kind, field, place) for table in tables]
        if not all(parts):
            reject(WorkloadError, field, "have tables with a key at least", {}, place)
        return _different(parts, field, place)
    name = check_name(given, kind, "grid", place)
    form = SETTINGS[kind][name]
    # Degrees are no axis: those of one point are compared with each other.
    values = [value] if form is Form.DEGREES or not isinstance(value, list | tuple | range) else value
    items = _list(values, field, "be a value or a list of values", place)
    return _different([{name: read_setting(item, form, field, place)} for item in items], field, place)


def _list(value: object, field: str, rule: str, place: str) -> Sequence[object]:
    if not isinstance(value, list | tuple | range):
        reject(WorkloadError, field, rule, value, place)
    if not value:
        reject(WorkloadError, field, "have a value at least", list(value), place)
    return value


def _different(parts: Sequence[dict[str, Setting]], field: str, place: str) -> _Axis:
    seen: set[str] = set()
    for part in parts:
        text = json.dumps(part, sort_keys=True)
        if text in seen:
            reject(WorkloadError, field, "have values that differ", next(iter(part.values())) if len(part) == 1 else part, place)
        seen.add(text)
    return tuple(parts)


def _points(value: object, kind: SweepKind, place: str) -> tuple[Settings, ...]:
    if not isinstance(value, list | tuple):
        reject(WorkloadError, "points", "be tables ([[points]])", value, place)
    return tuple(_settings(_table(point, f"points[{i}]", place), kind, f"points[{i}]", place) for i, point in enumerate(value, 1))


def _check_overlap(axes: Iterable[_Axis], place: str) -> None:
    seen: set[str] = set()
    for axis in axes:
        names = {name for part in axis for name in part}
        for name in sorted(names & seen):
            reject(WorkloadError, name, "be given once", "grid, twice", place)
        seen |= names


def _check_point(fixed: Settings, own: Set[str], kind: SweepKind, field: str, place: str) -> None:
    """Refuse settings that no point can have together, whatever their values."""
    for name in sorted(fixed.keys() & own):
        reject(WorkloadError, name, "be given once", f"fixed and {field}", place)
    names = fixed.keys() | own
    for name in ("model", "gpus"):
        if name not in names:
            reject(WorkloadError, name, f"be given in fixed or {field}", "neither", place)
    loads = [name for name in _LOADS if name in names]
    if len(loads) > 1:
        reject(WorkloadError, f"load of {field}", "be given in one way (several: grid.loads = [{...}, {...}])", loads, place)
    if not {"isl", "osl"} <= names and not names & {"workload", "trace"}:
        rule = "be given in fixed or " + field + ("" if kind is SweepKind.RECOMMEND else ", or a workload, or a trace")
        reject(WorkloadError, "isl and osl", rule, sorted(names & {"isl", "osl"}) or "neither", place)
