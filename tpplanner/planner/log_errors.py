"""The joint log error of predicted TPOT and TTFT over the degrees of a question, and draws of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpplanner.cost.outside import coordinates_of
from tpplanner.cost.residual import covariance_log
from tpplanner.domain.engine import EngineProfile
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.plan import COMMON_STD_FRAC, TTFT_OVER_TPOT, Question
from tpplanner.domain.serving_fit import CovarianceTerm, ResidualModel
from tpplanner.planner.plans import grid_of

FloatArray = NDArray[np.float64]

NUM_DRAWS = 4096
"""A probability of one half is then found to 0.8 percentage points; more draws change no decision."""

SEED = 0
"""Of the draws: the same question has the same answer."""

NEIGHBOUR_TP_LEN = 0.25
"""Correlation length in doublings of what they do not share: exp(-8) from one power of two to the next."""

TPOT_NOISE_STD_FRAC, TTFT_NOISE_STD_FRAC = 0.04, 0.12
"""Scatter of single runs where none was measured: that of the measured runs of other models and machines."""


def prior(engine: EngineProfile) -> tuple[ResidualModel, ResidualModel]:
    """Return what is assumed of the errors of TPOT and TTFT without measured runs.

    A part common to all degrees, and one of each degree's own, so that the ratio of two has ``ratio_error_frac``.
    """
    own = engine.ratio_error_frac.value / math.sqrt(2.0)

    def scaled(by: float, noise_std_frac: float) -> ResidualModel:
        return ResidualModel(noise_std_frac=noise_std_frac, terms=(
            CovarianceTerm(std_frac=by * COMMON_STD_FRAC, within="cell"),
            CovarianceTerm(std_frac=by * own, within="cell", tp_len=NEIGHBOUR_TP_LEN),
        ))

    return scaled(1.0, TPOT_NOISE_STD_FRAC), scaled(TTFT_OVER_TPOT, TTFT_NOISE_STD_FRAC)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogErrors:
    """Covariances (degrees, degrees) of the log errors of TPOT and TTFT, and the scatter of single runs around them.

    The two are taken as independent of each other.
    """

    tpot_cov: FloatArray
    ttft_cov: FloatArray
    tpot_noise_std_frac: float
    ttft_noise_std_frac: float

    @property
    def tpot_var(self) -> FloatArray:
        """Variance of the log TPOT of a single run, per degree."""
        return np.maximum(np.diag(self.tpot_cov), 0.0) + self.tpot_noise_std_frac**2

    @property
    def ttft_var(self) -> FloatArray:
        """Variance of the log TTFT of a single run, per degree."""
        return np.maximum(np.diag(self.ttft_cov), 0.0) + self.ttft_noise_std_frac**2

    def draw(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Return draws (NUM_DRAWS, degrees) of the log errors of TPOT and TTFT, without the scatter of runs."""
        return _normal(self.tpot_cov, rng), _normal(self.ttft_cov, rng)

    def with_noise(
        self, drawn: tuple[FloatArray, FloatArray], rng: np.random.Generator
    ) -> tuple[FloatArray, FloatArray]:
        """Return the draws with the scatter of single runs added."""
        tpot, ttft = drawn
        return (tpot + self.tpot_noise_std_frac * rng.standard_normal(tpot.shape),
                ttft + self.ttft_noise_std_frac * rng.standard_normal(ttft.shape))


def log_errors(question: Question, tps: Sequence[int], num_seqs: FloatOrArray) -> LogErrors:
    """Return the joint log errors of the degrees ``tps`` with ``num_seqs`` sequences in the batch of each.

    From the residuals of measured runs where the engine profile was bound to some, else from :func:`prior`.
    """
    at = coordinates_of(grid_of(question, tps), num_seqs)
    engine = question.engine
    assumed = prior(engine)
    tpot = assumed[0] if engine.tpot_residual is None else engine.tpot_residual
    ttft = assumed[1] if engine.ttft_residual is None else engine.ttft_residual
    return LogErrors(
        tpot_cov=covariance_log(tpot, at, with_noise=False), ttft_cov=covariance_log(ttft, at, with_noise=False),
        tpot_noise_std_frac=tpot.noise_std_frac, ttft_noise_std_frac=ttft.noise_std_frac,
    )


def cholesky_factor(covariance: FloatArray) -> FloatArray:
    """Return the lower triangle L with L L' = covariance, which may be singular.

    A pivot that rounding left at or below zero counts as none, so that what is common to all degrees is drawn
    as exactly one number.

    Examples
    --------
    >>> cholesky_factor(np.array([[4.0, 2.0], [2.0, 1.0]]))
    array([[2., 0.],
           [1., 0.]])
    """
    factor = np.zeros_like(covariance)
    for j in range(len(covariance)):
        rest = covariance[j:, j] - factor[j:, :j] @ factor[j, :j]
        if rest[0] > 1e-12:
            factor[j:, j] = rest / math.sqrt(rest[0])
    return factor


def _normal(covariance: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draws in pairs of opposite sign: their mean is exactly zero."""
    half = rng.standard_normal((NUM_DRAWS // 2, len(covariance))) @ cholesky_factor(covariance).T
    return np.concatenate([half, -half])
