"""A load generator in the engine's own process: clients of a closed loop, or requests at given times."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from tpplanner.domain.checks import check_count
from tpplanner.domain.traffic import Traffic
from tpplanner.engine.core import NUM_RECENT
from tpplanner.engine.energy import EnergyMeter
from tpplanner.engine.engine import Engine
from tpplanner.engine.request import Completion, FinishReason, Output
from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.engine.timeline import StepRecord
from tpplanner.errors import EngineError, WorkloadError, reject


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRun:
    """Requests and steps of a run, in order; ``energy_j`` is ``None`` where no counter is."""

    completions: tuple[Completion, ...]
    steps: tuple[StepRecord, ...]
    begin_s: float
    duration_s: float
    energy_j: float | None


class _Clients:
    """Sends the next request when one is answered, or when its time has come."""

    def __init__(self, engine: Engine, traffic: Traffic, params: SamplingParams, seed: int) -> None:
        self._engine, self._params = engine, params
        rng = np.random.default_rng(seed)
        self._prompts: Iterator[tuple[int, list[int]]] = iter(
            [(i, rng.integers(0, engine.vocab_size, int(isl)).tolist()) for i, isl in enumerate(traffic.isl_tok)])
        self._osl: list[int] = traffic.osl_tok.tolist()
        self._lock = threading.Lock()
        self.done: list[Completion] = []
        self.finished = threading.Event()
        self.progress: Callable[[int], None] | None = None
        self.closed_loop = False

    def send(self) -> bool:
        """Send the next request; ``False`` where there is none."""
        with self._lock:
            following = next(self._prompts, None)
        if following is None:
            return False
        index, prompt = following
        params = replace_params(self._params, max_tokens=self._osl[index], seed=self._params.seed + index)
        self._engine.submit(prompt, params, self._listen, on_completion=self.done.append)
        return True

    def _listen(self, output: Output) -> None:
        if output.finish_reason is None:
            return
        if self.progress is not None:
            self.progress(len(self.done))
        if output.finish_reason is FinishReason.ERROR or len(self.done) == len(self._osl):
            self.finished.set()
        elif self.closed_loop:
            self.send()


def replace_params(params: SamplingParams, *, max_tokens: int, seed: int) -> SamplingParams:
    """Return the policy with the length of one request, whatever its end-of-sequence ids."""
    return msgspec.structs.replace(params, max_tokens=max_tokens, seed=seed, ignore_eos=True)


def run_load(engine: Engine, traffic: Traffic, params: SamplingParams, *, concurrency: int | None, seed: int = 0,
             progress: Callable[[int], None] | None = None) -> LoadedRun:
    """Serve the requests of ``traffic``: ``concurrency`` clients in a closed loop, or at the traffic's own times.

    Prompts are random ids; every output has its full length.

    Raises
    ------
    WorkloadError
        If neither says when requests come, or a request is too long for the engine.
    EngineError
        If a process of the engine ends.
    """
    if (concurrency is None) == (traffic.arrival_s is None):
        reject(WorkloadError, "concurrency", "be given where requests have no times, and only there", concurrency)
    check_count(WorkloadError, traffic.name, concurrency=concurrency)
    longest = engine.longest_tok
    most = int((traffic.isl_tok + traffic.osl_tok).max())
    if most > longest:
        reject(WorkloadError, "prompt and output", f"be at most {longest} tokens in this engine", most, traffic.name)
    clients = _Clients(engine, traffic, params, seed)
    clients.progress, clients.closed_loop = progress, concurrency is not None
    records: list[StepRecord] = []
    engine.core.records = records
    meter, begin_s = EnergyMeter(), time.perf_counter()
    if engine.failure is None and not engine.is_running:
        engine.start_loop()
    if concurrency is not None:
        for _ in range(min(concurrency, traffic.num_requests)):
            clients.send()
    else:
        assert traffic.arrival_s is not None
        for at_s in traffic.arrival_s.tolist():
            if clients.finished.wait(max(begin_s + at_s - time.perf_counter(), 0.0)):
                break
            clients.send()
    clients.finished.wait()
    duration_s = time.perf_counter() - begin_s
    if engine.failure is not None:
        raise EngineError(str(engine.failure))
    engine.await_idle()
    engine.core.records = deque(maxlen=NUM_RECENT)
    done = sorted(clients.done, key=lambda c: c.request_id)
    return LoadedRun(completions=tuple(done), steps=tuple(replace(r) for r in records), begin_s=begin_s,
                     duration_s=duration_s, energy_j=meter.joules())
