"""The part of a calibration's report on the machine itself: power, copies between host and device, launches."""

from collections.abc import Iterator

import pandas as pd

from tpplanner.domain.hardware import Contention, Power
from tpplanner.domain.machine_fit import HostLinkFit, MachineFit
from tpplanner.domain.quantity import Quantity
from tpplanner.units import US

_KINDS = {"dispatch": "the host's dispatch, each", "launch": "on the device, launched one by one",
          "graph": "on the device, in a replayed graph"}


def machine_sections(
    fit: MachineFit | None, *, power: pd.DataFrame, copies: pd.DataFrame, launch: pd.DataFrame
) -> Iterator[str]:
    """Yield the lines; frames are of ``io.calibration_samples.sample_frame`` and may be empty."""
    yield from ("", "## Devices that share a memory", "")
    yield from _contention(() if fit is None else fit.contention)
    yield from ("", "## Power", "")
    yield from _power(None if fit is None else fit.power, power)
    yield from ("", "## Copies between host and device", "")
    yield from _copies(None if fit is None else fit.host_link, copies)
    yield from ("", "## Launches", "")
    yield from _launches(launch)
    yield ""


def _contention(contention: tuple[Contention, ...]) -> Iterator[str]:
    if not contention:
        yield "Kernels were not timed with other devices at work: each device counts with its own rates."
        return
    yield from ("What each keeps of its own rates while so many work, +- standard error.", "")
    yield from ("| devices at work | arithmetic % | bandwidth % |", "|---|---|---|")
    for one in contention:
        yield f"| {one.num_busy} | {_value(one.compute_frac, 100.0)} | {_value(one.memory_frac, 100.0)} |"


def _value(quantity: Quantity, scale: float = 1.0, digits: int = 4) -> str:
    error = "" if quantity.std_error is None else f" +- {quantity.std_error * scale:.2g}"
    return f"{quantity.value * scale:.{digits}g}{error}"


def _power(fit: Power | None, rows: pd.DataFrame) -> Iterator[str]:
    if rows.empty:
        yield "Not measured: no counter of energy on this machine. Power stays that of the datasheet or the defaults."
        return
    yield from ("| state | mean W | over its time +- | GB/s | TFLOP/s |", "|---|---|---|---|---|")
    filled = rows.reindex(columns=["state", "mean_w", "std_error_w", "moved_bytes_per_s", "work_flop_per_s"])
    for state, mean_w, error_w, bytes_s, flop_s in filled.itertuples(index=False, name=None):
        cells = ("" if pd.isna(v) else f"{v:.4g}" for v in (mean_w, error_w, bytes_s * 1e-9, flop_s * 1e-12))
        yield f"| {state} | {' | '.join(cells)} |"
    yield ""
    if fit is None:
        yield ("The limit in force is not known, or these states do not tell work, memory and arithmetic apart: power stays that "
               "of the datasheet or the defaults.")
        return
    yield (f"Idle {_value(fit.idle_w)} W, limit {_value(fit.board_w)} W; of the difference a busy device draws "
           f"{_value(fit.busy_frac, 100.0)} %, full bandwidth {_value(fit.memory_frac, 100.0)} %, full arithmetic "
           f"{_value(fit.compute_frac, 100.0)} %.")
    bound = [name for name in ("busy_frac", "memory_frac", "compute_frac") if getattr(fit, name).value in (0.0, 1.0)]
    if bound:
        yield from ("", f"At a bound: {', '.join(bound)}.")


def _copies(fit: HostLinkFit | None, rows: pd.DataFrame) -> Iterator[str]:
    if rows.empty:
        yield "Not measured: on a CPU the device's memory is the host's."
        return
    yield from ("| direction | memory | least us | best GB/s |", "|---|---|---|---|")
    for (direction, kind), own in rows.groupby(["direction", "kind"], sort=False):
        least_s, rate = float(own["latency_s"].min()), float((own["moved_bytes"] / own["latency_s"]).max())
        yield f"| {direction} | {kind} | {least_s / US:.4g} | {rate / 1e9:.4g} |"
    yield ""
    if fit is None:
        yield "Too few sizes of pinned copies in both directions: the host link stays that of the datasheet."
        return
    for name, copy in (("to the device", fit.to_device), ("to the host", fit.to_host)):
        yield f"- {name}: {_value(copy.alpha_s, 1e6)} us + bytes at {_value(copy.bandwidth_bytes_s, 1e-9)} GB/s"
    link = fit.link("host link")
    yield from ("", f"A swap moves there and back one after the other: {_value(link.bandwidth_bytes_s, 1e-9)} GB/s.")


def _launches(rows: pd.DataFrame) -> Iterator[str]:
    if rows.empty:
        yield "Not measured."
        return
    times_s = {str(kind): float(own["latency_s"].median()) for kind, own in rows.groupby("kind")}
    yield from ("One addition to one number:", "", "| how | us |", "|---|---|")
    for kind, words in _KINDS.items():
        if kind in times_s:
            yield f"| {words} | {times_s[kind] / US:.4g} |"
    yield from ("", "For information: no term of the cost model takes these. The cost of small operations comes from the layer "
                    "benchmark.")
    if {"launch", "graph"} <= times_s.keys():
        more_s = times_s["launch"] - times_s["graph"]
        yield (f"A step outside graphs would add {more_s / US:.2g} us per operation on the device, where the host runs ahead "
               "of it.")
