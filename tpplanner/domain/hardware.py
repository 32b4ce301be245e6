"""A machine: one kind of accelerator, its links and its power."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tpplanner.domain.checks import check_count
from tpplanner.domain.kernels import Kernels
from tpplanner.domain.quantity import Quantity
from tpplanner.errors import ProfileError, reject


class CollectiveOp(StrEnum):
    """The collectives that a tensor-parallel step uses."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    ALL_TO_ALL = "all_to_all"


IMPORTED: Final = "not measured here"
"""Stands in the source of a curve that a calibration took from another fit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CollectiveCurve:
    """Measured latency of one collective at one degree, against message size.

    ``size_bytes`` (ascending) and ``latency_s`` have one entry per sample. The size of an all-reduce
    is the buffer on one rank; of an all-gather and all-to-all the whole result (nccl-tests).
    """

    op: CollectiveOp
    tp: int
    size_bytes: tuple[float, ...]
    latency_s: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        check_count(ProfileError, self.source, minimum=2, tp=self.tp)
        sizes, times = self.size_bytes, self.latency_s
        if len(sizes) < 2 or len(sizes) != len(times):
            reject(ProfileError, "size_bytes and latency_s", "have one length of at least 2",
                   (len(sizes), len(times)), self.source)
        if any(b <= a for a, b in itertools.pairwise(sizes)) or sizes[0] <= 0:
            reject(ProfileError, "size_bytes", "be positive and ascending", sizes, self.source)
        if min(times) <= 0:
            reject(ProfileError, "latency_s", "be positive", min(times), self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contention:
    """What each of ``num_busy`` working devices keeps of its own arithmetic and bandwidth where they share a memory."""

    num_busy: int
    compute_frac: Quantity
    memory_frac: Quantity

    def __post_init__(self) -> None:
        check_count(ProfileError, "contention", minimum=2, num_busy=self.num_busy)
        for name in ("compute_frac", "memory_frac"):
            share: Quantity = getattr(self, name)
            if not 0 < share.value <= 1:
                reject(ProfileError, name, "be in (0, 1]", share.value, share.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interconnect, per GPU and per direction.

    Attributes
    ----------
    name
        ``NVLink 4``, ``PCIe 4.0 x16``, ``InfiniBand NDR`` ...
    bandwidth_bytes_s
        Peak of one GPU in one direction.
    alpha_s
        Latency of the smallest collective over it.
    busbw_frac
        Bus bandwidth (nccl-tests) of a large all-reduce over the peak.
    """

    name: str
    bandwidth_bytes_s: Quantity
    alpha_s: Quantity
    busbw_frac: Quantity

    def __post_init__(self) -> None:
        if self.bandwidth_bytes_s.value <= 0:
            reject(ProfileError, "bandwidth_bytes_s", "be > 0", self.bandwidth_bytes_s.value, self.name)
        if not 0 < self.busbw_frac.value <= 1.5:  # in-network reduction exceeds the wire
            reject(ProfileError, "busbw_frac", "be in (0, 1.5]", self.busbw_frac.value, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Achieved over peak, per class of operator (0..1), and the smoothness of the roofline's knee.

    ``gemm_compute`` and ``gemm_memory`` bound every linear; ``expert_compute`` and
    ``expert_memory`` the grouped GEMMs of experts; ``decode_attention_memory`` the reading of the
    KV cache; ``prefill_attention_compute`` the quadratic part; ``elementwise_memory`` norms,
    residuals, activations and sampling passes over the logits.
    ``roofline_sharpness`` is p in (compute**p + memory**p)**(1/p): infinity is the hard maximum.
    """

    gemm_compute: Quantity
    gemm_memory: Quantity
    expert_compute: Quantity
    expert_memory: Quantity
    decode_attention_memory: Quantity
    prefill_attention_compute: Quantity
    elementwise_memory: Quantity
    roofline_sharpness: Quantity

    def __post_init__(self) -> None:
        for name in self.__slots__:
            quantity: Quantity = getattr(self, name)
            if name == "roofline_sharpness":
                if quantity.value < 1:
                    reject(ProfileError, name, "be >= 1", quantity.value)
            elif not 0 < quantity.value <= 1:
                reject(ProfileError, name, "be in (0, 1]", quantity.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Board power: idle, limit, and how much of the difference each kind of work draws.

    P = idle + (board - idle) * min(1, busy * (base + memory * mbu + compute * mfu)), with ``busy`` the
    share of time that the device works and mbu, mfu the shares of peak bandwidth and arithmetic.
    """

    idle_w: Quantity
    board_w: Quantity
    busy_frac: Quantity
    memory_frac: Quantity
    compute_frac: Quantity

    def __post_init__(self) -> None:
        if not 0 <= self.idle_w.value < self.board_w.value:
            reject(ProfileError, "idle_w", f"be in [0, board_w = {self.board_w.value:g})", self.idle_w.value)
        for name in ("busy_frac", "memory_frac", "compute_frac"):
            share: Quantity = getattr(self, name)
            if not 0 <= share.value <= 1:
                reject(ProfileError, name, "be in [0, 1]", share.value)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HardwareProfile:
    """Compute, memory, links and power of one machine.

    Attributes
    ----------
    name, aliases, title
        ``h100-sxm``; other accepted names; what a datasheet calls it.
    hbm_bytes, hbm_bytes_s
        What the driver reports as total memory, and the peak bandwidth.
    peak_flop_s
        Dense peak per operand format: ``bf16``, ``fp16``, ``fp8``, ``int8``, ``nvfp4``...
    intra_link, inter_link, host_link
        Between the GPUs of a node; between nodes (share of one GPU); to the host's memory (swap).
    gpus_per_node
        GPUs of one server (or of one NVLink domain that spans servers).
    link_domain_gpus
        GPUs that share the intra-node link, where that is less than the node (bridged pairs); beyond them
        a replica pays ``inter_link``.
    runtime_bytes, runtime_bytes_per_rank
        Memory that is neither weights, activations nor KV: context and library buffers, and what
        communication adds on each rank when t > 1.
    price_usd_h
        Of one GPU; ``None`` where no list price is known.
    kernels
        Fitted kernels of one engine on this machine; ``None`` where none were measured: then the efficiencies hold.
    contention
        Where the devices share a memory, what each keeps while others work, by their number; `domain.contention` applies it.
    """

    name: str
    title: str
    vendor: str
    hbm_bytes: Quantity
    hbm_bytes_s: Quantity
    peak_flop_s: Mapping[str, Quantity]
    intra_link: Link
    inter_link: Link
    host_link: Link
    gpus_per_node: int
    efficiency: Efficiency
    power: Power
    runtime_bytes: Quantity
    runtime_bytes_per_rank: Quantity
    price_usd_h: Quantity | None = None
    aliases: tuple[str, ...] = ()
    collectives: tuple[CollectiveCurve, ...] = ()
    link_domain_gpus: int | None = None
    kernels: Kernels | None = None
    contention: tuple[Contention, ...] = ()
    place: str = "<memory>"

    def __post_init__(self) -> None:
        check_count(ProfileError, self.place, gpus_per_node=self.gpus_per_node, link_domain_gpus=self.link_domain_gpus)
        for name in ("runtime_bytes", "runtime_bytes_per_rank", "price_usd_h"):
            quantity: Quantity | None = getattr(self, name)
            if quantity is not None and quantity.value < 0:
                reject(ProfileError, name, "be >= 0", quantity.value, self.place)
        for name in ("hbm_bytes", "hbm_bytes_s"):
            if getattr(self, name).value <= 0:
                reject(ProfileError, name, "be > 0", getattr(self, name).value, self.place)
        if "bf16" not in self.peak_flop_s:
            reject(ProfileError, "peak_flop_s", "give bf16", sorted(self.peak_flop_s), self.place)
        for dtype, peak in self.peak_flop_s.items():
            if peak.value <= 0:
                reject(ProfileError, f"peak_flop_s.{dtype}", "be > 0", peak.value, self.place)

    def peak_for(self, dtype: str) -> Quantity:
        """Dense peak of GEMMs with operands in ``dtype``.

        A format without hardware support runs in the next wider one that has it, as weight-only
        kernels do: 4-bit floats, fp8 and int8 in bf16.
        """
        for name in _WIDENING.get(dtype, (dtype,)):
            if name in self.peak_flop_s:
                return self.peak_flop_s[name]
        return self.peak_flop_s["bf16"]


_WIDENING: dict[str, tuple[str, ...]] = {
    "nvfp4": ("nvfp4", "fp4"),
    "mxfp4": ("mxfp4", "nvfp4", "fp4"),
    "fp8": ("fp8",),
    "int8": ("int8",),
    "fp16": ("fp16", "bf16"),
    "fp32": ("fp32", "tf32"),
}
