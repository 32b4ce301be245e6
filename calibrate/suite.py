"""All benchmarks in order, case by case: what is there already is left out, what fails is noted, and the rest goes on."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import msgspec
import torch

from calibrate import (
    bench_attention,
    bench_collectives,
    bench_gemm,
    bench_host,
    bench_launch,
    bench_layer,
    bench_memory,
    bench_power,
    bench_sampling,
    bench_weight_only,
)
from calibrate.bench import Bench, Plan, Prepared, WrongAnswerError
from calibrate.neighbours import PREPARE, Neighbours
from calibrate.samples import Case, SampleLog, key_of
from tpplanner.errors import OutputError, TpplannerError
from tpplanner.io.calibration_samples import Progress, Sample

OUT_OF_MEMORY = "out of memory"
_IN_GRAPHS = (bench_gemm.NAME, bench_attention.DECODE, bench_layer.NAME, bench_layer.STEP)
"""What the engine replays as CUDA graphs."""
Prepare = Callable[[Case, Bench], Prepared]
Measure = Callable[[list[Case]], Iterator[list[Sample]]]


@dataclass(frozen=True, slots=True)
class Part:
    """One benchmark: its cases, and how samples come from those that are left."""

    name: str
    cases: list[Case]
    measure: Measure


def _timed(name: str, prepare: Prepare, bench: Bench, case: Case, budget_s: float) -> Sample:
    """Measure one case; why it could not be is noted."""
    try:
        return bench.time(name, case, prepare(case, bench), budget_s=budget_s, in_graph=name in _IN_GRAPHS)
    except (torch.OutOfMemoryError, MemoryError):
        return bench.sample(name, case, [], "host", note=OUT_OF_MEMORY)
    except RuntimeError as error:
        words = str(error).splitlines()
        scarce = any(w in str(error) for w in ("out of memory", "can't allocate", "not enough memory"))
        return bench.sample(name, case, [], "host", note=OUT_OF_MEMORY if scarce else f"failed: {words[0] if words else error!r}")


def _prepared(name: str, prepare: Prepare, bench: Bench, budget_s: float) -> Measure:
    """Measure cases whose inputs ``prepare`` makes."""
    def measure(cases: list[Case]) -> Iterator[list[Sample]]:
        for case in cases:
            yield [_timed(name, prepare, bench, case, budget_s)]
            if bench.is_cuda:
                torch.cuda.empty_cache()

    return measure


def _beside_neighbours(name: str, bench: Bench, budget_s: float) -> Measure:
    """Measure cases while so many other devices as they say run the same."""
    def measure(cases: list[Case]) -> Iterator[list[Sample]]:
        for num_busy in dict.fromkeys(int(case["num_busy"]) for case in cases):
            with Neighbours(num_busy - 1) as neighbours:
                for case in (case for case in cases if case["num_busy"] == num_busy):
                    try:
                        neighbours.work(name, case)
                        sample = _timed(name, PREPARE[name], bench, case, budget_s)
                        neighbours.rest()
                    except WrongAnswerError as error:
                        neighbours.restart()
                        sample = bench.sample(name, case, [], "host", note=f"failed: {error}")
                    yield [sample]

    return measure


def _shared_memory(plan: Plan, bench: Bench, num_devices: int) -> list[Part]:
    """Kernels with all ranks of a degree at work, where devices share a memory: on a CPU."""
    if bench.is_cuda:
        return []
    kinds = {bench_gemm.NAME: bench_gemm.cases, bench_attention.DECODE: bench_attention.decode_cases}
    return [Part(name, [{**case, "num_busy": tp} for tp in plan.degrees if 1 < tp <= num_devices
                        for case in cases(replace(plan, degrees=(tp,)))], _beside_neighbours(name, bench, plan.budget_s))
            for name, cases in kinds.items()]


def _collectives(plan: Plan, bench: Bench) -> Measure:
    def measure(cases: list[Case]) -> Iterator[list[Sample]]:
        for tp in dict.fromkeys(int(case["tp"]) for case in cases):
            own = [case for case in cases if case["tp"] == tp]
            for sample in bench_collectives.run_degree(own, tp=tp, budget_s=plan.budget_s):
                yield [msgspec.structs.replace(sample, round=bench.round)]

    return measure


def parts(plan: Plan, bench: Bench, *, num_devices: int) -> list[Part]:
    """Every benchmark that this device can run."""
    budget_s = plan.budget_s

    def part(name: str, cases: Iterator[Case], prepare: Prepare) -> Part:
        return Part(name, list(cases), _prepared(name, prepare, bench, budget_s))

    found = [
        part(bench_memory.NAME, bench_memory.cases(plan), bench_memory.prepare),
        Part(bench_launch.NAME, list(bench_launch.cases(plan, is_cuda=bench.is_cuda)),
             lambda cases: ([bench_launch.measure(case, bench, budget_s=budget_s)] for case in cases)),
        part(bench_gemm.NAME, bench_gemm.cases(plan), bench_gemm.prepare),
        part(bench_attention.DECODE, bench_attention.decode_cases(plan), bench_attention.prepare_decode),
        part(bench_attention.PREFILL, bench_attention.prefill_cases(plan), bench_attention.prepare_prefill),
        part(bench_layer.NAME, bench_layer.cases(plan), bench_layer.prepare),
        part(bench_layer.STEP, bench_layer.step_cases(plan), bench_layer.prepare_step),
        *_shared_memory(plan, bench, num_devices),
        part(bench_sampling.NAME, bench_sampling.cases(plan), bench_sampling.prepare),
        Part(bench_collectives.NAME, list(bench_collectives.cases(plan, num_devices=num_devices)), _collectives(plan, bench)),
        Part(bench_host.NAME, list(bench_host.cases(plan, bench, num_devices=num_devices)),
             lambda cases: bench_host.measure(cases, bench)),
        Part(bench_power.NAME, list(bench_power.cases(plan)),
             lambda cases: ([bench_power.measure(case, bench)] for case in cases)),
        # Last: no part of the engine's own profile, and on a GPU torch's product in 8 bits is slow.
        part(bench_weight_only.NAME, bench_weight_only.cases(plan, bench.device), bench_weight_only.prepare),
    ]
    if bench.is_cuda:
        found.insert(1, part(bench_memory.SWAP, bench_memory.swap_cases(plan), bench_memory.prepare_swap))
    return found


def run_suite(
    parts_: list[Part], log: SampleLog, report: Callable[[Progress], None], *, bench: Bench, num_rounds: int = 1
) -> list[str]:
    """Measure what is left of every pass, and return what went wrong.

    A case is measured once in each pass, minutes apart: what differs between them is the machine's drift.

    Raises
    ------
    OutputError
        If a sample cannot be written; what is written stays.
    """
    done = {part.name: log.done(part.name) for part in parts_}
    left = [(number, part, [case for case in part.cases if (number, key_of(case)) not in done[part.name]])
            for number in range(num_rounds) for part in parts_]
    num_cases, problems = num_rounds * sum(len(part.cases) for part in parts_), []
    num_done = num_cases - sum(len(cases) for _, _, cases in left)
    begin_s, num_here = time.perf_counter(), 0
    for bench.round, part, cases in left:
        try:
            for samples in part.measure(cases) if cases else ():
                failed = [s.note for s in samples if not s.times_s and s.note.startswith("failed: ")]
                if failed:
                    # Not written: the next run tries again.
                    problems.append(f"{part.name} {samples[0].case}: {failed[0].removeprefix('failed: ')}")
                else:
                    log.append(*samples)
                num_done, num_here = num_done + 1, num_here + 1
                each_s = (time.perf_counter() - begin_s) / num_here
                notes = "; ".join(dict.fromkeys(s.note for s in samples if s.note))
                report(Progress(bench=part.name, num_done=num_done, num_cases=num_cases,
                                left_s=each_s * (num_cases - num_done), note=notes))
        except OutputError:
            raise
        except (WrongAnswerError, TpplannerError) as error:
            problems.append(f"{part.name}: {error}")
    return list(dict.fromkeys(problems))
