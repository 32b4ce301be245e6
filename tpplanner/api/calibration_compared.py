"""A fit beside what is known of the machine: its datasheet, and the fit that was there before."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tpplanner.cost.communication import wire_frac
from tpplanner.domain.fit_evidence import FitEvidence
from tpplanner.domain.fitted_drift import Drift, drift
from tpplanner.domain.fitted_profile import FittedProfile
from tpplanner.domain.hardware import IMPORTED, CollectiveCurve, HardwareProfile
from tpplanner.errors import ProfileError
from tpplanner.io.calibration_samples import sample_frame
from tpplanner.io.fitted_files import decode_fitted, encode_fitted, fitted_name, read_fitted
from tpplanner.io.machine_names import machine_name
from tpplanner.io.profile_files import DATASHEET, packaged_root
from tpplanner.io.profile_hardware import load_hardware
from tpplanner.report.calibration_text import Rate, boundary_section, datasheet_section, drift_section, shape_section
from tpplanner.units import GB, TERA

_PEAK_COLUMNS: Final = {
    "gemm": ("dtype", "num_tok", "out_features", "in_features"), "memory": ("size_bytes", "moved_bytes"),
    "decode_attention": ("kv_dtype", "num_seqs", "context_tok", "num_kv_heads", "head_dim")}


def compared_sections(folder: Path, profile: FittedProfile, evidence: FitEvidence, *, facts: Mapping[str, Any]) -> str:
    """Return the part of the report on datasheet, drift, shapes and bounds as Markdown.

    Parameters
    ----------
    folder
        Of the machine, with its samples; a fitted file in it is the one that is about to be replaced.
    profile, evidence, facts
        The new fit, and the facts of the machine.
    """
    sheet = packaged_sheet(profile.machine, facts)
    try:
        rates = list(_rates(folder / "samples", profile, sheet, cache_bytes=float(facts["cache_bytes"])))
    except ProfileError as error:
        rates = [Rate(f"not read: {error}", None, None, "")]
    return "\n".join([
        "", *datasheet_section(rates, None if sheet is None else sheet.title), "", *drift_section(*_drift(folder, profile)), "",
        *boundary_section(profile), "", *shape_section(evidence.residuals), ""])


def packaged_sheet(machine: str, facts: Mapping[str, Any]) -> HardwareProfile | None:
    """Return the packaged datasheet of a machine: by its profile's name, else by that of its GPU; ``None`` where none is."""
    for name in (machine, machine_name(facts)):
        path = packaged_root() / name / DATASHEET
        if path.is_file():
            return load_hardware(str(path))
    return None


def _rates(samples: Path, profile: FittedProfile, sheet: HardwareProfile | None, *, cache_bytes: float) -> Iterator[Rate]:
    from tpplanner.fit.calibration_kernels import measured_peaks

    frames = {name: sample_frame(samples, name, columns) for name, columns in _PEAK_COLUMNS.items()}
    peaks = measured_peaks(gemm=frames["gemm"], memory=frames["memory"], decode=frames["decode_attention"],
                           cache_bytes=cache_bytes)
    for dtype, flop_s in sorted(peaks.flop_s.items()):
        given = None if sheet is None else sheet.peak_flop_s.get(dtype)
        yield Rate(f"products in {dtype}", flop_s / TERA, None if given is None else given.value / TERA, "TFLOP/s")
    yield Rate("memory", peaks.bytes_s / GB, None if sheet is None else sheet.hbm_bytes_s.value / GB, "GB/s")
    for curve in profile.collectives:
        if IMPORTED in curve.source:
            continue
        size, busbw_bytes_s = _best_busbw(curve)
        within = sheet is not None and curve.tp <= (sheet.link_domain_gpus or sheet.gpus_per_node)
        link = sheet.intra_link.bandwidth_bytes_s.value / GB if sheet is not None and within else None
        what = f"bus bandwidth of {curve.op.value} over {curve.tp} ranks, {size:,.0f} bytes"
        yield Rate(what, busbw_bytes_s / GB, link, "GB/s")


def _best_busbw(curve: CollectiveCurve) -> tuple[float, float]:
    """Size and bus bandwidth (nccl-tests) where it is largest [bytes, bytes/s]."""
    found = [(float(wire_frac(curve.op, float(curve.tp))) * size / time_s, size)
             for size, time_s in zip(curve.size_bytes, curve.latency_s, strict=True)]
    rate, size = max(found)
    return size, rate


def _drift(folder: Path, profile: FittedProfile) -> tuple[tuple[Drift, ...], str]:
    """Return the drift against the fit that was there before, or why there is none, and where that fit is."""
    now = decode_fitted(encode_fitted(profile), profile.machine)  # rounded as the other one is
    name = fitted_name(profile.engine)
    packaged = packaged_root() / profile.machine / name
    for path, called in ((folder / name, f"{name} as it was"), (packaged, f"the packaged {name}")):
        if path.is_file():
            try:
                return drift(read_fitted(path), now), called
            except ProfileError as error:
                return (), f"Not compared with {called}: {error}."
    return (), "No other fit of this machine and engine is there."
