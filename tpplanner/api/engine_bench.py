"""Serving requests with the engine of this package, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tpplanner.api.traffic import TrafficAsked, source_of
from tpplanner.domain.checks import check_count
from tpplanner.domain.simulation import Quantiles, RequestLog
from tpplanner.domain.traffic import Traffic
from tpplanner.engine.config import EngineConfig
from tpplanner.engine.engine import Engine
from tpplanner.engine.load import LoadedRun, run_load
from tpplanner.engine.sampling_params import SamplingParams
from tpplanner.engine.timeline import StepRecord
from tpplanner.errors import WorkloadError, reject
from tpplanner.sim.metrics import quantiles_of

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTimes:
    """Mean times of a step's tasks [s], over the steps that decode only and the device time between them.

    ``exposed_s`` is the time in which the device waited for the host between two steps.
    """

    num_steps: int
    num_decode_seqs: float
    schedule_s: float
    prepare_input_s: float
    forward_s: float
    sampling_s: float
    process_output_s: float
    exposed_s: float
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineRun:
    """A benchmark of the engine.

    ``busy_frac`` is the device's busy time over the time from the first to the last step; ``decode`` has the tasks of
    steps without prompts, ``None`` where there was none; ``energy_j`` that of all GPUs, ``None`` where nothing counts it.
    """

    config: EngineConfig
    device: str
    dtype: str
    model_name: str
    traffic: Traffic
    concurrency: int | None
    num_kv_blocks: int
    weight_bytes: int
    requests: RequestLog
    steps: tuple[StepRecord, ...]
    duration_s: float
    throughput_tok_s: float
    request_rate_req_s: float
    ttft: Quantiles | None
    tpot: Quantiles | None
    e2e: Quantiles | None
    num_preemptions: int
    num_unused_rows: int
    kv_peak_frac: float
    busy_frac: float
    decode: TaskTimes | None
    energy_j: float | None

    @property
    def emulated_tp(self) -> int | None:
        """Degree of which one rank ran with delays for collectives; ``None`` where all ranks ran."""
        return None if self.config.emulate is None else self.config.emulate.tp

    @property
    def emulated(self) -> str | None:
        """What must stand beside figures of such a run, and whose collectives the delays are; ``None`` where all ranks ran."""
        return None if self.config.emulate is None else self.config.emulate.label

    @property
    def energy_j_per_tok(self) -> float | None:
        """Energy per output token [J]."""
        return None if self.energy_j is None else self.energy_j / max(int(self.requests.osl_tok.sum()), 1)


def engine_bench(
    config: EngineConfig, traffic: TrafficAsked, *, concurrency: int | None = None, request_rate: float | None = None,
    params: SamplingParams | None = None, num_warmup: int = 4, progress: Progress | None = None,
) -> EngineRun:
    """Serve requests with the engine and measure.

    Parameters
    ----------
    config
        Model, degree, loop.
    traffic
        Lengths, trace or named workload, as :func:`tpplanner.simulate` takes them; 64 requests by default.
    concurrency, request_rate
        Clients of a closed loop, or requests per second [req/s]; exactly one of them, but for a trace with times.
    params
        Sampling policy; greedy by default. Every output has the length that the traffic says.
    num_warmup
        Requests served before the clock starts.
    progress
        Called with the finished requests and their number in all.

    Raises
    ------
    TpplannerError
        If the model, the load or a request makes no sense, or a process of the engine ends.
    """
    source = source_of(traffic)
    if (concurrency is None) == (request_rate is None) and not (source.replays and concurrency is None):
        reject(WorkloadError, "load", "be one of --concurrency and --request-rate", "none" if concurrency is None else "both")
    check_count(WorkloadError, "engine bench", concurrency=concurrency)
    check_count(WorkloadError, "engine bench", minimum=0, num_warmup=num_warmup)
    if concurrency is not None:
        requests = source.requests(64)
    elif request_rate is not None:
        requests = source.at_rate(request_rate, 64)
    else:
        assert source.trace is not None
        requests = source.trace
    policy = params or SamplingParams(temperature=0.0)
    total = requests.num_requests
    with Engine(config) as engine:
        if num_warmup:
            warm = Traffic(name="warm-up", isl_tok=requests.isl_tok[:num_warmup],
                           osl_tok=np.minimum(requests.osl_tok[:num_warmup], 8))
            run_load(engine, warm, policy, concurrency=num_warmup, seed=1)
        run = run_load(engine, requests, policy, concurrency=concurrency,
                       progress=None if progress is None else lambda done: progress(done, total))
        return _run_of(engine, config, requests, concurrency, run)


def _run_of(engine: Engine, config: EngineConfig, traffic: Traffic, concurrency: int | None, run: LoadedRun) -> EngineRun:
    log = _log_of(run)
    osl = int(log.osl_tok.sum())
    span_s = max((run.steps[-1].device_end_s - run.steps[0].device_begin_s), 1e-9)
    more_than_one = log.osl_tok > 1
    return EngineRun(
        config=config, device=engine.workers.device, dtype=engine.workers.dtype,
        model_name=engine.model_name, traffic=traffic, concurrency=concurrency,
        num_kv_blocks=engine.num_kv_blocks, weight_bytes=engine.workers.weight_bytes, requests=log, steps=run.steps,
        duration_s=run.duration_s, throughput_tok_s=osl / run.duration_s,
        request_rate_req_s=len(run.completions) / run.duration_s, ttft=quantiles_of(log.ttft_s),
        tpot=quantiles_of(log.tpot_s[more_than_one]), e2e=quantiles_of(log.e2e_s),
        num_preemptions=int(log.num_preemptions.sum()), num_unused_rows=sum(s.num_unused_rows for s in run.steps),
        kv_peak_frac=max(s.kv_used_frac for s in run.steps), busy_frac=min(sum(s.device_s for s in run.steps) / span_s, 1.0),
        decode=task_times(run.steps), energy_j=run.energy_j)


def _log_of(run: LoadedRun) -> RequestLog:
    done = run.completions

    def column(name: str) -> Any:
        return np.array([getattr(c, name) for c in done], dtype=np.float64) - run.begin_s

    return RequestLog(
        arrival_s=column("arrival_s"), start_s=column("start_s"), first_token_s=column("first_token_s"),
        finish_s=column("finish_s"), isl_tok=np.array([len(c.prompt_ids) for c in done], dtype=np.int64),
        osl_tok=np.array([len(c.output_ids) for c in done], dtype=np.int64), replica=np.zeros(len(done), dtype=np.int64),
        num_preemptions=np.array([c.num_preemptions for c in done], dtype=np.int64), outside_s=np.zeros(len(done)))


def task_times(steps: tuple[StepRecord, ...], *, num_decode_seqs: int | None = None) -> TaskTimes | None:
    """Mean tasks of the steps that carry no prompt, follow such a step, and have ``num_decode_seqs`` rows where given."""
    chosen = [(before, step) for before, step in pairwise(steps)
              if not step.num_prefill_tok and not before.num_prefill_tok and step.step_index == before.step_index + 1
              and num_decode_seqs in (None, step.num_decode_seqs)]
    if not chosen:
        return None

    def mean(name: str) -> float:
        return float(np.mean([getattr(step, name) for _, step in chosen]))

    return TaskTimes(
        num_steps=len(chosen), num_decode_seqs=mean("num_decode_seqs"), schedule_s=mean("schedule_s"),
        prepare_input_s=mean("prepare_input_s"), forward_s=mean("forward_s"), sampling_s=mean("sampling_s"),
        process_output_s=mean("process_output_s"), exposed_s=mean("exposed_s"),
        step_s=float(np.mean([step.device_end_s - before.device_end_s for before, step in chosen])))

