"""Out-of-sample predictions: fit without one degree, model, machine, load or shape, and predict what was left out."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from tpplanner.domain.run_prediction import RunPrediction
from tpplanner.errors import WorkloadError, reject
from tpplanner.fit.serving_groups import BoolArray, Group, Served, groups_of
from tpplanner.fit.serving_residuals import Residuals, fit_residuals, predict_group
from tpplanner.fit.serving_terms import ServingModel, fit_serving, kind_of

SPLITS: Final = {
    "degree": "one tensor-parallel degree",
    "model": "one model and precision, on every machine",
    "machine": "one machine and engine",
    "load": "more than 32 requests in flight",
    "shape": "one prompt and output length",
    "architecture": "one model in every precision, on every machine",
}

_LIGHT_LOAD: Final = 32


def _short(model: str) -> str:
    """Name of a model without its publisher and the marks of its formats."""
    return model.rpartition("/")[2].replace("-Instruct", "").replace("-FP8", "")


def _formats(served: Served) -> str:
    """The source's word for the formats of the weights, else those of the model that was loaded."""
    precision = served.model.precision
    return served.run.precision or "-".join(dict.fromkeys((precision.linear.name, precision.expert.name)))


def part_of(served: Served, split: str) -> str | None:
    """Name of the part that a run belongs to, which is left out at a time; ``None`` is never left out."""
    run = served.run
    match split:
        case "degree":
            return f"TP {run.tp}"
        case "model":
            return f"{_short(run.model)} {_formats(served)}"
        case "machine":
            return f"{served.hardware.name} {served.engine.name}"
        case "load":
            return f"more than {_LIGHT_LOAD} in flight" if run.concurrency > _LIGHT_LOAD else None
        case "shape":
            return f"{run.isl_tok}/{run.osl_tok}"
        case "architecture":
            return _short(run.model)
        case _:
            reject(WorkloadError, "split", f"be one of {', '.join(SPLITS)}", split)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fold:
    name: str
    kind: str
    held_out: BoolArray


def _folds(served: Sequence[Served], split: str) -> list[_Fold]:
    parts = [part_of(s, split) for s in served]
    is_moe = np.asarray([s.model.is_moe for s in served])
    found = []
    for name in sorted({p for p in parts if p is not None}):
        mask = np.asarray([p == name for p in parts])
        found += [_Fold(name=name, kind=kind, held_out=mask & of_kind)
                  for kind, of_kind in (("dense", ~is_moe), ("moe", is_moe)) if (mask & of_kind).any()]
    return found


def trusted(served: Sequence[Served]) -> BoolArray:
    """Mask of the runs that may be fitted: those without a doubt."""
    return np.asarray([s.run.doubt is None for s in served])


def predict_all(
    served: Sequence[Served], groups: Sequence[Group], model: ServingModel, residuals: Residuals, where: BoolArray,
    *, fold: str | None = None,
) -> dict[int, RunPrediction]:
    """Predictions of the runs that ``where`` names, by position."""
    found = {}
    for group in groups:
        kind = kind_of(group)
        if not where[group.where].any() or kind not in model.fits:
            continue
        predicted = predict_group(
            group, model.terms(kind, group.levels), residuals.of(group.levels["cell"], kind), fold=fold,
            ids=[served[i].run.run_id for i in group.where],
            osl_tok=np.asarray([served[i].run.osl_tok for i in group.where], dtype=float),
        )
        found.update({int(i): p for i, p in zip(group.where, predicted, strict=True) if where[i]})
    return found


def _run_fold(job: tuple[Sequence[Served], _Fold]) -> dict[int, RunPrediction]:
    served, fold = job
    of_kind = np.asarray([s.model.is_moe == (fold.kind == "moe") for s in served])
    groups = [g for g in groups_of(served) if kind_of(g) == fold.kind]
    use = trusted(served) & of_kind & ~fold.held_out
    if not use.any():
        return {}
    model = fit_serving(groups, use)
    return predict_all(served, groups, model, fit_residuals(groups, model, use), fold.held_out, fold=fold.name)


def out_of_sample(served: Sequence[Served], split: str, *, num_workers: int | None = None) -> tuple[RunPrediction, ...]:
    """Predict every run by a fit that has not seen its part of ``split`` (:data:`SPLITS`).

    Runs in no part (the light loads of ``load``), or whose part is all that there is, are left out of the answer. Folds run
    on all cores; each starts its search from the values of :mod:`tpplanner.fit.serving_spec`.
    """
    part_of(served[0], split)
    jobs = [(served, fold) for fold in _folds(served, split)]
    workers = min(num_workers or os.cpu_count() or 1, len(jobs))
    if workers == 1:
        results = [_run_fold(job) for job in jobs]
    else:
        with ProcessPoolExecutor(max_workers=workers) as pool:
            results = list(pool.map(_run_fold, jobs, chunksize=1))
    found = {i: p for result in results for i, p in result.items()}
    return tuple(found[i] for i in sorted(found))
