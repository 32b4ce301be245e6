"""``tpplanner explain`` as text."""

import textwrap
from collections.abc import Sequence

from tpplanner.domain.explain import ExplainLine
from tpplanner.report.numbers import count, grouped, milliseconds
from tpplanner.units import GIB, MIB, US

WIDTH = 100
_INDENT = 2


def explain_text(title: str, lines: Sequence[ExplainLine]) -> str:
    """Return the explanation, one block per term, readable at 100 columns.

    Parameters
    ----------
    title
        What is explained.
    lines
        The terms in order; ``level`` indents a term below the sum it belongs to.

    Returns
    -------
    str
        Per term its name, its value (times in ms, memory in MiB or GiB) and its equation; below
        them the numbers put in and where they come from.
    """
    names = [" " * (_INDENT * line.level) + line.term for line in lines]
    values = [shown_value(line.value, line.unit) for line in lines]
    name_width = min(max(map(len, names), default=0), 34)
    value_width = max(map(len, values), default=0)
    margin = " " * (name_width + value_width + 4)
    blocks = []
    for line, name, value in zip(lines, names, values, strict=True):
        head = f"{name:<{name_width}}  {value:>{value_width}}  "
        evidence = ", ".join(part for part in (line.provenance, line.source) if part)
        rows = [*_wrapped(line.equation, margin), *_wrapped(line.inputs, margin),
                *_wrapped(f"[{evidence}]" if evidence else "", margin)]
        if rows and len(head) <= len(margin):
            rows[0] = head + rows[0].strip()
        else:
            rows.insert(0, head.rstrip())
        blocks.append("\n".join(rows))
    return "\n".join([title, "=" * min(len(title), WIDTH), *blocks])


def shown_value(value: float, unit: str) -> str:
    """Return a value in the unit that people read.

    Examples
    --------
    >>> shown_value(0.0213, "s"), shown_value(72 * 2**30, "bytes"), shown_value(0.9, "1")
    ('21.3 ms', '72 GiB', '0.9')
    """
    if unit == "s":
        return f"{grouped(value / US)} us" if 0 < abs(value) < 10 * US else f"{milliseconds(value)} ms"
    if unit == "bytes":
        if abs(value) >= GIB:
            return f"{grouped(value / GIB)} GiB"
        return f"{grouped(value / MIB)} MiB" if abs(value) >= MIB else f"{count(value)} bytes"
    return grouped(value) if unit in ("", "1") else f"{grouped(value)} {unit}"


def _wrapped(text: str, margin: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=margin + "  ",
                         break_on_hyphens=False)
