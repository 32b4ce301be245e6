"""What was fitted for one engine on one machine: kernels, collectives and serving terms, and what they were made from."""

from dataclasses import dataclass, replace

from tpplanner.domain.checks import check_count
from tpplanner.domain.engine_fit import EngineFit
from tpplanner.domain.hardware import CollectiveCurve, HardwareProfile
from tpplanner.domain.kernels import Kernels
from tpplanner.domain.machine_fit import MachineFit, with_machine_fit
from tpplanner.domain.serving_fit import ServingFit
from tpplanner.errors import ProfileError, reject


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTable:
    """One measured table that went into a fit.

    Attributes
    ----------
    path
        File inside the package, below ``systems/data``.
    framework_version
        Version of the engine or library that was measured, as the rows state it.
    num_rows
        Rows that were read from it and kept by the importer.
    """

    path: str
    framework_version: str
    num_rows: int

    def __post_init__(self) -> None:
        check_count(ProfileError, self.path, minimum=0, num_rows=self.num_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeFrom:
    """Where the coefficients of a fitted profile come from.

    Attributes
    ----------
    package, version
        What carries the measured tables.
    tables
        Those that were used.
    notice
        Licence and copyright of the measurements.
    """

    package: str
    version: str
    tables: tuple[SourceTable, ...]
    notice: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedProfile:
    """The fit of one engine on one machine.

    Attributes
    ----------
    machine, engine
        Names of the machine's profile and of the engine.
    kernels, collectives
        From measured operator tables.
    serving
        From measured serving runs; ``None`` where none were fitted.
    made_from
        Source of the kernels and the collectives.
    host
        From microbenchmarks of the engine's own host work, sampler and small kernels; ``None`` where none were made.
    machine_fit
        From microbenchmarks of the machine itself: power, copies to and from the host; ``None`` where none were made.
    """

    machine: str
    engine: str
    kernels: Kernels
    collectives: tuple[CollectiveCurve, ...]
    serving: ServingFit | None
    made_from: MadeFrom
    host: EngineFit | None = None
    machine_fit: MachineFit | None = None

    def __post_init__(self) -> None:
        place = f"{self.machine}/{self.engine}"
        keys = [(curve.op.value, curve.tp) for curve in self.collectives]
        for key in keys:
            if keys.count(key) > 1:
                reject(ProfileError, "collectives", "have one curve per op and tp", key, place)
        if self.serving is not None and (self.serving.machine, self.serving.engine) != (self.machine, self.engine):
            reject(ProfileError, "serving", f"be of {place}", f"{self.serving.machine}/{self.serving.engine}", place)


def apply_kernels(hardware: HardwareProfile, fitted: FittedProfile) -> HardwareProfile:
    """Return the machine with the kernels of a fit, and with its collectives over those that it had.

    Raises
    ------
    ProfileError
        The fit is of another machine.
    """
    if fitted.machine != hardware.name:
        reject(ProfileError, "machine", f"be {hardware.name}", fitted.machine, f"fitted profile of {fitted.engine}")
    curves = {(c.op, c.tp): c for c in (*hardware.collectives, *fitted.collectives)}
    efficiency = hardware.efficiency
    if fitted.host is not None:
        efficiency = replace(efficiency, elementwise_memory=fitted.host.elementwise_memory)
    if fitted.machine_fit is not None:
        hardware = with_machine_fit(hardware, fitted.machine_fit)
    return replace(hardware, kernels=fitted.kernels, collectives=tuple(curves.values()), efficiency=efficiency)
