"""What the serving coefficients leave over, as a Gaussian process per machine and engine; and predictions with both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from tpplanner.cost.latency import latency_of
from tpplanner.cost.outside import coordinates_of, latency_std
from tpplanner.cost.residual import Coordinates, mean_log, residual_weights
from tpplanner.cost.serving import bind_terms
from tpplanner.cost.steady_state import closed_loop, running_limit
from tpplanner.domain.run_prediction import OUT_OF_MEMORY, RunPrediction, with_interval
from tpplanner.domain.serving_fit import CovarianceTerm, ResidualModel, ServingTerms
from tpplanner.fit.serving_groups import BoolArray, FloatArray, Group, latencies, prepare
from tpplanner.fit.serving_terms import ServingModel, kind_of

Prior = tuple[tuple[CovarianceTerm, ...], float]
"""Terms of a covariance and the scatter of a single run."""

TPOT_PRIOR: Final[dict[str, Prior]] = {
    "dense": ((
        CovarianceTerm(std_frac=0.025, within="shape", num_seqs_len=1.6, tp_len=2.7),
        CovarianceTerm(std_frac=0.07, within="model", num_seqs_len=2.0, tp_len=2.8, isl_len=4.5, osl_len=4.5),
        CovarianceTerm(std_frac=0.04, within="cell", num_seqs_len=0.3, tp_len=2.4, isl_len=4.5, osl_len=4.5),
        CovarianceTerm(std_frac=0.13, within="model"),
        CovarianceTerm(std_frac=0.04, within="cell"),
    ), 0.043),
    "moe": ((
        CovarianceTerm(std_frac=0.08, within="shape", num_seqs_len=3.2, tp_len=3.2),
        CovarianceTerm(std_frac=0.10, within="model", num_seqs_len=1.3, tp_len=4.0, isl_len=2.9, osl_len=2.9),
        CovarianceTerm(std_frac=0.05, within="cell", num_seqs_len=5.6, tp_len=4.2, isl_len=2.9, osl_len=2.9),
        CovarianceTerm(std_frac=0.20, within="model"),
        CovarianceTerm(std_frac=0.05, within="cell"),
    ), 0.05),
}

TTFT_PRIOR: Final[dict[str, Prior]] = {
    "dense": ((
        CovarianceTerm(std_frac=0.2, within="shape", num_seqs_len=0.7, tp_len=1.6),
        CovarianceTerm(std_frac=0.18, within="model", num_seqs_len=0.5, tp_len=1.4, isl_len=2.7, osl_len=2.7),
        CovarianceTerm(std_frac=0.08, within="cell", num_seqs_len=1.2, tp_len=1.5, isl_len=2.7, osl_len=2.7),
        CovarianceTerm(std_frac=0.2, within="model"),
        CovarianceTerm(std_frac=0.3, within="cell"),
    ), 0.14),
    "moe": ((
        CovarianceTerm(std_frac=0.07, within="shape", num_seqs_len=0.9, tp_len=1.5),
        CovarianceTerm(std_frac=0.6, within="model", num_seqs_len=1.5, tp_len=3.5, isl_len=1.7, osl_len=1.7),
        CovarianceTerm(std_frac=0.16, within="cell", num_seqs_len=0.7, tp_len=2.2, isl_len=1.7, osl_len=1.7),
        CovarianceTerm(std_frac=0.16, within="model"),
        CovarianceTerm(std_frac=0.13, within="cell"),
    ), 0.12),
}
"""Chosen, like the widths of :mod:`tpplanner.fit.serving_spec`, by random search on the splits by degree and load."""

_MOST: Final = 0.7
"""Log residuals beyond this are cut: they are another regime (a queue, a cache), not a correction."""



def prior(of: Mapping[str, Prior], kind: str) -> ResidualModel:
    """Return the residual model before any run is known."""
    terms, noise = of[kind]
    return ResidualModel(terms=terms, noise_std_frac=noise)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Residuals:
    """Residual models of TPOT and TTFT per (cell, kind of model); a cell is ``machine/engine``."""

    tpot: Mapping[tuple[str, str], ResidualModel]
    ttft: Mapping[tuple[str, str], ResidualModel]

    def of(self, cell: str, kind: str) -> tuple[ResidualModel, ResidualModel]:
        """Return both models of a cell; without a run of it, the prior alone."""
        return (self.tpot.get((cell, kind), prior(TPOT_PRIOR, kind)), self.ttft.get((cell, kind), prior(TTFT_PRIOR, kind)))


def conditioned(model: ResidualModel, at: Coordinates, log_residuals: FloatArray) -> ResidualModel:
    """Return a residual model that knows these runs, in place of those that it knew."""
    num_seqs, tp, isl, osl = (tuple(float(f"{v:.5g}") for v in column) for column in np.exp2(at.log2).T)
    known = replace(model, model_keys=tuple(str(k) for k in at.model_keys), num_seqs=num_seqs, tp=tp, isl_tok=isl,
                    osl_tok=osl, weights=(0.0,) * len(num_seqs))
    residual = np.clip(log_residuals, -_MOST, _MOST)
    return replace(known, weights=tuple(float(w) for w in residual_weights(known, residual)))


Parts = list[tuple[Coordinates, FloatArray]]


def _joined(model: ResidualModel, parts: Parts) -> ResidualModel:
    at = Coordinates(model_keys=np.concatenate([a.model_keys for a, _ in parts]),
                     log2=np.concatenate([a.log2 for a, _ in parts]))
    return conditioned(model, at, np.concatenate([r for _, r in parts]))


def _rows(at: Coordinates, mask: BoolArray) -> Coordinates:
    return Coordinates(model_keys=at.model_keys[mask], log2=at.log2[mask])


def step_factor(model: ResidualModel, at: Coordinates) -> FloatArray:
    """Measured over modelled step time at each row of ``at``."""
    return np.exp(mean_log(model, at))


def fit_residuals(groups: Sequence[Group], model: ServingModel, use: BoolArray) -> Residuals:
    """Condition the Gaussian processes on the runs that ``use`` (a mask over all runs) names.

    Those of TTFT start from the steps that those of TPOT have corrected, as predictions do: a first token waits for steps.
    """
    of_tpot: dict[tuple[str, str], Parts] = {}
    of_ttft: dict[tuple[str, str], Parts] = {}
    ready = [(g, prepare(g, model.terms(kind_of(g), g.levels)), use[g.where] & g.fits) for g in groups
             if (use[g.where] & g.fits).any()]
    for group, prepared, used in ready:
        gaps = used & group.has_tpot
        if gaps.any():
            tpot, _ = latencies(prepared, model.terms(kind_of(group), group.levels))
            at = coordinates_of(group.grid, prepared.in_batch)
            of_tpot.setdefault(cell_of(group), []).append((_rows(at, gaps), np.log(group.tpot_s / tpot)[gaps]))
    steps = {cell: _joined(prior(TPOT_PRIOR, cell[1]), parts) for cell, parts in of_tpot.items()}
    for group, prepared, used in ready:
        calm = used & ~prepared.queued
        if calm.any():
            cell, at = cell_of(group), coordinates_of(group.grid, prepared.in_batch)
            corrected = step_factor(steps.get(cell, prior(TPOT_PRIOR, cell[1])), at)
            _, ttft = latencies(prepared, model.terms(kind_of(group), group.levels), step_factor=corrected)
            of_ttft.setdefault(cell, []).append((_rows(at, calm), np.log(group.ttft_s / ttft)[calm]))
    return Residuals(
        tpot=steps, ttft={cell: _joined(prior(TTFT_PRIOR, cell[1]), parts) for cell, parts in of_ttft.items()})


def cell_of(group: Group) -> tuple[str, str]:
    """Machine and engine of a group, and its kind of model."""
    return group.levels["cell"], kind_of(group)


def predict_group(
    group: Group, terms: ServingTerms, residuals: tuple[ResidualModel, ResidualModel], *, ids: Sequence[str],
    osl_tok: FloatArray, fold: str | None = None,
) -> tuple[RunPrediction, ...]:
    """Predict every run of a group by the planner's own closed loop, with 80 % intervals; of one output token the TTFT."""
    engine = replace(bind_terms(group.grid.engine, terms), tpot_residual=residuals[0], ttft_residual=residuals[1])
    grid = replace(group.grid, engine=engine)
    state = closed_loop(grid, group.room, group.concurrency)
    latency = latency_of(grid, state)
    std = latency_std(grid, np.minimum(group.concurrency, running_limit(grid, group.room)))
    assert std is not None, "both residual models were just given"
    shape = group.concurrency.shape
    tpot, ttft = (np.broadcast_to(np.asarray(v, dtype=float), shape) for v in (latency.tpot_s, latency.ttft_s))

    def prediction(name: str, i: int) -> RunPrediction:
        if not group.fits[i]:
            return RunPrediction(run_id=name, status=OUT_OF_MEMORY, fold=fold)
        if not group.has_tpot[i]:
            return RunPrediction(run_id=name, ttft_s=float(ttft[i]), fold=fold)
        return with_interval(
            run_id=name, tpot_s=float(tpot[i]), ttft_s=float(ttft[i]), tpot_std=float(std[0][i]), ttft_std=float(std[1][i]),
            concurrency=float(group.concurrency[i]), osl_tok=float(osl_tok[i]), fold=fold)

    return tuple(prediction(name, i) for i, name in enumerate(ids))
