"""When requests of an open loop arrive."""

import numpy as np

from tpplanner.domain.checks import check_real
from tpplanner.domain.traffic import Arrivals, FloatArray
from tpplanner.errors import WorkloadError, reject
from tpplanner.sim.lengths import check_requests

MIN_RATE_REQ_S, MAX_RATE_REQ_S = 1e-9, 1e9
"""One request in thirty years; more than any service has."""

MIN_BURSTINESS_CV, MAX_BURSTINESS_CV = 1e-3, 100.0
"""Below, arrivals are constant; above, nearly all of them come in one burst."""


def arrival_times(
    kind: Arrivals, *, rate_req_s: float, num_requests: int, burstiness_cv: float = 1.0, rng: np.random.Generator
) -> FloatArray:
    """Return when each request arrives, ascending [s], shape (num_requests,).

    The gaps are drawn at a rate of 1 and divided by ``rate_req_s``: the same state of ``rng`` gives the same pattern
    at every rate, stretched. The first request arrives one gap after 0.

    Parameters
    ----------
    kind
        Poisson (exponential gaps), gamma gaps, or constant ones.
    rate_req_s
        Mean rate [req/s], between 1e-9 and 1e9.
    num_requests
        How many.
    burstiness_cv
        Coefficient of variation of gamma gaps: 1 is Poisson, above 1 comes in bursts. vLLM's ``--burstiness`` is the
        shape of the same distribution, ``1 / burstiness_cv**2``.
    rng
        Where the randomness comes from; constant gaps take nothing from it.

    Raises
    ------
    WorkloadError
        A number is outside its range, or ``burstiness_cv`` is given with arrivals that have none.

    Examples
    --------
    >>> arrival_times(Arrivals.CONSTANT, rate_req_s=4.0, num_requests=3, rng=np.random.default_rng(0)).tolist()
    [0.25, 0.5, 0.75]
    """
    check_arrivals(kind, rate_req_s=rate_req_s, burstiness_cv=burstiness_cv)
    check_requests(num_requests)
    return np.cumsum(_unit_gaps(kind, num_requests, burstiness_cv, rng)) / rate_req_s


def all_at_once(num_requests: int) -> FloatArray:
    """Arrival times of requests that are all queued at 0 [s] (offline).

    Examples
    --------
    >>> all_at_once(2).tolist()
    [0.0, 0.0]
    """
    check_requests(num_requests)
    return np.zeros(num_requests)


def check_arrivals(kind: Arrivals, *, rate_req_s: float, burstiness_cv: float) -> None:
    """Refuse a rate or a burstiness that makes no sense."""
    check_rate(rate_req_s)
    check_real(WorkloadError, "arrivals", minimum=MIN_BURSTINESS_CV, maximum=MAX_BURSTINESS_CV, burstiness_cv=burstiness_cv)
    if kind is not Arrivals.GAMMA and burstiness_cv != 1.0:
        reject(WorkloadError, "burstiness_cv", f"be 1 with {kind} arrivals", burstiness_cv, "arrivals")


def check_rate(rate_req_s: float) -> None:
    """Refuse a rate that is not in [1e-9, 1e9] [req/s]."""
    check_real(WorkloadError, "arrivals", minimum=MIN_RATE_REQ_S, maximum=MAX_RATE_REQ_S, rate_req_s=rate_req_s)


def _unit_gaps(kind: Arrivals, num_requests: int, burstiness_cv: float, rng: np.random.Generator) -> FloatArray:
    """Gaps of mean 1."""
    match kind:
        case Arrivals.POISSON:
            return rng.standard_exponential(num_requests)
        case Arrivals.GAMMA:
            return rng.standard_gamma(burstiness_cv**-2, num_requests) * burstiness_cv**2
        case Arrivals.CONSTANT:
            return np.ones(num_requests)
