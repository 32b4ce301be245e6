"""Numbers of fitted profiles: rounded to what a fit knows, and coefficients between their record and their quantity."""

from collections.abc import Iterable

from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.errors import ProfileError, reject
from tpplanner.io.fitted_records import QuantityRecord


def rounded(value: float, digits: int = 5) -> float:
    """Return the value with so many significant digits, whole numbers as integers.

    Examples
    --------
    >>> rounded(0.123456789), rounded(64.0), rounded(0.0123456, 2)
    (0.12346, 64, 0.012)
    """
    near = float(f"{value:.{digits}g}")
    return int(near) if near.is_integer() and abs(near) < 1e15 else near


def column(values: Iterable[float], digits: int = 5) -> tuple[float, ...]:
    """Return all values rounded."""
    return tuple(rounded(v, digits) for v in values)


def unit_of(name: str) -> str:
    """Return the SI unit that a coefficient's name states."""
    return "s" if name.endswith("_s") else "1"


def quantity_record(quantity: Quantity, *, source: str, num_samples: int | None = None) -> QuantityRecord:
    """Return the record of a coefficient; what the record around it says too is left out."""
    return QuantityRecord(
        value=rounded(quantity.value),
        std_error=None if quantity.std_error is None else rounded(quantity.std_error, 2),
        num_samples=None if quantity.num_samples == num_samples else quantity.num_samples,
        provenance=quantity.provenance.value,
        source=None if quantity.source == source else quantity.source,
    )


def quantity_of(record: QuantityRecord, name: str, *, source: str, num_samples: int | None = None) -> Quantity:
    """Return the coefficient called ``name`` of a record.

    Raises
    ------
    ProfileError
        Its provenance is unknown, or it is a fit without its error.
    """
    kinds = [kind.value for kind in Provenance]
    if record.provenance not in kinds:
        reject(ProfileError, f"{name}.provenance", f"be one of {', '.join(kinds)}", record.provenance)
    return Quantity(
        value=float(record.value), unit=unit_of(name), provenance=Provenance(record.provenance),
        source=record.source or source, std_error=None if record.std_error is None else float(record.std_error),
        num_samples=num_samples if record.num_samples is None else record.num_samples,
    )
