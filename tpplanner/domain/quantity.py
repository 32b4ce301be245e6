"""A number that knows where it comes from."""

from dataclasses import dataclass
from enum import StrEnum

from tpplanner.domain.checks import check_real
from tpplanner.errors import ProfileError, reject


class Provenance(StrEnum):
    """Where a figure comes from, from the most to the least trustworthy."""

    MEASURED = "measured"
    FITTED = "fitted"
    DATASHEET = "datasheet"
    EXTRAPOLATED = "extrapolated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One coefficient of a profile.

    Attributes
    ----------
    value
        In the SI unit that ``unit`` names.
    unit
        ``s``, ``bytes``, ``bytes/s``, ``flop/s``, ``w``, ``usd/h``, ``1`` ...
    provenance, source
        The kind of evidence, and the page, paper or sample file that holds it.
    std_error
        Standard error of a fit, same unit.
    valid_min, valid_max
        The range of the fit's driving variable (``valid_for`` says which).
    valid_for
        Name of that variable, for example ``num_decode_seqs``.
    num_samples
        How many samples the fit used.
    """

    value: float
    unit: str
    provenance: Provenance
    source: str
    std_error: float | None = None
    valid_min: float | None = None
    valid_max: float | None = None
    valid_for: str | None = None
    num_samples: int | None = None

    def __post_init__(self) -> None:
        check_real(ProfileError, self.source, minimum=-1e300, value=self.value)
        check_real(ProfileError, self.source, std_error=self.std_error)
        if not self.source.strip():
            reject(ProfileError, "source", "name a datasheet, paper or sample file", self.source)
        if self.provenance is Provenance.FITTED and (self.std_error is None or self.num_samples is None):
            reject(ProfileError, "std_error and num_samples", "be given for a fit", self.std_error, self.source)
        if self.valid_min is not None and self.valid_max is not None and self.valid_min > self.valid_max:
            reject(ProfileError, "valid_min", "not exceed valid_max", self.valid_min, self.source)

    def provenance_at(self, driver: float) -> Provenance:
        """Provenance of the value when the driving variable is ``driver``."""
        below = self.valid_min is not None and driver < self.valid_min
        above = self.valid_max is not None and driver > self.valid_max
        return Provenance.EXTRAPOLATED if below or above else self.provenance
