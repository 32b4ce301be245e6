"""Drawn lengths: by hand, and within standard errors of the distributions that were asked for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpplanner.domain.traffic import MAX_REQUEST_TOK, FixedLength, HistogramLength, Length, SpreadLength
from tpplanner.errors import WorkloadError
from tpplanner.sim.lengths import draw_lengths, mean_tok

NUM = 200_000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def spread(kind: str, mean: float, cv: float) -> SpreadLength:
    return SpreadLength(kind=kind, mean_tok=mean, cv=cv)


def histogram(*pairs: tuple[int, float]) -> HistogramLength:
    tok, weight = zip(*pairs, strict=True)
    return HistogramLength(tok=np.array(tok, dtype=np.int64), weight=np.array(weight, dtype=np.float64), name="h")


LENGTHS: list[Length] = [
    FixedLength(tok=7), spread("lognormal", 800.0, 1.2), spread("gamma", 300.0, 0.9), histogram((10, 1.0), (20, 3.0)),
]


def test_fixed() -> None:
    tok = draw_lengths(FixedLength(tok=1024), 3, rng())
    assert tok.tolist() == [1024, 1024, 1024]
    assert tok.dtype == np.int64


@pytest.mark.parametrize(("kind", "mean", "cv"), [
    ("lognormal", 800.0, 1.2), ("lognormal", 217.0, 0.3), ("gamma", 300.0, 0.9), ("gamma", 1154.7, 0.96), ("gamma", 50.0, 0.05),
])
def test_mean_and_variation_are_those_asked_for(kind: str, mean: float, cv: float) -> None:
    tok = draw_lengths(spread(kind, mean, cv), NUM, rng())
    assert abs(tok.mean() - mean) < 4 * mean * cv / math.sqrt(NUM)
    # Rounding to whole tokens adds a variance of 1/12; the lognormal's own variance is estimated to 3 % here.
    assert tok.std() == pytest.approx(math.hypot(mean * cv, 1 / math.sqrt(12)), rel=0.03)


def test_quantiles_of_the_lognormal_by_hand() -> None:
    # sigma^2 = ln(1 + 1.2^2) = 0.89200, sigma = 0.94446; median = 800 / sqrt(2.44) = 512.15;
    # 90 %: 512.15 exp(1.28155 * 0.94446) = 512.15 * 3.3546 = 1718.0.
    tok = draw_lengths(spread("lognormal", 800.0, 1.2), NUM, rng())
    assert np.quantile(tok, 0.5) == pytest.approx(512.15, rel=0.01)
    assert np.quantile(tok, 0.9) == pytest.approx(1718.0, rel=0.01)


def test_a_gamma_with_a_variation_of_one_is_exponential() -> None:
    # P(X <= x) = 1 - exp(-x / 500): the median is 500 ln 2 = 346.6, the 90 % quantile 500 ln 10 = 1151.3.
    tok = draw_lengths(spread("gamma", 500.0, 1.0), NUM, rng())
    assert np.quantile(tok, 0.5) == pytest.approx(346.6, rel=0.01)
    assert np.quantile(tok, 0.9) == pytest.approx(1151.3, rel=0.01)


def test_lengths_are_whole_and_at_least_one_and_bounded() -> None:
    assert draw_lengths(spread("gamma", 2.0, 3.0), 1000, rng()).min() == 1
    assert draw_lengths(spread("lognormal", 1e8, 3.0), 1000, rng()).max() == MAX_REQUEST_TOK


def test_histogram_draws_each_value_as_often_as_it_weighs() -> None:
    tok = draw_lengths(histogram((5, 0.0), (10, 2.0), (20, 6.0), (30, 0.0), (40, 2.0), (50, 0.0)), NUM, rng())
    values, counts = np.unique(tok, return_counts=True)
    assert values.tolist() == [10, 20, 40]
    for count, share in zip(counts, (0.2, 0.6, 0.2), strict=True):
        assert abs(count / NUM - share) < 4 * math.sqrt(share * (1 - share) / NUM)


def test_histogram_never_draws_past_the_last_value_with_weight() -> None:
    class AlmostOne(np.random.Generator):
        def random(self, size):
            return np.full(size, np.nextafter(1.0, 0.0))

    # 0.1 ten times sums to 0.9999999999999999: a draw of 1 - 1e-16 reaches the end of the sums.
    tenths = histogram(*((value, 0.1) for value in range(1, 11)), (99, 0.0))
    assert draw_lengths(tenths, 2, AlmostOne(np.random.PCG64(0))).tolist() == [10, 10]


def test_tiny_and_huge_weights() -> None:
    assert set(draw_lengths(histogram((1, 5e-324), (2, 5e-324)), 50, rng()).tolist()) == {1, 2}
    assert set(draw_lengths(histogram((1, 1e300), (2, 1e300)), 50, rng()).tolist()) == {1, 2}


@pytest.mark.parametrize("length", LENGTHS, ids=str)
def test_a_longer_draw_begins_with_the_shorter_and_repeats(length: Length) -> None:
    longer = draw_lengths(length, 500, rng(3))
    assert draw_lengths(length, 20, rng(3)).tolist() == longer[:20].tolist()
    assert draw_lengths(length, 500, rng(3)).tolist() == longer.tolist()


@given(kind=st.sampled_from(["lognormal", "gamma"]), mean=st.floats(1.0, 1e8), cv=st.floats(1e-6, 100.0))
def test_every_accepted_distribution_draws_lengths_in_range(kind: str, mean: float, cv: float) -> None:
    tok = draw_lengths(spread(kind, mean, cv), 20, rng())
    assert tok.min() >= 1
    assert tok.max() <= MAX_REQUEST_TOK


def test_mean_length() -> None:
    # (10 * 1 + 20 * 3) / 4 = 17.5.
    assert [mean_tok(length) for length in LENGTHS] == [7.0, 800.0, 300.0, 17.5]


@pytest.mark.parametrize("num", [0, -1, 10**9])
def test_refused_numbers_of_requests(num: int) -> None:
    with pytest.raises(WorkloadError, match="requests: num_requests must be"):
        draw_lengths(FixedLength(tok=1), num, rng())
