"""How much a machine's speed moves between passes over the same cases, and standard errors that know of it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pandas as pd

from tpplanner.domain.engine import TaskCost
from tpplanner.domain.engine_fit import TASKS, EngineFit
from tpplanner.domain.hardware import Contention
from tpplanner.domain.kernels import Kernels
from tpplanner.domain.quantity import Provenance, Quantity

_MIN_CASES: Final = 5
_UNIDENTIFIED: Final = 1e-6
_RATES: Final = ("latency_s", "compute_frac", "memory_frac")
_KINDS: Final = ("gemm", "decode_attention", "prefill_attention", "moe")


def pass_factors(rows: pd.DataFrame) -> tuple[float, ...]:
    """Return the speed of each pass over one benchmark's cases: the median log of its times over the mean of all passes.

    Parameters
    ----------
    rows
        One row per case and pass: sizes, ``round``, ``latency_s`` [s]. Cases that lack a pass are left out.

    Returns
    -------
    One number per pass; none where there are fewer than two passes or five cases.
    """
    if rows.empty or rows["round"].nunique() < 2:
        return ()
    rows = rows[rows["latency_s"] > 0]
    sizes = [name for name in rows.columns if name not in ("round", "latency_s", *rows.attrs.get("readings", ()))]
    logs = rows.assign(case=rows.groupby(sizes, dropna=False).ngroup(), log=np.log(rows["latency_s"])).pivot_table(
        index="case", columns="round", values="log").dropna()
    if len(logs) < _MIN_CASES:
        return ()
    # The median: single cases are off where another tenant came between.
    return tuple(float(v) for v in logs.sub(logs.mean(axis=1), axis=0).median())


def machine_drift(benches: Iterable[pd.DataFrame]) -> float | None:
    """Return the standard deviation of the machine's speed between passes, over all benchmarks [1]; ``None`` for one pass."""
    factors = [f for f in map(pass_factors, benches) if f]
    if not factors:
        return None
    return math.sqrt(sum(v * v for f in factors for v in f) / sum(len(f) - 1 for f in factors))


def _wider(quantity: Quantity, drift: float) -> Quantity:
    if quantity.std_error is None or quantity.provenance is not Provenance.FITTED:
        return quantity
    return replace(quantity, std_error=math.hypot(quantity.std_error, drift * abs(quantity.value)))


def _of_kernel(quantity: Quantity, drift: float) -> Quantity:
    """As `_wider`; a coefficient that no sample moves with comes out of the fit without an error: it is as large as itself."""
    if quantity.std_error is not None and quantity.std_error < _UNIDENTIFIED * abs(quantity.value):
        return replace(quantity, std_error=abs(quantity.value))
    return _wider(quantity, drift)


def kernels_with_drift(kernels: Kernels, drift: float) -> Kernels:
    """Return the kernels with errors that another calibration's difference is drawn from, too."""
    def wider(group: Mapping[str, Any]) -> dict[str, Any]:
        return {dtype: replace(kernel, sharpness=_of_kernel(kernel.sharpness, 0.0),
                               **{name: _of_kernel(getattr(kernel, name), drift) for name in _RATES})
                for dtype, kernel in group.items()}

    return replace(kernels, **{kind: wider(getattr(kernels, kind)) for kind in _KINDS})


def contention_with_drift(contention: Sequence[Contention], drift: float) -> tuple[Contention, ...]:
    """Return the shares with errors that another calibration's difference is drawn from, too."""
    return tuple(replace(c, compute_frac=_wider(c.compute_frac, drift), memory_frac=_wider(c.memory_frac, drift))
                 for c in contention)


def engine_with_drift(fit: EngineFit, drift: float) -> EngineFit:
    """Return the engine's terms with errors that another calibration's difference is drawn from, too."""
    def wider(task: TaskCost) -> TaskCost:
        given = {name: getattr(task, name) for name in TaskCost.__slots__}
        return replace(task, **{name: _wider(q, drift) for name, q in given.items() if q is not None})

    tasks: dict[str, Any] = {name: wider(getattr(fit, name)) for name in TASKS}
    return replace(fit, **tasks, sampling={policy: wider(task) for policy, task in fit.sampling.items()},
                   layer_overhead_s=_wider(fit.layer_overhead_s, drift), elementwise_memory=_wider(fit.elementwise_memory, drift))
