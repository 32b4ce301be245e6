"""Power of the board: idle, and while memory or arithmetic is the limit, by the counter of energy."""

import time
from collections.abc import Callable, Iterator

import torch

from calibrate.bench import Bench, Plan
from calibrate.samples import Case
from tpplanner.io.calibration_samples import Sample

NAME = "power"
_STATES = ("idle", "memory", "compute")


def cases(plan: Plan) -> Iterator[Case]:
    """Three states, for the time in which the counter moves often."""
    for state in _STATES:
        yield {"state": state, "duration_ms": 5000 if plan.budget_s >= 0.1 else 2000}


def _work(state: str, bench: Bench) -> tuple[Callable[[], object], dict[str, float]]:
    """One call of the state, and the bytes and operations that it takes."""
    if state == "memory":
        a = torch.zeros(2**28, device=bench.device)
        b = torch.zeros_like(a)
        return (lambda: b.copy_(a)), {"moved_bytes": 2.0 * a.numel() * 4}
    n = 8192
    x, y = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return (lambda: x @ y), {"work_flop": 2.0 * n**3}


def measure(case: Case, bench: Bench) -> Sample:
    """Run for the duration; the mean power is the difference of the counter over the time."""
    before_j = bench.nvml.energy_j
    if before_j is None:
        return bench.sample(NAME, case, [], "counter", note="no counter of energy on this machine: power is not measured")
    duration_s, state = int(case["duration_ms"]) * 1e-3, str(case["state"])
    call, work = _work(state, bench) if state != "idle" else (lambda: time.sleep(0.01), {})
    for _ in range(20):
        call()
    torch.cuda.synchronize()
    before_j, begin_s, count, times = bench.nvml.energy_j, time.perf_counter(), 0, []
    while time.perf_counter() - begin_s < duration_s:
        at_s = time.perf_counter()
        for _ in range(20):
            call()
        torch.cuda.synchronize()
        count += 20
        times.append((time.perf_counter() - at_s) / 20)
    span_s, after_j = time.perf_counter() - begin_s, bench.nvml.energy_j
    assert before_j is not None
    assert after_j is not None
    rates = {f"{name}_per_s": value * count / span_s for name, value in work.items()}
    return bench.sample(NAME, case, times, "counter", values={"mean_w": (after_j - before_j) / span_s, **rates})
