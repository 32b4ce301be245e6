"""Two fits of one engine side by side: which coefficients moved by more than their errors."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tpplanner.domain.engine import TaskCost
from tpplanner.domain.engine_fit import TASKS, EngineFit
from tpplanner.domain.fitted_profile import FittedProfile
from tpplanner.domain.hardware import Power
from tpplanner.domain.machine_fit import CopyFit, MachineFit
from tpplanner.domain.quantity import Quantity

_KERNELS = ("gemm", "decode_attention", "prefill_attention", "moe")
_COEFFICIENTS = ("latency_s", "compute_frac", "memory_frac", "sharpness")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One coefficient in both fits; ``None`` where a fit does not have it."""

    name: str
    first: Quantity | None
    second: Quantity | None

    @property
    def num_std_errors(self) -> float | None:
        """Difference over the standard error of the difference; ``None`` where either side has no value or error."""
        if self.first is None or self.second is None or self.first.std_error is None or self.second.std_error is None:
            return None
        error = math.hypot(self.first.std_error, self.second.std_error)
        difference = abs(self.first.value - self.second.value)
        return difference / error if error else (0.0 if difference == 0 else math.inf)


def coefficients(profile: FittedProfile) -> dict[str, Quantity]:
    """Every fitted coefficient of kernels, host tasks and the machine itself, by a dotted name."""
    found: dict[str, Quantity] = {}
    for kind in _KERNELS:
        for dtype, kernel in getattr(profile.kernels, kind).items():
            found |= {f"{kind}.{dtype}.{name}": getattr(kernel, name) for name in _COEFFICIENTS}
    if profile.host is not None:
        found |= dict(_host(profile.host))
    return found if profile.machine_fit is None else found | dict(_machine(profile.machine_fit))


def _machine(fit: MachineFit) -> Iterator[tuple[str, Quantity]]:
    for shared in fit.contention:
        yield f"contention.{shared.num_busy}.compute_frac", shared.compute_frac
        yield f"contention.{shared.num_busy}.memory_frac", shared.memory_frac
    if fit.power is not None:
        yield from ((f"power.{name}", getattr(fit.power, name)) for name in Power.__slots__)
    if fit.host_link is not None:
        for way in ("to_device", "to_host"):
            yield from ((f"host_link.{way}.{name}", getattr(getattr(fit.host_link, way), name)) for name in CopyFit.__slots__)


def _host(fit: EngineFit) -> Iterator[tuple[str, Quantity]]:
    tasks: dict[str, TaskCost] = {name: getattr(fit, name) for name in TASKS}
    tasks |= {f"sampling.{policy.value}": task for policy, task in fit.sampling.items()}
    for name, task in tasks.items():
        for field in TaskCost.__slots__:
            quantity = getattr(task, field)
            if quantity is not None:
                yield f"{name}.{field}", quantity
    yield "layer_overhead_s", fit.layer_overhead_s
    yield "elementwise_memory", fit.elementwise_memory


def drift(first: FittedProfile, second: FittedProfile) -> tuple[Drift, ...]:
    """Return every coefficient of either fit, in the order of the first."""
    one, two = coefficients(first), coefficients(second)
    return tuple(Drift(name=name, first=one.get(name), second=two.get(name)) for name in dict.fromkeys([*one, *two]))
