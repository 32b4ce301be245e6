"""The highest rate at which targets hold, and how many requests it takes to see it."""

import numpy as np
import pytest

import tpplanner
from tpplanner.api.question import question
from tpplanner.api.simulation_load import default_requests, few_requests
from tpplanner.api.traffic import TrafficAsked, source_of
from tpplanner.domain.workload import LoadMode
from tpplanner.planner.recommend import recommend as recommend_question

SMALL = {"model": "Qwen/Qwen2.5-7B-Instruct", "gpus": "4xh100-sxm"}
SEARCHED = {**SMALL, "isl": "lognormal:512:0.5", "osl": 24, "num_requests": 1000}


@pytest.mark.parametrize("slo_quantile", [None, 0.99])
def test_the_capacity_holds_the_targets_and_a_tenth_more_does_not(slo_quantile):
    targets = {"ttft_ms": 150, "tpot_ms": 25, "slo_quantile": slo_quantile}
    found = tpplanner.simulate(**SEARCHED, **targets)
    assert found.simulation.question.load.mode is LoadMode.SLO_CAPACITY
    assert found.simulation.warnings == ()
    # Drawn gaps do not have exactly the mean that was asked for.
    per_asked = source_of(TrafficAsked(isl=512, osl=24)).at_rate(1.0, 1000).rate_req_s
    for degree in found.degrees:
        assert degree.meets_targets
        rate = degree.outcome.offered_rate_req_s
        for factor, holds in ((1.1, False), (1.03, False), (1.0, True), (0.9, True)):
            again = tpplanner.simulate(**SEARCHED, **targets, tp=degree.tp, request_rate=factor * rate / per_asked)
            assert again.degree(degree.tp).outcome.offered_rate_req_s == pytest.approx(factor * rate)
            assert again.degree(degree.tp).meets_targets == holds
    rates = [degree.outcome.offered_rate_req_s for degree in found.degrees]
    assert found.best_tp == found.degrees[int(np.argmax(rates))].tp
    assert found.simulation.traffic.rate_req_s == max(rates)


def test_a_percentile_is_harder_than_the_mean_and_a_lower_one_easier():
    rates = {}
    for quantile in (None, 0.5, 0.9, 0.97, 0.99):
        found = tpplanner.simulate(**SEARCHED, tp=2, ttft_ms=120, slo_quantile=quantile)
        rates[quantile] = found.degree(2).outcome.offered_rate_req_s
    assert rates[0.99] <= rates[0.97] <= rates[0.9] <= rates[0.5]
    assert rates[0.99] < 0.9 * rates[None]


def test_where_no_rate_holds_the_lowest_one_tells_why():
    missed = tpplanner.simulate(**SMALL, isl=256, osl=32, ttft_ms=5000, tpot_ms=0.5, num_requests=30)
    assert missed.best_tp is None
    for degree in missed.degrees:
        assert not degree.meets_targets
        assert degree.outcome.tpot.mean_s > 0.5e-3
        assert degree.outcome.offered_rate_req_s < 1.0
    # TTFT holds: it is the TPOT that is missed.
    text = missed.to_text()
    assert "fails on tpot" in text.splitlines()[0]
    assert "exceeds the target of 0.50 ms even at" in text
    assert "ttft)" not in text


def test_a_capacity_from_few_requests_is_not_more_than_they_can_show():
    # A hundred requests at ten times the capacity are all in flight at once: that shows nothing.
    asked = {**SMALL, "gpus": "1xh100-sxm", "isl": 500, "osl": 200, "ttft_ms": 2000, "slo_quantile": 0.99}
    few, many = (tpplanner.simulate(**asked, num_requests=n).degree(1).outcome for n in (100, 3000))
    assert few.offered_rate_req_s <= 1.05 * many.offered_rate_req_s
    told = tpplanner.simulate(**asked, num_requests=100).simulation.warnings
    assert any(line.startswith("few requests: 100, where the closed form has up to ") for line in told)


# How many requests


@pytest.mark.parametrize(("load", "least"), [
    ({"request_rate": 0.5}, 1000), ({"request_rate": 40}, 12_000), ({"request_rate": 1e4}, 50_000), ({"concurrency": 4}, 1000),
    ({"concurrency": 400}, 20 * 400), ({"offline": True}, 20 * 1024), ({"ttft_ms": 1e4}, 1000)])
def test_requests_of_a_run_that_was_not_told_how_many(load, least):
    asked = question(**SMALL, isl=256, osl=32, **load)
    plans = recommend_question(asked, with_flip_points=False).plans
    count = default_requests(asked, plans)
    assert least <= count <= 50_000
    assert few_requests(asked, plans, count) == ()
    if load == {"request_rate": 0.5}:
        assert count == 1000


def test_a_slow_request_makes_a_longer_run():
    # 6,000 tokens take most of a minute: 300 s of traffic would be over before the batch is steady.
    asked = question(**SMALL, isl=256, osl=6000, request_rate=3)
    plans = recommend_question(asked, with_flip_points=False).plans
    longest_s = max(plan.outcome.e2e_s for plan in plans if plan.reason is None)
    assert longest_s > 30.0
    assert default_requests(asked, plans) == int(20 * 3 * longest_s)
    [told] = few_requests(asked, plans, 100)
    assert told.startswith("few requests: 100, ")
