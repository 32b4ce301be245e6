import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_factory import (
    make_infeasible,
    make_memory,
    make_outcome,
    make_plan,
    make_question,
    make_rec,
    make_step,
)

from tpplanner.domain.plan import FlipPoint, Outcome, Recommendation, Uncertainty
from tpplanner.errors import TpplannerError
from tpplanner.report.json_export import parse_plan_json, to_document, to_json
from tpplanner.report.plan_document import PlanRecord, Record

NUMBERS = [f.name for f in fields(Outcome) if f.type in (float, float | None)]
DOC = Path(__file__).parents[2] / "docs" / "json_schema.md"

any_float = st.floats(allow_nan=True, allow_infinity=True)


@st.composite
def recommendations(draw: st.DrawFn) -> Recommendation:
    plans = []
    for tp in draw(st.lists(st.integers(1, 4096), unique=True, max_size=4)):
        numbers = {name: draw(any_float) for name in NUMBERS}
        step = replace(make_step(2), comm_s=draw(any_float))
        memory = draw(st.none() | st.builds(make_memory, st.integers(0, 10**12)))
        outcome = make_outcome(2, 1.0, step=step, **numbers)
        plans.append(
            replace(
                make_plan(2, 1.0),
                tp=tp,
                memory=memory,
                outcome=draw(st.sampled_from([None, outcome])),
                uncertainty=draw(st.none() | st.builds(Uncertainty, **dict.fromkeys(Uncertainty.__slots__, any_float))),
                reason_detail=draw(st.text(st.characters(codec="utf-8"))),
            )
        )
    return make_rec(
        plans=tuple(plans),
        best_tp=plans[0].tp if plans else None,
        margin_frac=draw(st.none() | any_float),
        warnings=tuple(draw(st.lists(st.text(st.characters(codec="utf-8")), max_size=2))),
    )


@given(recommendations())
def test_round_trip(rec: Recommendation) -> None:
    text = to_json(rec)
    assert parse_plan_json(text) == to_document(rec)
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} in JSON"))


def test_required_keys_and_values() -> None:
    data = json.loads(to_json(make_rec()))
    assert data["schema_version"] == 2
    assert data["question"]["load"] == {"mode": "batch_per_gpu", "value": 32.0}
    # Llama-3.1-70B: 70.55e9 parameters
    assert data["question"]["num_params"] == pytest.approx(70.55e9, rel=1e-3)
    assert data["question"]["switches"] == {
        "async_sched": False,
        "early_feedback": False,
        "seq_parallel_sampling": False,
    }
    assert data["question"]["price_usd_h"] == 2.5
    best, plan = data["best"], data["plans"][3]
    assert (best["tp"], best["margin_frac"], best["energy_tp"]) == (8, 0.12, 8)
    assert best["best_prob_frac"] == plan["best_prob_frac"] == 0.96
    assert plan["tpot_low_s"] == pytest.approx(0.0184)
    assert plan["throughput_per_gpu_tok_s"] == best["throughput_per_gpu_tok_s"] == 540.1
    assert plan["step"]["total_s"] == pytest.approx(0.023)
    assert plan["tpot_s"] * plan["throughput_per_user_tok_s"] == pytest.approx(1.0)
    assert plan["memory"]["hbm_bytes"] == 80 * 2**30
    assert data["flip_points"][0]["value"] == 512.0


def test_infeasible_degrees_have_nulls() -> None:
    plan = json.loads(to_json(make_rec()))["plans"][0]
    assert (plan["feasible"], plan["reason"]) == (False, "weights")
    for name in (
        "throughput_tok_s",
        "ttft_s",
        "tpot_s",
        "kv_capacity_tok",
        "binding",
        "saturated",
        "memory",
        "step",
        "best_prob_frac",
        "tpot_low_s",
    ):
        assert plan[name] is None
    assert json.loads(to_json(make_infeasible()))["best"] is None


def test_numpy_numbers_and_not_numbers() -> None:
    outcome = make_outcome(
        8, 540.1, power_w=np.float64(5000), energy_j_per_tok=math.inf, saturated=np.bool_(True)
    )
    memory = replace(make_memory(), kv_capacity_tok=np.int64(16))
    plan = json.loads(to_json(make_rec(plans=(make_plan(8, 1.0, outcome=outcome, memory=memory),))))["plans"][
        0
    ]
    assert (plan["power_w"], plan["energy_j_per_tok"], plan["saturated"], plan["kv_capacity_tok"]) == (
        5000.0,
        None,
        True,
        16,
    )


def test_flip_points_of_names_and_a_price_given() -> None:
    flip = FlipPoint(variable="kv_dtype", unit="", tp_before=4, tp_after=2, previous="bf16", value="fp8")
    rec = make_rec(flip_points=(flip,), question=make_question(price_usd_h=1.0))
    document = parse_plan_json(to_json(rec))
    assert (document.flip_points[0].previous, document.question.price_usd_h) == ("bf16", 1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema_version=1), "schema_version must be 2, got 1"),
        (lambda d: d.pop("plans"), "plans"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d["plans"][0].update(tp="eight"), "plans[0].tp"),
    ],
)
def test_other_documents_are_refused_by_name(change, said: str) -> None:
    data = json.loads(to_json(make_rec()))
    change(data)
    with pytest.raises(TpplannerError, match=re.escape(said)):
        parse_plan_json(json.dumps(data))


@given(st.binary(max_size=40) | st.integers(0, 2000).map(lambda n: to_json(make_rec()).encode()[:n]))
def test_broken_text_gives_one_clear_error(text: bytes) -> None:
    with pytest.raises(TpplannerError, match=r"^plan JSON: "):
        parse_plan_json(text)


def test_the_documentation_names_every_key() -> None:
    text = DOC.read_text()

    names = {name for record in Record.__subclasses__() for name in record.__struct_fields__}
    assert {"schema_version", "tp", "scalable_s"} <= names
    assert not {name for name in names if f"`{name}`" not in text}


def test_every_number_of_an_outcome_is_exported() -> None:
    assert set(NUMBERS) <= set(PlanRecord.__struct_fields__)
    assert len(NUMBERS) >= 19
    assert set(Uncertainty.__slots__) <= set(PlanRecord.__struct_fields__)
