"""Sweeps: many questions from one plan, and what each of them answered."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, product
from math import prod
from typing import Final

from tpplanner.errors import WorkloadError, reject

Setting = bool | int | float | str | tuple[int, ...] | Mapping[str, bool]
"""A value of a plan; degrees are a tuple, overlap switches a mapping."""

Settings = Mapping[str, Setting]
Cell = bool | int | float | str | None

MAX_POINTS: Final = 10**6
"""A week of one core at half a second per point; a larger product is a list too many."""


class SweepKind(StrEnum):
    """Which answer a point gets: of the simulator, or of the closed form."""

    SIMULATE = "simulate"
    RECOMMEND = "recommend"


class ColumnKind(StrEnum):
    """What the cells of a column are; any of them may be missing."""

    TEXT = "text"
    INTEGER = "integer"
    REAL = "real"
    FLAG = "flag"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """What a sweep asks.

    Attributes
    ----------
    place
        The plan's file, for messages.
    kind
        Who answers.
    fixed
        Settings of every point.
    axes
        Alternatives of which every combination is a point, the last axis fastest; an alternative is one setting, or
        several that go together. No axis: no grid.
    explicit
        Points beside the grid.
    """

    place: str
    kind: SweepKind
    fixed: Settings
    axes: tuple[tuple[Settings, ...], ...]
    explicit: tuple[Settings, ...]

    def __post_init__(self) -> None:
        if not self.num_points:
            reject(WorkloadError, "grid and points", "be one of them at least", "neither", self.place)
        if self.num_points > MAX_POINTS:
            reject(WorkloadError, "points", f"be at most {MAX_POINTS:.0e}", self.num_points, self.place)

    @property
    def num_points(self) -> int:
        """Points, those that are given twice counted twice."""
        return (prod(map(len, self.axes)) if self.axes else 0) + len(self.explicit)

    def points(self) -> Iterator[dict[str, Setting]]:
        """Yield the settings of each point: the grid, then the points beside it."""
        if self.axes:
            for chosen in product(*self.axes):
                yield {**self.fixed, **{name: value for part in chosen for name, value in part.items()}}
        for point in self.explicit:
            yield {**self.fixed, **point}

    def inputs(self) -> dict[str, ColumnKind]:
        """Return the settings that points have, as columns in the order of the plan."""
        found: dict[str, ColumnKind] = {}
        for part in chain([self.fixed], *self.axes, self.explicit):
            for name, value in part.items():
                kind = _kind_of(value)
                found[name] = kind if found.get(name, kind) is kind else ColumnKind.TEXT
        return found


def _kind_of(value: Setting) -> ColumnKind:
    # A flag is an int to Python, so it is asked for first.
    if isinstance(value, bool):
        return ColumnKind.FLAG
    if isinstance(value, int):
        return ColumnKind.INTEGER
    return ColumnKind.REAL if isinstance(value, float) else ColumnKind.TEXT


def shown_setting(value: Setting, kind: ColumnKind) -> Cell:
    """Return a setting as the cell of a column.

    Examples
    --------
    >>> shown_setting({"async_sched": False}, ColumnKind.TEXT), shown_setting((1, 2), ColumnKind.TEXT)
    ('async_sched=off', '1, 2')
    >>> shown_setting(512, ColumnKind.TEXT), shown_setting(512, ColumnKind.INTEGER)
    ('512', 512)
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={'on' if on else 'off'}" for name, on in sorted(value.items()))
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value) if kind is ColumnKind.TEXT else value


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTask:
    """A point on its way to a worker.

    Attributes
    ----------
    key
        Digest of all that its answer depends on.
    profiles
        Digest of the profiles, part of ``key``.
    folder
        Where relative paths of the plan start.
    """

    key: str
    kind: SweepKind
    settings: Settings
    profiles: str
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PointResult:
    """The answer to a point: a row of figures per degree, or why there is none; ``wall_s`` is what it took."""

    key: str
    rows: tuple[Mapping[str, Cell], ...]
    error: str | None
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSummary:
    """How a sweep went: different points, those of them run now, finished before, and without an answer."""

    num_points: int
    num_run: int
    num_skipped: int
    num_failed: int
    wall_s: float
