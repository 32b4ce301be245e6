"""What the engine needs to run one rank of several on one device: the collectives of a machine, as times over sizes."""

from typing import Final

import numpy as np

from tpplanner.api.loaded import fitted_of, hardware_of
from tpplanner.cost.communication import collective_s
from tpplanner.domain.fitted_profile import apply_kernels
from tpplanner.domain.hardware import IMPORTED, CollectiveOp, HardwareProfile
from tpplanner.engine.config import Emulation
from tpplanner.errors import ProfileError

SIZES_BYTES: Final = tuple(float(2**n) for n in range(10, 27))
"""1 KiB to 64 MiB, each twice the one before."""
_OWN_FIT: Final = "tpplanner"


def emulation_of(hardware: HardwareProfile, tp: int) -> Emulation:
    """Sample the machine's collectives over ``tp`` ranks as the cost model has them.

    Parameters
    ----------
    hardware
        Machine; a curve that was measured wins over the link of its datasheet.
    tp
        Ranks, at least 2.

    Raises
    ------
    WorkloadError
        If ``tp`` makes no sense.

    Examples
    --------
    >>> from tpplanner.io.profile_hardware import load_hardware
    >>> emulation = emulation_of(load_hardware("l4"), 2)
    >>> emulation.label
    'emulated: one rank of 2, collectives are delays of l4 (links of its datasheet)'
    """
    measured = [op.value for op in CollectiveOp if _is_measured(hardware, op, tp)]
    imported = any(IMPORTED in curve.source for curve in hardware.collectives)
    curves = "packaged curves, not measured here" if imported else "measured curves"
    how = curves if len(measured) == len(CollectiveOp) else "links of its datasheet"
    if 0 < len(measured) < len(CollectiveOp):
        how = f"{curves}: {', '.join(measured)}; else links of its datasheet"

    def points(op: CollectiveOp) -> tuple[tuple[float, float], ...]:
        times_s = np.broadcast_to(collective_s(hardware, op, tp=tp, size_bytes=np.array(SIZES_BYTES)), len(SIZES_BYTES))
        return tuple(zip(SIZES_BYTES, times_s.tolist(), strict=True))

    return Emulation(tp=tp, source=f"{hardware.name} ({how})", **{op.value: points(op) for op in CollectiveOp})


def _is_measured(hardware: HardwareProfile, op: CollectiveOp, tp: int) -> bool:
    """Whether the time is that of a curve, or between the curves of two degrees; beyond a link domain it is not."""
    if tp > (hardware.link_domain_gpus or hardware.gpus_per_node):
        return False
    degrees = [curve.tp for curve in hardware.collectives if curve.op is op]
    return bool(degrees) and min(degrees) <= tp <= max(degrees)


def emulation_on(machine: str, tp: int, *, fit: str | None = None) -> Emulation:
    """Sample the collectives of a machine by name.

    Parameters
    ----------
    machine
        Name, alias or path of its profile.
    tp
        Ranks, at least 2.
    fit
        Engine whose fit on the machine holds the curves; ``None`` for this package's own, or the datasheet where there is none.

    Raises
    ------
    ProfileError
        If the machine is unknown, or was never fitted for ``fit``.
    """
    hardware, fitted = hardware_of(machine), fitted_of(machine, fit or _OWN_FIT)
    if fitted is None and fit is not None:
        raise ProfileError(f"{hardware.name}: no fit of engine {fit!r} to take collectives from")
    return emulation_of(hardware if fitted is None else apply_kernels(hardware, fitted), tp)
