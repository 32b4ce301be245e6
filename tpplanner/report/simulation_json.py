"""Simulations to JSON and back, and one row per degree as a pandas frame and as CSV; the logs are apart."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tpplanner.domain.simulation import Quantiles, SimulatedDegree, SimulatedOutcome, Simulation, SimulationOptions
from tpplanner.domain.traffic import Traffic
from tpplanner.report.documents import document_text, parse_document
from tpplanner.report.frame import Cell, csv_text, flat_cells, flat_columns
from tpplanner.report.json_export import finite, memory_record, question_record, version
from tpplanner.report.plan_document import MemoryRecord, Record
from tpplanner.report.simulation_document import (
    SIMULATION_SCHEMA_VERSION,
    OptionsRecord,
    QuantilesRecord,
    SimulatedBestRecord,
    SimulatedDegreeRecord,
    SimulationDocument,
    TrafficRecord,
)
from tpplanner.report.simulation_headline import verdict

if TYPE_CHECKING:
    import pandas as pd

_LATENCIES = ("ttft", "tpot", "itl", "e2e", "queue")
_NESTED: dict[str, type[Record]] = {**dict.fromkeys(_LATENCIES, QuantilesRecord), "memory": MemoryRecord}
_LEADING = ("model", "hardware", "engine", "traffic", "seed", "best")

SIMULATION_COLUMNS: tuple[str, ...] = (*_LEADING, *flat_columns(SimulatedDegreeRecord, _NESTED))
"""Names of the columns: those of the JSON's ``degrees``, latencies and ``memory`` flattened (``ttft_p99_s``), after six
that tell frames of several simulations apart."""

_TEXT = frozenset({"model", "hardware", "engine", "traffic", "reason", "reason_detail"})
_EXACT = frozenset({"seed", "best", "tp", "num_replicas", "num_gpus_idle", "meets_targets", "saturated"})

_COUNTS_OF_OUTCOME = frozenset({"num_requests", "num_completed", "num_unservable", "num_steps", "num_preemptions",
                                "recomputed_tok", "num_unused_rows"})
_NUMBERS_OF_OUTCOME = tuple(
    name for name in SimulatedOutcome.__slots__
    if name not in _COUNTS_OF_OUTCOME and name not in _LATENCIES and name != "saturated"
)


def simulation_json(sim: Simulation) -> str:
    """Return the simulation as JSON, two-space indented, without a final line break and without the logs.

    Times are seconds, sizes bytes. Keys are listed in ``docs/json_schema.md``. There is no NaN and
    no Infinity: what does not exist is ``null``.
    """
    return document_text(simulation_document(sim))


def parse_simulation_json(text: str | bytes) -> SimulationDocument:
    """Read what `simulation_json` wrote; the result equals ``simulation_document`` of the simulation.

    Raises
    ------
    TpplannerError
        If the text is no JSON, of another schema version, or if a key is missing, unknown or of the
        wrong type; the message names it.
    """
    return parse_document(text, SimulationDocument, schema_version=SIMULATION_SCHEMA_VERSION, place="simulation JSON")


def simulation_document(sim: Simulation) -> SimulationDocument:
    """Return the typed JSON form of the simulation."""
    return SimulationDocument(
        schema_version=SIMULATION_SCHEMA_VERSION,
        tpplanner_version=version(),
        question=question_record(sim.question),
        traffic=_traffic(sim.traffic),
        options=_options(sim.options),
        seed=int(sim.seed),
        best=_best(sim.best),
        ranked_by=sim.ranked_by,
        degrees=tuple(_degree(sim, degree) for degree in sim.degrees),
        warnings=tuple(sim.warnings),
    )


def simulation_rows(sim: Simulation) -> list[dict[str, Cell]]:
    """Return one mapping per degree with the keys `SIMULATION_COLUMNS`; ``None`` where there is no number."""
    question = sim.question
    leading: dict[str, Cell] = {
        "model": question.model.name, "hardware": question.hardware.name, "engine": question.engine.name,
        "traffic": sim.traffic.name, "seed": int(sim.seed),
    }
    return [leading | {"best": degree.tp == sim.best_tp} | flat_cells(_degree(sim, degree), _NESTED)
            for degree in sim.degrees]


def simulation_frame(sim: Simulation) -> "pd.DataFrame":
    """Return one row per degree, columns `SIMULATION_COLUMNS`, SI units.

    Numbers that do not exist are NaN, ``saturated`` is an object column with ``None``.
    """
    import pandas as pd

    frame = pd.DataFrame(simulation_rows(sim), columns=list(SIMULATION_COLUMNS))
    numbers = [name for name in SIMULATION_COLUMNS if name not in _TEXT and name not in _EXACT]
    return frame.astype(dict.fromkeys(numbers, "float64"))


def simulation_csv(sim: Simulation) -> str:
    """Return one row per degree as CSV with a header; empty where there is no number."""
    return csv_text(SIMULATION_COLUMNS, simulation_rows(sim))


def _degree(sim: Simulation, degree: SimulatedDegree) -> SimulatedDegreeRecord:
    outcome, memory, why = degree.outcome, degree.memory, verdict(sim, degree)
    figures: dict[str, Any] = {
        **{name: None if outcome is None else int(getattr(outcome, name)) for name in _COUNTS_OF_OUTCOME},
        **{name: finite(getattr(outcome, name, None)) for name in _NUMBERS_OF_OUTCOME},
        **{name: _quantiles(getattr(outcome, name, None)) for name in _LATENCIES},
    }
    return SimulatedDegreeRecord(
        tp=int(degree.tp),
        num_replicas=int(degree.num_replicas),
        num_gpus_idle=int(degree.num_gpus_idle),
        meets_targets=bool(degree.meets_targets),
        saturated=None if outcome is None else bool(outcome.saturated),
        reason=None if why is None else why.word,
        reason_detail="" if why is None else why.detail,
        kv_capacity_tok=None if memory is None else int(memory.kv_capacity_tok),
        num_kv_blocks=None if memory is None else int(memory.num_kv_blocks),
        memory=memory_record(memory),
        **figures,
    )


def _quantiles(quantiles: Quantiles | None) -> QuantilesRecord | None:
    if quantiles is None:
        return None
    return QuantilesRecord(**{name: finite(getattr(quantiles, name)) for name in QuantilesRecord.__struct_fields__})


def _best(best: SimulatedDegree | None) -> SimulatedBestRecord | None:
    if best is None:
        return None
    outcome = best.outcome
    return SimulatedBestRecord(
        tp=int(best.tp),
        num_replicas=int(best.num_replicas),
        num_gpus_idle=int(best.num_gpus_idle),
        throughput_tok_s=None if outcome is None else finite(outcome.throughput_tok_s),
        throughput_per_gpu_tok_s=None if outcome is None else finite(outcome.throughput_per_gpu_tok_s),
        goodput_req_s=None if outcome is None else finite(outcome.goodput_req_s),
        ttft_p99_s=None if outcome is None or outcome.ttft is None else finite(outcome.ttft.p99_s),
        tpot_p99_s=None if outcome is None or outcome.tpot is None else finite(outcome.tpot.p99_s),
    )


def _traffic(traffic: Traffic) -> TrafficRecord:
    return TrafficRecord(
        name=traffic.name,
        num_requests=traffic.num_requests,
        isl_mean_tok=float(np.mean(traffic.isl_tok)),
        isl_max_tok=int(traffic.isl_tok.max()),
        osl_mean_tok=float(np.mean(traffic.osl_tok)),
        osl_max_tok=int(traffic.osl_tok.max()),
        timed=traffic.arrival_s is not None,
        rate_req_s=finite(traffic.rate_req_s),
        prefix_block_tok=traffic.prefix_block_tok,
    )


def _options(options: SimulationOptions) -> OptionsRecord:
    return OptionsRecord(
        router=options.router.value,
        prefix_caching=bool(options.prefix_caching),
        watermark_frac=float(options.watermark_frac),
        step_by_step=bool(options.step_by_step),
        slo_quantile=finite(options.slo_quantile),
        num_timeline_steps=int(options.num_timeline_steps),
    )
