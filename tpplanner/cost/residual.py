"""Log residuals of a latency as a Gaussian process over measured runs: what the terms miss, and how sure that is."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tpplanner.domain.serving_fit import CovarianceTerm, ResidualModel

FloatArray = NDArray[np.float64]

_SAME_LOG2 = 1e-4
"""Lengths this near in log2 are the same: files keep five digits of those of the runs, 7e-5 of log2."""

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
    same_shape = same_model & _same_shape(a.log2, b.log2)
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
    """Expected log residual at each row of ``at``; 0 far from every run.

    The covariance with the runs times their weights, term by term: those of one model meet its own runs alone.
    """
    mean = np.zeros(at.log2.shape[0])
    runs, weights = _runs_of(residual), np.asarray(residual.weights)
    for key in np.unique(at.model_keys) if residual.num_runs else ():
        rows, own = at.model_keys == key, runs.model_keys == key
        for term in residual.terms:
            columns = np.ones_like(own) if term.within == "cell" else own
            if columns.any():
                mean[rows] += _smoothed(term, at.log2[rows], runs.log2[columns], weights[columns])
    return mean


def _smoothed(term: CovarianceTerm, at: FloatArray, runs: FloatArray, weights: FloatArray) -> FloatArray:
    """One term's covariance of points and runs, times the runs' weights."""
    lengths = np.asarray([term.num_seqs_len, term.tp_len, term.isl_len, term.osl_len])
    used = np.isfinite(lengths)
    x, y = at[:, used] / lengths[used], runs[:, used] / lengths[used]
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x.y, not below 0 by rounding
    gap = np.maximum((x**2).sum(-1)[:, None] + (y**2).sum(-1)[None, :] - 2.0 * (x @ y.T), 0.0)
    shared = np.exp(-0.5 * gap)
    if term.within == "shape":
        shared *= _same_shape(at, runs)
    smoothed: FloatArray = term.std_frac**2 * (shared @ weights)
    return smoothed


def _same_shape(a: FloatArray, b: FloatArray) -> NDArray[np.bool_]:
    """Whether prompt and output are the same, shape (len a, len b)."""
    return (np.abs(a[:, None, 2] - b[None, :, 2]) < _SAME_LOG2) & (np.abs(a[:, None, 3] - b[None, :, 3]) < _SAME_LOG2)


def covariance_log(residual: ResidualModel, at: Coordinates, *, with_noise: bool = True) -> FloatArray:
    """Covariance of the log residuals at the rows of ``at``, given the runs; shape (n, n)."""
    prior = covariance(residual.terms, at, at)
    if residual.num_runs:
        cross = covariance(residual.terms, at, _runs_of(residual))
        prior = prior - cross @ _precision(residual) @ cross.T
    noise = residual.noise_std_frac**2 if with_noise else 0.0
    return prior + noise * np.eye(at.log2.shape[0])
