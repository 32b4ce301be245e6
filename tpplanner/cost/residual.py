"""Log residuals of a latency as a Gaussian process over measured runs: what the terms miss, and how sure that is."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.serving_fit import CovarianceTerm, ResidualModel

FloatArray = NDArray[np.float64]

EQUATION = "log(measured / terms) ~ N(k(x) w, k(x, x) - k(x) (K + s^2)^-1 k(x)),  w = (K + s^2)^-1 r"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coordinates:
    """Where runs lie: names of the model, and log2 of sequences, degree, prompt and output; one row per run."""

    model_keys: NDArray[np.str_]
    log2: FloatArray

    @classmethod
    def of(cls, *, model_keys: object, num_seqs: object, tp: object, isl_tok: object, osl_tok: object) -> "Coordinates":
        """Stack coordinates that broadcast together."""
        columns = np.broadcast_arrays(*(np.asarray(c, dtype=float) for c in (num_seqs, tp, isl_tok, osl_tok)))
        keys = np.broadcast_to(np.asarray(model_keys, dtype=str), columns[0].shape)
        return cls(model_keys=keys.ravel(), log2=np.log2(np.maximum(np.stack([c.ravel() for c in columns], -1), 1e-9)))


def covariance(terms: tuple[CovarianceTerm, ...], a: Coordinates, b: Coordinates) -> FloatArray:
    """Covariance of the residuals at ``a`` and ``b``, both of one machine and engine; shape (len a, len b).

    Examples
    --------
    One octave of load apart, at a length of one octave: exp(-1/2) of the variance.

    >>> term = CovarianceTerm(std_frac=0.1, within="model", num_seqs_len=1.0)
    >>> at = lambda n: Coordinates.of(model_keys="m", num_seqs=[n], tp=1, isl_tok=1, osl_tok=1)
    >>> round(float(covariance((term,), at(8), at(16))[0, 0]), 6)
    0.006065
    """
    total = np.zeros((a.log2.shape[0], b.log2.shape[0]))
    same_model = a.model_keys[:, None] == b.model_keys[None, :]
    same_shape = same_model & np.all(np.abs(a.log2[:, None, 2:] - b.log2[None, :, 2:]) < 1e-6, axis=-1)
    within = {"cell": np.ones_like(same_model), "model": same_model, "shape": same_shape}
    for term in terms:
        lengths = np.asarray([term.num_seqs_len, term.tp_len, term.isl_len, term.osl_len])
        used = np.isfinite(lengths)
        gap = np.zeros_like(total)
        for axis in np.flatnonzero(used):
            gap += ((a.log2[:, None, axis] - b.log2[None, :, axis]) / lengths[axis]) ** 2
        total += np.where(within[term.within], term.std_frac**2 * np.exp(-0.5 * gap), 0.0)
    return total


@lru_cache(maxsize=64)
def _runs_of(residual: ResidualModel) -> Coordinates:
    return Coordinates.of(model_keys=residual.model_keys, num_seqs=residual.num_seqs, tp=residual.tp,
                          isl_tok=residual.isl_tok, osl_tok=residual.osl_tok)


@lru_cache(maxsize=64)
def _precision(residual: ResidualModel) -> FloatArray:
    runs = _runs_of(residual)
    noisy = covariance(residual.terms, runs, runs) + residual.noise_std_frac**2 * np.eye(residual.num_runs)
    return np.asarray(np.linalg.inv(noisy))


def residual_weights(residual: ResidualModel, log_residuals: FloatArray) -> FloatArray:
    """(K + noise**2 I)^-1 r of the runs that ``residual`` lists."""
    return np.asarray(_precision(residual) @ log_residuals)


def mean_log(residual: ResidualModel, at: Coordinates) -> FloatArray:
    """Expected log residual at each row of ``at``; 0 far from every run."""
    if not residual.num_runs:
        return np.zeros(at.log2.shape[0])
    mean: FloatArray = covariance(residual.terms, at, _runs_of(residual)) @ np.asarray(residual.weights)
    return mean


def covariance_log(residual: ResidualModel, at: Coordinates, *, with_noise: bool = True) -> FloatArray:
    """Covariance of the log residuals at the rows of ``at``, given the runs; shape (n, n)."""
    prior = covariance(residual.terms, at, at)
    if residual.num_runs:
        cross = covariance(residual.terms, at, _runs_of(residual))
        prior = prior - cross @ _precision(residual) @ cross.T
    noise = residual.noise_std_frac**2 if with_noise else 0.0
    return prior + noise * np.eye(at.log2.shape[0])
