"""What microbenchmarks said of a machine itself, whatever engine runs on it: its power, its copies to and from the host."""

import math
from dataclasses import dataclass, replace

from tpplanner.domain.hardware import Contention, HardwareProfile, Link, Power
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.errors import ProfileError, reject


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyFit:
    """Copies of pinned memory in one direction: ``alpha_s`` + bytes / ``bandwidth_bytes_s`` [s]."""

    alpha_s: Quantity
    bandwidth_bytes_s: Quantity

    def __post_init__(self) -> None:
        if self.bandwidth_bytes_s.value <= 0:
            reject(ProfileError, "bandwidth_bytes_s", "be > 0", self.bandwidth_bytes_s.value, self.bandwidth_bytes_s.source)
        if self.alpha_s.value < 0:
            reject(ProfileError, "alpha_s", "be >= 0", self.alpha_s.value, self.alpha_s.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLinkFit:
    """Copies from the host to one device, and back, each with the link for itself."""

    to_device: CopyFit
    to_host: CopyFit

    def link(self, name: str) -> Link:
        """The link that a swap sees: what goes out comes back, one after the other.

        Its bandwidth is the harmonic mean of both directions as measured, so that its share is 1; its latency is their mean.

        Examples
        --------
        10 GB/s in and 30 GB/s out: 1 byte each way takes (0.1 + 0.0333) ns, as 2 bytes at 15 GB/s.

        >>> def copy(rate):
        ...     values = {"alpha_s": (1e-5, "s"), "bandwidth_bytes_s": (rate, "bytes/s")}
        ...     return CopyFit(**{n: Quantity(value=v, unit=u, provenance=Provenance.MEASURED, source="by hand")
        ...                       for n, (v, u) in values.items()})
        >>> link = HostLinkFit(to_device=copy(10e9), to_host=copy(30e9)).link("PCIe")
        >>> round(link.bandwidth_bytes_s.value / 1e9, 9)
        15.0
        """
        one, two = self.to_device.bandwidth_bytes_s, self.to_host.bandwidth_bytes_s
        value = 2.0 / (1.0 / one.value + 1.0 / two.value)
        error = None
        if one.std_error is not None and two.std_error is not None:
            error = value**2 / 2.0 * math.hypot(one.std_error / one.value**2, two.std_error / two.value**2)
        alphas = self.to_device.alpha_s, self.to_host.alpha_s
        return Link(
            name=name, bandwidth_bytes_s=replace(one, value=value, std_error=error),
            alpha_s=replace(alphas[0], value=(alphas[0].value + alphas[1].value) / 2.0, std_error=_error_of_mean(*alphas)),
            busbw_frac=Quantity(value=1.0, unit="1", provenance=Provenance.MEASURED,
                                source=f"a part of the measured bandwidth: {one.source}"))


def _error_of_mean(one: Quantity, two: Quantity) -> float | None:
    return None if one.std_error is None or two.std_error is None else math.hypot(one.std_error, two.std_error) / 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFit:
    """Measured terms of one machine; a part is ``None`` where it could not be measured.

    Attributes
    ----------
    power
        Idle power, the limit in force, and the shares that kinds of work draw of the difference.
    host_link
        Copies between a device and its host.
    contention
        What each device keeps while others work, where they share a memory; ascending in their number.
    source
        Names the samples.
    """

    source: str
    power: Power | None = None
    host_link: HostLinkFit | None = None
    contention: tuple[Contention, ...] = ()

    def __post_init__(self) -> None:
        if self.power is None and self.host_link is None and not self.contention:
            reject(ProfileError, "machine_fit", "give power, host_link or contention", "none of them", self.source)
        numbers = [c.num_busy for c in self.contention]
        if numbers != sorted(set(numbers)):
            reject(ProfileError, "contention", "have ascending num_busy", numbers, self.source)


def with_machine_fit(hardware: HardwareProfile, fit: MachineFit) -> HardwareProfile:
    """Return the machine with what was measured on it in place of what its datasheet says."""
    if fit.power is not None:
        hardware = replace(hardware, power=fit.power)
    if fit.host_link is not None:
        hardware = replace(hardware, host_link=fit.host_link.link(hardware.host_link.name))
    return replace(hardware, contention=fit.contention) if fit.contention else hardware
