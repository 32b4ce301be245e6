"""What one small operation costs: the host's dispatch, a kernel's launch, a kernel inside a replayed graph."""

from collections.abc import Iterator

import torch

from calibrate.bench import Bench, Plan
from calibrate.samples import Case
from calibrate.timing import event_times_s, graph_times_s, host_times_s
from tpplanner.io.calibration_samples import Sample

NAME = "launch"
_CALLS = 100


def cases(plan: Plan, *, is_cuda: bool) -> Iterator[Case]:
    """Dispatch everywhere, launches where there is a GPU."""
    del plan
    for kind in ("dispatch", "launch", "graph") if is_cuda else ("dispatch",):
        yield {"kind": kind}


def measure(case: Case, bench: Bench, *, budget_s: float) -> Sample:
    """Time of one of a hundred additions of one number."""
    x = torch.zeros(1, device=bench.device)

    def many(_: int) -> None:
        for _ in range(_CALLS):
            x.add_(1.0)

    match case["kind"]:
        case "dispatch":
            times, timer = host_times_s(many, budget_s=budget_s), "host"
        case "launch":
            times, timer = event_times_s(many, budget_s=budget_s), "event"
        case _:
            one = graph_times_s(lambda _: x.add_(1.0), budget_s=budget_s, num_copies=_CALLS)
            times, timer = [t * _CALLS for t in one], "graph"
    return bench.sample(NAME, case, [t / _CALLS for t in times], timer)
