"""Rich tables as text: coloured on a terminal, plain ASCII rules elsewhere."""

from collections.abc import Sequence
from io import StringIO

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

MIN_WIDTH = 80
"""Tables are laid out for at least this many columns: a narrower terminal wraps, and no digit is cut off."""

_RULE = Box(
    "    \n"
    "    \n"
    " -  \n"
    "    \n"
    "    \n"
    " -  \n"
    "    \n"
    "    \n",
    ascii=True,
)
"""A rule under the header and nothing else; ASCII, so that logs and old consoles show it."""


_NEVER_BROKEN = frozenset({"name", "field", "unit"})


def new_table() -> Table:
    """Return an empty table in the style of all tables of the package."""
    return Table(box=_RULE, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")


def add_columns(table: Table, headers: Sequence[str], *, left: Sequence[str] = ()) -> None:
    """Add columns: numbers to the right and never broken, those named in ``left`` to the left."""
    for header in headers:
        if header in left:
            whole = header in _NEVER_BROKEN
            table.add_column(Text(header), justify="left", overflow="fold", vertical="top", no_wrap=whole)
        else:
            table.add_column(Text(header), justify="right", no_wrap=True, vertical="top")


def cell(text: str, style: str = "") -> Text:
    """Return a cell whose text is shown as it is (names may hold brackets)."""
    return Text(text, style=style)


def natural_width(table: Table) -> int:
    """Return the columns that a table fills where nothing is broken or cut."""
    return Console(width=10_000, file=StringIO(), legacy_windows=False, force_jupyter=False).measure(table).maximum


def render(table: Table, *, width: int | None = None, terminal: bool = False) -> str:
    """Return the table as text, without trailing blanks and without a final line break.

    Parameters
    ----------
    table
        What to lay out.
    width
        Columns to fill at most; ``None`` is as wide as the table needs.
    terminal
        Whether the reader is a terminal: colours, unless ``NO_COLOR`` is set.
    """
    stream = StringIO()
    console = Console(
        file=stream, width=10_000 if width is None else max(width, MIN_WIDTH), force_terminal=terminal,
        color_system="standard" if terminal else None, markup=False, emoji=False, highlight=False,
        legacy_windows=False, force_jupyter=False,
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip("\n").split("\n"))
