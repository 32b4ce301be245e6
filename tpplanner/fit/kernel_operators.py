"""The operators whose kernels are fitted: how each is predicted, and the coordinates and knots of its surface."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tpplanner.cost.kernels import (
    decode_attention_kernel_s,
    decode_coordinates,
    gemm_kernel_s,
    moe_coordinates,
    moe_kernel_s,
    prefill_attention_kernel_s,
    prefill_coordinates,
)
from tpplanner.domain.kernels import DecodeAttentionKernel, GemmKernel, Kernel, MoeKernel, PrefillAttentionKernel
from tpplanner.domain.matrix import FloatOrArray

FloatArray = NDArray[np.float64]
Columns = Mapping[str, FloatArray]
K = TypeVar("K", bound=Kernel)

GEMM_KNOTS: Final[dict[str, Sequence[float]]] = {
    # Pairs one apart are where kernels of the engines switch tiles.
    "num_tok": (1, 16, 17, 64, 65, 128, 129, 256, 512, 1024, 2048, 4096, 8192, 32768),
    "out_features": (32, 128, 512, 1024, 2048, 4096, 8192, 16384, 65536),
    "in_features": (32, 128, 512, 1024, 2048, 4096, 8192, 16384, 65536),
}
DECODE_KNOTS: Final[dict[str, Sequence[float]]] = {
    "seq_kv_heads": (1, 8, 32, 64, 128, 512, 4096, 65536),
    "read_tok": (2, 64, 128, 512, 4096, 131072),
    "heads_per_kv_head": (1, 4, 8, 16, 32, 64),
    "head_dim": (64, 128, 256),
    "windowed": (1, 2),
}
PREFILL_KNOTS: Final[dict[str, Sequence[float]]] = {
    "seq_heads": (1, 8, 32, 128, 512, 4096),
    "isl_tok": (1, 16, 64, 256, 1024, 4096, 16384),
    "window_frac": (0.02, 0.25, 1.0),
    "heads_per_kv_head": (1, 4, 16),
    "head_dim": (64, 128, 256),
}
MOE_KNOTS: Final[dict[str, Sequence[float]]] = {
    "num_tok": (1, 8, 64, 256, 1024, 4096, 16384),
    "routed_frac": (0.01, 0.05, 0.25),
    "local_experts": (1, 8, 64, 512),
    "shard_size": (64, 256, 1024, 4096, 16384),
    "hidden_size": (2048, 7168),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operator(Generic[K]):
    """How one kind of kernel is fitted.

    Attributes
    ----------
    predict
        Times of a kernel at given sizes [s].
    knots
        Candidate knots per coordinate of the surface.
    coordinates
        Coordinates of given sizes.
    sizes
        Sizes at given coordinates: any that have them.
    shape, driver
        Columns that make a shape, and the size whose values are also held out.
    monotone
        Axes along which time must not fall.
    """

    predict: Callable[[K, Columns], FloatOrArray]
    knots: Mapping[str, Sequence[float]]
    coordinates: Callable[[Columns], Columns]
    sizes: Callable[[Columns], Columns]
    shape: Sequence[str]
    driver: str
    monotone: Sequence[str]


_NO_WINDOW: Final = np.asarray(np.inf)

GEMM_SIZES: Final = ("num_tok", "out_features", "in_features")
DECODE_SIZES: Final = ("num_seqs", "context_tok", "num_heads", "num_kv_heads", "head_dim", "window_tok")
PREFILL_SIZES: Final = ("num_seqs", "isl_tok", "num_heads", "num_kv_heads", "head_dim", "window_tok")
MOE_SIZES: Final = ("num_tok", "hidden_size", "expert_intermediate_size", "num_experts_per_tok", "num_experts",
                    "moe_tp", "moe_ep")


def _only(columns: Columns, names: Sequence[str]) -> dict[str, FloatArray]:
    return {n: columns[n] for n in names if n in columns}


def _floats(coordinates: Mapping[str, FloatOrArray]) -> dict[str, FloatArray]:
    return {n: np.asarray(v, dtype=float) for n, v in coordinates.items()}


def gemm_operator(*, weight_bytes_per_param: float, flop_s: float, hbm_bytes_s: float) -> Operator[GemmKernel]:
    """Matrix multiplications at the peak rates [flop/s, bytes/s]; whole (out, in) shapes are held out."""
    return Operator(
        predict=lambda kernel, c: gemm_kernel_s(
            kernel, num_tok=c["num_tok"], out_features=c["out_features"], in_features=c["in_features"],
            weight_bytes_per_param=weight_bytes_per_param, flop_s=flop_s, hbm_bytes_s=hbm_bytes_s),
        knots=GEMM_KNOTS, coordinates=lambda c: _only(c, GEMM_SIZES), sizes=lambda mesh: mesh,
        shape=("out_features", "in_features"), driver="num_tok", monotone=GEMM_SIZES,
    )


def decode_operator(*, kv_element_bytes: float, flop_s: float, hbm_bytes_s: float) -> Operator[DecodeAttentionKernel]:
    """Decode attention at the peak rates [flop/s, bytes/s]; combinations of heads are held out."""
    def predict(kernel: DecodeAttentionKernel, c: Columns) -> FloatOrArray:
        return decode_attention_kernel_s(
            kernel, num_seqs=c["num_seqs"], context_tok=c["context_tok"], num_heads=c["num_heads"],
            num_kv_heads=c["num_kv_heads"], head_dim=c["head_dim"], window_tok=c.get("window_tok", _NO_WINDOW),
            kv_element_bytes=kv_element_bytes, flop_s=flop_s, hbm_bytes_s=hbm_bytes_s)

    def sizes(mesh: Columns) -> Columns:
        return {"num_seqs": mesh["seq_kv_heads"], "num_kv_heads": np.ones_like(mesh["read_tok"]),
                "context_tok": mesh["read_tok"], "num_heads": mesh["heads_per_kv_head"], "head_dim": mesh["head_dim"],
                "window_tok": np.where(mesh["windowed"] > 1.5, mesh["read_tok"], np.inf)}

    return Operator(
        predict=predict, knots=DECODE_KNOTS, sizes=sizes,
        coordinates=lambda c: _floats(decode_coordinates(**_only(c, DECODE_SIZES))),
        shape=("num_heads", "num_kv_heads", "head_dim"), driver="context_tok", monotone=("seq_kv_heads", "read_tok"),
    )


def prefill_operator(*, kv_element_bytes: float, flop_s: float, hbm_bytes_s: float) -> Operator[PrefillAttentionKernel]:
    """Prefill attention at the peak rates [flop/s, bytes/s]; combinations of heads are held out."""
    def predict(kernel: PrefillAttentionKernel, c: Columns) -> FloatOrArray:
        return prefill_attention_kernel_s(
            kernel, num_seqs=c["num_seqs"], isl_tok=c["isl_tok"], num_heads=c["num_heads"],
            num_kv_heads=c["num_kv_heads"], head_dim=c["head_dim"], window_tok=c.get("window_tok", _NO_WINDOW),
            kv_element_bytes=kv_element_bytes, flop_s=flop_s, hbm_bytes_s=hbm_bytes_s)

    def sizes(mesh: Columns) -> Columns:
        heads = mesh["heads_per_kv_head"]
        return {"num_seqs": mesh["seq_heads"] / heads, "num_heads": heads, "num_kv_heads": np.ones_like(heads),
                "isl_tok": mesh["isl_tok"], "head_dim": mesh["head_dim"],
                "window_tok": np.where(mesh["window_frac"] < 1.0, mesh["window_frac"] * mesh["isl_tok"], np.inf)}

    return Operator(
        predict=predict, knots=PREFILL_KNOTS, sizes=sizes,
        coordinates=lambda c: _floats(prefill_coordinates(**_only(c, PREFILL_SIZES))),
        shape=("num_heads", "num_kv_heads", "head_dim"), driver="isl_tok", monotone=("seq_heads", "isl_tok"),
    )


def moe_operator(*, weight_bytes_per_param: float, flop_s: float, hbm_bytes_s: float) -> Operator[MoeKernel]:
    """Routed experts at the peak rates [flop/s, bytes/s]; whole sharded models are held out."""
    def predict(kernel: MoeKernel, c: Columns) -> FloatOrArray:
        return moe_kernel_s(
            kernel, num_tok=c["num_tok"], hidden_size=c["hidden_size"], num_experts=c["num_experts"],
            expert_intermediate_size=c["expert_intermediate_size"], num_experts_per_tok=c["num_experts_per_tok"],
            moe_tp=c["moe_tp"], moe_ep=c["moe_ep"], weight_bytes_per_param=weight_bytes_per_param, flop_s=flop_s,
            hbm_bytes_s=hbm_bytes_s)

    def sizes(mesh: Columns) -> Columns:
        # Sharded by experts only: the reads of a rank follow from k/E of all of them.
        ones = np.ones_like(mesh["num_tok"])
        num_experts = np.maximum(mesh["local_experts"], 1.0 / mesh["routed_frac"])
        return {"num_tok": mesh["num_tok"], "hidden_size": mesh["hidden_size"], "moe_tp": ones,
                "expert_intermediate_size": mesh["shard_size"], "num_experts": num_experts,
                "num_experts_per_tok": num_experts * mesh["routed_frac"], "moe_ep": num_experts / mesh["local_experts"]}

    return Operator(
        predict=predict, knots=MOE_KNOTS, sizes=sizes,
        coordinates=lambda c: _floats(moe_coordinates(**_only(c, MOE_SIZES))),
        shape=MOE_SIZES[1:], driver="num_tok", monotone=("num_tok",),
    )
