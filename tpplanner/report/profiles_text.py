"""``tpplanner profiles list`` and ``show`` as text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass

from tpplanner.domain.engine import EngineProfile
from tpplanner.domain.fitted_profile import FittedProfile
from tpplanner.domain.hardware import CollectiveCurve, HardwareProfile
from tpplanner.domain.kernels import Kernel
from tpplanner.domain.quantity import Quantity
from tpplanner.report.numbers import grouped
from tpplanner.report.render import add_columns, cell, new_table, render
from tpplanner.units import GB, GIB, TB, TERA

_READABLE = {
    "bytes/s": (GB, "GB/s"),
    "flop/s": (TERA, "TFLOP/s"),
    "bytes": (GIB, "GiB"),
}
_LEFT = ("name", "title", "link", "aliases", "field", "unit", "provenance", "source", "launcher", "overlap",
         "engine", "operator", "held-out error %, median / p90", "serving runs")
_OPERATORS = ("gemm", "decode_attention", "prefill_attention", "moe")


def hardware_list_text(
    profiles: Sequence[HardwareProfile], *, width: int | None = None, terminal: bool = False
) -> str:
    """Return one row per machine: memory, bandwidth, bf16 peak, link and GPUs per node."""
    rows = [
        (p.name, p.title, grouped(p.hbm_bytes.value / GIB), f"{p.hbm_bytes_s.value / TB:.2f}",
         grouped(p.peak_flop_s["bf16"].value / TERA),
         f"{p.intra_link.name}, {grouped(p.intra_link.bandwidth_bytes_s.value / GB)} GB/s",
         str(p.gpus_per_node))
        for p in profiles
    ]
    headers = ("name", "title", "HBM\nGiB", "HBM\nTB/s", "bf16\nTFLOP/s", "link", "GPUs\n/node")
    return _text(headers, rows, width, terminal)


def engine_list_text(
    profiles: Sequence[EngineProfile], *, width: int | None = None, terminal: bool = False
) -> str:
    """Return one row per engine: what it overlaps, and its defaults."""
    rows = [
        (p.name, p.title, ", ".join(n for n in p.switches.__slots__ if getattr(p.switches, n)) or "none",
         str(p.max_num_seqs), str(p.max_num_batched_tokens), f"{p.gpu_memory_utilization:g}", p.launcher)
        for p in profiles
    ]
    headers = ("name", "title", "overlap", "max_num\n_seqs", "max_num_\nbatched_tok", "memory\nutil.",
               "launcher")
    return _text(headers, rows, width, terminal)


def profile_show_text(
    profile: HardwareProfile | EngineProfile, *, width: int | None = None, terminal: bool = False
) -> str:
    """Return every field of a profile: value, unit, provenance and source."""
    headers = ("field", "value", "unit", "provenance", "source")
    table = _text(headers, list(profile_rows(profile)), width, terminal)
    return f"{profile.name}: {profile.title}\n\n{table}"


def fitted_text(
    profiles: Sequence[FittedProfile], *, width: int | None = None, terminal: bool = False
) -> str:
    """Return one row per engine and operator that was fitted on a machine: its errors on samples held out, per format."""
    rows = []
    for profile in profiles:
        runs = "none" if profile.serving is None else str(profile.serving.num_runs)
        for operator in _OPERATORS:
            table: Mapping[str, Kernel] = getattr(profile.kernels, operator)
            if table:
                errors = ", ".join(_held_out(kernel) for kernel in table.values())
                rows.append((profile.engine, operator, errors, runs))
    if not rows:
        return "Fitted engines: none"
    headers = ("engine", "operator", "held-out error %, median / p90", "serving runs")
    return f"Fitted engines: {', '.join(p.engine for p in profiles)}\n\n{_text(headers, rows, width, terminal)}"


def _held_out(kernel: Kernel) -> str:
    if kernel.held_out_median_frac is None or kernel.held_out_p90_frac is None:
        return f"{kernel.dtype} not measured"
    return f"{kernel.dtype} {100 * kernel.held_out_median_frac:.1f} / {100 * kernel.held_out_p90_frac:.1f}"


def profile_rows(
    record: object, prefix: str = ""
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (field, value, unit, provenance, source) for every entry of a profile, nested names dotted.

    Large units are shown as people read them: GiB, GB/s, TFLOP/s. Plain settings have no provenance,
    and what the profile does not give has no row.
    """
    if isinstance(record, Quantity):
        yield prefix, *_shown(record), _evidence(record), record.source
    elif isinstance(record, CollectiveCurve):
        sizes = f"{len(record.size_bytes)} samples"
        yield f"{prefix}.{record.op.value}.tp{record.tp}", sizes, "", "measured", record.source
    elif is_dataclass(record):
        for field in fields(record):
            if prefix or field.name not in ("name", "title"):
                yield from profile_rows(getattr(record, field.name), _joined(prefix, field.name))
    elif isinstance(record, Mapping):
        for key, value in record.items():
            yield from profile_rows(value, _joined(prefix, str(key)))
    elif isinstance(record, tuple) and any(is_dataclass(entry) for entry in record):
        for entry in record:
            yield from profile_rows(entry, prefix)
    elif record is not None and prefix != "place":
        yield prefix, _plain(record), "", "", ""


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "-"
    return str(value)


def _shown(quantity: Quantity) -> tuple[str, str]:
    scale, unit = _READABLE.get(quantity.unit.lower(), (1, quantity.unit))
    if quantity.unit == "s":
        micro = quantity.value * 1e6
        return (f"{micro:.4g}", "us") if abs(micro) < 1e5 else (f"{quantity.value:.4g}", "s")
    value = quantity.value / scale
    return (f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"), unit


def _evidence(quantity: Quantity) -> str:
    """Return the provenance, with error, range and samples where there are any."""
    parts = []
    if quantity.std_error is not None:
        scale = _READABLE.get(quantity.unit.lower(), (1e-6 if quantity.unit == "s" else 1, ""))[0]
        parts.append(f"+-{quantity.std_error / scale:.2g}")
    if quantity.num_samples is not None:
        parts.append(f"n={quantity.num_samples}")
    if quantity.valid_min is not None or quantity.valid_max is not None:
        low = "" if quantity.valid_min is None else f"{quantity.valid_min:g}"
        high = "" if quantity.valid_max is None else f"{quantity.valid_max:g}"
        parts.append(f"{quantity.valid_for or 'range'} {low}..{high}")
    return quantity.provenance.value + (f" ({', '.join(parts)})" if parts else "")


def _text(
    headers: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, terminal: bool
) -> str:
    table = new_table()
    add_columns(table, headers, left=_LEFT)
    for row in rows:
        table.add_row(*map(cell, row))
    return render(table, width=width, terminal=terminal)
