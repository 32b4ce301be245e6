"""The format of a profile file: records of numbers with unit and source, checked against a schema.

A number is a table ``{value, unit, source}`` with, optionally, ``provenance`` (``datasheet`` unless said),
``std_error``, ``valid_min``, ``valid_max``, ``valid_for``, ``num_samples`` and ``samples`` (a file beside
the profile). ``source`` is a text or a key of the file's ``[sources]`` table. Files use the units that
people use; what leaves this module is in SI. A key that the schema does not have is an error.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

from tpplanner.domain.checks import MAX_COUNT
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.errors import ProfileError, nearest, reject
from tpplanner.units import GB, GIB, KIB, MB, MIB, MS, TB, TERA, US

UNITS: Final[dict[str, dict[str, float]]] = {
    "bytes": {"bytes": 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "MB": MB, "GB": GB, "TB": TB},
    "bytes/s": {"bytes/s": 1, "B/s": 1, "MB/s": MB, "GB/s": GB, "TB/s": TB, "GiB/s": GIB, "Gbit/s": GB / 8},
    "flop/s": {"flop/s": 1, "FLOP/s": 1, "GFLOP/s": 1e9, "TFLOP/s": TERA, "PFLOP/s": 1e15, "TOP/s": TERA},
    "s": {"s": 1, "ms": MS, "us": US, "µs": US, "ns": 1e-9},
    "w": {"w": 1, "W": 1, "kW": 1e3},
    "usd/h": {"usd/h": 1, "USD/h": 1},
    "1": {"1": 1.0, "%": 0.01},
}
"""Friendly units by SI unit, as factors. Case counts: mW is not MW."""

LIMITS: Final[dict[str, float]] = {
    "bytes": 1e14, "bytes/s": 1e15, "flop/s": 1e18, "s": 100.0, "w": 1e5, "usd/h": 1e4, "1": 1e3,
}
"""Above these a number is a typing error (100 TB of HBM, 1000 TB/s, 1 EFLOP/s, 100 s of overhead ...)."""

_RECORD_KEYS: Final = (
    "value", "unit", "source", "provenance", "std_error",
    "valid_min", "valid_max", "valid_for", "num_samples", "samples",
)  # fmt: skip

Field: TypeAlias = str | int | float | bool | tuple[object, ...] | Quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The keys of a file: dotted name -> SI unit of a record, or the Python type of a plain entry."""

    quantities: Mapping[str, str]
    plain: Mapping[str, type]

    def names(self) -> tuple[str, ...]:
        """Return every dotted name."""
        return (*self.quantities, *self.plain)


def read_fields(
    table: Mapping[str, object],
    schema: Schema,
    place: str,
    *,
    sources: Mapping[str, str] | None = None,
    provenance: Provenance = Provenance.DATASHEET,
) -> dict[str, Field]:
    """Return the entries of a table under their dotted names, numbers as SI quantities.

    Parameters
    ----------
    table
        A file's top table, without ``sources``.
    schema
        The keys that it may have.
    place
        The file, for messages.
    sources
        Texts that records refer to by key.
    provenance
        Of records that do not state one.

    Raises
    ------
    ProfileError
        An unknown key, a wrong type or unit, a value out of range.
    """
    fields: dict[str, Field] = {}
    for dotted, item in _flatten(table, schema, place, "").items():
        if dotted in schema.quantities:
            unit = schema.quantities[dotted]
            fields[dotted] = read_quantity(
                dotted, item, unit, place, sources=sources or {}, provenance=provenance
            )
        else:
            fields[dotted] = _read_plain(dotted, item, schema.plain[dotted], place)
    return fields


def _flatten(table: Mapping[str, object], schema: Schema, place: str, prefix: str) -> dict[str, object]:
    known = schema.names()
    flat: dict[str, object] = {}
    for key, item in table.items():
        dotted = prefix + key
        if dotted in known:
            entries = {dotted: item}
        elif any(name.startswith(dotted + ".") for name in known):
            entries = _flatten(as_table(item, dotted, place), schema, place, dotted + ".")
        else:
            siblings = {name[len(prefix) :].split(".")[0] for name in known if name.startswith(prefix)}
            reject_key(prefix, key, siblings, place)
        for name, entry in entries.items():
            if name in flat:
                reject(ProfileError, name, "be given once", entry, place)
            flat[name] = entry
    return flat


def reject_key(prefix: str, key: str, known: set[str], place: str) -> NoReturn:
    """Raise the error of an unknown key, with the nearest known one."""
    hint = nearest(key[:100], sorted(known)) or f"known: {', '.join(sorted(known))}"
    reject(ProfileError, f"{prefix}key", f"be a known one ({hint})", key, place)


def read_sources(data: dict[str, object], place: str) -> dict[str, str]:
    """Take the ``sources`` table out of a file's top table and return it."""
    table = as_table(data.pop("sources", {}), "sources", place)
    for key in table:
        if not key.isprintable():
            reject(ProfileError, "sources", "have printable keys", key, place)
    return {key: read_text(item, f"sources.{key[:60]}", place) for key, item in table.items()}


def as_table(item: object, dotted: str, place: str) -> dict[str, object]:
    """Return a table, or refuse what is none."""
    if not isinstance(item, dict):
        reject(ProfileError, dotted, "be a table", item, place)
    return item


def read_text(item: object, dotted: str, place: str) -> str:
    """Return one line of text, or refuse what is none."""
    if not isinstance(item, str) or not item.strip() or not item.isprintable() or len(item) > 1000:
        reject(ProfileError, dotted, "be one line of text", item, place)
    return item


def read_real(item: object, dotted: str, place: str, maximum: float = math.inf) -> float:
    """Return a finite number from 0 to ``maximum``, or refuse what is none."""
    if isinstance(item, bool) or not isinstance(item, int | float):
        reject(ProfileError, dotted, "be a number", item, place)
    if not 0 <= item <= maximum or not item < 1e300:  # also false for nan; integers may exceed a float
        rule = "be finite and >= 0" if maximum == math.inf else f"be between 0 and {maximum:g}"
        reject(ProfileError, dotted, rule, item if isinstance(item, float) else str(item)[:40], place)
    return float(item)


def read_unit(item: object, dotted: str, si_unit: str, place: str) -> float:
    """Return the factor from a friendly unit to the SI unit of the field."""
    factors = UNITS[si_unit]
    if not isinstance(item, str) or item not in factors:
        reject(ProfileError, f"{dotted}.unit", f"be one of {', '.join(factors)}", item, place)
    return factors[item]


def read_quantity(
    dotted: str,
    item: object,
    si_unit: str,
    place: str,
    *,
    sources: Mapping[str, str],
    provenance: Provenance = Provenance.DATASHEET,
) -> Quantity:
    """Return one record as a quantity in the SI unit of its field.

    Raises
    ------
    ProfileError
        An unknown or missing key, a unit of another kind, a value out of range.
    """
    record = as_table(item, dotted, place)
    for key in record:
        if key not in _RECORD_KEYS:
            reject_key(f"{dotted}.", key, set(_RECORD_KEYS), place)
    for key in ("value", "unit", "source"):
        if key not in record:
            reject(ProfileError, f"{dotted}.{key}", "be given", sorted(record), place)
    factor = read_unit(record["unit"], dotted, si_unit, place)
    maximum = LIMITS[si_unit] / factor
    value = read_real(record["value"], dotted, place, maximum)
    return _checked_quantity(
        place,
        dotted,
        value=scaled(value, factor),
        unit=si_unit,
        provenance=_read_provenance(record, dotted, place, provenance),
        source=_read_source(record, dotted, place, sources),
        std_error=_optional_real(record, "std_error", dotted, place, factor),
        valid_min=_optional_real(record, "valid_min", dotted, place),
        valid_max=_optional_real(record, "valid_max", dotted, place),
        valid_for=_optional_text(record, "valid_for", dotted, place),
        num_samples=_read_num_samples(record, dotted, place),
    )


def _checked_quantity(place: str, dotted: str, **values: Any) -> Quantity:
    try:
        return Quantity(**values)
    except ProfileError as error:
        rule = str(error).removeprefix(f"{values['source']}: ")
        raise ProfileError(f"{place}: {dotted}: {rule}") from None


def _read_provenance(
    record: Mapping[str, object], dotted: str, place: str, default: Provenance
) -> Provenance:
    stated = record.get("provenance", default.value)
    names = [provenance.value for provenance in Provenance]
    if stated not in names:
        reject(ProfileError, f"{dotted}.provenance", f"be one of {', '.join(names)}", stated, place)
    return Provenance(stated)


def _read_source(
    record: Mapping[str, object], dotted: str, place: str, sources: Mapping[str, str]
) -> str:
    stated = read_text(record["source"], f"{dotted}.source", place)
    text = sources.get(stated, stated)
    samples = _optional_text(record, "samples", dotted, place)
    return text if samples is None else f"{text} (samples: {samples})"


def _optional_text(record: Mapping[str, object], key: str, dotted: str, place: str) -> str | None:
    return read_text(record[key], f"{dotted}.{key}", place) if key in record else None


def _optional_real(
    record: Mapping[str, object], key: str, dotted: str, place: str, factor: float = 1.0
) -> float | None:
    return scaled(read_real(record[key], f"{dotted}.{key}", place), factor) if key in record else None


def scaled(value: float, factor: float) -> float:
    """Return value * factor, rounded once: 4.6 us is 4.6e-6 s to the last bit."""
    return value / round(1.0 / factor) if factor < 1.0 else value * factor


def _read_num_samples(record: Mapping[str, object], dotted: str, place: str) -> int | None:
    if "num_samples" not in record:
        return None
    return read_count(record["num_samples"], f"{dotted}.num_samples", place)


def read_count(item: object, dotted: str, place: str) -> int:
    """Return a whole number from 1 to 10**13, or refuse what is none."""
    if isinstance(item, bool) or not isinstance(item, int) or not 1 <= item <= MAX_COUNT:
        shown = str(item)[:40] if isinstance(item, int) else item
        reject(ProfileError, dotted, f"be an integer between 1 and {MAX_COUNT:.0e}", shown, place)
    return item


def _read_plain(dotted: str, item: object, kind: type, place: str) -> Field:
    if kind is bool:
        if not isinstance(item, bool):
            reject(ProfileError, dotted, "be true or false", item, place)
        return item
    if kind is int:
        return read_count(item, dotted, place)
    if kind is float:
        return read_real(item, dotted, place)
    if kind is tuple:
        if not isinstance(item, list):
            reject(ProfileError, dotted, "be a list", item, place)
        return tuple(item)
    return read_text(item, dotted, place)


def text_list(fields: Mapping[str, Field], dotted: str, place: str) -> tuple[str, ...]:
    """Return a list of one-line texts, empty where the file has none."""
    items = fields.get(dotted, ())
    assert isinstance(items, tuple)
    return tuple(read_text(item, dotted, place) for item in items)


def need_quantity(fields: Mapping[str, Field], dotted: str, place: str) -> Quantity:
    """Return a quantity that the profile must have."""
    item = fields.get(dotted)
    if not isinstance(item, Quantity):
        reject(ProfileError, dotted, "be given", "nothing", place)
    return item


def need_text(fields: Mapping[str, Field], dotted: str, place: str) -> str:
    """Return a text that the profile must have."""
    item = fields.get(dotted)
    if not isinstance(item, str):
        reject(ProfileError, dotted, "be given", "nothing", place)
    return item
