"""Fitted kernels: a roofline with a latency and efficiencies, times a coarse surface of what it leaves unexplained."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tpplanner.domain.checks import check_count, check_real
from tpplanner.domain.quantity import Quantity
from tpplanner.errors import ProfileError, reject


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """Correction of a roofline on a grid: the natural log of measured over roofline time.

    Between knots it is multilinear in the logarithms of the coordinates; outside the grid it keeps
    the value of the nearest edge.

    Attributes
    ----------
    axes
        Names of the coordinates, such as ``num_tok``; a cost function says which it offers.
    knots
        Ascending positions > 0 on each axis, in the coordinate's natural unit.
    log_ratio
        One value per grid point in C order: the last axis varies fastest.
    """

    axes: tuple[str, ...]
    knots: tuple[tuple[float, ...], ...]
    log_ratio: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.axes or len(set(self.axes)) != len(self.axes) or len(self.axes) != len(self.knots):
            reject(ProfileError, "axes", "be distinct, with one tuple of knots each", self.axes, "surface")
        for name, knots in zip(self.axes, self.knots, strict=True):
            if not knots or not all(math.isfinite(k) and k > 0 for k in knots):
                reject(ProfileError, f"knots of {name}", "be at least one finite number > 0", knots, "surface")
            if any(b <= a for a, b in itertools.pairwise(knots)):
                reject(ProfileError, f"knots of {name}", "ascend", knots, "surface")
        if len(self.log_ratio) != math.prod(self.shape):
            reject(ProfileError, "log_ratio", f"have {math.prod(self.shape)} values", len(self.log_ratio), "surface")
        if not all(math.isfinite(v) for v in self.log_ratio):
            reject(ProfileError, "log_ratio", "be finite", self.log_ratio, "surface")

    @property
    def shape(self) -> tuple[int, ...]:
        """Knots per axis."""
        return tuple(len(k) for k in self.knots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One operator of one engine on one machine.

    time = max(floor, (latency + roofline of the arithmetic and the traffic at the efficiencies) * exp(surface)),
    the floor being the time at the peak rates.

    Attributes
    ----------
    dtype
        Format of the operands, or of the KV cache for attention: ``bf16``, ``fp8``, ``fp8_block`` ...
    latency_s
        What the smallest call takes [s].
    compute_frac, memory_frac
        Achieved share of the peak arithmetic and of the peak bandwidth, in (0, 1].
    sharpness
        p >= 1 of the roofline's knee, see ``cost.roofline``.
    surface
        Correction of the roofline; ``None`` is none.
    held_out_median_frac, held_out_p90_frac
        Absolute relative error on samples that a fit to the others has not seen; ``None`` where not measured.
    num_samples
        Samples of the fit.
    source
        Table that holds them.
    notes
        What the fit could not identify, and which samples it left out.
    ranges
        (coordinate, least, greatest) of the samples: beyond them the kernel extrapolates.
    """

    dtype: str
    latency_s: Quantity
    compute_frac: Quantity
    memory_frac: Quantity
    sharpness: Quantity
    surface: Surface | None
    held_out_median_frac: float | None
    held_out_p90_frac: float | None
    num_samples: int
    source: str
    notes: tuple[str, ...] = ()
    ranges: tuple[tuple[str, float, float], ...] = ()

    def __post_init__(self) -> None:
        check_count(ProfileError, self.source, minimum=0, num_samples=self.num_samples)
        check_real(ProfileError, self.source, latency_s=self.latency_s.value,
                   held_out_median_frac=self.held_out_median_frac, held_out_p90_frac=self.held_out_p90_frac)
        if not self.dtype:
            reject(ProfileError, "dtype", "be given", self.dtype, self.source)
        for name in ("compute_frac", "memory_frac"):
            value = getattr(self, name).value
            if not 0 < value <= 1:
                reject(ProfileError, name, "be in (0, 1]", value, self.source)
        if self.sharpness.value < 1:
            reject(ProfileError, "sharpness", "be >= 1", self.sharpness.value, self.source)
        for name, low, high in self.ranges:
            if not 0 < low <= high < math.inf:
                reject(ProfileError, f"ranges.{name}", "be 0 < least <= greatest", (low, high), self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmKernel(Kernel):
    """A dense matrix multiplication."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeAttentionKernel(Kernel):
    """Attention of one new token per sequence against its KV cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillAttentionKernel(Kernel):
    """Causal attention of prompt tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeKernel(Kernel):
    """The routed experts of one layer: grouped GEMMs with their gating and their sum.

    Attributes
    ----------
    distribution
        Routing of the samples: ``balanced``, ``power_law_1.2`` ...
    effective_experts_frac
        Share of the experts that skewed routing meets as if it were random, in (0, 1].
    """

    distribution: str
    effective_experts_frac: Quantity

    def __post_init__(self) -> None:
        Kernel.__post_init__(self)  # a slotted dataclass replaces the class, so a bare super() misses it
        if not 0 < self.effective_experts_frac.value <= 1:
            reject(ProfileError, "effective_experts_frac", "be in (0, 1]", self.effective_experts_frac.value, self.source)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kernels:
    """The fitted kernels of one engine on one machine, by dtype."""

    gemm: Mapping[str, GemmKernel] = field(default_factory=dict)
    decode_attention: Mapping[str, DecodeAttentionKernel] = field(default_factory=dict)
    prefill_attention: Mapping[str, PrefillAttentionKernel] = field(default_factory=dict)
    moe: Mapping[str, MoeKernel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tables: tuple[Mapping[str, Kernel], ...] = (self.gemm, self.decode_attention, self.prefill_attention, self.moe)
        for table in tables:
            for name, kernel in table.items():
                if name != kernel.dtype:
                    reject(ProfileError, "dtype", f"equal its key {name!r}", kernel.dtype, kernel.source)
