"""Two fits side by side, as text."""

from collections.abc import Sequence

from tpplanner.domain.fitted_drift import Drift
from tpplanner.domain.quantity import Quantity

MOVED = 2.0
"""Standard errors of the difference beyond which a coefficient counts as moved."""


def drift_text(every: Sequence[Drift], *, first: str, second: str) -> str:
    """Return a table of the coefficients, those that moved marked, and their number."""
    width = max([len(d.name) for d in every], default=4)
    lines = [f"{'coefficient':<{width}}  {first[-24:]:>24}  {second[-24:]:>24}  ratio  errors"]
    for d in every:
        n = d.num_std_errors
        ratio = f"{d.second.value / d.first.value:5.2f}" if d.first and d.second and d.first.value else "    -"
        mark = "-" if n is None else f"{n:.1f}" + (" moved" if n > MOVED else "")
        lines.append(f"{d.name:<{width}}  {_shown(d.first):>24}  {_shown(d.second):>24}  {ratio}  {mark}")
    judged = [n for d in every if (n := d.num_std_errors) is not None]
    inside = sum(n <= MOVED for n in judged)
    return "\n".join([*lines, f"{inside} of {len(judged)} coefficients within {MOVED:g} standard errors of each other"])


def _shown(quantity: Quantity | None) -> str:
    if quantity is None:
        return "-"
    error = "" if quantity.std_error is None else f" +- {quantity.std_error:.2g}"
    return f"{quantity.value:.4g}{error}"
