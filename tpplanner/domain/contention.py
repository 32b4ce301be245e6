"""Devices that share one memory: what each keeps of its own rates while others work, as cores of a processor do."""

from dataclasses import dataclass, replace

import numpy as np

from tpplanner.domain.hardware import Contention, HardwareProfile
from tpplanner.domain.quantity import Quantity


@dataclass(frozen=True, slots=True)
class Shares:
    """What a device keeps of its arithmetic and of its bandwidth [1]."""

    compute_frac: float
    memory_frac: float


def shares(contention: tuple[Contention, ...], num_busy: int) -> Shares:
    """Return what each of ``num_busy`` working devices keeps.

    Between measured numbers the time is interpolated; beyond them the memory gives no more in sum, and arithmetic stays.

    Examples
    --------
    >>> shares((), 4)
    Shares(compute_frac=1.0, memory_frac=1.0)
    """
    if not contention or num_busy <= 1:
        return Shares(1.0, 1.0)
    numbers = [1.0, *(float(c.num_busy) for c in contention)]
    compute, memory = (float(np.interp(num_busy, numbers, [1.0, *(1.0 / getattr(c, name).value for c in contention)]))
                       for name in ("compute_frac", "memory_frac"))
    return Shares(1.0 / compute, 1.0 / (memory * max(num_busy / numbers[-1], 1.0)))


def _scaled(rate: Quantity, frac: float, num_busy: int) -> Quantity:
    return replace(rate, value=rate.value * frac, source=f"{rate.source}; times {frac:.3g} with {num_busy} devices at work")


def with_busy(hardware: HardwareProfile, num_busy: int) -> HardwareProfile:
    """Return the machine as each of ``num_busy`` working devices of a node sees it; itself where nothing is shared."""
    num_busy = min(num_busy, hardware.gpus_per_node)
    kept = shares(hardware.contention, num_busy)
    if kept == Shares(1.0, 1.0):
        return hardware
    peaks = {name: _scaled(peak, kept.compute_frac, num_busy) for name, peak in hardware.peak_flop_s.items()}
    return replace(hardware, contention=(), peak_flop_s=peaks,
                   hbm_bytes_s=_scaled(hardware.hbm_bytes_s, kept.memory_frac, num_busy))
