"""tpplanner.simulate: one error for each wrong argument, naming it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tpplanner
from tpplanner.api.simulation import OptionsAsked
from tpplanner.domain.traffic import Traffic
from tpplanner.errors import TpplannerError, WorkloadError

SMALL = {"model": "Qwen/Qwen2.5-7B-Instruct", "gpus": "4xh100-sxm"}
SHORT = {**SMALL, "isl": 256, "osl": 32, "num_requests": 60}
TRACE = Traffic(name="mine", isl_tok=np.full(80, 300), osl_tok=np.full(80, 20), arrival_s=np.arange(80) * 0.05)


def simulate(**asked):
    return tpplanner.simulate(**{**SHORT, **asked})


def traced(trace=TRACE, **asked):
    return tpplanner.simulate(**SMALL, trace=trace, **asked)


WRONG = [
    *[({"tp": tp}, "tp must") for tp in (0, -1, 1.5, True, "x", "", "4", "2,4", [], {}, {"2": 1}, [0], [True], [1.5], [2, "x"],
                                         [None], np.array([2]), 10**14, b"2")],
    *[({"router": value}, "router must be among round-robin, least-outstanding") for value in ("", "least", 5, True, [])],
    *[({name: value}, f"{name} must be True or False") for name in ("prefix_caching", "step_by_step")
      for value in (1, 0, "yes", [], 1.0)],
    *[({"watermark_frac": value}, "watermark_frac must") for value in (-0.1, 0.9, 1, float("nan"), "0.1", True, [])],
    *[({"slo_quantile": value, "ttft_ms": 500}, "slo_quantile must")
      for value in (0, 0.0, 1, 1.0, 2, 99, -0.5, float("nan"), float("inf"), "p99", True, [])],
    *[({"num_timeline_steps": value}, "num_timeline_steps must") for value in (-1, 1.5, "x", True, [])],
    *[({"ramp_s": value, "concurrency": 4}, "ramp_s must") for value in (-1, 1e10, float("nan"), float("inf"), "5", True, [])],
    *[({"request_rate": value}, "request_rate must") for value in (0, -1, float("nan"), float("inf"), 1e10, "5", True, [])],
    *[({"concurrency": value}, "concurrency must") for value in (0, -1, float("nan"), "5", True)],
    ({"request_rate": 5, "concurrency": 5}, "load must be given in one way"),
    ({"request_rate": 5, "offline": True}, "load must be given in one way"),
    ({"request_rate": 1e-8}, "arrival_s must be between 0 and 1e+09 s"),
    ({"nonsense": 5}, "unknown argument 'nonsense'"),
    ({"ttft_ms": 0}, "ttft_s must be > 0"),
    ({"ttft_ms": "fast"}, "ttft_ms must be a number"),
    ({"isl": 0}, "--isl"),
    ({"workload": "nope", "isl": None}, "workload must be among"),
    ({"trace": "x.csv"}, "isl must be absent"),
    # What the load has no use for.
    *[({**load, name: value}, f"{name} must be given with a request rate, a trace with times, or targets")
      for load in ({}, {"offline": True}, {"concurrency": 4}) for name, value in (("arrivals", "gamma"), ("burstiness", 2.0))],
    *[({**load, "ramp_s": 1.0}, "ramp_s must be given with the clients of a closed loop")
      for load in ({}, {"request_rate": 5}, {"ttft_ms": 500})],
    ({"concurrency": 4, "router": "round-robin"}, "router must be given with requests that arrive"),
    ({"request_rate": 5, "slo_quantile": 0.9}, "slo_quantile must be given with targets"),
    ({"ttft_ms": 500, "num_requests": 19}, "requests must be at least 20 for a search"),
]


@pytest.mark.parametrize(("asked", "told"), WRONG, ids=lambda v: str(v)[:60] if isinstance(v, dict) else "")
def test_a_wrong_argument_is_one_error_that_names_it(asked, told):
    with pytest.raises(TpplannerError) as error:
        simulate(**asked)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("asked", "told"), [
    ({"scale_rate": 2.0, "request_rate": 5}, "scale_rate must be given with the times of the trace, not with another load"),
    ({"scale_rate": 2.0, "concurrency": 5}, "scale_rate must be given with the times of the trace, not with another load"),
    ({"num_requests": 81}, "num_requests must be at most 80 where the times of the trace are kept"),
    ({"head": 10, "num_requests": 11}, "num_requests must be at most 10"),
    ({"head": 15, "arrivals": "poisson", "ttft_ms": 500}, "requests must be at least 20 for a search"),
    ({"arrivals": "gamma", "concurrency": 4}, "arrivals must be given with a request rate"),
])
def test_what_does_not_go_with_a_trace(asked, told):
    with pytest.raises(WorkloadError, match=told):
        traced(**asked)


ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(-2, 5), st.floats(), st.text(max_size=5),
                     st.sampled_from(["all", "round-robin", 0.5, [1, 2], (4,), 10**5000]))


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(sorted({*OptionsAsked.__annotations__, "tp"})), ANYTHING, max_size=3))
def test_whatever_is_asked_there_is_an_answer_or_one_error(asked):
    # Without a model it ends at the latest there.
    with pytest.raises(TpplannerError) as error:
        tpplanner.simulate(model="no/such", gpus="1xl40s", isl=16, osl=2, **asked)
    assert "\n" not in str(error.value)
