"""What a request waits for outside its own steps, and what measured runs of the same model correct."""

from dataclasses import dataclass

import numpy as np

from tpplanner.cost.replica import ReplicaGrid
from tpplanner.cost.residual import Coordinates, FloatArray, covariance_log, mean_log
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.serving_fit import ResidualModel, model_key

EQUATION = (
    "TTFT = h (request + clients c + kD D + kP prefill + w (S - 1) prompt);  no runs: request + step (S - 1)/(2 S) + prefill"
)

BURST_PROMPTS_PER_CLIENT = 10.0
"""Prompts per client of the benchmarks that ``burst_share`` was fitted on: the first of them meet in a burst."""


def coordinates_of(grid: ReplicaGrid, num_seqs: FloatOrArray) -> Coordinates:
    """Where the grid's points lie among measured runs, at ``num_seqs`` sequences in the batch."""
    shape = np.broadcast_shapes(*(np.shape(v) for v in (num_seqs, grid.tp, grid.isl_tok, grid.osl_tok, grid.ep)))
    degrees = np.broadcast_to(np.asarray(grid.ep, dtype=float), shape).ravel()
    keys = {ep: model_key(grid.model, ep=int(ep)) for ep in np.unique(degrees)}
    return Coordinates.of(
        model_keys=np.asarray([keys[ep] for ep in degrees]).reshape(shape), num_seqs=np.broadcast_to(num_seqs, shape),
        tp=grid.tp, isl_tok=np.asarray(grid.isl_tok) / grid.load.length_frac,
        osl_tok=np.asarray(grid.osl_tok) / grid.load.length_frac,
    )


def _factor(grid: ReplicaGrid, residual: ResidualModel | None, num_seqs: FloatOrArray) -> FloatOrArray:
    if residual is None or not residual.num_runs:
        return 1.0
    at = coordinates_of(grid, num_seqs)
    shape = np.broadcast_shapes(*(np.shape(v) for v in (num_seqs, grid.tp, grid.isl_tok, grid.osl_tok, grid.ep)))
    return np.exp(mean_log(residual, at)).reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corrections:
    """Measured over modelled step time and TTFT near the runs of the grid's model, 1 far from all."""

    step: FloatOrArray
    ttft: FloatOrArray


def corrections_at(grid: ReplicaGrid, num_seqs: FloatOrArray) -> Corrections:
    """What measured runs of this model say at ``num_seqs`` requests per replica, or as many as its batch holds."""
    return Corrections(step=_factor(grid, grid.engine.tpot_residual, num_seqs),
                       ttft=_factor(grid, grid.engine.ttft_residual, num_seqs))


def burst_s(
    grid: ReplicaGrid, *, num_seqs: FloatOrArray, prompt_s: FloatOrArray
) -> FloatOrArray:
    """Wait of the mean first token for the prompts of a benchmark's start [s]; 0 in the steady state.

    All clients start at once, so that the mean request of the first wave waits for half the other prompts, in one of
    ``prompts_per_client`` waves. ``prompt_s`` is what one prompt adds to the steps that carry it [s].
    """
    terms = grid.engine.terms
    if terms is None or np.isinf(grid.load.prompts_per_client):
        return 0.0 * prompt_s
    share = min(terms.burst_share.value * BURST_PROMPTS_PER_CLIENT / grid.load.prompts_per_client, 1.0)
    return share * np.maximum(num_seqs - 1.0, 0.0) * prompt_s


def outside_s(
    grid: ReplicaGrid, *, num_seqs: FloatOrArray, decode_s: FloatOrArray, step_s: FloatOrArray, prefill_s: FloatOrArray,
    ttft_factor: FloatOrArray = 1.0,
) -> FloatOrArray:
    """Time that a request spends neither in the batch nor queued for it [s].

    Parameters
    ----------
    num_seqs
        Sequences in the batch.
    decode_s, step_s, prefill_s
        A step without prompt tokens, the mean step, and the request's own prefill [s].
    ttft_factor
        Of :class:`Corrections`.

    Notes
    -----
    Without serving runs: the fixed overhead of a request and the rest of a step that others run. With them: the
    terms that the runs gave, and the factor that the runs of this very model still need.
    """
    engine, terms = grid.engine, grid.engine.terms
    overhead = engine.request_overhead_s.value if engine.request_overhead_s else 0.0
    if terms is None:
        others = np.maximum(num_seqs - 1.0, 0.0) / np.maximum(num_seqs, 1.0)
        return overhead + 0.5 * others * step_s
    steps = terms.first_token_steps.value + grid.load.batch_wait_steps
    plain = (overhead + terms.client_s.value * num_seqs + steps * decode_s
             + (terms.prefill_delay.value - 1.0) * prefill_s)
    return np.maximum(ttft_factor * (plain + prefill_s) - prefill_s, 0.0)


def entry_s(
    grid: ReplicaGrid, *, num_seqs: FloatOrArray, decode_s: FloatOrArray, prefill_s: FloatOrArray,
    ttft_factor: FloatOrArray = 1.0,
) -> FloatOrArray:
    """Time from a request's arrival to its place in the engine's queue [s]: for those who watch single steps.

    What :func:`outside_s` counts, without the wait for the end of the step that is running, which they see themselves.
    Without serving runs it is the fixed overhead of a request.
    """
    waited = 0.5 * np.maximum(num_seqs - 1.0, 0.0) / np.maximum(num_seqs, 1.0) * decode_s
    outside = outside_s(grid, num_seqs=num_seqs, decode_s=decode_s, step_s=decode_s, prefill_s=prefill_s, ttft_factor=ttft_factor)
    return np.maximum(outside - waited, 0.0)


def latency_std(grid: ReplicaGrid, num_seqs: FloatOrArray) -> tuple[FloatArray, FloatArray] | None:
    """Standard deviations of the log errors of TPOT and TTFT of a single run; ``None`` without serving runs."""
    engine = grid.engine
    if engine.tpot_residual is None or engine.ttft_residual is None:
        return None
    at = coordinates_of(grid, num_seqs)
    tpot, ttft = (np.sqrt(np.maximum(np.diag(covariance_log(r, at)), 0.0))
                  for r in (engine.tpot_residual, engine.ttft_residual))
    return tpot, ttft
