import csv
import io
import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import make_degree, make_hopeless, make_sim, make_traffic, out_degree

from tpplanner.domain.simulation import Quantiles, SimulatedOutcome, Simulation, SimulationOptions
from tpplanner.domain.workload import Targets
from tpplanner.errors import TpplannerError
from tpplanner.report import simulation_document as documents
from tpplanner.report.plan_document import Record
from tpplanner.report.simulation_document import QuantilesRecord, SimulatedDegreeRecord
from tpplanner.report.simulation_json import (
    SIMULATION_COLUMNS,
    parse_simulation_json,
    simulation_csv,
    simulation_document,
    simulation_frame,
    simulation_json,
)

DOC = Path(__file__).parents[2] / "docs" / "json_schema.md"
NUMBERS = [f.name for f in fields(SimulatedOutcome) if f.type in (float, float | None)]
COUNTS = [f.name for f in fields(SimulatedOutcome) if f.type is int]
LATENCIES = [f.name for f in fields(SimulatedOutcome) if f.type == Quantiles | None]
SMALL = make_traffic(3)
SIM = make_sim(traffic=SMALL)

any_float = st.floats(allow_nan=True, allow_infinity=True)
any_text = st.text(st.characters(codec="utf-8"))
any_quantiles = st.none() | st.builds(Quantiles, **dict.fromkeys(Quantiles.__slots__, any_float))


@st.composite
def simulations(draw: st.DrawFn) -> Simulation:
    known = SIM.degrees[2]
    degrees = []
    for tp in draw(st.lists(st.integers(1, 4096), unique=True, max_size=3)):
        figures = {name: draw(any_float) for name in NUMBERS} | {name: draw(any_quantiles) for name in LATENCIES}
        figures |= {name: draw(st.integers(0, 10**12)) for name in COUNTS} | {"saturated": draw(st.booleans())}
        outcome = replace(known.outcome, **figures)
        degrees.append(replace(known, tp=tp, outcome=draw(st.sampled_from([None, outcome])), meets_targets=draw(st.booleans()),
                               reason_detail=draw(any_text), detail=draw(st.sampled_from([None, known.detail]))))
    return replace(SIM, degrees=tuple(degrees), best_tp=degrees[0].tp if degrees else None,
                   warnings=tuple(draw(st.lists(any_text, max_size=2))))


@given(simulations())
def test_round_trip(sim: Simulation) -> None:
    text = simulation_json(sim)
    assert parse_simulation_json(text) == simulation_document(sim)
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} in JSON"))


def test_keys_and_values() -> None:
    data = json.loads(simulation_json(SIM))
    assert (data["schema_version"], data["seed"], data["ranked_by"]) == (1, 0, "throughput of all GPUs")
    assert data["question"]["targets"] == {"ttft_s": 1.0, "tpot_s": 0.04}
    assert data["options"]["slo_quantile"] == 0.99
    traffic = data["traffic"]
    assert (traffic["num_requests"], traffic["timed"], traffic["isl_max_tok"]) == (3, True, int(SMALL.isl_tok.max()))
    assert traffic["isl_mean_tok"] == pytest.approx(SMALL.isl_tok.sum() / 3)
    assert traffic["rate_req_s"] == pytest.approx(2 / SMALL.arrival_s[2])
    best, degree, outcome = data["best"], data["degrees"][2], SIM.degrees[2].outcome
    assert best["tp"] == degree["tp"] == 4
    assert best["tpot_p99_s"] == degree["tpot"]["p99_s"] == outcome.tpot.p99_s
    assert degree["throughput_per_gpu_tok_s"] == outcome.throughput_per_gpu_tok_s
    assert (degree["meets_targets"], degree["reason"], degree["num_steps"]) == (True, None, 12_345)
    assert degree["memory"]["hbm_bytes"] == 80 * 2**30
    assert "requests" not in data["degrees"][2]


def test_degrees_that_are_out_say_why() -> None:
    first, second, third, _ = json.loads(simulation_json(make_hopeless()))["degrees"]
    assert (first["reason"], first["meets_targets"]) == ("weights", False)
    for name in ("saturated", "num_requests", "ttft", "throughput_tok_s", "kv_capacity_tok", "memory"):
        assert first[name] is None
    assert (second["reason"], second["saturated"]) == ("load", True)
    assert (third["reason"], third["ttft"]["p99_s"]) == ("ttft", pytest.approx(0.459, abs=1e-3))
    assert json.loads(simulation_json(make_hopeless()))["best"] is None


def test_gaps_are_null() -> None:
    traffic = make_traffic(1, rate_req_s=None, osl_tok=1)
    data = json.loads(simulation_json(make_sim(traffic=traffic, targets=Targets(), options=SimulationOptions())))
    degree = data["degrees"][2]
    assert (degree["tpot"], degree["goodput_req_s"], degree["goodput_frac"], degree["offered_rate_req_s"]) == (None,) * 4
    assert (data["traffic"]["timed"], data["traffic"]["rate_req_s"], data["options"]["slo_quantile"]) == (False, None, None)
    assert data["best"]["tpot_p99_s"] is None
    unservable = make_sim(traffic=SMALL, degrees=(make_degree(4, SMALL, Targets(), unservable=3, meets_targets=False),),
                          best_tp=None)
    (degree,) = json.loads(simulation_json(unservable))["degrees"]
    assert (degree["ttft"], degree["e2e"], degree["num_completed"], degree["num_unservable"]) == (None, None, 0, 3)


def test_numpy_numbers_and_not_numbers() -> None:
    outcome = replace(SIM.degrees[2].outcome, power_w=np.float64(5000), energy_j_per_tok=math.inf, saturated=np.bool_(False),
                      num_steps=np.int64(7), ttft=Quantiles(mean_s=np.float64(1), p50_s=math.nan, p90_s=2.0, p99_s=3.0))
    degree = replace(SIM.degrees[2], tp=np.int64(4), outcome=outcome, meets_targets=np.bool_(True))
    (data,) = json.loads(simulation_json(replace(SIM, degrees=(degree,))))["degrees"]
    assert (data["power_w"], data["energy_j_per_tok"], data["num_steps"], data["saturated"]) == (5000.0, None, 7, False)
    assert data["ttft"] == {"mean_s": 1.0, "p50_s": None, "p90_s": 2.0, "p99_s": 3.0}


@pytest.mark.parametrize(("change", "said"), [
    (lambda d: d.update(schema_version=2), "schema_version must be 1, got 2"),
    (lambda d: d.pop("degrees"), "degrees"),
    (lambda d: d.update(surprise=1), "surprise"),
    (lambda d: d["degrees"][0].update(tp="eight"), "degrees[0].tp"),
])
def test_other_documents_are_refused_by_name(change, said: str) -> None:
    data = json.loads(simulation_json(SIM))
    change(data)
    with pytest.raises(TpplannerError, match=re.escape(said)):
        parse_simulation_json(json.dumps(data))


@given(st.binary(max_size=40) | st.integers(0, 2000).map(lambda n: simulation_json(SIM).encode()[:n]))
def test_broken_text_gives_one_clear_error(text: bytes) -> None:
    with pytest.raises(TpplannerError, match=r"^simulation JSON: "):
        parse_simulation_json(text)


def test_the_documentation_names_every_key() -> None:
    text = DOC.read_text().partition("# The JSON of a simulation")[2]
    records = [one for one in vars(documents).values() if isinstance(one, type) and issubclass(one, Record)
               and one.__module__ == documents.__name__]
    names = {name for record in records for name in record.__struct_fields__}
    assert {"schema_version", "p99_s", "kv_peak_frac", "watermark_frac"} <= names
    assert not {name for name in names if f"`{name}`" not in text}


def test_every_figure_of_an_outcome_is_exported() -> None:
    assert set(SimulatedOutcome.__slots__) <= set(SimulatedDegreeRecord.__struct_fields__)
    assert QuantilesRecord.__struct_fields__ == tuple(Quantiles.__slots__)
    assert {*NUMBERS, *COUNTS, *LATENCIES, "saturated"} == set(SimulatedOutcome.__slots__)


def test_frame_and_csv_have_the_same_columns_and_rows() -> None:
    frame, read = simulation_frame(SIM), list(csv.DictReader(io.StringIO(simulation_csv(SIM))))
    assert tuple(frame.columns) == tuple(read[0]) == SIMULATION_COLUMNS
    assert len(set(SIMULATION_COLUMNS)) == len(SIMULATION_COLUMNS)
    assert {"ttft_p99_s", "queue_mean_s", "memory_weight_bytes", "goodput_frac"} <= set(SIMULATION_COLUMNS)
    assert [row["tp"] for row in read] == ["1", "2", "4", "8"]
    by_tp = frame.set_index("tp")
    assert float(read[2]["ttft_p99_s"]) == by_tp.loc[4, "ttft_p99_s"] == SIM.degrees[2].outcome.ttft.p99_s
    assert (read[0]["ttft_p99_s"], read[0]["saturated"], read[1]["saturated"], read[2]["best"]) == ("", "", "true", "true")


def test_numbers_are_numbers_and_gaps_are_nan() -> None:
    frame = simulation_frame(SIM).set_index("tp")
    assert frame["num_steps"].dtype == frame["ttft_p99_s"].dtype == "float64"
    assert pd.isna(frame.loc[1, "ttft_p99_s"])
    assert frame["meets_targets"].tolist() == [False, False, True, True]
    assert frame["saturated"].tolist() == [None, True, False, False]
    assert frame.loc[2, "reason"] == "load"
    joined = pd.concat([simulation_frame(SIM), simulation_frame(replace(SIM, seed=1))], ignore_index=True)
    assert sorted(set(joined["seed"])) == [0, 1]


def test_no_degrees() -> None:
    sim = replace(SIM, degrees=(), best_tp=None)
    assert simulation_csv(sim) == ",".join(SIMULATION_COLUMNS) + "\n"
    assert simulation_frame(sim).empty


def test_an_outcome_without_a_log_is_written() -> None:
    options = SimulationOptions(slo_quantile=0.95)
    sim = replace(SIM, degrees=(replace(SIM.degrees[3], detail=None), out_degree(1)), options=options)
    assert parse_simulation_json(simulation_json(sim)).degrees[0].reason is None
