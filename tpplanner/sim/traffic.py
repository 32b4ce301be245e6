"""Making traffic: drawn from distributions, or from other traffic by scaling, cutting and sampling."""

from dataclasses import replace

import numpy as np

from tpplanner.domain.checks import check_count, check_real
from tpplanner.domain.traffic import Arrivals, IntArray, Length, Traffic
from tpplanner.errors import WorkloadError, reject
from tpplanner.sim.arrivals import arrival_times, check_rate
from tpplanner.sim.lengths import check_requests, draw_lengths, whole_tok

MIN_FACTOR, MAX_FACTOR = 1e-6, 1e6

_ISL, _OSL, _GAPS, _SAMPLE = range(4)
"""Independent streams of one seed: changing what one of them is used for leaves the others' draws as they are."""


def drawn(
    *, isl: Length, osl: Length, num_requests: int, seed: int, arrivals: Arrivals | None = None,
    rate_req_s: float | None = None, burstiness_cv: float = 1.0, name: str,
) -> Traffic:
    """Draw traffic; the same arguments give the same requests.

    The lengths depend on ``isl``, ``osl`` and ``seed`` alone, and the pattern of arrivals is the same at every rate,
    stretched: runs at two rates differ in the rate and in nothing else.

    Parameters
    ----------
    isl, osl
        Lengths of prompts and outputs [tok], drawn independently of each other.
    num_requests, seed
        How many, and 0 or more. More requests begin with the same ones.
    arrivals, rate_req_s, burstiness_cv
        As `tpplanner.sim.arrivals.arrival_times` takes them; ``None`` for a closed loop.
    name
        What people read.

    Raises
    ------
    WorkloadError
        A number is outside its range, or one of ``arrivals`` and ``rate_req_s`` is given without the other.

    Examples
    --------
    >>> from tpplanner.domain.traffic import FixedLength
    >>> two = FixedLength(tok=2)
    >>> drawn(isl=two, osl=two, num_requests=3, seed=0, name="two").osl_tok.tolist()
    [2, 2, 2]
    """
    isl_tok = draw_lengths(isl, num_requests, _stream(seed, _ISL))
    osl_tok = draw_lengths(osl, num_requests, _stream(seed, _OSL))
    traffic = Traffic(name=name, isl_tok=isl_tok, osl_tok=osl_tok)
    if (arrivals is None) != (rate_req_s is None):
        reject(WorkloadError, "rate_req_s", "be given with arrivals, and only then", rate_req_s, name)
    if arrivals is None or rate_req_s is None:
        return traffic
    return arriving(traffic, arrivals, rate_req_s=rate_req_s, burstiness_cv=burstiness_cv, seed=seed)


def arriving(
    traffic: Traffic, arrivals: Arrivals, *, rate_req_s: float, burstiness_cv: float = 1.0, seed: int
) -> Traffic:
    """Return the same requests in the same order with drawn times of arrival; times that were there are replaced."""
    times_s = arrival_times(arrivals, rate_req_s=rate_req_s, num_requests=traffic.num_requests,
                            burstiness_cv=burstiness_cv, rng=_stream(seed, _GAPS))
    return replace(traffic, arrival_s=times_s)


def scaled(traffic: Traffic, *, rate: float = 1.0, isl: float = 1.0, osl: float = 1.0) -> Traffic:
    """Return traffic with ``rate`` times the rate, and lengths times ``isl`` and ``osl``.

    Lengths are rounded to whole tokens >= 1. Blocks that prompts share are scaled with the prompts, so that the same
    part of a prompt is shared.

    Raises
    ------
    WorkloadError
        A factor is not in [1e-6, 1e6], or the rate of requests without times of arrival is scaled.

    Examples
    --------
    >>> traffic = Traffic(name="two", isl_tok=np.array([10, 99]), osl_tok=np.array([4, 1]), arrival_s=np.array([0.0, 3.0]))
    >>> half = scaled(traffic, rate=2.0, osl=0.5)
    >>> half.isl_tok.tolist(), half.osl_tok.tolist(), half.arrival_s.tolist()
    ([10, 99], [2, 1], [0.0, 1.5])
    """
    check_real(WorkloadError, "scaling", minimum=MIN_FACTOR, maximum=MAX_FACTOR, rate=rate, isl=isl, osl=osl)
    times_s = traffic.arrival_s
    if times_s is None and rate != 1.0:
        reject(WorkloadError, "rate", "be 1 for requests without times of arrival", rate, f"scaling {traffic.name}")
    block_tok = traffic.prefix_block_tok
    return replace(
        traffic,
        isl_tok=_times(traffic.isl_tok, isl),
        osl_tok=_times(traffic.osl_tok, osl),
        arrival_s=times_s if times_s is None or rate == 1.0 else times_s / rate,
        prefix_block_tok=None if block_tok is None else max(1, round(block_tok * isl)),
    )


def at_rate(traffic: Traffic, rate_req_s: float) -> Traffic:
    """Return the same pattern of arrivals, stretched to a mean rate of ``rate_req_s`` [req/s].

    Raises
    ------
    WorkloadError
        The rate is not in [1e-9, 1e9], or the traffic has none: no times of arrival, one request, or all at once.
    """
    check_rate(rate_req_s)
    rate_now_req_s, times_s = traffic.rate_req_s, traffic.arrival_s
    if times_s is None or rate_now_req_s is None:
        reject(WorkloadError, "arrival_s", "spread over time to be scaled to a rate", None, traffic.name)
    stretch = rate_now_req_s / rate_req_s
    check_real(WorkloadError, traffic.name, maximum=1e18, stretch=stretch)
    return replace(traffic, arrival_s=times_s * stretch)


def head(traffic: Traffic, num_requests: int) -> Traffic:
    """Return the first ``num_requests`` requests; their times keep."""
    _check_part(traffic, num_requests, "head")
    return replace(traffic.taken(0, num_requests), name=f"{traffic.name}, first {num_requests:,}")


def tail(traffic: Traffic, num_requests: int) -> Traffic:
    """Return the last ``num_requests`` requests; the first of them arrives at 0."""
    _check_part(traffic, num_requests, "tail")
    part = traffic.taken(traffic.num_requests - num_requests, traffic.num_requests)
    times_s = part.arrival_s
    return replace(part, name=f"{traffic.name}, last {num_requests:,}",
                   arrival_s=None if times_s is None else times_s - times_s[0])


def sampled(traffic: Traffic, num_requests: int, *, seed: int) -> Traffic:
    """Return ``num_requests`` requests drawn from ``traffic`` with replacement.

    Prompt, output and prefix of a request stay together. The order is random, so times of arrival are dropped:
    `arriving` gives new ones.
    """
    check_requests(num_requests)
    picks = _stream(seed, _SAMPLE).integers(traffic.num_requests, size=num_requests)
    ids = traffic.prefix_ids
    return replace(traffic, name=f"{traffic.name}, {num_requests:,} sampled", isl_tok=traffic.isl_tok[picks],
                   osl_tok=traffic.osl_tok[picks], arrival_s=None,
                   prefix_ids=None if ids is None else tuple(ids[pick] for pick in picks.tolist()))


def _stream(seed: int, index: int) -> np.random.Generator:
    check_count(WorkloadError, "seed", minimum=0, seed=seed)
    return np.random.default_rng(np.random.SeedSequence(seed).spawn(_SAMPLE + 1)[index])


def _times(tok: IntArray, factor: float) -> IntArray:
    return tok if factor == 1.0 else whole_tok(tok.astype(np.float64) * factor)


def _check_part(traffic: Traffic, num_requests: int, part: str) -> None:
    check_count(WorkloadError, part, num_requests=num_requests)
    if num_requests > traffic.num_requests:
        reject(WorkloadError, "num_requests", f"be at most {traffic.num_requests}", num_requests,
               f"{part} of {traffic.name}")
