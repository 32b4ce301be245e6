"""What a calibration says of the machine itself: power and copies to and from the host, and the report on them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tpplanner.domain.fitted_profile import SourceTable
from tpplanner.domain.hardware import IMPORTED, CollectiveCurve, Contention
from tpplanner.domain.machine_fit import MachineFit
from tpplanner.io.calibration_samples import sample_frame
from tpplanner.io.fitted_files import load_fitted
from tpplanner.io.machine_names import machine_name

if TYPE_CHECKING:
    from tpplanner.fit.calibration_kernels import Peaks

_IMPORTED: Final = ("vllm", "sglang", "trtllm")
"""Fits whose tables of collectives stand in, the first that has a degree."""
MACHINE_BENCHES: Final = ("power", "host_copy")


def fit_machine(folder: Path, facts: Mapping[str, Any], peaks: "Peaks", *, source: str) -> MachineFit | None:
    """Fit power and copies from a folder of samples; ``None`` where neither was measured.

    Parameters
    ----------
    folder, facts
        Samples, and the machine's facts beside them; its ``power_limit_w`` is the limit in force [w].
    peaks
        Rates that utilisations are shares of.
    source
        Names the samples.

    Raises
    ------
    ProfileError
        If a sample makes no sense.
    """
    from tpplanner.fit.calibration_copies import COPY_COLUMNS, fit_host_link
    from tpplanner.fit.calibration_power import POWER_COLUMNS, fit_power

    limit_w = facts.get("power_limit_w")
    power = fit_power(sample_frame(folder, "power", POWER_COLUMNS),
                      board_w=float(limit_w) if isinstance(limit_w, int | float) else None,
                      flop_s=peaks.flop_s.get("bf16") or max(peaks.flop_s.values()), hbm_bytes_s=peaks.bytes_s, source=source)
    host_link = fit_host_link(sample_frame(folder, "host_copy", COPY_COLUMNS), source=source)
    return None if power is None and host_link is None else MachineFit(source=source, power=power, host_link=host_link)


def with_contention(fit: MachineFit | None, contention: tuple[Contention, ...], *, source: str) -> MachineFit | None:
    """Add what devices that share a memory keep of their rates; where nothing was measured, the fit stays as it is."""
    if not contention:
        return fit
    return MachineFit(source=source, contention=contention) if fit is None else replace(fit, contention=contention)


def with_imported(
    measured: Sequence[CollectiveCurve], machine: str, facts: Mapping[str, Any]
) -> tuple[CollectiveCurve, ...]:
    """Add the packaged curves of degrees that could not be measured here; their source says where they come from.

    They are those of the machine's profile, or of its GPU where the profile has a name of its own.
    """
    curves = {(curve.op, curve.tp): curve for curve in measured}
    # Cores have no NVLink, whatever the profile is called.
    for engine in () if facts["device"] == "cpu" else _IMPORTED:
        fitted = load_fitted(machine, engine) or load_fitted(machine_name(facts), engine)
        for curve in () if fitted is None else fitted.collectives:
            curves.setdefault((curve.op, curve.tp), replace(curve, source=f"{IMPORTED}, fitted-{engine}: {curve.source}"))
    return tuple(curves.values())


def machine_tables(folder: Path, fit: MachineFit | None, *, path: str, version: str) -> tuple[SourceTable, ...]:
    """Tables behind a fit; none where there is no fit."""
    used = () if fit is None else [name for name, part in zip(MACHINE_BENCHES, (fit.power, fit.host_link), strict=True) if part]
    return tuple(SourceTable(path=f"{path}/{name}.jsonl", framework_version=version, num_rows=len(sample_frame(folder, name)))
                 for name in used)


def machine_report(folder: Path, fit: MachineFit | None) -> str:
    """Return the part of the report on power, copies and launches as Markdown; what was not measured is said."""
    from tpplanner.report.machine_fit_text import machine_sections

    power, copies, launch = (sample_frame(folder, name) for name in (*MACHINE_BENCHES, "launch"))
    return "\n".join(machine_sections(fit, power=power, copies=copies, launch=launch))
