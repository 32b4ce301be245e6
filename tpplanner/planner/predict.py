"""One deployment, one load, one degree: the prediction that a batch of cases is made of."""

from dataclasses import dataclass, replace

from tpplanner.domain.plan import DegreePlan, Question, Reason
from tpplanner.domain.workload import Load, LoadMode
from tpplanner.planner.degrees import Degree, degree_obstacle
from tpplanner.planner.plans import evaluate_question, plan_degree


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Predicted means of one replica. ``status`` is ``ok`` or ``OOM``; the rest is None where unknown."""

    status: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    throughput_tok_s: float | None = None
    kv_capacity_tok: int | None = None


def plan_one(question: Question, tp: int) -> DegreePlan:
    """Plan one degree of a question, whatever the other degrees are."""
    degree = Degree(tp=tp, obstacle=degree_obstacle(question.model, tp))
    return plan_degree(question, degree, evaluate_question(question, [tp]), 0)


def predict(question: Question, tp: int) -> Prediction:
    """Predict one replica of ``tp`` GPUs under the question's load, which is then per replica.

    ``OOM``: the weights, or one request, do not fit. A degree that the model cannot be cut into
    is an error of the caller's, raised as ValueError with the reason.
    """
    load = question.load
    if load.mode is LoadMode.CONCURRENCY:
        load = Load(mode=LoadMode.CONCURRENCY_PER_REPLICA, value=load.value)
    plan = plan_one(replace(question, num_gpus=tp, load=load), tp)
    if plan.reason is Reason.HEADS:
        raise ValueError(plan.reason_detail)
    kv = plan.memory.kv_capacity_tok if plan.memory else None
    if plan.reason in (Reason.WEIGHTS, Reason.KV_CACHE) or plan.outcome is None:
        return Prediction(status="OOM", kv_capacity_tok=kv)
    o = plan.outcome
    return Prediction(status="ok", ttft_s=o.ttft_s, tpot_s=o.tpot_s, throughput_tok_s=o.throughput_tok_s,
                      kv_capacity_tok=kv)
