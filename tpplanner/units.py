"""Units: SI bases inside, names for the multiples that files and tables use.

Everything in the package is in seconds, bytes, FLOP, tokens, watts and joules;
only ``io`` and ``report`` convert. ``GB`` is 10**9 and ``GIB`` is 2**30: memory
sizes of GPUs are sold in the second and often written as the first.
"""

from typing import Final

MS: Final = 1e-3
"""Milliseconds in seconds."""
US: Final = 1e-6
"""Microseconds in seconds."""

KIB: Final = 2**10
MIB: Final = 2**20
GIB: Final = 2**30
MB: Final = 10**6
GB: Final = 10**9
TB: Final = 10**12
TERA: Final = 10**12

HOUR_S: Final = 3600.0
"""Seconds in an hour."""
