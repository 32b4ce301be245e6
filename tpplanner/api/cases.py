"""Many deployments at once: each row is predicted by itself, and a bad row does not stop the others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from tpplanner.api.loaded import engine_of, hardware_of, model_of, with_kernels
from tpplanner.api.question import question
from tpplanner.cost.kernel_time import has_moe_kernels
from tpplanner.errors import TpplannerError, WorkloadError
from tpplanner.io.cases import Case, CaseFile, duplicate_ids, parse_case
from tpplanner.planner.predict import Prediction, predict
from tpplanner.units import MS

_HAS_EP, _TOO_LONG, _SATURATED = "_has_ep", "_too_long", "_saturated"
_MOST_IDS = 10


def predict_case(case: Case) -> Prediction:
    """Predict one deployment: means of one replica under its load.

    Raises
    ------
    TpplannerError
        If a name is unknown, a number makes no sense, or the model cannot be cut into the degree.
    """
    asked = question(
        model=model_of(case.model, case.dtype, case.kv_cache_dtype), gpus=(case.tp, hardware_of(case.system)),
        isl=case.isl_tok, osl=case.osl_tok, engine=engine_of(case.engine), request_rate=case.request_rate,
        concurrency=case.concurrency, offline=case.offline, gpu_memory_utilization=case.gpu_memory_utilization,
        max_num_seqs=case.max_num_seqs,
    )
    asked = replace(asked, ep=case.ep or 1)
    try:
        return predict(asked, case.tp)
    except ValueError as error:
        raise WorkloadError(f"tp {case.tp}: {error}") from error


def _has_kernels(case: Case) -> bool:
    engine = engine_of(case.engine)
    model = model_of(case.model, case.dtype, case.kv_cache_dtype)
    return model.is_moe and has_moe_kernels(model, with_kernels(hardware_of(case.system), engine))


def _row(case: Case, prediction: Prediction) -> dict[str, object]:
    def shown(value: float | None, scale: float, digits: int) -> str | None:
        return None if value is None else f"{value / scale:.{digits}f}"

    return {
        "id": case.case_id, "status": prediction.status, "pred_ttft_ms": shown(prediction.ttft_s, MS, 3),
        "pred_tpot_ms": shown(prediction.tpot_s, MS, 4),
        "pred_throughput_tok_s": shown(prediction.throughput_tok_s, 1.0, 3),
        "kv_capacity_tok": prediction.kv_capacity_tok,
        _HAS_EP: case.ep is not None and case.ep > 1 and not _has_kernels(case),
        _TOO_LONG: case.isl_tok + case.osl_tok > model_of(case.model, case.dtype, case.kv_cache_dtype).max_context_tok,
        # Under a rate that a replica carries there always is a TTFT.
        _SATURATED: case.request_rate is not None and prediction.status == "ok" and prediction.ttft_s is None,
    }


def predict_rows(cases: CaseFile) -> Iterator[Mapping[str, object]]:
    """Yield one output row per case, in order; ``status`` is ``ok``, ``OOM`` or ``error: ...``.

    Keys with an underscore in front are for :func:`prediction_notes`.
    """
    for row in cases.rows:
        case_id = row.get("id", "")
        try:
            case = parse_case(row)
            yield _row(case, predict_case(case))
        except TpplannerError as error:
            yield {"id": case_id, "status": f"error: {error}"}


def prediction_notes(cases: CaseFile, predicted: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    """Return what a reader of the predictions should know and no column says, one line each."""
    def how_many(key: str) -> str:
        num = sum(bool(row.get(key)) for row in predicted)
        return f"{num} {'row' if num == 1 else 'rows'}" if num else ""

    notes = []
    if cases.ignored_columns:
        notes.append(f"ignored columns: {_names(cases.ignored_columns)}")
    if duplicates := duplicate_ids(cases):
        notes.append(f"duplicate ids: {_names(duplicates)}")
    if rows := how_many(_HAS_EP):
        notes.append(f"ep has no effect ({rows}): no kernel of the experts was measured there")
    if rows := how_many(_TOO_LONG):
        notes.append(f"isl + osl exceed the context limit of the model in {rows}")
    if rows := how_many(_SATURATED):
        notes.append(f"request_rate exceeds the capacity in {rows}: throughput is the capacity, the TTFT has no mean")
    return tuple(notes)


def _names(names: Sequence[str]) -> str:
    """Join names on one line, the first few of many."""
    shown = ", ".join(" ".join(name.split()) for name in names[:_MOST_IDS])
    return shown if len(names) <= _MOST_IDS else f"{shown} and {len(names) - _MOST_IDS} more"
