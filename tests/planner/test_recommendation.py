"""From a question to plans: the best degree, what would change it, the fewest GPUs, the explanation."""

from dataclasses import fields, replace

import pytest
from builders import make_engine, make_hardware, make_model, make_question, q, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from served import truth

from tpplanner.cost.serving import bind_terms
from tpplanner.domain.dtypes import dtype_named
from tpplanner.domain.engine import Preemption, Switches
from tpplanner.domain.plan import Binding, Question, Reason
from tpplanner.domain.workload import Load, LoadMode, Targets, Workload
from tpplanner.errors import WorkloadError
from tpplanner.planner.cluster import evaluate
from tpplanner.planner.degrees import candidate_degrees
from tpplanner.planner.explain import explain
from tpplanner.planner.pareto import pareto_points
from tpplanner.planner.plans import grid_of
from tpplanner.planner.predict import plan_one, predict
from tpplanner.planner.recommend import recommend
from tpplanner.planner.sizing import fewest_gpus, sized

RATE, IN_FLIGHT, OFFLINE = LoadMode.REQUEST_RATE, LoadMode.CONCURRENCY, LoadMode.OFFLINE


def asked(mode: LoadMode = LoadMode.BATCH_PER_GPU, value: float | None = 32.0, **changes: object) -> Question:
    return make_question(load=Load(mode=mode, value=value), **changes)


def test_weights_put_one_gpu_out():
    rec = recommend(asked())
    assert [p.tp for p in rec.plans] == [1, 2, 4, 8]
    one = rec.plan(1)
    assert (one.feasible, one.reason, one.outcome) == (False, Reason.WEIGHTS, None)
    assert "GiB usable per GPU" in one.reason_detail
    assert rec.best_tp in (4, 8)
    assert rec.best is rec.plan(rec.best_tp)
    assert rec.rule_of_thumb_tp == 8


def test_replicas_and_gpus_left_over():
    rec = recommend(asked(num_gpus=6))
    assert {p.tp: (p.num_replicas, p.num_gpus_idle) for p in rec.plans} == {1: (6, 0), 2: (3, 0), 4: (1, 2)}
    four = rec.plan(4).outcome
    # Per GPU of the cluster, the idle two included.
    assert four.throughput_per_gpu_tok_s == pytest.approx(four.throughput_tok_s / 6, rel=1e-12)


def test_a_degree_larger_than_the_cluster_says_so():
    plan = plan_one(asked(num_gpus=4), 8)
    assert (plan.feasible, plan.reason, plan.num_replicas) == (False, Reason.GPUS, 0)
    assert plan.reason_detail == "one replica takes 8 GPUs, there are 4"


def test_no_degree_is_a_result():
    rec = recommend(asked(targets=Targets(tpot_s=1e-4)))
    assert rec.best_tp is None
    assert rec.best is None
    assert (rec.runner_up_tp, rec.margin_frac, rec.tied_tps, rec.flip_points) == (None, None, (), ())
    assert {p.reason for p in rec.plans} == {Reason.WEIGHTS, Reason.TPOT}
    # A degree that runs but misses its target keeps its outcome.
    assert all((p.outcome is None) is (p.reason is Reason.WEIGHTS) for p in rec.plans)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"workload": Workload(isl_tok=5 * 10**6, osl_tok=1)}, Reason.KV_CACHE),
    ({"load": Load(mode=RATE, value=1e4)}, Reason.LOAD),
    ({"targets": Targets(ttft_s=1e-3)}, Reason.TTFT),
    ({"gpu_memory_utilization": 0.2}, Reason.WEIGHTS),
])
def test_reasons(changes, reason):
    rec = recommend(asked(**changes)) if "load" not in changes else recommend(make_question(**changes))
    assert rec.best_tp is None
    assert rec.plan(8).reason is reason
    assert rec.plan(8).reason_detail


def test_a_context_too_long_warns():
    long = asked(workload=Workload(isl_tok=131_000, osl_tok=100))
    assert any("131,100 tokens exceed the context limit 131,072" in w for w in recommend(long).warnings)
    fits = asked(workload=Workload(isl_tok=130_972, osl_tok=100))
    assert not any("context limit" in w for w in recommend(fits).warnings)


def test_queued_requests_warn():
    rec = recommend(asked(IN_FLIGHT, 5000.0))
    assert any(w.startswith("requests queue") for w in rec.warnings)
    assert rec.best.outcome.binding in (Binding.MAX_NUM_SEQS, Binding.KV_CACHE)
    assert recommend(asked(IN_FLIGHT, 8.0)).best.outcome.binding is Binding.OFFERED_LOAD


def test_binding_of_a_capacity():
    held = recommend(asked(LoadMode.SLO_CAPACITY, None, targets=Targets(tpot_s=0.04)))
    assert held.best.outcome.binding is Binding.TPOT
    assert held.best.outcome.tpot_s <= 0.04
    free = recommend(asked(LoadMode.SLO_CAPACITY, None, targets=Targets(tpot_s=10.0)))
    assert free.best.outcome.binding in (Binding.MAX_NUM_SEQS, Binding.KV_CACHE)


def test_the_best_has_the_most_throughput():
    rec = recommend(asked())
    rates = {p.tp: p.outcome.throughput_tok_s for p in rec.plans if p.feasible}
    assert rec.best_tp == max(rates, key=rates.get)
    rest = sorted(rates.values())
    assert rec.margin_frac == pytest.approx(rest[-1] / rest[-2] - 1, rel=1e-12)
    joules = {p.tp: p.outcome.energy_j_per_tok for p in rec.plans if p.feasible}
    assert rec.best_energy_tp == min(joules, key=joules.get)


def test_a_carried_rate_ranks_by_latency():
    rec = recommend(asked(RATE, 1.0))
    carried = {p.tp: p.outcome for p in rec.plans if p.feasible}
    assert rec.best_tp == min(carried, key=lambda t: carried[t].e2e_s)
    for outcome in carried.values():
        assert outcome.request_rate_req_s == pytest.approx(1.0, rel=1e-6)
        assert outcome.throughput_tok_s == pytest.approx(1024, rel=1e-6)


def test_no_price_no_cost():
    hardware = replace(make_hardware(), price_usd_h=None)
    assert recommend(asked(hardware=hardware)).best_cost_tp is None
    assert recommend(asked(hardware=hardware)).best.outcome.cost_usd_per_mtok is None
    dear, cheap = (recommend(asked(price_usd_h=price)).best.outcome.cost_usd_per_mtok for price in (5.0, 2.5))
    assert dear == pytest.approx(2 * cheap, rel=1e-12)


def moved(question: Question, variable: str, value: float | str) -> Question:
    if variable == "output length":
        return replace(question, workload=replace(question.workload, osl_tok=int(value)))
    if variable == "gpu_memory_utilization":
        return replace(question, gpu_memory_utilization=value)
    if variable == "KV dtype":
        precision = replace(question.model.precision, kv=dtype_named(value))
        return replace(question, model=replace(question.model, precision=precision))
    return replace(question, load=Load(mode=question.load.mode, value=value))


@pytest.mark.parametrize("question", [
    asked(), asked(IN_FLIGHT, 64.0), asked(LoadMode.CONCURRENCY_PER_REPLICA, 16.0), asked(OFFLINE, None),
    asked(RATE, 2.0), asked(LoadMode.SLO_CAPACITY, None, targets=Targets(tpot_s=0.04)),
    asked(IN_FLIGHT, 64.0, model=make_model(weights="fp8")),
    asked(IN_FLIGHT, 64.0, engine=make_engine(switches=Switches(async_sched=True, early_feedback=True))),
])
def test_flip_points_really_flip(question):
    rec = recommend(question)
    for flip in rec.flip_points:
        before = recommend(moved(question, flip.variable, flip.previous), with_flip_points=False)
        after = recommend(moved(question, flip.variable, flip.value), with_flip_points=False)
        assert (before.best_tp, after.best_tp) == (flip.tp_before, flip.tp_after), flip
        assert flip.previous != flip.value


def test_some_question_flips():
    assert recommend(asked(IN_FLIGHT, 64.0)).flip_points


def carries(question: Question, num_gpus: int) -> bool:
    degrees = candidate_degrees(question.model, question.hardware, num_gpus, question.max_tp)
    tps = [d.tp for d in degrees if not d.obstacle]
    state = evaluate(grid_of(question, tps), num_gpus=float(num_gpus), mode=question.load.mode,
                     value=question.load.value, targets=question.targets)
    return bool((state.feasible & ~state.saturated).any())


@settings(max_examples=10)
@given(mode=st.sampled_from([RATE, IN_FLIGHT]), value=st.floats(0.5, 300),
       tpot=st.one_of(st.none(), st.floats(0.02, 0.2)), small=st.booleans())
def test_the_fewest_gpus_are_fewest(mode, value, tpot, small):
    question = asked(mode, value, targets=Targets(tpot_s=tpot))
    if small:
        question = replace(question, model=tiny_model())
    fewest = fewest_gpus(question)
    if fewest is None:
        assert not carries(question, 512)
        return
    assert carries(question, fewest)
    assert fewest == 1 or not carries(question, fewest - 1)
    answer = sized(question)
    assert (answer.num_gpus, answer.num_gpus_given) == (fewest, False)


def test_sizing_without_an_answer_or_a_load():
    impossible = asked(RATE, 1.0, targets=Targets(tpot_s=1e-5))
    assert fewest_gpus(impossible) is None
    assert sized(impossible).num_gpus == 8
    with pytest.raises(WorkloadError, match="load must be --request-rate or --concurrency"):
        fewest_gpus(asked())


@pytest.mark.parametrize("switches", [Switches(), Switches(async_sched=True, early_feedback=True)])
@pytest.mark.parametrize("tp", [1, 2, 8])
def test_the_explained_terms_sum_to_the_step(switches, tp):
    question = asked(IN_FLIGHT, 64.0, engine=make_engine(switches=switches), model=make_model(weights="fp8"))
    plan = plan_one(question, tp)
    lines = explain(question, plan)
    step = next(x for x in lines if x.term == "step").value
    top = [x for x in lines if x.level == 1 and x.unit == "s"]
    assert sum(x.value for x in top) == pytest.approx(step, rel=1e-12)
    assert step == pytest.approx(plan.outcome.step.total_s, rel=1e-12)
    assert step == pytest.approx(plan.outcome.tpot_s, rel=0.02)
    # Each sum has its parts below it.
    by_term = {x.term: x.value for x in lines}
    assert by_term["linear"] + by_term["attention"] + by_term["element-wise"] + by_term["launch"] == pytest.approx(
        by_term["scalable"], rel=1e-12)
    host = [v for t, v in by_term.items() if t.startswith(("T1", "T2", "T5", "overlap"))]
    assert sum(host) == pytest.approx(by_term["host"], rel=1e-12)
    assert by_term["hidden"] <= 0
    # Every number but the bare sum says where it comes from.
    assert all(x.provenance and x.source for x in lines if x.term not in ("scalable", "step"))


def test_nothing_to_explain_where_nothing_runs():
    assert explain(asked(), recommend(asked()).plan(1)) == []


def test_swapped_bytes_are_explained():
    engine = replace(make_engine(), preemption=Preemption.SWAP)
    question = asked(OFFLINE, None, engine=engine, workload=Workload(isl_tok=512, osl_tok=4096))
    plan = plan_one(question, 2)
    assert plan.outcome.preemptions_per_req == 7.5
    assert plan.outcome.swap_bytes_per_req > 0
    assert any(line.term == "preemption" for line in explain(question, plan))


def test_the_step_split_of_a_plan_keeps_its_sums():
    for plan in recommend(asked()).plans:
        if plan.outcome is None:
            continue
        s = plan.outcome.step
        assert s.total_s == pytest.approx(s.scalable_s + s.comm_s + s.sampling_s + s.host_s - s.hidden_s, rel=1e-12)
        assert all(getattr(s, f.name) >= 0 for f in fields(s))
        assert 0 < s.non_scalable_frac < 1


def test_pareto_points_stop_where_requests_queue():
    points = pareto_points(asked(), [2, 4, 8])
    assert set(points) == {2, 4, 8}
    for curve in points.values():
        users, per_gpu, concurrency = zip(*curve, strict=True)
        assert list(users) == sorted(users, reverse=True)
        assert list(per_gpu) == sorted(per_gpu)
        assert max(concurrency) <= 256


@pytest.mark.parametrize(("mode", "value"), [(IN_FLIGHT, 16.0), (RATE, 0.5), (OFFLINE, None)])
def test_prediction_of_one_replica(mode, value):
    question = asked(mode, value)
    found = predict(question, 4)
    plan = plan_one(replace(question, num_gpus=4), 4)
    assert (found.status, found.throughput_tok_s) == ("ok", plan.outcome.throughput_tok_s)
    assert predict(question, 1).status == "OOM"
    with pytest.raises(ValueError, match="3 does not divide 64 heads"):
        predict(question, 3)


@pytest.mark.parametrize(("mode", "value", "is_said"), [(IN_FLIGHT, 16.0, True), (RATE, 0.5, True), (OFFLINE, None, False)])
def test_a_steady_ttft_is_said_to_be_one_where_runs_were_fitted(mode, value, is_said):
    plain = make_engine()
    fitted = bind_terms(plain, truth("dense", "plain"))
    told = [any("steady state" in line for line in recommend(asked(mode, value, engine=engine)).assumptions)
            for engine in (plain, fitted)]
    assert told == [False, is_said]


def test_an_extrapolated_fit_is_named():
    engine = make_engine()
    fitted = replace(engine.schedule.per_seq_s, valid_for="num_decode_seqs", valid_max=16.0)
    engine = replace(engine, schedule=replace(engine.schedule, per_seq_s=fitted))
    inside = recommend(asked(LoadMode.CONCURRENCY_PER_REPLICA, 16.0, engine=engine)).best.outcome
    outside = recommend(asked(LoadMode.CONCURRENCY_PER_REPLICA, 17.0, engine=engine))
    assert inside.extrapolated == ()
    assert outside.best.outcome.extrapolated == ("schedule",)
    assert any("extrapolated" in w for w in outside.warnings)


def test_the_link_matters_beyond_the_node():
    def comm(hardware):
        rec = recommend(asked(num_gpus=16, max_tp=16, hardware=hardware), with_flip_points=False)
        return rec.plan(16).outcome.step.comm_s

    fast = make_hardware()
    slow = replace(fast, inter_link=replace(fast.inter_link, bandwidth_bytes_s=q(5e9, "bytes/s")))
    assert comm(slow) > comm(fast)
