"""Serving runs to fitted profiles: load what ran, fit it, and say what each machine and engine gets."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tpplanner.api.loaded import engine_of, fitted_of, hardware_of, model_of, with_kernels
from tpplanner.cost.outside import coordinates_of
from tpplanner.cost.residual import Coordinates, covariance
from tpplanner.domain.fitted_profile import FittedProfile
from tpplanner.domain.run_prediction import RunPrediction
from tpplanner.domain.serving_fit import ResidualModel, ServingFit, ServingTerms
from tpplanner.domain.serving_run import ServingRun
from tpplanner.errors import TpplannerError, WorkloadError, reject
from tpplanner.fit.serving_groups import Group, Served, groups_of, latencies, levels_of, prepare
from tpplanner.fit.serving_residuals import TPOT_PRIOR, TTFT_PRIOR, Residuals, conditioned, fit_residuals, prior, step_factor
from tpplanner.fit.serving_spec import at_bounds
from tpplanner.fit.serving_splits import trusted
from tpplanner.fit.serving_terms import ServingModel, fit_serving, kind_of
from tpplanner.io.fitted_files import encode_fitted, fitted_files, fitted_name
from tpplanner.io.fitted_write import check_output, output_folder, write_profile
from tpplanner.io.profile_hardware import known_hardware
from tpplanner.planner.degrees import degree_obstacle

USUAL_FAMILY = "InferenceX"
"""Whose terms a machine and engine get that no benchmark measured: its method is public and its builds are the newer."""


_SAME = 1e-3
"""Coordinates nearer than this, in doublings, are one point: files round them to five digits."""


def served_runs(runs: Sequence[ServingRun]) -> tuple[list[Served], list[RunPrediction]]:
    """Load the model, machine and engine of each run; a run that names an unknown one says so in its status."""
    served, failed = [], []
    for run in runs:
        try:
            engine = engine_of(run.engine)
            if obstacle := degree_obstacle(model_of(run.checkpoint, run.dtype, run.kv_cache_dtype), run.tp):
                failed.append(RunPrediction(run_id=run.run_id, status=f"error: tp {run.tp}: {obstacle}"))
                continue
            served.append(Served(run=run, model=model_of(run.checkpoint, run.dtype, run.kv_cache_dtype),
                                 hardware=with_kernels(hardware_of(run.machine), engine), engine=engine))
        except TpplannerError as error:
            failed.append(RunPrediction(run_id=run.run_id, status=f"error: {error}"))
    return served, failed


def fit_runs(runs: Sequence[ServingRun]) -> tuple[ServingModel, Residuals, tuple[Served, ...]]:
    """Fit the serving model to measured runs, those in doubt left out.

    Raises
    ------
    WorkloadError
        If a run names a model, machine or engine that is unknown, or none is left.
    """
    served, failed = served_runs(runs)
    if failed:
        raise WorkloadError(f"run {failed[0].run_id}: {failed[0].status.removeprefix('error: ')}")
    use = trusted(served)
    if not use.any():
        reject(WorkloadError, "runs", "hold one that can be fitted", len(runs), "serving fit")
    groups = groups_of(served)
    model = fit_serving(groups, use)
    return model, fit_residuals(groups, model, use), tuple(served)


def serving_fit_of(
    model: ServingModel, residuals: Residuals, served: Sequence[Served], *, machine: str, engine: str, source: str
) -> ServingFit:
    """Return what one machine and engine get from a fit: their own terms, or those that others suggest."""
    cell = f"{machine}/{engine}"
    own = [s for s in served if levels_of(s)["cell"] == cell and s.run.doubt is None]
    terms: dict[str, ServingTerms] = {}
    for kind, classes in (("dense", ("dense",)), ("moe", ("moe", "moe-mla", "moe-hybrid"))):
        if kind not in model.fits:
            continue
        of_kind = [s for s in own if s.model.is_moe == (kind == "moe")]
        families = [name for name, _ in Counter(s.run.family for s in of_kind).most_common()] or [USUAL_FAMILY]
        for name in classes:
            for family in families:
                found = model.terms(kind, _levels(machine, engine, family, name), num_samples=len(of_kind),
                                    source=_source(source, len(of_kind), cell))
                terms[f"{name}@{family}"] = found
                terms.setdefault(name, found)
    pairs = {kind: residuals.of(cell, kind) for kind in model.fits}
    return ServingFit(
        machine=machine, engine=engine, terms=terms, tpot={kind: pair[0] for kind, pair in pairs.items()},
        ttft={kind: pair[1] for kind, pair in pairs.items()}, num_runs=len(own), source=source,
    )


def _levels(machine: str, engine: str, family: str, model_class: str) -> dict[str, str]:
    cell = f"{machine}/{engine}"
    return {"machine": machine, "engine": engine, "cell": cell, "build": f"{engine}/{family}", "family": family,
            "cell_family": f"{cell}/{family}", "attention": model_class}


def _source(source: str, num_runs: int, cell: str) -> str:
    own = f"{num_runs} runs of {cell}" if num_runs else f"no run of {cell}: other machines and engines"
    return f"{source}; {own}"


def fitted_pairs() -> tuple[tuple[str, str], ...]:
    """Return every (machine, engine) that has a fitted profile."""
    return tuple((machine, engine) for machine in known_hardware() for engine in fitted_files(machine))


def with_serving(
    runs: Sequence[ServingRun], pairs: Iterable[tuple[str, str]], *, source: str
) -> dict[tuple[str, str], FittedProfile]:
    """Return the fitted profiles of machines and engines with their serving section fitted to ``runs``.

    Raises
    ------
    WorkloadError
        A run cannot be fitted, or a machine and engine have no fitted profile to add to.
    """
    model, residuals, served = fit_runs(runs)
    found = {}
    for machine, engine in pairs:
        fitted = fitted_of(machine, engine)
        if fitted is None:
            reject(WorkloadError, f"{machine}/{engine}", "have a fitted profile (tpplanner profiles import)", "none")
        fit = serving_fit_of(model, residuals, served, machine=machine, engine=engine, source=source)
        found[machine, engine] = replace(fitted, serving=fit)
    return found


def anchored(runs: Sequence[ServingRun]) -> dict[tuple[str, str], FittedProfile]:
    """Condition the residuals of the fitted profiles on a user's own runs, beside the runs that they know.

    The coefficients stay; a handful of runs of one model corrects predictions of that model, less and less with the
    distance in load, degree and lengths.

    Raises
    ------
    WorkloadError
        If a run names something unknown, does not fit in memory, or its machine and engine have no serving fit.
    """
    served, failed = served_runs(runs)
    if failed:
        raise WorkloadError(f"run {failed[0].run_id}: {failed[0].status.removeprefix('error: ')}")
    found: dict[tuple[str, str], FittedProfile] = {}
    for group in groups_of(served):
        if not group.fits.all():
            refused = served[int(group.where[~group.fits][0])].run
            reject(WorkloadError, f"run {refused.run_id}", "fit in memory as the model counts it (gpu_memory_utilization may say "
                   "more)", f"{refused.model} at tp {refused.tp} on {refused.machine}", "anchor")
        key = (group.grid.hardware.name, group.grid.engine.measured_as or group.grid.engine.name)
        fitted = found.get(key) or fitted_of(*key)
        if fitted is None or fitted.serving is None:
            reject(WorkloadError, "/".join(key), "have a serving fit to anchor", "none", "anchor")
        found[key] = replace(fitted, serving=_anchored(fitted.serving, group))
    return found


def _anchored(fit: ServingFit, group: Group) -> ServingFit:
    kind = kind_of(group)
    terms = fit.terms_for(group.grid.model, family=group.levels["family"])
    ready = prepare(group, terms)
    at = coordinates_of(group.grid, ready.in_batch)
    tpot, _ = latencies(ready, terms)
    known = fit.tpot.get(kind, prior(TPOT_PRIOR, kind))
    steps = _joined(known, at, np.log(group.tpot_s / tpot), group.fits & group.has_tpot)
    # A first token waits for steps, as the anchors correct them.
    _, ttft = latencies(ready, terms, step_factor=step_factor(steps, at))
    known = fit.ttft.get(kind, prior(TTFT_PRIOR, kind))
    first = _joined(known, at, np.log(group.ttft_s / ttft), group.fits & ~ready.queued)
    return replace(fit, num_runs=fit.num_runs + int(np.sum(group.fits)), tpot={**fit.tpot, kind: steps},
                   ttft={**fit.ttft, kind: first})


def _joined(model: ResidualModel, at: Coordinates, log_residuals: np.ndarray, used: np.ndarray) -> ResidualModel:
    """Add runs to a residual model; the residuals of those it knows are (K + noise^2) times their weights."""
    new = Coordinates(model_keys=at.model_keys[used], log2=at.log2[used])
    known = Coordinates.of(model_keys=model.model_keys, num_seqs=model.num_seqs, tp=model.tp, isl_tok=model.isl_tok,
                           osl_tok=model.osl_tok)
    weights = np.asarray(model.weights)
    old = covariance(model.terms, known, known) @ weights + model.noise_std_frac**2 * weights
    places = known.log2.reshape(-1, 4)
    # A point that is measured again, or anchored twice, counts once: the newer figure holds.
    again = (known.model_keys[:, None] == new.model_keys) & np.all(np.abs(places[:, None] - new.log2) < _SAME, axis=-1)
    kept = ~again.any(axis=1)
    both = Coordinates(model_keys=np.concatenate([known.model_keys[kept], new.model_keys]),
                       log2=np.concatenate([places[kept], new.log2]))
    return conditioned(model, both, np.concatenate([old[kept], log_residuals[used]]))


def bound_warnings(profiles: dict[tuple[str, str], FittedProfile]) -> tuple[str, ...]:
    """One line per machine, engine and class of models with coefficients at their bounds."""
    found = []
    for (machine, engine), fitted in profiles.items():
        for name, terms in fitted.serving.terms.items() if fitted.serving else ():
            if "@" in name:  # the class itself has the same terms, or those of the family with more runs
                continue
            kind = "dense" if name.startswith("dense") else "moe"
            if names := at_bounds(terms, kind):
                found.append(f"{machine} {engine} {name}: {', '.join(names)} at a bound: not identified")
    return tuple(found)


def save(
    profiles: dict[tuple[str, str], FittedProfile], *, out: Path | None = None, overwrite: bool = False
) -> tuple[Path, ...]:
    """Write fitted profiles to ``out/<machine>/fitted-<engine>.json`` (``profiles`` here by default), all or none.

    Raises
    ------
    OutputError
        A file exists and ``overwrite`` is false, or cannot be written.
    """
    folder = output_folder(out)
    for machine, engine in profiles:
        check_output(folder, machine, [fitted_name(engine)], overwrite=overwrite)
    contents = {pair: encode_fitted(fitted) for pair, fitted in profiles.items()}
    written: list[Path] = []
    for (machine, engine), content in contents.items():
        written += write_profile(folder, machine, {fitted_name(engine): content}, overwrite=overwrite)
    return tuple(written)
