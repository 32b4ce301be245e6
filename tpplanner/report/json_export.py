"""Recommendations to JSON and back."""

import math
from importlib import metadata

from tpplanner.domain.plan import DegreePlan, MemoryBudget, Outcome, Question, Recommendation, Uncertainty
from tpplanner.report.documents import document_text, parse_document
from tpplanner.report.numbers import per_user_tok_s
from tpplanner.report.plan_document import (
    SCHEMA_VERSION,
    BestRecord,
    FlipRecord,
    LoadRecord,
    MemoryRecord,
    PlanDocument,
    PlanRecord,
    QuestionRecord,
    StepRecord,
    SwitchesRecord,
    TargetsRecord,
)


def to_json(rec: Recommendation) -> str:
    """Return the recommendation as JSON, two-space indented, without a final line break.

    Times are seconds, sizes bytes. Keys are listed in ``docs/json_schema.md``. There is no NaN and
    no Infinity: what does not exist is ``null``.
    """
    return document_text(to_document(rec))


def parse_plan_json(text: str | bytes) -> PlanDocument:
    """Read what `to_json` wrote; the result equals ``to_document`` of the recommendation.

    Raises
    ------
    TpplannerError
        If the text is no JSON, of another schema version, or if a key is missing, unknown or of the
        wrong type; the message names it.
    """
    return parse_document(text, PlanDocument, schema_version=SCHEMA_VERSION, place="plan JSON")


def to_document(rec: Recommendation) -> PlanDocument:
    """Return the typed JSON form of the recommendation."""
    return PlanDocument(
        schema_version=SCHEMA_VERSION,
        tpplanner_version=version(),
        question=question_record(rec.question),
        best=_best(rec),
        rule_of_thumb_tp=int(rec.rule_of_thumb_tp),
        ranked_by=rec.ranked_by,
        plans=tuple(plan_record(plan) for plan in rec.plans),
        flip_points=tuple(
            FlipRecord(
                variable=flip.variable, unit=flip.unit, tp_before=flip.tp_before, tp_after=flip.tp_after,
                previous=_number_or_name(flip.previous), value=_number_or_name(flip.value),
            )
            for flip in rec.flip_points
        ),
        assumptions=tuple(rec.assumptions),
        warnings=tuple(rec.warnings),
    )


def plan_record(plan: DegreePlan) -> PlanRecord:
    """Return the JSON form of one degree."""
    outcome, memory = plan.outcome, plan.memory
    numbers = {name: finite(getattr(outcome, name, None)) for name in _OUTCOME_NUMBERS}
    doubts = {name: finite(getattr(plan.uncertainty, name, None)) for name in Uncertainty.__slots__}
    return PlanRecord(
        tp=int(plan.tp),
        num_replicas=int(plan.num_replicas),
        num_gpus_idle=int(plan.num_gpus_idle),
        feasible=bool(plan.feasible),
        reason=None if plan.reason is None else plan.reason.value,
        reason_detail=plan.reason_detail,
        throughput_per_user_tok_s=None if outcome is None else finite(per_user_tok_s(outcome.tpot_s)),
        kv_capacity_tok=None if memory is None else int(memory.kv_capacity_tok),
        num_kv_blocks=None if memory is None else int(memory.num_kv_blocks),
        binding=None if outcome is None else outcome.binding.value,
        saturated=None if outcome is None else bool(outcome.saturated),
        extrapolated=() if outcome is None else tuple(outcome.extrapolated),
        memory=memory_record(memory),
        step=_step(outcome),
        **numbers,
        **doubts,
    )


def memory_record(memory: MemoryBudget | None) -> MemoryRecord | None:
    """Return the JSON form of the memory of one GPU."""
    if memory is None:
        return None
    return MemoryRecord(**{name: finite(getattr(memory, name)) for name in MemoryRecord.__struct_fields__})


def finite(value: float | None) -> float | None:
    """Return a plain float, or ``None`` where there is no finite number."""
    return float(value) if value is not None and math.isfinite(value) else None


_NOT_NUMBERS_OF_OUTCOME = {"binding", "saturated", "extrapolated", "step"}
_OUTCOME_NUMBERS = tuple(
    name for name in PlanRecord.__struct_fields__
    if name in Outcome.__slots__ and name not in _NOT_NUMBERS_OF_OUTCOME
)


def _step(outcome: Outcome | None) -> StepRecord | None:
    if outcome is None:
        return None
    return StepRecord(**{name: finite(getattr(outcome.step, name)) for name in StepRecord.__struct_fields__})


def _best(rec: Recommendation) -> BestRecord | None:
    plan = rec.best
    if plan is None:
        return None
    outcome = plan.outcome
    return BestRecord(
        tp=plan.tp,
        num_replicas=plan.num_replicas,
        num_gpus_idle=plan.num_gpus_idle,
        throughput_tok_s=None if outcome is None else finite(outcome.throughput_tok_s),
        throughput_per_gpu_tok_s=None if outcome is None else finite(outcome.throughput_per_gpu_tok_s),
        ttft_s=None if outcome is None else finite(outcome.ttft_s),
        tpot_s=None if outcome is None else finite(outcome.tpot_s),
        best_prob_frac=finite(rec.best_prob_frac),
        runner_up_tp=rec.runner_up_tp,
        margin_frac=finite(rec.margin_frac),
        tied_tps=tuple(rec.tied_tps),
        energy_tp=rec.best_energy_tp,
        cost_tp=rec.best_cost_tp,
    )


def question_record(question: Question) -> QuestionRecord:
    """Return the JSON form of what was asked, defaults filled in."""
    model, engine, hardware = question.model, question.engine, question.hardware
    list_price = None if hardware.price_usd_h is None else hardware.price_usd_h.value
    return QuestionRecord(
        model=model.name,
        architecture=model.architecture,
        num_params=model.num_params,
        num_active_params=model.num_active_params,
        hardware=hardware.name,
        engine=engine.name,
        switches=SwitchesRecord(
            **{name: getattr(engine.switches, name) for name in SwitchesRecord.__struct_fields__}
        ),
        preemption=engine.preemption.value,
        sampling=question.sampling.value,
        num_gpus=question.num_gpus,
        num_gpus_given=question.num_gpus_given,
        isl_tok=question.workload.isl_tok,
        osl_tok=question.workload.osl_tok,
        load=LoadRecord(mode=question.load.mode.value, value=finite(question.load.value)),
        targets=TargetsRecord(ttft_s=finite(question.targets.ttft_s), tpot_s=finite(question.targets.tpot_s)),
        precision=model.precision.name,
        kv_dtype=model.precision.kv.name,
        max_num_seqs=question.max_num_seqs,
        max_num_batched_tokens=question.max_num_batched_tokens,
        gpu_memory_utilization=float(question.gpu_memory_utilization),
        kv_block_size_tok=engine.kv_block_size_tok,
        non_kv_overhead_bytes=finite(question.non_kv_overhead_bytes), num_gpu_blocks=question.num_gpu_blocks,
        max_tp=question.max_tp,
        price_usd_h=finite(list_price if question.price_usd_h is None else question.price_usd_h),
    )


def _number_or_name(value: float | str) -> float | str:
    return value if isinstance(value, str) else float(value)


def version() -> str:
    """Return the version of the package, as installed."""
    try:
        return metadata.version("tpplanner")
    except metadata.PackageNotFoundError:
        return "unknown"
