"""The matrix multiplications of a model as an engine runs them: Q, K and V in one, each with the way it is cut."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tpplanner.domain.matrix import FloatOrArray, Matrix, Role, shard_frac
from tpplanner.domain.model import ModelSpec, MoeMlp

_ROW_CUT = frozenset({"o", "down", "shared_down"})
"""Cut along the input: the all-reduce after them adds the parts. All others are cut along the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """One multiplication of ``num_layers`` layers.

    ``parts`` are (output features, least share of a rank) of the matrices that run as one;
    ``kernels`` the names of kernels that can run it, the best fitting first.
    """

    num_layers: int
    in_features: int
    parts: tuple[tuple[int, float], ...]
    is_row_cut: bool
    bytes_per_param: float
    runs_as: str
    kernels: tuple[str, ...]

    def out_features_on(self, tp: FloatOrArray) -> FloatOrArray:
        """Output features on one rank of ``tp``."""
        if self.is_row_cut:
            return float(sum(out for out, _ in self.parts))
        return sum((out * shard_frac(tp, least) for out, least in self.parts), start=0.0)

    def in_features_on(self, tp: FloatOrArray) -> FloatOrArray:
        """Input features on one rank of ``tp``."""
        return self.in_features * shard_frac(tp, self.parts[0][1]) if self.is_row_cut else float(self.in_features)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLayers:
    """``num_layers`` equal layers of routed experts."""

    num_layers: int
    hidden_size: int
    mlp: MoeMlp
    bytes_per_param: float
    runs_as: str
    kernels: tuple[str, ...]


def kernel_names(stored: str, *, is_moe: bool) -> tuple[str, ...]:
    """Names of the kernels that multiply weights stored as ``stored``, the best fitting first.

    Published FP8 checkpoints of mixtures of experts scale in blocks of 128 x 128, those of dense
    models per tensor or per channel.
    """
    match stored:
        case "fp8":
            return ("fp8_block", "fp8") if is_moe else ("fp8", "fp8_block")
        case "int4":
            return ("int4_wo",)
        case "int8":
            return ("int8_sq", "int8_wo")
        case "mxfp4":
            return ("w4a16_mxfp4", "w4a8_mxfp4_mxfp8")
        case "fp16" | "bf16":
            return ("bf16", "fp16")
        case _:
            return (stored,)


_NEIGHBOURS = {"int4": ("w4a16_mxfp4",), "int8": ("fp8",), "mxfp4": ("int4_wo",), "nvfp4": ("w4a16_mxfp4", "int4_wo")}


def runnable_by(stored: str, *, is_moe: bool) -> tuple[str, ...]:
    """Names of kernels that can stand for ``stored``: its own, those of the nearest formats, bf16 last.

    A neighbour is timed with the stored bytes and the peak of the format, so that a format that was never measured runs
    like one that was.
    """
    return tuple(dict.fromkeys((*kernel_names(stored, is_moe=is_moe), *_NEIGHBOURS.get(stored, ()), "bf16")))


def _gemm(model: ModelSpec, num_layers: int, *matrices: Matrix) -> Gemm:
    first = matrices[0]
    return Gemm(
        num_layers=num_layers, in_features=first.in_features,
        parts=tuple((m.out_features, m.min_shard_frac) for m in matrices), is_row_cut=first.name in _ROW_CUT,
        bytes_per_param=model.stored_as(first).num_bytes, runs_as=model.runs_as(first).name,
        kernels=runnable_by(model.stored_as(first).name, is_moe=model.is_moe),
    )


@lru_cache(maxsize=256)
def gemms_of(model: ModelSpec) -> tuple[Gemm, ...]:
    """Return the multiplications inside the layers, without the routed experts."""
    found = []
    for group in model.layer_groups:
        queries: Matrix | None = None
        for matrix in group.matrices(model.hidden_size):
            if matrix.role is Role.EXPERT:
                continue
            if matrix.name == "q":
                queries = matrix
            elif matrix.name == "kv" and queries is not None:
                found.append(_gemm(model, group.num_layers, queries, matrix))
                queries = None
            else:
                if queries is not None:
                    found.append(_gemm(model, group.num_layers, queries))
                    queries = None
                found.append(_gemm(model, group.num_layers, matrix))
    return tuple(found)


@lru_cache(maxsize=256)
def lm_head_of(model: ModelSpec) -> Gemm:
    """Return the output projection."""
    return _gemm(model, 1, model.lm_head)


@lru_cache(maxsize=256)
def experts_of(model: ModelSpec) -> tuple[ExpertLayers, ...]:
    """Return the layers of routed experts."""
    return tuple(
        ExpertLayers(
            num_layers=group.num_layers, hidden_size=model.hidden_size, mlp=group.mlp,
            bytes_per_param=model.precision.expert.num_bytes, runs_as=model.precision.expert_activation.name,
            kernels=runnable_by(model.precision.expert.name, is_moe=True),
        )
        for group in model.layer_groups if isinstance(group.mlp, MoeMlp)
    )


def by_degree(tp: FloatOrArray, *others: FloatOrArray) -> tuple[tuple[int, ...], list[tuple[float, np.ndarray]]]:
    """Split broadcast arrays by degree: the common shape, and (degree, where) for each degree that occurs."""
    degrees = np.broadcast_to(np.asarray(tp, dtype=float), np.broadcast_shapes(np.shape(tp), *(np.shape(o) for o in others)))
    return degrees.shape, [(float(t), degrees == t) for t in np.unique(degrees)]
