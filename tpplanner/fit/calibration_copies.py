"""Copies between host and device from raw samples: a latency and a bandwidth for each direction."""

from typing import Final

import numpy as np
import pandas as pd

from tpplanner.domain.machine_fit import CopyFit, HostLinkFit
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.errors import ProfileError, reject
from tpplanner.fit.task_lines import fit_parts

COPY_COLUMNS: Final = ("direction", "kind", "size_bytes", "moved_bytes")
_MIN_SIZES: Final = 3
"""A line through two sizes leaves no residual, and so no standard error."""


def fit_host_link(copies: pd.DataFrame, *, source: str) -> HostLinkFit | None:
    """Fit time = alpha + bytes / bandwidth to copies of pinned memory, each direction alone.

    Parameters
    ----------
    copies
        Columns direction (``h2d``, ``d2h``, ``both``), kind (``pinned``, ``pageable``), moved_bytes, latency_s [s].
    source
        Names the samples.

    Returns
    -------
    Both directions, or ``None`` where one has under three sizes, as on a CPU, whose memory is the host's.

    Raises
    ------
    ProfileError
        If larger copies take no longer.
    """
    if copies.empty:
        return None
    pinned = copies[copies["kind"] == "pinned"]
    found = [_direction(pinned[pinned["direction"] == name], name, source) for name in ("h2d", "d2h")]
    return None if found[0] is None or found[1] is None else HostLinkFit(to_device=found[0], to_host=found[1])


def _direction(rows: pd.DataFrame, name: str, source: str) -> CopyFit | None:
    if rows["moved_bytes"].nunique() < _MIN_SIZES:
        return None
    fit = fit_parts({"alpha_s": np.ones(len(rows)), "per_byte_s": rows["moved_bytes"].to_numpy(dtype=float)},
                    rows["latency_s"].to_numpy(dtype=float), source=source)
    per_byte = fit["per_byte_s"]
    if per_byte.value <= 0:
        reject(ProfileError, f"host_copy {name}", "take longer the larger it is", per_byte.value, source)
    return CopyFit(
        alpha_s=fit["alpha_s"],
        bandwidth_bytes_s=Quantity(value=1.0 / per_byte.value, unit="bytes/s", provenance=Provenance.FITTED, source=source,
                                   std_error=(per_byte.std_error or 0.0) / per_byte.value**2, num_samples=len(rows)))
