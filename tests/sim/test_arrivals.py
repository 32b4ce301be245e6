"""Times of arrival: by hand, within standard errors, and the same pattern at every rate."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpplanner.domain.traffic import Arrivals
from tpplanner.errors import WorkloadError
from tpplanner.sim.arrivals import all_at_once, arrival_times

NUM = 200_000


def times(kind: Arrivals, rate: float = 1.0, num: int = NUM, cv: float = 1.0, seed: int = 0) -> np.ndarray:
    return arrival_times(kind, rate_req_s=rate, num_requests=num, burstiness_cv=cv, rng=np.random.default_rng(seed))


def test_constant_by_hand() -> None:
    assert times(Arrivals.CONSTANT, rate=4.0, num=4).tolist() == [0.25, 0.5, 0.75, 1.0]


def test_all_at_once() -> None:
    assert all_at_once(3).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("kind", "cv"), [
    (Arrivals.POISSON, 1.0), (Arrivals.GAMMA, 1.0), (Arrivals.GAMMA, 0.3), (Arrivals.GAMMA, 3.0),
])
def test_gaps_have_the_mean_and_variation_asked_for(kind: Arrivals, cv: float) -> None:
    gaps_s = np.diff(times(kind, rate=5.0, cv=cv), prepend=0.0)
    assert abs(gaps_s.mean() - 0.2) < 4 * 0.2 * cv / math.sqrt(NUM)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.02)


def test_poisson_gaps_are_exponential() -> None:
    # P(gap > 1 / rate) = 1 / e.
    gaps_s = np.diff(times(Arrivals.POISSON, rate=2.0), prepend=0.0)
    assert (gaps_s > 0.5).mean() == pytest.approx(math.exp(-1), abs=4 * math.sqrt(0.25 / NUM))


def test_the_first_request_waits_for_a_gap_too() -> None:
    # Over seeds the first arrival has the mean of a gap, 1 s: standard error 1 / sqrt(400).
    first_s = [times(Arrivals.POISSON, num=1, seed=seed)[0] for seed in range(400)]
    assert abs(np.mean(first_s) - 1.0) < 4 / 20
    assert min(first_s) > 0.0


@given(kind=st.sampled_from(list(Arrivals)), rate=st.floats(1e-6, 1e6), num=st.integers(1, 50), cv=st.floats(1e-3, 100.0))
def test_every_rate_has_the_same_pattern_stretched(kind: Arrivals, rate: float, num: int, cv: float) -> None:
    cv = cv if kind is Arrivals.GAMMA else 1.0
    at_one_s, stretched_s = times(kind, num=num, cv=cv), times(kind, rate=rate, num=num, cv=cv)
    assert np.array_equal(stretched_s, at_one_s / rate)
    assert np.all(np.diff(stretched_s) >= 0)
    assert np.all(np.isfinite(stretched_s))
    assert np.array_equal(times(kind, rate=rate, num=num + 5, cv=cv)[:num], stretched_s)


@pytest.mark.parametrize(("changes", "message"), [
    ({"rate_req_s": 0.0}, "arrivals: rate_req_s must be between 1e-09 and 1e+09, got 0.0"),
    ({"rate_req_s": -1.0}, "arrivals: rate_req_s must be between"),
    ({"rate_req_s": math.nan}, "arrivals: rate_req_s must be a finite number, got nan"),
    ({"rate_req_s": math.inf}, "arrivals: rate_req_s must be a finite number, got inf"),
    ({"burstiness_cv": 0.0}, "arrivals: burstiness_cv must be between 0.001 and 100, got 0.0"),
    ({"kind": Arrivals.POISSON, "burstiness_cv": 2.0}, "arrivals: burstiness_cv must be 1 with poisson arrivals, got 2.0"),
    ({"kind": Arrivals.CONSTANT, "burstiness_cv": 0.5}, "arrivals: burstiness_cv must be 1 with constant arrivals"),
    ({"num_requests": 0}, "requests: num_requests must be between 1 and"),
])
def test_refusals(changes: dict[str, object], message: str) -> None:
    arguments = {"kind": Arrivals.GAMMA, "rate_req_s": 1.0, "num_requests": 3, **changes}
    with pytest.raises(WorkloadError) as refused:
        arrival_times(arguments.pop("kind"), **arguments, rng=np.random.default_rng(0))
    assert str(refused.value).startswith(message)
