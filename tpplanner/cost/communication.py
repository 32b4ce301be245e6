"""Collectives of tensor parallelism: two all-reduces per layer and one exchange of the logits.

A measured curve of (operation, degree, size) wins; where there is none, alpha-beta:
latency + bytes on the wire / (bus-bandwidth share * link), as nccl-tests defines bus bandwidth.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tpplanner.cost.work import ModelWork
from tpplanner.domain.hardware import CollectiveCurve, CollectiveOp, HardwareProfile, Link
from tpplanner.domain.matrix import FloatOrArray

EQUATION = "2 L allreduce(n H bytes, t) + exchange of (rows x vocabulary) logits"


def wire_frac(op: CollectiveOp, tp: FloatOrArray) -> FloatOrArray:
    """Bytes that one rank sends over the size of the collective (nccl-tests: busbw = algbw * this).

    All-reduce: 2 (t-1)/t of the buffer. All-gather: (t-1)/t of the whole result. All-to-all, with the
    whole (rows x vocabulary) counted over all ranks: (t-1)/t of the rank's 1/t share.

    Examples
    --------
    >>> wire_frac(CollectiveOp.ALL_REDUCE, 4), wire_frac(CollectiveOp.ALL_TO_ALL, 4)
    (1.5, 0.1875)
    """
    match op:
        case CollectiveOp.ALL_REDUCE:
            return 2.0 * (tp - 1.0) / tp
        case CollectiveOp.ALL_GATHER:
            return (tp - 1.0) / tp
        case CollectiveOp.ALL_TO_ALL:
            return (tp - 1.0) / tp / tp


def alpha_beta_s(link: Link, op: CollectiveOp, *, tp: FloatOrArray, size_bytes: FloatOrArray) -> FloatOrArray:
    """Latency plus transfer of one collective over ``link`` [s].

    Examples
    --------
    An all-reduce of 100 MB over 4 ranks at 300 GB/s achieved and 5 us latency: 5 us + 150 MB / 300 GB/s
    = 505 us (see the tests for the call).
    """
    rate = link.bandwidth_bytes_s.value * link.busbw_frac.value
    return link.alpha_s.value + wire_frac(op, tp) * size_bytes / rate


def curve_s(curve: CollectiveCurve, size_bytes: FloatOrArray) -> NDArray[np.float64]:
    """Interpolate a measured curve, linear in both logarithms [s].

    Below the smallest sample the latency stays; above the largest it grows with the size.
    """
    sizes = np.log(np.asarray(curve.size_bytes))
    asked = np.log(np.maximum(np.asarray(size_bytes, dtype=float), curve.size_bytes[0]))
    inside = np.interp(asked, sizes, np.log(np.asarray(curve.latency_s)))
    beyond: NDArray[np.float64] = np.exp(inside + np.maximum(asked - sizes[-1], 0.0))
    return beyond


def _between_curves_s(
    low: CollectiveCurve, high: CollectiveCurve, *, tp: FloatOrArray, size_bytes: FloatOrArray
) -> FloatOrArray:
    """Interpolate between the measured curves of two degrees, linear in log t and log latency [s]."""
    weight = np.log(np.asarray(tp, dtype=float) / low.tp) / np.log(high.tp / low.tp)
    log_s = (1.0 - weight) * np.log(curve_s(low, size_bytes)) + weight * np.log(curve_s(high, size_bytes))
    return np.asarray(np.exp(log_s), dtype=float)


def _one_domain_s(
    hardware: HardwareProfile, op: CollectiveOp, *, tp: FloatOrArray, size_bytes: FloatOrArray
) -> FloatOrArray:
    """Time within one link domain: on a curve, between two curves, else alpha-beta [s]."""
    time_s = alpha_beta_s(hardware.intra_link, op, tp=tp, size_bytes=size_bytes)
    curves = sorted((c for c in hardware.collectives if c.op is op), key=lambda c: c.tp)
    for low, high in pairwise(curves):
        between = np.greater(tp, low.tp) & np.less(tp, high.tp)
        if np.any(between):
            time_s = np.where(between, _between_curves_s(low, high, tp=tp, size_bytes=size_bytes), time_s)
    for curve in curves:
        if np.any(np.equal(tp, curve.tp)):
            time_s = np.where(np.equal(tp, curve.tp), curve_s(curve, size_bytes), time_s)
    return time_s


def collective_s(
    hardware: HardwareProfile, op: CollectiveOp, *, tp: FloatOrArray, size_bytes: FloatOrArray
) -> FloatOrArray:
    """Time of one collective over ``tp`` ranks [s]; 0 at t = 1.

    A replica larger than a link domain (the node, or less where only pairs are bridged) works in two
    levels: within each domain, then between the domains with 1/g of the buffer per GPU over the
    inter-node link (g GPUs per domain).
    """
    g = hardware.link_domain_gpus or hardware.gpus_per_node
    inside = _one_domain_s(hardware, op, tp=np.minimum(tp, g), size_bytes=size_bytes)
    if np.any(np.greater(tp, g)):
        domains = np.maximum(np.asarray(tp, dtype=float) / g, 1.0)
        between = alpha_beta_s(hardware.inter_link, op, tp=domains, size_bytes=np.asarray(size_bytes) / g)
        inside = inside + np.where(domains > 1.0, between, 0.0)
    return np.where(np.greater(tp, 1), inside, 0.0)


def communication_s(
    work: ModelWork, hardware: HardwareProfile, *, tp: FloatOrArray, num_tok: FloatOrArray,
    num_sampled: FloatOrArray, seq_parallel_sampling: bool,
) -> FloatOrArray:
    """Time of the collectives of one step [s].

    Parameters
    ----------
    num_tok, num_sampled
        Rows that pass through the layers, and rows whose logits are exchanged.
    seq_parallel_sampling
        The logits go by one all-to-all over the rows instead of one gather to the sampling rank.
    """
    per_layer = collective_s(hardware, CollectiveOp.ALL_REDUCE, tp=tp, size_bytes=num_tok * work.hidden_bytes)
    op = CollectiveOp.ALL_TO_ALL if seq_parallel_sampling else CollectiveOp.ALL_GATHER
    exchange = collective_s(hardware, op, tp=tp, size_bytes=num_sampled * work.row_logits_bytes)
    return 2.0 * work.num_layers * per_layer + exchange
