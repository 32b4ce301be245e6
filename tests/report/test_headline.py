from dataclasses import replace

import pytest
from plan_factory import (
    make_infeasible,
    make_outcome,
    make_plan,
    make_question,
    make_rec,
    make_uncertainty,
    out_plan,
)

from tpplanner.domain.plan import Reason
from tpplanner.domain.workload import Load, LoadMode, Targets
from tpplanner.report.headline import headline, nearest_plan, tied_degrees


def test_clear_winner_names_degree_replicas_figures_and_margin() -> None:
    assert headline(make_rec()) == (
        "Serve meta-llama/Llama-3.1-70B-Instruct at TP 8 (1 replica of 8 x h100-sxm): "
        "4,321 tok/s (540 tok/s/GPU), TPOT 23.0 ms, TTFT 310 ms; 12 % over TP 4, best with 96 % probability."
    )


@pytest.mark.parametrize("tied", [(4,), (4, 8), (8, 4)])
def test_a_tie_is_called_a_tie_whether_or_not_the_best_is_listed(tied: tuple[int, ...]) -> None:
    rec = make_rec(tied_tps=tied)
    assert headline(rec).endswith("; a tie: TP 8 (96 %), TP 4 (4 %).")
    assert "over TP" not in headline(rec)
    assert tied_degrees(rec) == (4, 8)


def test_the_best_alone_is_no_tie() -> None:
    assert tied_degrees(make_rec(tied_tps=(8,))) == ()


def test_energy_and_cost_are_named_only_where_they_differ() -> None:
    assert headline(make_rec(best_energy_tp=4, best_cost_tp=2)).endswith(
        "; 12 % over TP 4, best with 96 % probability; least energy per token at TP 4 and least cost per token at TP 2."
    )
    assert headline(make_rec(best_cost_tp=4)).endswith("; least cost per token at TP 4.")
    assert "least" not in headline(make_rec(best_energy_tp=None, best_cost_tp=None))


def test_a_margin_in_another_measure_says_which() -> None:
    assert headline(make_rec(ranked_by="shortest latency")).endswith(
        "; 12 % over TP 4 (by shortest latency), best with 96 % probability."
    )


def test_only_feasible_degree() -> None:
    alone = make_rec(runner_up_tp=None, margin_frac=None, best_prob_frac=1.0)
    assert headline(alone).endswith("; the only feasible degree.")
    # Another degree misses a target by little: it is out, and yet perhaps the better one.
    assert headline(replace(alone, best_prob_frac=0.6)).endswith("; the only feasible degree, best with 60 % probability.")


def test_a_target_that_may_be_missed_is_told() -> None:
    def told(mode: LoadMode, value: float | None, targets: Targets) -> str:
        plan = make_plan(8, 540.1)
        doubt = make_uncertainty(plan.outcome, 1.0, meets_targets_prob_frac=0.7)
        question = make_question(load=Load(mode=mode, value=value), targets=targets)
        return headline(make_rec(question=question, plans=(replace(plan, uncertainty=doubt),)))

    assert told(LoadMode.CONCURRENCY, 64, Targets(tpot_s=0.03)).endswith("; the targets are met with 70 % probability.")
    assert told(LoadMode.REQUEST_RATE, 4, Targets()).endswith("; the rate is carried with 70 % probability.")
    # The load was chosen to meet them just so.
    assert "are met" not in told(LoadMode.SLO_CAPACITY, None, Targets(tpot_s=0.03))


def test_missing_latencies_are_left_out() -> None:
    outcome = make_outcome(8, 540.1, ttft_s=None, tpot_s=None)
    rec = make_rec(plans=(make_plan(8, 540.1, outcome=outcome),))
    assert "TTFT" not in headline(rec)
    assert "TPOT" not in headline(rec)


def test_idle_gpus_are_named() -> None:
    rec = make_rec(plans=(make_plan(6, 540.1),), best_tp=6, question=make_question())
    assert "(1 replica of 6 x h100-sxm, 2 GPUs idle)" in headline(rec)


def test_fewest_gpus() -> None:
    rec = make_rec(question=make_question(num_gpus=16, num_gpus_given=False), best_tp=4)
    assert headline(rec).startswith(
        "meta-llama/Llama-3.1-70B-Instruct needs at least 8 x h100-sxm: serve it at TP 4 "
        "(2 replicas of 4 x h100-sxm): "
    )


def test_capacity_names_the_load_it_found() -> None:
    question = make_question(load=Load(mode=LoadMode.SLO_CAPACITY), targets=Targets(tpot_s=0.03))
    assert "up to 4.2 req/s (256 requests in flight)" in headline(make_rec(question=question))


def test_no_plan_names_the_nearest_degree_and_its_reason() -> None:
    assert headline(make_infeasible()) == (
        "No feasible plan: meta-llama/Llama-3.1-70B-Instruct on 8 x h100-sxm fails on tpot at TP 8, "
        "the nearest degree (TPOT 23.0 ms exceeds the target of 10.0 ms)."
    )


def test_nearest_is_the_largest_degree_where_memory_is_short_everywhere() -> None:
    plans = (out_plan(1), out_plan(2), out_plan(4), out_plan(8, Reason.HEADS), out_plan(16, Reason.GPUS))
    rec = make_rec(plans=plans, best_tp=None)
    nearest = nearest_plan(rec)
    assert nearest is not None
    assert nearest.tp == 4
    assert "fails on weights at TP 4" in headline(rec)


def test_no_degree_at_all() -> None:
    assert headline(make_rec(plans=(), best_tp=None)).startswith("No feasible plan: no degree")


def test_one_line() -> None:
    for rec in (make_rec(), make_infeasible()):
        assert "\n" not in headline(rec)
