"""Hardware profiles: ``<machine>/datasheet.toml``, with ``fitted.json`` laid over it.

A datasheet inherits documented defaults by name, ``inherits = ["base", "hopper", "nvlink-4", ...]``, from
the ``defaults.toml`` of its folder of profiles (or the packaged one). Later layers win: defaults in the
order listed, the datasheet, then ``fitted.json``, which is

    {"machine": "h100-sxm", "date": "...", "command": "...",
     "quantities": {"efficiency.gemm_memory": {"value": ..., "unit": "1", "std_error": ..., ...}},
     "collectives": [{"op": "all_reduce", "tp": 2, "size": {...}, "latency": {...}, "source": "..."}]}

with the dotted names of the datasheet. Its records are ``fitted`` unless they say otherwise.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tpplanner.domain.hardware import (
    CollectiveCurve,
    CollectiveOp,
    Efficiency,
    HardwareProfile,
    Link,
    Power,
)
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.errors import ProfileError, reject
from tpplanner.io.profile_files import (
    DEFAULTS,
    FITTED,
    find_machine,
    machine_files,
    packaged_root,
    read_json,
    read_toml,
    shown,
)
from tpplanner.io.profile_records import (
    Field,
    Schema,
    as_table,
    need_quantity,
    need_text,
    read_count,
    read_fields,
    read_real,
    read_sources,
    read_text,
    read_unit,
    reject_key,
    scaled,
    text_list,
)

PEAK_DTYPES: Final = ("bf16", "fp16", "tf32", "fp32", "fp8", "int8", "fp6", "fp4", "nvfp4", "mxfp4", "int4")
LINKS: Final = ("intra_link", "inter_link", "host_link")
_EFFICIENCIES: Final = tuple(Efficiency.__slots__)
_QUANTITIES: Final[dict[str, str]] = {
    "hbm_bytes": "bytes",
    "hbm_bytes_s": "bytes/s",
    **{f"peak_flop_s.{dtype}": "flop/s" for dtype in PEAK_DTYPES},
    **{
        f"{link}.{field}": unit
        for link in LINKS
        for field, unit in (("bandwidth_bytes_s", "bytes/s"), ("alpha_s", "s"), ("busbw_frac", "1"))
    },
    **{f"efficiency.{name}": "1" for name in _EFFICIENCIES},
    "power.idle_w": "w",
    "power.board_w": "w",
    **{f"power.{name}": "1" for name in ("busy_frac", "memory_frac", "compute_frac")},
    "runtime_bytes": "bytes",
    "runtime_bytes_per_rank": "bytes",
    "price_usd_h": "usd/h",
}
_PLAIN: Final[dict[str, type]] = {
    "title": str,
    "vendor": str,
    "aliases": tuple,
    "inherits": tuple,
    "gpus_per_node": int,
    "link_domain_gpus": int,
    **{f"{link}.name": str for link in LINKS},
    "collectives": tuple,
}
SCHEMA: Final = Schema(quantities=_QUANTITIES, plain=_PLAIN)
_DEFAULTS_SCHEMA: Final = Schema(
    quantities=_QUANTITIES,
    plain={"gpus_per_node": int, "link_domain_gpus": int, **{f"{link}.name": str for link in LINKS}},
)
_FITTED_SCHEMA: Final = Schema(quantities=_QUANTITIES, plain={})
_FITTED_KEYS: Final = ("machine", "date", "command", "notes", "sources", "quantities", "collectives")
_CURVE_KEYS: Final = ("op", "tp", "size", "latency", "source", "provenance")


def known_hardware(*, extra_dirs: Sequence[Path] = ()) -> tuple[str, ...]:
    """Return the names of all machines that can be loaded, sorted.

    Examples
    --------
    >>> "h100-sxm" in known_hardware()
    True
    """
    return tuple(machine_files(extra_dirs))


def load_hardware(name: str, *, extra_dirs: Sequence[Path] = ()) -> HardwareProfile:
    """Return a machine by name, alias or path.

    Parameters
    ----------
    name
        ``h100-sxm``, an alias such as ``H100_SXM``, a machine's folder or its ``datasheet.toml``.
    extra_dirs
        Folders of profiles, searched after ``TPPLANNER_PROFILES`` and before the packaged ones.

    Raises
    ------
    ProfileError
        No such machine, or its files are malformed: one line with the file, the field and the rule.

    Examples
    --------
    >>> h100 = load_hardware("h100_sxm")
    >>> h100.name, h100.hbm_bytes_s.value
    ('h100-sxm', 3350000000000.0)
    """
    return read_hardware(find_machine(name, extra_dirs))


def read_hardware(datasheet: Path) -> HardwareProfile:
    """Return the machine of one ``datasheet.toml``, with defaults below and ``fitted.json`` above it.

    Raises
    ------
    ProfileError
        A file is malformed or the machine is incomplete.
    """
    place = shown(datasheet)
    own = _read_datasheet(datasheet)
    fields: dict[str, Field] = {}
    for part in _read_defaults(datasheet, text_list(own, "inherits", place)):
        fields |= part
    fields |= own
    curves = {(curve.op, curve.tp): curve for curve in _curves(fields)}
    fitted = datasheet.parent / FITTED
    if fitted.is_file():
        quantities, measured = _read_fitted(fitted, datasheet.absolute().parent.name)
        fields |= quantities
        curves |= {(curve.op, curve.tp): curve for curve in measured}
    try:
        return _build(datasheet, fields, tuple(curves.values()))
    except ProfileError as error:
        message = str(error)
        raise ProfileError(message if message.startswith(place) else f"{place}: {message}") from None


def _read_datasheet(path: Path) -> dict[str, Field]:
    data, place = read_toml(path), shown(path)
    sources = read_sources(data, place)
    fields = read_fields(data, SCHEMA, place, sources=sources)
    if "collectives" in fields:
        fields["collectives"] = tuple(_read_curves(fields["collectives"], place, sources))
    return fields


def _read_defaults(datasheet: Path, names: tuple[str, ...]) -> list[dict[str, Field]]:
    """Return the parts of ``defaults.toml`` that a datasheet inherits, in its order."""
    if not names:
        return []
    beside = datasheet.absolute().parent.parent / DEFAULTS
    path = beside if beside.is_file() else packaged_root() / DEFAULTS
    data, place = read_toml(path), shown(path)
    sources = read_sources(data, place)
    parts = []
    for name in names:
        if name not in data:
            reject_key("inherits.", name, set(filter(str.isprintable, data)), shown(datasheet))
        part = as_table(data[name], name, place)
        parts.append(read_fields(part, _DEFAULTS_SCHEMA, f"{place} [{name}]", sources=sources))
    return parts


def _read_fitted(path: Path, machine: str) -> tuple[dict[str, Field], list[CollectiveCurve]]:
    data, place = read_json(path), shown(path)
    sources = read_sources(data, place)
    for key in data:
        if key not in _FITTED_KEYS:
            reject_key("", key, set(_FITTED_KEYS), place)
    if data.get("machine", machine) != machine:
        reject(ProfileError, "machine", f"be {machine}, as the folder", data["machine"], place)
    for key in ("date", "command", "notes"):
        if key in data:
            read_text(data[key], key, place)
    table = as_table(data.get("quantities", {}), "quantities", place)
    fields = read_fields(table, _FITTED_SCHEMA, place, sources=sources, provenance=Provenance.FITTED)
    return fields, _read_curves(data.get("collectives", []), place, sources)


def _read_curves(items: object, place: str, sources: Mapping[str, str]) -> list[CollectiveCurve]:
    if not isinstance(items, list | tuple):
        reject(ProfileError, "collectives", "be a list of tables", items, place)
    curves = [_read_curve(item, f"collectives[{i}]", place, sources) for i, item in enumerate(items)]
    keys = [(curve.op.value, curve.tp) for curve in curves]
    for key in keys:
        if keys.count(key) > 1:
            reject(ProfileError, "collectives", "have one curve per op and tp", key, place)
    return curves


def _read_curve(item: object, dotted: str, place: str, sources: Mapping[str, str]) -> CollectiveCurve:
    table = as_table(item, dotted, place)
    for key in table:
        if key not in _CURVE_KEYS:
            reject_key(f"{dotted}.", key, set(_CURVE_KEYS), place)
    for key in ("op", "tp", "size", "latency", "source"):
        if key not in table:
            reject(ProfileError, f"{dotted}.{key}", "be given", sorted(table), place)
    ops = [op.value for op in CollectiveOp]
    if table["op"] not in ops:
        reject(ProfileError, f"{dotted}.op", f"be one of {', '.join(ops)}", table["op"], place)
    if table.get("provenance", Provenance.MEASURED.value) != Provenance.MEASURED.value:
        reject(ProfileError, f"{dotted}.provenance", "be measured", table["provenance"], place)
    source = read_text(table["source"], f"{dotted}.source", place)
    op, tp = CollectiveOp(table["op"]), read_count(table["tp"], f"{dotted}.tp", place)
    sizes = _read_values(table["size"], f"{dotted}.size", "bytes", place)
    times = _read_values(table["latency"], f"{dotted}.latency", "s", place)
    text = sources.get(source, source)
    try:
        return CollectiveCurve(op=op, tp=tp, size_bytes=sizes, latency_s=times, source=text)
    except ProfileError as error:
        raise ProfileError(f"{place}: {dotted}: {str(error).removeprefix(text + ': ')}") from None


def _read_values(item: object, dotted: str, unit: str, place: str) -> tuple[float, ...]:
    table = as_table(item, dotted, place)
    if set(table) != {"values", "unit"} or not isinstance(table["values"], list):
        reject(ProfileError, dotted, "be {values = [...], unit = ...}", table, place)
    factor = read_unit(table["unit"], dotted, unit, place)
    return tuple(scaled(read_real(value, f"{dotted}.values", place), factor) for value in table["values"])


def _curves(fields: Mapping[str, Field]) -> Iterable[CollectiveCurve]:
    items = fields.get("collectives", ())
    return [item for item in items if isinstance(item, CollectiveCurve)] if isinstance(items, tuple) else []


def _build(
    datasheet: Path, fields: Mapping[str, Field], curves: tuple[CollectiveCurve, ...]
) -> HardwareProfile:
    place = shown(datasheet)
    name = datasheet.absolute().parent.name
    read_text(name, "the folder's name", place)
    per_node = fields.get("gpus_per_node")
    if not isinstance(per_node, int):
        reject(ProfileError, "gpus_per_node", "be given", "nothing", place)
    domain = fields.get("link_domain_gpus")
    if isinstance(domain, int) and domain > per_node:
        reject(ProfileError, "link_domain_gpus", f"be at most gpus_per_node {per_node}", domain, place)
    price = fields.get("price_usd_h")

    def need(dotted: str) -> Quantity:
        return need_quantity(fields, dotted, place)

    return HardwareProfile(
        name=name,
        title=need_text(fields, "title", place),
        vendor=need_text(fields, "vendor", place),
        hbm_bytes=need("hbm_bytes"),
        hbm_bytes_s=need("hbm_bytes_s"),
        peak_flop_s={
            dtype: need(f"peak_flop_s.{dtype}") for dtype in PEAK_DTYPES if f"peak_flop_s.{dtype}" in fields
        },
        intra_link=_link(fields, "intra_link", place),
        inter_link=_link(fields, "inter_link", place),
        host_link=_link(fields, "host_link", place),
        gpus_per_node=per_node,
        efficiency=Efficiency(**{field: need(f"efficiency.{field}") for field in _EFFICIENCIES}),
        power=Power(**{field: need(f"power.{field}") for field in Power.__slots__}),
        runtime_bytes=need("runtime_bytes"),
        runtime_bytes_per_rank=need("runtime_bytes_per_rank"),
        price_usd_h=price if isinstance(price, Quantity) else None,
        aliases=text_list(fields, "aliases", place),
        collectives=curves,
        link_domain_gpus=domain if isinstance(domain, int) else None,
        place=place,
    )


def _link(fields: Mapping[str, Field], link: str, place: str) -> Link:
    return Link(
        name=need_text(fields, f"{link}.name", place),
        bandwidth_bytes_s=need_quantity(fields, f"{link}.bandwidth_bytes_s", place),
        alpha_s=need_quantity(fields, f"{link}.alpha_s", place),
        busbw_frac=need_quantity(fields, f"{link}.busbw_frac", place),
    )
