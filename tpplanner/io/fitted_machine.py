"""Measured terms of a machine in a fitted profile, to and from their records."""

from dataclasses import replace
from typing import Any, Final

import msgspec

from tpplanner.domain.hardware import Contention, Power
from tpplanner.domain.machine_fit import CopyFit, HostLinkFit, MachineFit
from tpplanner.domain.quantity import Quantity
from tpplanner.errors import ProfileError
from tpplanner.io.fitted_numbers import quantity_of, quantity_record, unit_of
from tpplanner.io.fitted_records import (
    ContentionRecord,
    CopyRecord,
    HostLinkRecord,
    MachineFitRecord,
    PowerRecord,
    QuantityRecord,
    RateRecord,
)

_UNITS: Final = {"idle_w": "w", "board_w": "w", "bandwidth_bytes_s": "bytes/s"}
_POWER: Final = tuple(Power.__slots__)
_SHARES: Final = ("compute_frac", "memory_frac")


def _quantity(record: QuantityRecord, name: str, source: str) -> Quantity:
    return replace(quantity_of(record, name, source=source), unit=_UNITS.get(name, unit_of(name)))


def _copy_record(fit: CopyFit, source: str) -> CopyRecord:
    rate = quantity_record(fit.bandwidth_bytes_s, source=source)
    return CopyRecord(alpha_s=quantity_record(fit.alpha_s, source=source),
                      bandwidth_bytes_s=RateRecord(**msgspec.structs.asdict(rate)))


def _copy(record: CopyRecord, source: str) -> CopyFit:
    return CopyFit(**{name: _quantity(getattr(record, name), name, source) for name in CopyFit.__slots__})


def machine_fit_record(fit: MachineFit) -> MachineFitRecord:
    """Return the record of what was measured on a machine."""
    fields: dict[str, Any] = {}
    if fit.power is not None:
        fields["power"] = PowerRecord(**{n: quantity_record(getattr(fit.power, n), source=fit.source) for n in _POWER})
    if fit.host_link is not None:
        fields["host_link"] = HostLinkRecord(to_device=_copy_record(fit.host_link.to_device, fit.source),
                                             to_host=_copy_record(fit.host_link.to_host, fit.source))
    contention = tuple(ContentionRecord(num_busy=c.num_busy, **{n: quantity_record(getattr(c, n), source=fit.source)
                                                                 for n in _SHARES}) for c in fit.contention)
    return MachineFitRecord(source=fit.source, contention=contention, **fields)


def machine_fit_of(record: MachineFitRecord) -> MachineFit:
    """Return the measured terms of a record.

    Raises
    ------
    ProfileError
        It has no part, or a value makes no sense.
    """
    source, power, link = record.source, record.power, record.host_link
    try:
        return MachineFit(
            source=source,
            power=None if power is None else Power(**{n: _quantity(getattr(power, n), n, source) for n in _POWER}),
            host_link=None if link is None else HostLinkFit(to_device=_copy(link.to_device, source),
                                                            to_host=_copy(link.to_host, source)),
            contention=tuple(Contention(num_busy=c.num_busy, **{n: _quantity(getattr(c, n), n, source) for n in _SHARES})
                             for c in record.contention))
    except ProfileError as error:
        raise ProfileError(f"machine_fit: {error}") from None
