"""Which coefficients serving runs identify, where each starts, and how far machines and engines may differ in it.

A coefficient's logarithm is a shared value plus one deviation per level, each with a normal prior of
the standard deviation given here. The widths were chosen by random search (and rounded) on the splits of
:mod:`tpplanner.fit.serving_splits` (degree, model, machine, load), so that scores on
these are slightly favourable; leaving a whole architecture or a shape out played no part in it. That of the
expert models was found in the same way on their runs.
"""

from dataclasses import dataclass
from typing import Final

from tpplanner.domain.serving_fit import ServingTerms

LEVELS: Final = ("machine", "engine", "cell", "build", "family", "cell_family", "attention")
"""What groups of runs share: the engine's ``build`` is the engine as one family of benchmarks ran it."""

_NEAR: Final = 1.0001

TPOT_SCALE: Final = {"dense": 0.16, "moe": 0.12}
TTFT_SCALE: Final = {"dense": 0.25, "moe": 0.4}
"""Log residuals of this size count as one in the robust loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficient:
    """One coefficient: start value, bounds, width of the shared value's prior and of each level's deviations [log]."""

    name: str
    start: float
    low: float
    high: float
    shared_std: float
    level_std: dict[str, float]


def _c(name: str, start: float, low: float, high: float, shared_std: float, **level_std: float) -> Coefficient:
    return Coefficient(name=name, start=start, low=low, high=high, shared_std=shared_std, level_std=level_std)


_DENSE: Final = (
    _c("gemm_factor", 0.8, 0.3, 1.5, 0.18, cell=0.07, engine=0.15, machine=0.07, build=0.04),
    _c("decode_attention_factor", 0.8, 0.1, 2.0, 0.3, cell=0.12, engine=0.1),
    _c("prefill_attention_factor", 0.8, 0.1, 2.0, 0.3, cell=0.05, engine=0.1, machine=0.4),
    _c("collective_factor", 1.0, 0.1, 3.0, 0.05, cell=0.1, engine=0.13, build=0.2),
    _c("layer_s", 3e-6, 1e-8, 1e-3, 1.03, cell=0.3, engine=0.5, build=0.3),
    _c("step_s", 1e-3, 1e-5, 0.1, 0.57, cell=0.3, engine=0.58, build=0.4),
    _c("seq_s", 15e-6, 1e-7, 1e-3, 0.7, cell=0.29, engine=0.61),
    _c("prefill_interference", 1.0, 0.2, 3.0, 0.65, cell=0.09),
    _c("first_token_steps", 1.0, 0.1, 5.0, 0.28, cell=0.14),
    _c("prefill_delay", 1.0, 0.2, 5.0, 0.12, cell_family=0.97),
    _c("request_s", 0.04, 1e-4, 2.0, 1.38, cell_family=0.5, family=0.92, engine=0.3, build=0.4),
    _c("client_s", 3e-4, 1e-7, 0.02, 1.5, cell_family=1.0, machine=0.26),
    _c("burst_share", 0.06, 1e-3, 1.0, 0.53, cell_family=0.5, family=1.1),
)

_MOE: Final = (
    _c("gemm_factor", 0.8, 0.3, 1.5, 0.18, cell=0.07, engine=0.15, machine=0.11, build=0.1),
    _c("expert_factor", 0.8, 0.1, 2.0, 0.18, cell=0.06, engine=0.2, build=0.04),
    _c("decode_attention_factor", 0.8, 0.1, 2.0, 0.1, cell=0.1, engine=0.1, attention=0.4),
    _c("prefill_attention_factor", 0.8, 0.1, 2.0, 0.3, cell=0.1, engine=0.1),
    _c("collective_factor", 1.0, 0.1, 3.0, 0.53, cell=0.1, engine=0.2, build=1.1),
    _c("layer_s", 30e-6, 1e-8, 1e-3, 0.77, cell=0.2, build=0.2, attention=0.5),
    _c("step_s", 1e-3, 1e-5, 0.1, 0.7, cell_family=0.05, engine=0.2, build=0.4),
    _c("seq_s", 15e-6, 1e-7, 1e-3, 0.43, cell=0.3, engine=0.4),
    _c("prefill_interference", 1.0, 0.2, 3.0, 0.04, cell=0.08),
    _c("first_token_steps", 1.0, 0.1, 5.0, 0.3, cell=0.2, attention=0.2),
    _c("prefill_delay", 1.0, 0.2, 5.0, 0.2, cell_family=0.39),
    _c("request_s", 0.04, 1e-4, 2.0, 0.5, cell_family=0.5, family=0.9, engine=0.3),
    _c("client_s", 3e-4, 1e-7, 0.02, 0.36, cell_family=1.0),
    _c("burst_share", 0.06, 1e-3, 1.0, 1.5, cell_family=0.5, family=0.5),
)

SPECS: Final[dict[str, tuple[Coefficient, ...]]] = {"dense": _DENSE, "moe": _MOE}


def at_bounds(terms: ServingTerms, kind: str) -> tuple[str, ...]:
    """Names of the coefficients that sit at a bound of their range: the runs do not identify them there."""
    return tuple(
        c.name for c in SPECS[kind]
        if (value := getattr(terms, c.name).value) <= c.low * _NEAR or value * _NEAR >= c.high
    )
