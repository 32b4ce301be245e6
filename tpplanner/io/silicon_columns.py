"""What the columns of the measured operator tables mean, under our names and in SI units.

Heads and widths are those of one rank: tensor parallelism shows as fewer heads or a narrower matrix. Only the MoE
table keeps the model's own width and experts, beside the degrees that divide them.
``latency`` is in ms there and in seconds here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pandas as pd

from tpplanner.domain.dtypes import DTYPES

TABLE_DTYPES: Final[Mapping[str, str]] = {
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "fp8": "fp8", "fp8_block": "fp8_block",
    "nvfp4": "nvfp4", "int8": "int8", "int8_wo": "int8_wo", "int4_wo": "int4_wo", "sq": "int8_sq",
    "w4afp8": "w4afp8", "w4a16_mxfp4": "w4a16_mxfp4", "w4a8_mxfp4_mxfp8": "w4a8_mxfp4_mxfp8",
}
"""The tables' number formats in our spelling. ``_wo`` is weight-only, ``fp8_block`` has a scale per 128 x 128 block."""

ZERO_ALLOWED: Final = frozenset({"step", "window_size"})
DEFAULTS: Final[Mapping[str, int]] = {"window_size": 0}
"""Columns that some versions of a table lack, and what their rows mean."""
OPTIONAL_TEXTS: Final = ("backend", "implementation")
"""The columns for the mode of an engine's own all-reduce; at most one is there."""

_COLLECTIVES: Final[Mapping[str, str]] = {"alltoall": "all_to_all"}
_PHASES: Final[Mapping[str, str]] = {"context": "prefill", "generation": "decode"}


def _unchanged(frame: pd.DataFrame) -> pd.DataFrame:
    return frame


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """How one table becomes rows of one frame.

    Attributes
    ----------
    frame
        The frame of `OperatorTables`.
    family, table
        Folder and file, ``<family>/<engine>/<version>/<table>_perf.parquet``.
    library
        The folder in place of the engine's where the rows belong to no engine (NCCL).
    counts, dtypes, texts
        The table's columns of whole numbers, of number formats and of other text, each with our name.
    key
        The columns of the frame that identify a sample, in order; ``kernel_source`` comes on top.
    swept
        Those of ``key`` along which one curve was measured: the rest tells one curve from another.
    derive
        Makes the columns of ``key`` that are not there under another name.
    zero_latency
        Whether 0 is a value: so for the difference of two kernels.
    """

    frame: str
    family: str
    table: str
    counts: Mapping[str, str]
    key: tuple[str, ...]
    swept: tuple[str, ...]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    derive: Callable[[pd.DataFrame], pd.DataFrame] = _unchanged
    library: str | None = None
    zero_latency: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of the frame."""
        return (*self.key, "kernel_source", "latency_s", "framework_version", "source")

    @property
    def curve(self) -> list[str]:
        """The columns that tell one measured curve from another."""
        return [name for name in self.key if name not in self.swept]


def _window(frame: pd.DataFrame) -> pd.DataFrame:
    window = frame["window_tok"].astype(np.float64)
    return frame.assign(window_tok=window.where(window > 0, np.nan))


def _context(frame: pd.DataFrame) -> pd.DataFrame:
    """``step`` tokens lie in the cache and ``isl`` = 1 is new: the query attends to their sum."""
    return frame.assign(context_tok=frame["isl_tok"] + frame["prefix_tok"])


def _decode(frame: pd.DataFrame) -> pd.DataFrame:
    return _context(_window(frame))


def _collective(frame: pd.DataFrame) -> pd.DataFrame:
    """``message_size`` counts elements of the whole buffer: bus bandwidths confirm it (see `OperatorTables`)."""
    num_bytes = frame["dtype"].map({name: int(one.num_bytes) for name, one in DTYPES.items() if one.bits >= 8})
    return frame.assign(op=frame["op"].replace(dict(_COLLECTIVES)), size_bytes=frame["num_elements"] * num_bytes)


def _custom_all_reduce(frame: pd.DataFrame) -> pd.DataFrame:
    """``backend`` is ``vllm_graph`` or ``vllm_eager``; TensorRT-LLM has one mode, under ``implementation``."""
    column = next((name for name in OPTIONAL_TEXTS if name in frame), "kernel_source")
    return _collective(frame).assign(mode=frame[column].astype(str).str.lower().str.split("_").str[-1])


def _library_mode(name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda frame: _collective(frame).assign(mode=name)


def _linear_attention(frame: pd.DataFrame) -> pd.DataFrame:
    conv = frame["kernel_source"].str.startswith("causal_conv1d")
    return frame.assign(phase=frame["phase"].replace(dict(_PHASES)), stage=np.where(conv, "conv", "recurrence"))


_ATTENTION_COUNTS: Final = {
    "batch_size": "num_seqs", "isl": "isl_tok", "step": "prefix_tok", "num_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads", "head_dim": "head_dim", "window_size": "window_tok",
}
_MLA_COUNTS: Final = {"batch_size": "num_seqs", "isl": "isl_tok", "step": "prefix_tok", "num_heads": "num_heads"}
_MLA_DTYPES: Final = {"mla_dtype": "dtype", "kv_cache_dtype": "kv_dtype"}
_MLA_MODULE_DTYPES: Final = {**_MLA_DTYPES, "gemm_type": "gemm_dtype"}
_HEADS: Final = ("num_heads", "num_kv_heads", "head_dim", "window_tok")
_PREFILL: Final = ("num_seqs", "isl_tok", "prefix_tok")
_DECODE: Final = ("num_seqs", "context_tok")
_COLLECTIVE: Final = ("op", "dtype", "tp", "mode", "size_bytes")
_COLLECTIVE_COUNTS: Final = {"num_gpus": "tp", "message_size": "num_elements"}
_GDN_HEADS: Final = ("num_key_heads", "key_head_dim", "num_value_heads", "value_head_dim", "conv_kernel_size")


def _library(name: str) -> TableSpec:
    return TableSpec(
        frame="collective", family="comm", table=name, library=name,
        counts=_COLLECTIVE_COUNTS, dtypes={"nccl_dtype": "dtype"}, texts={"op_name": "op"}, key=_COLLECTIVE,
        swept=("mode", "size_bytes"), derive=_library_mode(name),
    )


def _mla(frame: str, table: str, *, decode: bool) -> TableSpec:
    module = "module" in table
    swept = _DECODE if decode else _PREFILL
    gemm, architecture = (("gemm_dtype",), ("architecture",)) if module else ((), ())
    return TableSpec(
        frame=frame, family="mla", table=table, counts=_MLA_COUNTS, dtypes=_MLA_MODULE_DTYPES if module else _MLA_DTYPES,
        texts={"architecture": "architecture"} if module else {},
        key=(*architecture, "dtype", "kv_dtype", *gemm, "num_heads", *swept), swept=swept,
        derive=_context if decode else _unchanged,
    )


def _quantize(table: str) -> TableSpec:
    return TableSpec(
        frame="activation_quant", family="quantize", table=table, counts={"m": "num_tok", "k": "in_features"},
        dtypes={"quant_dtype": "dtype"}, texts={"op_name": "op"}, key=("op", "dtype", "num_tok", "in_features"),
        swept=("num_tok", "in_features"), zero_latency=table == "computescale",
    )


SPECS: Final[tuple[TableSpec, ...]] = (
    TableSpec(
        frame="gemm", family="gemm", table="gemm", counts={"m": "num_tok", "n": "out_features", "k": "in_features"},
        dtypes={"gemm_dtype": "dtype"}, key=("dtype", "num_tok", "out_features", "in_features"), swept=("num_tok",),
    ),
    TableSpec(
        frame="prefill_attention", family="attention", table="context_attention", counts=_ATTENTION_COUNTS,
        dtypes={"attn_dtype": "dtype", "kv_cache_dtype": "kv_dtype"}, key=("dtype", "kv_dtype", *_PREFILL, *_HEADS),
        swept=_PREFILL, derive=_window,
    ),
    TableSpec(
        frame="decode_attention", family="attention", table="generation_attention", counts=_ATTENTION_COUNTS,
        dtypes={"attn_dtype": "dtype", "kv_cache_dtype": "kv_dtype"}, key=("dtype", "kv_dtype", *_DECODE, *_HEADS),
        swept=_DECODE, derive=_decode,
    ),
    TableSpec(
        frame="moe", family="moe", table="moe", dtypes={"moe_dtype": "dtype"}, texts={"distribution": "distribution"},
        counts={
            "num_tokens": "num_tok", "hidden_size": "hidden_size", "inter_size": "expert_intermediate_size",
            "topk": "num_experts_per_tok", "num_experts": "num_experts", "moe_tp_size": "moe_tp", "moe_ep_size": "moe_ep",
        },
        key=(
            "dtype", "num_tok", "hidden_size", "expert_intermediate_size", "num_experts_per_tok", "num_experts",
            "moe_tp", "moe_ep", "distribution",
        ),
        swept=("num_tok",),
    ),
    TableSpec(
        frame="collective", family="comm", table="custom_allreduce", counts=_COLLECTIVE_COUNTS,
        dtypes={"allreduce_dtype": "dtype"}, texts={"op_name": "op"}, key=_COLLECTIVE, swept=("mode", "size_bytes"),
        derive=_custom_all_reduce,
    ),
    _library("nccl"),
    _library("oneccl"),
    _mla("mla_prefill", "context_mla", decode=False),
    _mla("mla_decode", "generation_mla", decode=True),
    _mla("mla_prefill_module", "mla_context_module", decode=False),
    _mla("mla_decode_module", "mla_generation_module", decode=True),
    TableSpec(
        frame="mla_bmm", family="mla_bmm", table="mla_bmm", counts={"num_tokens": "num_tok", "num_heads": "num_heads"},
        dtypes={"bmm_dtype": "dtype"}, texts={"op_name": "op"}, key=("op", "dtype", "num_heads", "num_tok"),
        swept=("num_tok",),
    ),
    TableSpec(
        frame="linear_attention", family="linear_attention", table="gdn", texts={"phase": "phase"},
        counts={
            "batch_size": "num_seqs", "seq_len": "isl_tok", "num_k_heads": "num_key_heads", "head_k_dim": "key_head_dim",
            "num_v_heads": "num_value_heads", "head_v_dim": "value_head_dim", "d_conv": "conv_kernel_size",
        },
        key=("phase", "stage", "num_seqs", "isl_tok", *_GDN_HEADS), swept=("stage", "num_seqs", "isl_tok"),
        derive=_linear_attention,
    ),
    _quantize("computescale"),
    _quantize("scale_matrix"),
)
FRAMES: Final[tuple[str, ...]] = tuple(dict.fromkeys(spec.frame for spec in SPECS))


def empty_frame(frame: str) -> pd.DataFrame:
    """Return the frame with its columns and no rows."""
    spec = next(one for one in SPECS if one.frame == frame)
    text = {*spec.dtypes.values(), *spec.texts.values(), "stage", "mode", "kernel_source", "framework_version", "source"}
    real = {"latency_s", "window_tok"}
    return pd.DataFrame({
        name: pd.Series(dtype=str if name in text else np.float64 if name in real else np.int64) for name in spec.columns
    })
