"""One weight matrix: its shape, its copies, and how much of it a rank of t holds."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.checks import check_count, check_real
from tpplanner.errors import ModelError

FloatOrArray = float | NDArray[np.float64]
"""What cost functions take and return: a scalar, or an array that broadcasts."""

BoolOrArray = bool | np.bool_ | NDArray[np.bool_]
"""A condition on such values."""


class Role(StrEnum):
    """Which number format applies to a matrix."""

    LINEAR = "linear"
    EXPERT = "expert"
    LM_HEAD = "lm_head"
    UNQUANTIZED = "unquantized"


def shard_frac(tp: FloatOrArray, least: float) -> FloatOrArray:
    """Share of a matrix on one rank of ``tp``: 1/t, but never less than ``least``.

    Examples
    --------
    The K and V projections of 4 KV heads are replicated beyond t = 4.

    >>> [float(shard_frac(t, 1 / 4)) for t in (2, 4, 8)]
    [0.5, 0.25, 0.25]
    """
    return np.maximum(1.0 / np.asarray(tp, dtype=float), least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A linear of ``in_features`` x ``out_features``.

    Attributes
    ----------
    min_shard_frac
        Least share of the matrix that a rank holds: 0 divides by t without end, 1 / kv_heads is the
        K and V projection (replicated once t exceeds the KV heads), 1 is replicated on every rank.
    num_copies, num_active
        Experts stored, and experts that one token meets.
    """

    name: str
    in_features: int
    out_features: int
    min_shard_frac: float = 0.0
    bias: bool = False
    role: Role = Role.LINEAR
    num_copies: int = 1
    num_active: int = 1

    def __post_init__(self) -> None:
        check_count(ModelError, f"matrix {self.name}", in_features=self.in_features,
                    out_features=self.out_features, num_copies=self.num_copies, num_active=self.num_active)
        check_real(ModelError, f"matrix {self.name}", maximum=1.0, min_shard_frac=self.min_shard_frac)

    @property
    def _params_per_copy(self) -> int:
        return self.in_features * self.out_features + (self.out_features if self.bias else 0)

    @property
    def num_params(self) -> int:
        """Parameters of all copies, unsharded."""
        return self.num_copies * self._params_per_copy

    @property
    def num_active_params(self) -> int:
        """Parameters of the copies that one token meets, unsharded."""
        return self.num_active * self._params_per_copy

    def shard_frac(self, tp: FloatOrArray) -> FloatOrArray:
        """Share of the matrix on one rank of ``tp``."""
        return shard_frac(tp, self.min_shard_frac)
