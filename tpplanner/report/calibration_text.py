"""The report of a calibration, and the datasheet of a machine that has none."""

from collections.abc import Iterator, Mapping
from typing import Any

from tpplanner.domain.engine import TaskCost
from tpplanner.domain.engine_fit import EngineFit
from tpplanner.domain.fit_evidence import FitEvidence
from tpplanner.domain.fitted_profile import FittedProfile
from tpplanner.domain.quantity import Quantity
from tpplanner.report.fit_report import kernel_sections

_UNITS = {"fixed_s": "us", "per_seq_s": "us a sequence", "per_log2_tp_s": "us x log2 t",
          "per_seq_per_log2_tp_s": "us a sequence x log2 t", "per_seq_per_vocab_tok_s": "us a sequence and vocabulary token"}


def calibration_report(profile: FittedProfile, evidence: FitEvidence, *, facts: Mapping[str, Any], plot_name: str) -> str:
    """Return the report as Markdown."""
    assert profile.host is not None
    known = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    return "\n".join([
        f"# Calibration of {profile.machine}", "",
        f"Raw samples of `tpplanner calibrate` in `samples/`, fitted to `fitted-{profile.engine}.json` by "
        "`tpplanner calibrate fit`.", "", f"Machine: {known}.", "",
        *_host(profile.host), "", *kernel_sections(evidence, plot_name)])


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
                       *((f"T4 sampling, {policy.value}", task) for policy, task in fit.sampling.items())):
        yield f"| {name} | {_task(task)} |"
    yield f"| small operations of a layer | {_value(fit.layer_overhead_s, 1e6)} us, and their bytes at " \
          f"{_value(fit.elementwise_memory, 100.0)} % of the bandwidth |"


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
