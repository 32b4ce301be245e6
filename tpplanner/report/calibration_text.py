"""The report of a calibration, and the datasheet of a machine that has none."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tpplanner.domain.engine import TaskCost
from tpplanner.domain.engine_fit import EngineFit
from tpplanner.domain.fit_evidence import FitEvidence, KernelResiduals
from tpplanner.domain.fitted_drift import Drift, coefficients
from tpplanner.domain.fitted_profile import FittedProfile
from tpplanner.domain.quantity import Quantity
from tpplanner.report.drift_text import MOVED, drift_text
from tpplanner.report.fit_report import kernel_sections

_UNITS = {"fixed_s": "us", "per_seq_s": "us a sequence", "per_log2_tp_s": "us x log2 t",
          "per_seq_per_log2_tp_s": "us a sequence x log2 t", "per_seq_per_vocab_tok_s": "us a sequence and vocabulary token"}

NUM_SHAPES = 5
"""Of each kernel in the table of residuals."""


def calibration_report(profile: FittedProfile, evidence: FitEvidence, *, facts: Mapping[str, Any], plot_name: str) -> str:
    """Return the report as Markdown."""
    assert profile.host is not None
    known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    return "\n".join([
        f"# Calibration of {profile.machine}", "",
        f"Raw samples of `tpplanner calibrate` in `samples/`, fitted to `fitted-{profile.engine}.json` by "
        "`tpplanner calibrate fit`.", "", f"Machine: {known}.", "",
        *_host(profile.host), "", *kernel_sections(evidence, plot_name), ""])


def _value(quantity: Quantity, scale: float) -> str:
    error = "" if quantity.std_error is None else f" +- {quantity.std_error * scale:.2g}"
    return f"{quantity.value * scale:.4g}{error}"


def _task(task: TaskCost) -> str:
    given = {name: getattr(task, name) for name in _UNITS}
    return "; ".join(f"{_value(q, 1e6)} {_UNITS[name]}" for name, q in given.items() if q is not None)


def _host(fit: EngineFit) -> Iterator[str]:
    yield from ("## Host tasks, sampling, small kernels", "", "Coefficients +- standard error; each task is their sum.", "")
    yield from ("| what | time |", "|---|---|")
    for name, task in (("T1 schedule", fit.schedule), ("T2 prepare input, with the way to the device", fit.prepare_input),
                       ("T5 process output, with the way back", fit.process_output),
                       ("exposed although everything overlaps", fit.exposed),
                       ("device, outside layers, LM head and sampling", fit.step_overhead),
                       ("device, longer after it waited for the host", fit.restart),
                       *((f"T4 sampling, {policy.value}", task) for policy, task in fit.sampling.items())):
        yield f"| {name} | {_task(task)} |"
    yield f"| small operations of a layer | {_value(fit.layer_overhead_s, 1e6)} us, and their bytes at " \
          f"{_value(fit.elementwise_memory, 100.0)} % of the bandwidth |"


class Rate(NamedTuple):
    """A measured rate beside the datasheet's, both in ``unit``; ``None`` where there is none."""

    what: str
    measured: float | None
    sheet: float | None
    unit: str


def datasheet_section(rates: Sequence[Rate], title: str | None) -> Iterator[str]:
    """Yield the best rates among the samples as shares of a datasheet; ``title`` is ``None`` where the machine has none."""
    yield from ("## Comparison with the datasheet", "")
    if title is None:
        yield "The package has no datasheet of this machine: the rates stand alone."
    else:
        yield f"The best among the samples, and its share of what the packaged datasheet of {title} says."
    yield from ("", "| what | best measured | datasheet | share % |", "|---|---|---|---|")
    for rate in rates:
        measured = "-" if rate.measured is None else f"{rate.measured:.4g} {rate.unit}"
        if rate.measured is None or rate.sheet is None:
            yield f"| {rate.what} | {measured} | - | - |"
        else:
            yield f"| {rate.what} | {measured} | {rate.sheet:.4g} {rate.unit} | {100 * rate.measured / rate.sheet:.1f} |"


def drift_section(every: Sequence[Drift], before: str) -> Iterator[str]:
    """Yield the coefficients of an earlier fit and of this one; ``before`` names it, or says why there is none."""
    yield from ("## Drift", "")
    if not every:
        yield before
        return
    yield f"Against {before}; `moved`: by more than {MOVED:g} standard errors of the difference."
    yield from ("", "```", drift_text(every, first="before", second="this fit"), "```")


def boundary_section(profile: FittedProfile) -> Iterator[str]:
    """Yield the coefficients that ended at 0, or a share at 1: the samples do not tell them from it."""
    yield from ("## At boundary", "")
    kernels = [f"{name}.{dtype}: {note}" for name in ("gemm", "decode_attention", "prefill_attention", "moe")
               for dtype, kernel in getattr(profile.kernels, name).items() for note in kernel.notes if "at its bound" in note]
    found = [f"{name} is at its bound {quantity.value:g}: not identified" for name, quantity in _bounded(profile)
             if quantity.std_error is not None and (quantity.value == 0 or (quantity.unit == "1" and quantity.value == 1))]
    yield from [f"- {line}" for line in (*kernels, *found)] or ["No coefficient."]


def _bounded(profile: FittedProfile) -> Iterator[tuple[str, Quantity]]:
    """Yield what is not a kernel's and cannot be below 0; kernels have bounds of their own, and notes."""
    of_kernels = ("gemm.", "decode_attention.", "prefill_attention.", "moe.")
    yield from ((name, q) for name, q in coefficients(profile).items() if not name.startswith(of_kernels))


def shape_section(every: Sequence[KernelResiduals]) -> Iterator[str]:
    """Yield the shapes of each kernel that the fit misses most: all sizes but the one that the samples of a shape go over."""
    yield from (
        "## Residuals by shape", "",
        f"The {NUM_SHAPES} worst shapes of each kernel: error of the fit in percent, over the samples of a shape, which go over "
        f"{' or '.join(dict.fromkeys(r.driver for r in every))}.", "")
    yield from ("| operator | dtype | shape | samples | median absolute | mean, signed | largest |", "|---" * 7 + "|")
    for residuals in every:
        found = [(float(np.median(np.abs(errors))), shape, errors) for shape, errors in _by_shape(residuals)]
        for median, shape, errors in sorted(found, key=lambda one: -one[0])[:NUM_SHAPES]:
            largest = errors[np.argmax(np.abs(errors))]
            yield (f"| {residuals.operator} | {residuals.kernel.dtype} | {shape} | {errors.size} | {median:.1f} | "
                   f"{errors.mean():+.1f} | {largest:+.1f} |")


def _by_shape(residuals: KernelResiduals) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.float64]]]]:
    names = [name for name, sizes in residuals.sizes.items() if name != residuals.driver and np.all(np.isfinite(sizes))]
    shapes = np.column_stack([residuals.sizes[name] for name in names])
    for shape in np.unique(shapes, axis=0):
        chosen = np.all(shapes == shape, axis=1)
        yield " ".join(f"{n}={v:.0f}" for n, v in zip(names, shape, strict=True)), 100 * residuals.error_frac[chosen]


def datasheet_toml(*, title: str, vendor: str, memory_bytes: float, bytes_s: float, flop_s: Mapping[str, float],
                   num_devices: int) -> str:
    """Return the datasheet of a machine from the best rates that were measured on it; links and power stay defaults."""
    best = max(flop_s.values())
    rates = {"bf16": best, **flop_s}
    lines = [
        "# Written by tpplanner calibrate fit: the rates are the best that were measured, not a manufacturer's.",
        f'title = "{title}"', f'vendor = "{vendor}"', 'inherits = ["base", "peers-pcie-4", "ethernet-100", "host-pcie-4"]',
        f"gpus_per_node = {num_devices}",
        f'hbm_bytes = {{value = {memory_bytes / 2**30:.4f}, unit = "GiB", provenance = "measured", source = "memory"}}',
        f'hbm_bytes_s = {{value = {bytes_s / 1e9:.5g}, unit = "GB/s", provenance = "measured", source = "best"}}',
        "", "[sources]", 'memory = "memory of the host"', 'best = "the best rate among the samples of tpplanner calibrate"',
        'assumed = "assumed: no counter of power was read"',
        "", "[peak_flop_s]",
        *(f'{name} = {{value = {rate / 1e12:.5g}, unit = "TFLOP/s", provenance = "measured", source = "best"}}'
          for name, rate in rates.items()),
        "", "[power]", 'idle_w = {value = 50, unit = "W", source = "assumed"}',
        'board_w = {value = 200, unit = "W", source = "assumed"}', ""]
    return "\n".join(lines)
