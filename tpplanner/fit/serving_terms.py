"""The serving coefficients of every machine and engine from measured runs: one hierarchical fit per kind of model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.domain.serving_fit import SERVING_TERMS, ServingTerms
from tpplanner.fit.hierarchy import FloatArray, Hierarchy, fit_hierarchy
from tpplanner.fit.serving_groups import BoolArray, Group, Prepared, latencies, prepare
from tpplanner.fit.serving_spec import SPECS, TPOT_SCALE, TTFT_SCALE

_UNITS = {name: "s" if name.endswith("_s") else "1" for name in SERVING_TERMS}

_NUM_ROUNDS = 2
"""The batches depend on the coefficients through the wait outside them, a few percent: two rounds settle them."""


def terms_of(
    kind: str, values: FloatArray, std_errors: FloatArray | None = None, *, num_samples: int = 0, source: str = "fit",
) -> ServingTerms:
    """Coefficients in the order of ``SPECS[kind]`` as a record; the expert factor of dense models is 1."""
    names = [c.name for c in SPECS[kind]]
    errors = np.zeros(len(names)) if std_errors is None else std_errors
    found = {
        name: Quantity(value=float(value), unit=_UNITS[name], provenance=Provenance.FITTED, source=source,
                       std_error=float(error), num_samples=num_samples)
        for name, value, error in zip(names, values, errors, strict=True)
    }
    if "expert_factor" not in found:
        found["expert_factor"] = Quantity(value=1.0, unit="1", provenance=Provenance.FITTED, source=source, std_error=0.0,
                                          num_samples=0)
    return ServingTerms(**found)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingModel:
    """The hierarchical fits of dense and of expert models."""

    fits: Mapping[str, Hierarchy]
    num_runs: int

    def terms(self, kind: str, levels: Mapping[str, str], *, num_samples: int = 0, source: str = "fit") -> ServingTerms:
        """Coefficients of a group, measured or not."""
        values, errors = self.fits[kind].value(levels)
        return terms_of(kind, values, errors, num_samples=num_samples, source=source)


def kind_of(group: Group) -> str:
    """``moe`` or ``dense``."""
    return "moe" if group.grid.model.is_moe else "dense"


def _residuals(prepared: Prepared, used: BoolArray, kind: str, values: FloatArray) -> FloatArray:
    tpot, ttft = latencies(prepared, terms_of(kind, values))
    group = prepared.group
    with np.errstate(divide="ignore", invalid="ignore"):
        of_tpot = np.log(tpot / group.tpot_s) / TPOT_SCALE[kind]
        of_ttft = np.log(ttft / group.ttft_s) / TTFT_SCALE[kind]
    # Where the model sees requests queue, a few percent of memory decide the wait: such TTFTs teach nothing else.
    return np.concatenate([of_tpot[used & group.has_tpot], of_ttft[used & ~prepared.queued]])


def fit_kind(kind: str, groups: Sequence[Group], use: BoolArray, *, start: Hierarchy | None = None) -> Hierarchy:
    """Fit the groups of one kind of model to the runs that ``use`` (a mask over all runs) names."""
    chosen = [(g, use[g.where] & g.fits) for g in groups]
    chosen = [(g, mask) for g, mask in chosen if mask.any()]
    hierarchy = start
    for _ in range(_NUM_ROUNDS):
        first = np.asarray([c.start for c in SPECS[kind]])
        prepared = [
            prepare(g, terms_of(kind, first if hierarchy is None else hierarchy.value(g.levels)[0])) for g, _ in chosen
        ]

        def residual(i: int, values: FloatArray, ready: Sequence[Prepared] = prepared) -> FloatArray:
            return _residuals(ready[i], chosen[i][1], kind, values)

        hierarchy = fit_hierarchy(SPECS[kind], [g.levels for g, _ in chosen], residual, start=hierarchy)
    assert hierarchy is not None
    return hierarchy


def fit_serving(groups: Sequence[Group], use: BoolArray, *, start: ServingModel | None = None) -> ServingModel:
    """Fit every kind of model that ``use`` leaves runs of."""
    fits = {}
    for kind in SPECS:
        of_kind = [g for g in groups if kind_of(g) == kind]
        if any((use[g.where] & g.fits).any() for g in of_kind):
            fits[kind] = fit_kind(kind, of_kind, use, start=start.fits.get(kind) if start else None)
    return ServingModel(fits=fits, num_runs=int(np.sum(use)))
