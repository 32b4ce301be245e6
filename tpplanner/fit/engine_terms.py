"""Host, broadcast and sampling coefficients of an engine from measured throughput at a known batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tpplanner.cost.step_time import step_time
from tpplanner.domain.engine import EngineProfile, SamplingPolicy, Switches, TaskCost
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.model import ModelSpec
from tpplanner.domain.step import Batch
from tpplanner.fit.least_squares import Fit, FloatArray, fit_log

NAMES = ("host_per_seq_s", "broadcast_per_seq_per_log2_tp_s", "sampling_per_seq_s")
START = (20e-6, 5e-6, 20e-6)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineRun:
    """One measured run: a model at a degree, its switches, the running batch, and tokens per second.

    ``num_seqs`` decode with ``context_tok`` tokens each; ``prefill_tok_per_step`` prompt tokens
    (first ones and recomputed ones) join the mean step, of prompts of ``isl_tok``.
    """

    model: ModelSpec
    tp: int
    switches: Switches
    num_seqs: float
    context_tok: float
    prefill_tok_per_step: float
    isl_tok: float
    throughput_tok_s: float


def with_coefficients(engine: EngineProfile, coefficients: FloatArray, *, names: Sequence[str]) -> EngineProfile:
    """Return the engine with the coefficients put in; the host time is split between T1 and T5 as it was."""
    c = dict(zip(names, coefficients, strict=True))

    def per_seq(task: TaskCost, value: float) -> TaskCost:
        return replace(task, per_seq_s=replace(task.per_seq_s, value=value))

    t1, t5 = engine.schedule, engine.process_output
    if "host_per_seq_s" in c:
        share = t1.per_seq_s.value / (t1.per_seq_s.value + t5.per_seq_s.value)
        t1 = per_seq(t1, share * c["host_per_seq_s"])
        t5 = per_seq(t5, (1.0 - share) * c["host_per_seq_s"])
    t2 = engine.prepare_input
    if "broadcast_per_seq_per_log2_tp_s" in c and t2.per_seq_per_log2_tp_s is not None:
        t2 = replace(t2, per_seq_per_log2_tp_s=replace(t2.per_seq_per_log2_tp_s,
                                                       value=c["broadcast_per_seq_per_log2_tp_s"]))
    full = per_seq(engine.sampling[SamplingPolicy.FULL], c["sampling_per_seq_s"])
    return replace(engine, schedule=t1, prepare_input=t2, process_output=t5,
                   sampling={**engine.sampling, SamplingPolicy.FULL: full})


def predicted_tok_s(run: EngineRun, hardware: HardwareProfile, engine: EngineProfile) -> FloatOrArray:
    """Tokens per second of the run's batch by the cost model."""
    batch = Batch(
        num_decode_seqs=run.num_seqs, decode_context_tok=run.context_tok,
        num_prefill_tok=run.prefill_tok_per_step, prefill_context_tok=run.isl_tok / 2.0,
        num_prefill_seqs=run.prefill_tok_per_step / run.isl_tok,
        num_prefill_ends=run.prefill_tok_per_step / run.isl_tok,
    )
    step = step_time(run.model, hardware, replace(engine, switches=run.switches), tp=float(run.tp), batch=batch,
                     sampling=SamplingPolicy.FULL)
    return run.num_seqs / step.total_s


def fit_engine_terms(
    runs: Sequence[EngineRun], hardware: HardwareProfile, engine: EngineProfile, *,
    names: Sequence[str] = NAMES,
) -> tuple[Fit, EngineProfile]:
    """Fit the per-sequence host, broadcast and sampling times that explain the runs' throughput.

    Parameters
    ----------
    runs
        Measured runs; they must differ in degree and in switches for all three to be identified.
    engine
        Gives everything that is not fitted, and the split of the host time between T1 and T5.
    names
        Which of ``NAMES`` to fit.
    """
    start = [s for n, s in zip(NAMES, START, strict=True) if n in names]

    def predict(coefficients: FloatArray) -> FloatArray:
        candidate = with_coefficients(engine, coefficients, names=names)
        return np.asarray([float(predicted_tok_s(r, hardware, candidate)) for r in runs])

    measured = np.asarray([r.throughput_tok_s for r in runs])
    fit = fit_log(predict, measured, names=names, start=start)
    return fit, with_coefficients(engine, np.asarray([c.value for c in fit.coefficients]), names=names)
