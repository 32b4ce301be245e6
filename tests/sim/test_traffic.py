"""Drawn, scaled, cut and sampled traffic, and the presets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tpplanner.domain.engine import SamplingPolicy
from tpplanner.domain.traffic import Arrivals, FixedLength, SpreadLength, Traffic
from tpplanner.errors import WorkloadError
from tpplanner.io.traces import read_trace
from tpplanner.sim.lengths import draw_lengths, mean_tok
from tpplanner.sim.presets import PRESETS, preset
from tpplanner.sim.traffic import arriving, at_rate, drawn, head, sampled, scaled, tail

TRACES = Path(__file__).parents[3] / "shared" / "traces"
SPREAD = SpreadLength(kind="lognormal", mean_tok=500.0, cv=1.0)


def draw(num: int = 1000, seed: int = 0, **changes: object) -> Traffic:
    arguments = {"arrivals": Arrivals.GAMMA, "rate_req_s": 3.0, "burstiness_cv": 2.0, **changes}
    return drawn(isl=SPREAD, osl=SPREAD, num_requests=num, seed=seed, name="drawn", **arguments)


def three(**changes: object) -> Traffic:
    whole = Traffic(name="three", isl_tok=np.array([1000, 40, 600]), osl_tok=np.array([3, 1, 9]),
                    arrival_s=np.array([1.0, 1.5, 4.0]), prefix_ids=((7, 8), (9,), (7, 5)), prefix_block_tok=512)
    return replace(whole, **changes)


def same_lengths(one: Traffic, other: Traffic) -> bool:
    return np.array_equal(one.isl_tok, other.isl_tok) and np.array_equal(one.osl_tok, other.osl_tok)


def test_the_same_arguments_give_the_same_requests() -> None:
    one, other = draw(), draw()
    assert same_lengths(one, other)
    assert np.array_equal(one.arrival_s, other.arrival_s)
    assert not same_lengths(one, draw(seed=1))
    assert not np.array_equal(one.arrival_s, draw(seed=1).arrival_s)


def test_lengths_do_not_depend_on_arrivals_and_the_pattern_not_on_the_rate() -> None:
    base = draw()
    closed = draw(arrivals=None, rate_req_s=None, burstiness_cv=1.0)
    assert closed.arrival_s is None
    faster = draw(rate_req_s=12.0)
    for other in (closed, faster, draw(arrivals=Arrivals.POISSON, burstiness_cv=1.0)):
        assert same_lengths(base, other)
    assert np.array_equal(faster.arrival_s, base.arrival_s / 4.0)
    again = arriving(closed, Arrivals.GAMMA, rate_req_s=3.0, burstiness_cv=2.0, seed=0)
    assert np.array_equal(again.arrival_s, base.arrival_s)


def test_prompts_and_outputs_are_independent() -> None:
    traffic = draw(num=20_000)
    # Logarithms, because the correlation of what has heavy tails converges slowly; standard error 1 / sqrt(20,000).
    correlation = np.corrcoef(np.log(traffic.isl_tok), np.log(traffic.osl_tok))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(20_000)
    other_osl = drawn(isl=SPREAD, osl=FixedLength(tok=1), num_requests=20_000, seed=0, name="other")
    assert np.array_equal(other_osl.isl_tok, traffic.isl_tok)


def test_more_requests_begin_with_the_same() -> None:
    few, many = draw(num=10), draw(num=1000)
    assert same_lengths(few, many.taken(0, 10))
    assert np.array_equal(few.arrival_s, many.arrival_s[:10])


def test_rate_of_drawn_traffic() -> None:
    # The mean of 1,000 gaps with a coefficient of variation of 2 has a standard error of 2 / sqrt(1000) = 6.3 %.
    assert draw().rate_req_s == pytest.approx(3.0, rel=4 * 0.063)


def test_scaled_by_hand() -> None:
    traffic = scaled(three(), rate=0.5, isl=0.25, osl=1.5)
    # 1000 / 4, 40 / 4, 600 / 4; 4.5 and 1.5 and 13.5 to even; blocks of 512 / 4.
    assert traffic.isl_tok.tolist() == [250, 10, 150]
    assert traffic.osl_tok.tolist() == [4, 2, 14]
    assert traffic.arrival_s.tolist() == [2.0, 3.0, 8.0]
    assert (traffic.prefix_ids, traffic.prefix_block_tok) == (three().prefix_ids, 128)
    assert scaled(three(), isl=1e-6).isl_tok.tolist() == [1, 1, 1]
    assert scaled(three(), isl=1e-6).prefix_block_tok == 1


def test_scaling_by_one_changes_nothing() -> None:
    same = scaled(three())
    assert same_lengths(same, three())
    assert np.array_equal(same.arrival_s, three().arrival_s)


def test_at_rate() -> None:
    # Two gaps over 3 s are 2/3 req/s; at 2 req/s they take 1 s.
    traffic = at_rate(three(), 2.0)
    assert traffic.rate_req_s == pytest.approx(2.0, rel=1e-12)
    assert np.diff(traffic.arrival_s) == pytest.approx([0.5 / 3, 2.5 / 3], rel=1e-12)


def test_head_and_tail() -> None:
    first, last = head(three(), 2), tail(three(), 2)
    assert (first.name, last.name) == ("three, first 2", "three, last 2")
    assert (first.isl_tok.tolist(), first.arrival_s.tolist(), first.prefix_ids) == ([1000, 40], [1.0, 1.5], ((7, 8), (9,)))
    assert (last.osl_tok.tolist(), last.arrival_s.tolist(), last.prefix_ids) == ([1, 9], [0.0, 2.5], ((9,), (7, 5)))
    assert tail(three(arrival_s=None), 3).arrival_s is None


def test_sampled_keeps_what_belongs_together() -> None:
    traffic = sampled(three(), 500, seed=1)
    assert traffic.num_requests == 500
    assert traffic.arrival_s is None
    triples = set(zip(traffic.isl_tok.tolist(), traffic.osl_tok.tolist(), traffic.prefix_ids, strict=True))
    assert triples == {(1000, 3, (7, 8)), (40, 1, (9,)), (600, 9, (7, 5))}
    # Each of three is drawn 500 / 3 times: standard error sqrt(500 * 1/3 * 2/3) = 10.5.
    assert abs((traffic.isl_tok == 40).sum() - 500 / 3) < 4 * 10.5
    assert same_lengths(traffic, sampled(three(), 500, seed=1))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: scaled(three(), rate=0.0), "scaling: rate must be between 1e-06 and 1e+06, got 0.0"),
    (lambda: scaled(three(), isl=-1.0), "scaling: isl must be between"),
    (lambda: scaled(three(), osl=float("nan")), "scaling: osl must be a finite number"),
    (lambda: scaled(three(arrival_s=None), rate=2.0), "scaling three: rate must be 1 for requests without times of arrival"),
    (lambda: at_rate(three(arrival_s=None), 1.0), "three: arrival_s must spread over time"),
    (lambda: at_rate(three(arrival_s=np.zeros(3)), 1.0), "three: arrival_s must spread over time"),
    (lambda: at_rate(three(arrival_s=np.array([0.0, 0.0, 5e-324])), 1.0), "three: stretch must be"),
    (lambda: at_rate(three(), 0.0), "arrivals: rate_req_s must be between"),
    (lambda: head(three(), 4), "head of three: num_requests must be at most 3, got 4"),
    (lambda: head(three(), 0), "head: num_requests must be between 1"),
    (lambda: tail(three(), 4), "tail of three: num_requests must be at most 3"),
    (lambda: sampled(three(), 0, seed=0), "requests: num_requests must be between 1"),
    (lambda: draw(seed=-1), "seed: seed must be between 0"),
    (lambda: draw(rate_req_s=None), "drawn: rate_req_s must be given with arrivals, and only then, got None"),
    (lambda: draw(arrivals=None), "drawn: rate_req_s must be given with arrivals, and only then, got 3.0"),
    (lambda: draw(rate_req_s=1e-9), "drawn: request"),
])
def test_refusals(call, message: str) -> None:
    with pytest.raises(WorkloadError) as refused:
        call()
    assert str(refused.value).startswith(message)


def test_presets_are_complete_and_drawable() -> None:
    assert set(PRESETS) == {"albireo", "sharegpt", "azure-conv-2023", "azure-code-2023"}
    for name, found in PRESETS.items():
        assert found.name == name
        assert found.title
        assert len(found.source) > 40
        traffic = drawn(isl=found.isl, osl=found.osl, num_requests=1000, seed=0, name=name)
        # A coefficient of variation of 2.15 at most, over sqrt(1000): 7 %.
        assert traffic.isl_tok.mean() == pytest.approx(mean_tok(found.isl), rel=0.28)
        assert traffic.osl_tok.mean() == pytest.approx(mean_tok(found.osl), rel=0.28)


def test_the_paper_s_workload() -> None:
    albireo = preset("albireo")
    assert (albireo.isl, albireo.osl) == (FixedLength(tok=80), FixedLength(tok=1024))
    assert (albireo.sampling, albireo.concurrency_per_replica) == (SamplingPolicy.FULL, 256.0)


def test_an_unknown_preset_names_those_that_are_close() -> None:
    with pytest.raises(WorkloadError, match=r"workload must be among albireo, .*\(did you mean sharegpt\?\), got 'sharegtp'"):
        preset("sharegtp")


@pytest.mark.skipif(not TRACES.is_dir(), reason="shared/traces is not here")
@pytest.mark.parametrize(("name", "num"), [("azure-conv-2023", 19_366), ("azure-code-2023", 8_819)])
def test_azure_presets_have_the_lengths_of_the_traces(name: str, num: int) -> None:
    traffic = read_trace(TRACES / f"{name.replace('-', '_')}.csv").traffic
    assert traffic.num_requests == num
    for length, tok in ((PRESETS[name].isl, traffic.isl_tok), (PRESETS[name].osl, traffic.osl_tok)):
        assert isinstance(length, SpreadLength)
        assert length.mean_tok == pytest.approx(tok.mean(), rel=1e-3)
        assert length.cv == pytest.approx(tok.std() / tok.mean(), rel=1e-3)
        assert nearer_kind(length, tok) == length.kind


def nearer_kind(length: SpreadLength, tok: np.ndarray) -> str:
    """Of the two distributions, the one whose 50 %, 90 % and 99 % quantiles differ less by the sum of log ratios."""
    levels = (0.5, 0.9, 0.99)
    apart = {}
    for kind in ("lognormal", "gamma"):
        sample = draw_lengths(replace(length, kind=kind), 200_000, np.random.default_rng(0))
        apart[kind] = np.abs(np.log(np.quantile(sample, levels) / np.quantile(tok, levels))).sum()
    return min(apart, key=apart.__getitem__)
