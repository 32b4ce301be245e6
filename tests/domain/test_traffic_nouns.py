"""Traffic and lengths: what they hold, and what they refuse."""

import math

import numpy as np
import pytest

from tpplanner.domain.traffic import FixedLength, HistogramLength, SpreadLength, Traffic
from tpplanner.errors import WorkloadError


def traffic(**changes: object) -> Traffic:
    return Traffic(**{
        "name": "t", "isl_tok": np.array([5, 6, 7]), "osl_tok": np.array([1, 2, 3]), "arrival_s": np.array([0.5, 0.5, 2.5]),
        **changes,
    })


def histogram(tok: object, weight: object) -> HistogramLength:
    return HistogramLength(tok=np.array(tok, dtype=np.int64), weight=np.array(weight, dtype=np.float64), name="h.csv")


def test_rate_by_hand() -> None:
    # Two gaps over 2 s.
    assert traffic().rate_req_s == 1.0
    assert traffic().num_requests == 3
    assert traffic(arrival_s=None).rate_req_s is None
    assert traffic(arrival_s=np.zeros(3)).rate_req_s is None
    assert traffic().taken(0, 1).rate_req_s is None


def test_a_part_keeps_its_times_and_prefixes() -> None:
    part = traffic(prefix_ids=((1,), (2,), (1, 3)), prefix_block_tok=4).taken(1, 3)
    assert (part.isl_tok.tolist(), part.osl_tok.tolist(), part.arrival_s.tolist()) == ([6, 7], [2, 3], [0.5, 2.5])
    assert (part.prefix_ids, part.prefix_block_tok) == (((2,), (1, 3)), 4)


@pytest.mark.parametrize(("changes", "message"), [
    ({"isl_tok": np.array([], dtype=np.int64)}, "t: requests must be at least one, got 0"),
    ({"osl_tok": np.array([1, 2])}, "t: osl_tok must have one value for each of 3 requests, got (2,)"),
    ({"isl_tok": np.array([5, 0, 7])}, "t: request 2: isl_tok must be between 1 and 1e+08, got 0"),
    ({"osl_tok": np.array([1, 2, 10**9])}, "t: request 3: osl_tok must be between 1 and 1e+08, got 1000000000"),
    ({"arrival_s": np.zeros(2)}, "t: arrival_s must have one value for each of 3 requests, got (2,)"),
    ({"arrival_s": np.array([0.0, math.nan, 1.0])}, "t: request 2: arrival_s must be between 0 and 1e+09 s, got nan"),
    ({"arrival_s": np.array([-1.0, 0.0, 1.0])}, "t: request 1: arrival_s must be between 0 and 1e+09 s, got -1.0"),
    ({"arrival_s": np.array([0.0, 2.0, 1.0])}, "t: request 3: arrival_s must not fall from one request to the next, got 1.0"),
    ({"prefix_block_tok": 4}, "t: prefix_block_tok must be given with prefix_ids, got 4"),
    ({"prefix_ids": ((), (), ())}, "t: prefix_block_tok must be given with prefix_ids, got None"),
    ({"prefix_ids": ((), (), ()), "prefix_block_tok": 0}, "t: prefix_block_tok must be between 1 and"),
])
def test_refused_traffic(changes: dict[str, object], message: str) -> None:
    with pytest.raises(WorkloadError) as refused:
        traffic(**changes)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: FixedLength(tok=0), "length: tok must be between 1 and"),
    (lambda: SpreadLength(kind="normal", mean_tok=5.0, cv=1.0), "length: kind must be lognormal or gamma, got 'normal'"),
    (lambda: SpreadLength(kind="gamma", mean_tok=0.5, cv=1.0), "length: mean_tok must be between 1 and 1e+08, got 0.5"),
    (lambda: SpreadLength(kind="gamma", mean_tok=math.inf, cv=1.0), "length: mean_tok must be a finite number, got inf"),
    (lambda: SpreadLength(kind="gamma", mean_tok=5.0, cv=0.0), "length: cv must be between 1e-06 and 100, got 0.0"),
    (lambda: histogram([], []), "h.csv: histogram must have one weight per length, and at least one"),
    (lambda: histogram([1, 2], [1.0]), "h.csv: histogram must have one weight per length"),
    (lambda: histogram([0, 2], [1.0, 1.0]), "h.csv: lengths must be between 1 and 100000000, got 0"),
    (lambda: histogram([1, 2], [1.0, -1.0]), "h.csv: weights must be finite, >= 0 and not all 0, got -1.0"),
    (lambda: histogram([1, 2], [1.0, math.nan]), "h.csv: weights must be finite, >= 0 and not all 0, got nan"),
    (lambda: histogram([1, 2], [0.0, 0.0]), "h.csv: weights must be finite, >= 0 and not all 0, got 0.0"),
])
def test_refused_lengths(make, message: str) -> None:
    with pytest.raises(WorkloadError) as refused:
        make()
    assert str(refused.value).startswith(message)
