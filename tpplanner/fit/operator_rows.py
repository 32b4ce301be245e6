"""Which rows of measured operator tables a kernel is fitted to: one kernel per shape, one arithmetic, one routing."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from tpplanner.cost.gemms import kernel_names
from tpplanner.domain.dtypes import DTYPES
from tpplanner.domain.hardware import CollectiveOp
from tpplanner.fit.kernel_fits import MAX_MOE_RANKS
from tpplanner.fit.kernel_operators import DECODE_KNOTS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperatorFrames:
    """Measured latencies of one engine on one machine, the columns in SI units.

    All have ``kernel_source``, ``latency_s`` [s], ``framework_version`` and ``source`` (the file).

    Attributes
    ----------
    gemm
        dtype, num_tok, out_features, in_features.
    prefill_attention, decode_attention
        dtype (of the arithmetic), kv_dtype, num_seqs, num_heads, num_kv_heads, head_dim, window_tok, and isl_tok with
        prefix_tok, or context_tok.
    moe
        dtype, distribution, num_tok, hidden_size, expert_intermediate_size, num_experts_per_tok, num_experts, moe_tp,
        moe_ep.
    collective
        op, dtype, tp, mode, size_bytes.
    """

    gemm: pd.DataFrame
    prefill_attention: pd.DataFrame
    decode_attention: pd.DataFrame
    moe: pd.DataFrame
    collective: pd.DataFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A kernel's weights as they are stored, and the format whose peak the planner bounds its arithmetic by."""

    stored: str
    runs_as: str

    @property
    def bytes_per_param(self) -> float:
        """Storage of one weight, scales included [bytes]."""
        return DTYPES[self.stored].num_bytes


FORMATS: Final[dict[str, Format]] = {
    "bf16": Format(stored="bf16", runs_as="bf16"),
    "fp8": Format(stored="fp8", runs_as="fp8"),
    "fp8_block": Format(stored="fp8", runs_as="fp8"),
    "nvfp4": Format(stored="nvfp4", runs_as="nvfp4"),
    "int8_sq": Format(stored="int8", runs_as="int8"),
    "int8_wo": Format(stored="int8", runs_as="bf16"),
    "int4_wo": Format(stored="int4", runs_as="bf16"),
    "w4a16_mxfp4": Format(stored="mxfp4", runs_as="bf16"),
    "w4a8_mxfp4_mxfp8": Format(stored="mxfp4", runs_as="bf16"),
}
"""Kernels that a model can ask for (``cost.gemms.kernel_names``)."""
KV_BYTES: Final[dict[str, float]] = {"bf16": 2.0, "fp8": 1.0}
HEAD_DIMS: Final = tuple(DECODE_KNOTS["head_dim"])
"""The others, 192 and 512, run in kernels of their own, up to ten times slower, which would bend the surface near 128 and
256: without them SGLang's prefill on B200 is held out to 4.0 % instead of 8.7."""
MIN_SAMPLES: Final = 50
"""A kernel with fewer rows is left out."""
USUAL_ROUTING: Final = "power_law_1.2"
"""The published skew of trained routers that the tables sample; their other power law is 1.01."""

_ENOUGH_ROWS: Final = 200
"""Rows of a version that make a fit of its experts worth more than one with an older version's kernels."""

_TABLE_COLUMNS: Final = ("latency_s", "kernel_source", "framework_version", "source")
_NON_GATED: Final = "nongated"
_PREFERRED: Final = {"nvfp4": "min_latency"}
"""TensorRT-LLM's second kernel of this format: 0.5 to 0.65 of the time of the first at 1 to 16,384 tokens (B200)."""


def asked_for(available: Iterable[str], *, experts_only: bool) -> frozenset[str]:
    """Return those of the available kernels that some model is planned with; a better one shadows the others.

    Examples
    --------
    Experts in fp8 run in blocks where that was measured, dense models per tensor.

    >>> sorted(asked_for(["fp8", "fp8_block"], experts_only=True)), sorted(asked_for(["fp8", "fp8_block"], experts_only=False))
    (['fp8_block'], ['fp8', 'fp8_block'])
    """
    names = [n for n in available if n in FORMATS]
    wanted = [kernel_names(stored, is_moe=is_moe) for stored in DTYPES for is_moe in {True, experts_only}]
    first = {next(n for n in choice if n in names) for choice in wanted if any(n in names for n in choice)}
    return frozenset(first | {n for n in kernel_names("mxfp4", is_moe=True) if n in names})


def one_kernel_per_shape(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep one row of every shape: that of the kernel that has the most rows among all."""
    rank = {name: i for i, name in enumerate(rows["kernel_source"].value_counts().index)}
    ordered = rows.sort_values("kernel_source", key=lambda names: names.map(rank), kind="stable")
    shape = [name for name in rows.columns if name not in _TABLE_COLUMNS]
    return ordered.drop_duplicates(shape)


def gemm_rows(frame: pd.DataFrame, dtype: str) -> pd.DataFrame:
    """Return the multiplications in one operand format."""
    return one_kernel_per_shape(frame[frame["dtype"] == dtype])


def decode_rows(frame: pd.DataFrame, kv_dtype: str) -> pd.DataFrame:
    """Return decode attention over one format of the cache, with the usual head sizes."""
    return one_kernel_per_shape(frame[(frame["kv_dtype"] == kv_dtype) & frame["head_dim"].isin(HEAD_DIMS)])


def prefill_rows(frame: pd.DataFrame, kv_dtype: str) -> pd.DataFrame:
    """Return prefill attention with one format of the cache, without cached tokens and in one arithmetic.

    Head sizes are the usual ones. The arithmetic is bf16, unless the engine measured under half as many rows in it as in
    another: then it falls back to bf16 only for a few shapes.
    """
    rows = frame[(frame["kv_dtype"] == kv_dtype) & (frame["prefix_tok"] == 0) & frame["head_dim"].isin(HEAD_DIMS)]
    counts = rows["dtype"].value_counts()
    if counts.empty:
        return rows
    most = str(counts.index[0])
    chosen = "bf16" if 2 * counts.get("bf16", 0) >= counts.iloc[0] else most
    return one_kernel_per_shape(rows[rows["dtype"] == chosen])


def moe_rows(frame: pd.DataFrame, dtype: str) -> pd.DataFrame:
    """Return gated experts in one operand format: one kernel, and one distribution of the routing."""
    few_ranks = frame["moe_tp"] * frame["moe_ep"] <= MAX_MOE_RANKS
    rows = frame[(frame["dtype"] == dtype) & few_ranks & ~frame["kernel_source"].str.contains(_NON_GATED)]
    preferred = rows[rows["kernel_source"].str.contains(_PREFERRED.get(dtype, "^$"))]
    rows = _newest(rows if preferred.empty else preferred)
    rows = rows[rows["kernel_source"].isin(_first(rows["kernel_source"]))]
    skewed = rows[rows["distribution"].str.startswith("power_law")]
    rows = rows if skewed.empty else skewed
    usual = rows[rows["distribution"] == USUAL_ROUTING]
    return rows[rows["distribution"].isin(_first(rows["distribution"]))] if usual.empty else usual


def _newest(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the newest version that has enough of them: engines change the kernels of their experts."""
    def order(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"[0-9]+", version))

    for version in sorted(rows["framework_version"].unique(), key=order, reverse=True):
        of_version: pd.DataFrame = rows[rows["framework_version"] == version]
        if len(of_version) >= _ENOUGH_ROWS:
            return of_version
    return rows


def _first(values: pd.Series) -> Sequence[str]:
    """Return the most frequent value, the first by name among equals; none of none."""
    counts = values.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return [str(name) for name in counts.index[:1]]


def collective_rows(frame: pd.DataFrame, op: CollectiveOp) -> pd.DataFrame:
    """Return one collective in one mode per degree, with sizes as the planner counts them.

    All-reduce: the engine's own, captured in a graph, and the library's only at degrees where there is none;
    the faster where one size was measured with several kernels. The others: the library's, in 16 bits. The tables count of an
    all-to-all what one rank sends, the planner what all do.
    """
    rows = frame[(frame["op"] == op.value) & frame["dtype"].isin(("bf16", "fp16")) & (frame["mode"] != "eager")]
    if op is CollectiveOp.ALL_REDUCE:
        own = rows[~rows["mode"].isin(("nccl", "oneccl"))]
        rows = pd.concat([own, rows[~rows["tp"].isin(own["tp"].unique())]])
    if op is CollectiveOp.ALL_TO_ALL:
        rows = rows.assign(size_bytes=rows["size_bytes"] * rows["tp"])
    return rows.sort_values("latency_s", kind="stable").drop_duplicates(["tp", "size_bytes"])
