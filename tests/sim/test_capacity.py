"""The highest rate at which targets hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpplanner.sim.capacity import highest_rate


class Trial:
    """Holds up to a rate; remembers what was tried."""

    def __init__(self, limit_req_s: float) -> None:
        self.limit_req_s = limit_req_s
        self.tried: list[float] = []

    def __call__(self, rate_req_s: float) -> tuple[str, bool]:
        self.tried.append(rate_req_s)
        return f"run at {rate_req_s}", rate_req_s <= self.limit_req_s


def test_by_hand():
    # 3 holds, 6 holds, 12 does not. Then the geometric means: 8.49 holds, 10.1 does not, 9.25, 9.66, 9.87 hold;
    # 10.1 / 9.87 is 2.2 %, so once more: 9.98 holds, and 10.1 is 1.1 % over it.
    trial = Trial(10.0)
    rate, result = highest_rate(trial, start_req_s=3.0)
    assert trial.tried == pytest.approx([3, 6, 12, 8.485, 10.09, 9.254, 9.663, 9.875, 9.982], rel=1e-3)
    assert rate == pytest.approx(9.982, rel=1e-3)
    assert result == f"run at {rate}"


def test_it_goes_down_where_the_start_is_too_much():
    trial = Trial(1.0)
    rate, result = highest_rate(trial, start_req_s=5.0)
    assert trial.tried[:4] == [5.0, 2.5, 1.25, 0.625]
    assert 1.0 / 1.02 < rate <= 1.0
    assert result == f"run at {rate}"


def test_where_no_rate_holds_there_is_none():
    trial = Trial(0.0)
    assert highest_rate(trial, start_req_s=8.0) is None
    assert trial.tried == [8.0 / 2**i for i in range(11)]


def test_where_every_rate_holds_it_ends():
    trial = Trial(float("inf"))
    assert highest_rate(trial, start_req_s=1.0) == (1024.0, "run at 1024.0")
    assert len(trial.tried) == 11


@given(start=st.floats(1e-3, 1e3), factor=st.floats(1e-2, 1e2))
def test_the_rate_holds_and_one_two_percent_higher_does_not(start, factor):
    trial = Trial(start * factor)
    rate, result = highest_rate(trial, start_req_s=start)
    assert rate <= trial.limit_req_s < rate * 1.0201
    assert result == f"run at {rate}"
    assert len(trial.tried) <= 1 + 7 + 6
    assert len(set(trial.tried)) == len(trial.tried)


def test_a_limit_at_the_start_itself():
    rate, _ = highest_rate(Trial(4.0), start_req_s=4.0)
    assert rate == 4.0


@given(holds=st.lists(st.booleans(), min_size=40, max_size=40))
def test_whatever_the_runs_say_the_answer_is_one_that_held(holds):
    told: dict[float, bool] = {}

    def run(rate_req_s: float) -> tuple[float, bool]:
        told[rate_req_s] = holds[len(told)]
        return rate_req_s, told[rate_req_s]

    found = highest_rate(run, start_req_s=1.0)
    if found is None:
        assert not any(told.values())
    else:
        assert found[0] == found[1]
        assert told[found[0]]
