"""Calibration of the machine at hand: samples, the fit, the files of a profile."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from tpplanner.api.calibration_machine import fit_machine, machine_report, machine_tables, with_contention, with_imported
from tpplanner.domain.fit_evidence import FitEvidence
from tpplanner.domain.fitted_profile import FittedProfile, MadeFrom, SourceTable
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.workers import worker_environment
from tpplanner.errors import ProfileError, TpplannerError, nearest
from tpplanner.io.calibration_samples import (
    Ended,
    Progress,
    SessionAsked,
    read_machine,
    round_frame,
    sample_frame,
)
from tpplanner.io.fitted_files import encode_fitted, fitted_name
from tpplanner.io.fitted_write import check_output, write_profile
from tpplanner.io.profile_files import lookup_machine
from tpplanner.io.profile_hardware import load_hardware

FloatArray = NDArray[np.float64]
ENGINE: Final = "tpplanner"
"""Name under which the engine of this package is measured."""
SAMPLES: Final = "samples"
_HEADS: Final = ("num_heads", "num_kv_heads", "head_dim")
BENCHES: Final = {
    "gemm": ("dtype", "num_tok", "out_features", "in_features"),
    "decode_attention": ("kv_dtype", "num_seqs", "context_tok", *_HEADS),
    "prefill_attention": ("kv_dtype", "isl_tok", "prefix_tok", *_HEADS),
    "layer": ("dtype", "num_tok", "hidden_size", "num_columns", *_HEADS),
    "step": ("num_seqs",), "sampling": ("policy", "num_rows", "vocab_size"), "collective": ("op", "tp", "mode", "size_bytes"),
    "host": ("loop", "tp", "num_seqs", "task"), "memory": ("size_bytes", "moved_bytes")}
"""Benchmarks that a fit reads, and what their samples must say."""
_DECODER: Final = msgspec.json.Decoder(Progress | Ended)
_NOTICE: Final = "Measured on this machine by tpplanner calibrate."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibrated:
    """A fitted profile, its evidence, and where they were written."""

    profile: FittedProfile
    evidence: FitEvidence
    paths: tuple[Path, ...]


def fit_samples(folder: Path, machine: str) -> tuple[FittedProfile, FitEvidence, str | None]:
    """Fit the samples of a folder; the last value is a datasheet for a machine that has none.

    Raises
    ------
    ProfileError
        If the folder holds no samples, or a benchmark is missing.
    """
    from tpplanner.fit.calibration_drift import contention_with_drift, engine_with_drift, kernels_with_drift, machine_drift
    from tpplanner.fit.calibration_host import fit_engine
    from tpplanner.fit.calibration_kernels import Peaks, fit_kernels, measured_peaks

    facts = read_machine(folder)
    frames = {name: sample_frame(folder, name, columns) for name, columns in BENCHES.items()}
    missing = [name for name in BENCHES if frames[name].empty and name != "collective"]
    if missing:
        raise ProfileError(f"{folder}: has no samples of {', '.join(missing)}; run tpplanner calibrate again, it goes on")
    source = f"{SAMPLES}/ of {machine}: tpplanner calibrate, torch {facts.get('torch')}"
    sheet = None
    if lookup_machine(machine) is None or facts["device"] == "cpu":
        peaks = measured_peaks(gemm=frames["gemm"], memory=frames["memory"], decode=frames["decode_attention"],
                               cache_bytes=float(facts["cache_bytes"]))
        sheet = _datasheet(facts, peaks.flop_s, peaks.bytes_s)
    else:
        peaks = Peaks(**_peaks_of(load_hardware(machine)))
    kernels = fit_kernels(gemm=frames["gemm"], decode=frames["decode_attention"], prefill=frames["prefill_attention"],
                          collective=frames["collective"], peaks=peaks, source=source)
    host = fit_engine(host=frames["host"], sampling=frames["sampling"], layer=frames["layer"], step=frames["step"],
                      hbm_bytes_s=peaks.bytes_s, source=source)
    drift = machine_drift(round_frame(folder, name) for name in BENCHES)
    evidence = replace(kernels.evidence, warnings=(*kernels.evidence.warnings, _drift_note(drift)))
    tables = tuple(SourceTable(path=f"{SAMPLES}/{name}.jsonl", framework_version=str(facts.get("torch")),
                               num_rows=len(frame)) for name, frame in frames.items() if not frame.empty)
    machine_fit = with_contention(
        fit_machine(folder, facts, peaks, source=source), contention_with_drift(kernels.contention, drift or 0.0), source=source)
    tables += machine_tables(folder, machine_fit, path=SAMPLES, version=str(facts.get("torch")))
    profile = FittedProfile(
        machine=machine, engine=ENGINE, kernels=kernels_with_drift(kernels.kernels, drift or 0.0), serving=None,
        host=engine_with_drift(host, drift or 0.0), machine_fit=machine_fit,
        collectives=with_imported([error.curve for error in kernels.evidence.collective_errors], machine, facts),
        made_from=MadeFrom(package="tpplanner calibrate", version=str(facts.get("torch")), tables=tables, notice=_NOTICE))
    return profile, evidence, sheet


def _drift_note(drift: float | None) -> str:
    if drift is None:
        return "one pass over the cases: standard errors do not know how the machine's speed drifts"
    return (f"between passes over the same cases the machine's speed moved by {drift:.1%} (standard deviation); the standard "
            "errors in the fitted file and of the host tasks contain it, those of the table of kernels do not")


def _peaks_of(hardware: HardwareProfile) -> dict[str, Any]:
    return {"flop_s": {name: peak.value for name, peak in hardware.peak_flop_s.items()},
            "bytes_s": hardware.hbm_bytes_s.value}


def _datasheet(facts: Mapping[str, Any], flop_s: Mapping[str, float], bytes_s: float) -> str:
    from tpplanner.report.calibration_text import datasheet_toml

    is_cpu = facts["device"] == "cpu"
    memory = facts["host_memory_bytes"] if is_cpu else facts["memory_bytes"]
    name = str(facts["name"]).replace('"', "")
    return datasheet_toml(title=f"{name}, one thread a rank" if is_cpu else name, vendor=name.split()[0],
                          memory_bytes=float(memory), bytes_s=bytes_s, flop_s=flop_s,
                          num_devices=int(facts["num_cores"] if is_cpu else facts["num_gpus"]))


def fit_calibration(root: Path, machine: str, *, overwrite: bool = False) -> Calibrated:
    """Fit the samples in ``root/machine/samples`` and write the files of the profile beside them.

    Raises
    ------
    ProfileError
        If there are no samples, or they hold nonsense.
    OutputError
        If a file exists and ``overwrite`` is false, or cannot be written.
    """
    from tpplanner.api.calibration_compared import compared_sections
    from tpplanner.report.calibration_text import calibration_report
    from tpplanner.report.fit_plots import fit_plot_png

    folder = root / machine
    names = (fitted_name(ENGINE), f"fit_report-{ENGINE}.md", f"fit_report-{ENGINE}.png")
    check_output(root, machine, names, overwrite=overwrite)
    profile, evidence, sheet = fit_samples(folder / SAMPLES, machine)
    report = calibration_report(profile, evidence, facts=read_machine(folder / SAMPLES), plot_name=names[2])
    report += machine_report(folder / SAMPLES, profile.machine_fit)
    report += compared_sections(folder, profile, evidence, facts=read_machine(folder / SAMPLES))
    plot = fit_plot_png(evidence.residuals, title=f"{ENGINE} on {machine}")
    files = dict(zip(names, (encode_fitted(profile), report.encode(), plot), strict=True))
    if sheet is not None:
        files["datasheet.toml"] = sheet.encode()
    return Calibrated(profile=profile, evidence=evidence, paths=write_profile(root, machine, files, overwrite=overwrite))


def calibrated_machines(root: Path) -> list[str]:
    """Machines whose samples a folder of profiles holds."""
    return sorted(path.parent.parent.name for path in root.glob(f"*/{SAMPLES}/machine.json"))


def chosen_machine(root: Path, named: str | None) -> str:
    """Return the machine that was named, or the only one there.

    Raises
    ------
    ProfileError
        If there is none, or several and none was named.
    """
    known = calibrated_machines(root)
    if named is not None and named in known:
        return named
    if named is not None:
        raise ProfileError(f"--machine: no samples of {named} in {root}. {nearest(named, known)}".rstrip())
    if len(known) != 1:
        raise ProfileError(f"{root}: holds samples of {', '.join(known) or 'no machine'}; "
                           + ("name one with --machine" if known else "tpplanner calibrate takes them"))
    return known[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRun:
    """A run of the microbenchmarks: the machine's name, its folder of samples, and what went wrong."""

    machine: str
    folder: Path
    problems: tuple[str, ...]


def take_samples(
    root: Path, *, scope: str = "default", machine: str | None = None, models: Sequence[str] = (), device: str = "auto",
    degrees: Sequence[int] = (), report: Callable[[Progress], None] = lambda progress: None,
) -> SampleRun:
    """Run the microbenchmarks, or what is left of them, and append their samples to ``root/<machine>/samples``.

    Parameters
    ----------
    root
        Folder of profiles.
    scope
        ``quick``, ``default`` or ``full``.
    machine
        Name of the profile; by default that of the GPU or the processor.
    models
        Directories or packaged names whose shapes are measured.
    device
        ``auto``, ``cpu`` or ``cuda``.
    degrees
        Tensor-parallel degrees whose shares are measured, on one device.
    report
        Called after each case.

    Raises
    ------
    TpplannerError
        If a model cannot be read, or a sample cannot be written: those before it stay, and the next run goes on.
    """
    asked = SessionAsked(root=str(root.absolute()), scope=scope, machine=machine, models=tuple(models), device=device,
                         degrees=tuple(degrees))
    command = [sys.executable, "-m", "calibrate"]
    # What a worker of the engine finds in its environment, so that what is timed is what it does.
    with subprocess.Popen(command, env=worker_environment(EngineConfig(model="", num_threads=1)), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(msgspec.json.encode(asked))
        child.stdin.close()
        last: Progress | Ended | None = None
        for line in child.stdout:
            last = _DECODER.decode(line)
            if isinstance(last, Progress):
                report(last)
    if not isinstance(last, Ended):
        raise TpplannerError(f"calibrate: the measuring process ended with code {child.returncode}; run it again to go on")
    if last.error:
        raise TpplannerError(last.error)
    return SampleRun(machine=last.machine, folder=root / last.machine / SAMPLES, problems=last.problems)
