"""Predicted against measured: one case, and how the prediction did in all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tpplanner.api.calibration_cases import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A case, predicted and measured; where it failed, the reason and no figures.

    Tasks of a decode step, TPOT and TTFT [s], throughput [tok/s], KV blocks of a rank, joules per output token: of these the
    measured side has none where nothing counts energy.
    """

    case: Case
    predicted: Mapping[str, float]
    measured: Mapping[str, float]
    num_requests: int = 0
    max_num_seqs: int = 0
    failure: str = ""

    def error_frac(self, name: str) -> float:
        """Predicted over measured, less one."""
        return self.predicted[name] / self.measured[name] - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanError:
    """Mean absolute error of throughput of one model at one degree; ``bias_frac`` is the mean with its sign."""

    model: str
    tp: int
    emulated: bool
    num_cases: int
    error_frac: float
    bias_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How the prediction did.

    Attributes
    ----------
    throughput_error_frac, step_error_frac, emulated_error_frac, kv_blocks_error_frac, energy_error_frac
        Mean absolute errors without injected host time: of what was run at its own degree; of the throughput of what was
        emulated; of all; of all that counted energy. ``None`` where there is none.
    by_model
        Throughput by model and degree, emulated degrees on their own.
    best_tp_right, num_ranked
        Loads whose best degree by throughput per device was predicted, of those run at two degrees or more. Each degree is one
        replica that has the machine for itself: a higher one is best only where it is more than t times as fast.
    gain_error_frac
        Of the gain of a degree over the least one of the same load, which decides: mean absolute error.
    speedup_errors_frac
        Of overlap over the sequential loop with injected host time, one a model.
    num_failed
        Cases that did not run.
    """

    throughput_error_frac: float | None
    step_error_frac: float | None
    emulated_error_frac: float | None
    kv_blocks_error_frac: float | None
    energy_error_frac: float | None
    by_model: tuple[MeanError, ...]
    best_tp_right: int
    num_ranked: int
    gain_error_frac: float | None
    speedup_errors_frac: tuple[float, ...]
    num_failed: int


def _mean_error_frac(every: Sequence[Compared], name: str) -> float | None:
    errors = [abs(c.error_frac(name)) for c in every if name in c.measured]
    return float(np.mean(errors)) if errors else None


def _by_model(every: Sequence[Compared]) -> Iterator[MeanError]:
    found: dict[tuple[bool, str, int], list[float]] = {}
    for c in every:
        found.setdefault((c.case.emulated, c.case.model, c.case.tp), []).append(c.error_frac("throughput_tok_s"))
    for (emulated, model, tp), errors in sorted(found.items(), key=lambda item: item[0][0]):
        yield MeanError(model=model, tp=tp, emulated=emulated, num_cases=len(errors),
                        error_frac=float(np.mean(np.abs(errors))), bias_frac=float(np.mean(errors)))


def _best_tp(group: Sequence[Compared], side: str) -> int:
    # Throughput per device: a replica of t takes t of them.
    return max(group, key=lambda c: getattr(c, side)["throughput_tok_s"] / c.case.tp).case.tp


def _gain_errors_frac(load: Sequence[Compared]) -> Iterator[float]:
    least = min(load, key=lambda c: c.case.tp)
    for c in load:
        if c is not least:
            yield (1.0 + c.error_frac("throughput_tok_s")) / (1.0 + least.error_frac("throughput_tok_s")) - 1.0


def _speedup_errors_frac(injected: Sequence[Compared]) -> Iterator[float]:
    found = {(c.case.model, c.case.loop): c for c in injected}
    for model in dict.fromkeys(name for name, _ in found):
        fast, slow = found.get((model, "overlap")), found.get((model, "sequential"))
        if fast is not None and slow is not None:
            predicted, measured = (getattr(fast, side)["throughput_tok_s"] / getattr(slow, side)["throughput_tok_s"]
                                   for side in ("predicted", "measured"))
            yield predicted / measured - 1.0


def verdict(every: Sequence[Compared]) -> Verdict:
    """Sum up compared cases: errors over those without injected time, the speed-up of overlap over those with it."""
    ran = [c for c in every if not c.failure]
    plain = [c for c in ran if not c.case.injected_s]
    own = [c for c in plain if not c.case.emulated]
    loads: dict[Case, list[Compared]] = {}
    for c in own:
        loads.setdefault(replace(c.case, tp=1), []).append(c)
    ranked = [load for load in loads.values() if len(load) > 1]
    gains = [abs(error) for load in ranked for error in _gain_errors_frac(load)]
    return Verdict(
        gain_error_frac=float(np.mean(gains)) if gains else None,
        throughput_error_frac=_mean_error_frac(own, "throughput_tok_s"), step_error_frac=_mean_error_frac(own, "step_s"),
        emulated_error_frac=_mean_error_frac([c for c in plain if c.case.emulated], "throughput_tok_s"),
        kv_blocks_error_frac=_mean_error_frac(plain, "num_kv_blocks"),
        energy_error_frac=_mean_error_frac(plain, "energy_j_per_tok"), by_model=tuple(_by_model(plain)),
        best_tp_right=sum(_best_tp(g, "predicted") == _best_tp(g, "measured") for g in ranked), num_ranked=len(ranked),
        speedup_errors_frac=tuple(_speedup_errors_frac([c for c in ran if c.case.injected_s])),
        num_failed=len(every) - len(ran))
