"""What both loops are made of: queue, schedule, inputs, outputs, and the clock around each."""

import threading
import time
from collections import deque
from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tpplanner.engine.config import EngineConfig
from tpplanner.engine.inputs import InputBuilder, Planned
from tpplanner.engine.messages import StepOutput
from tpplanner.engine.request import FinishReason, Request
from tpplanner.engine.timeline import StepRecord
from tpplanner.engine.workers import Workers
from tpplanner.serving.config import SchedulerConfig
from tpplanner.serving.scheduler import Scheduler
from tpplanner.serving.sequence import Status

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_RECENT = 10_000
"""Records that a server keeps; a benchmark keeps all."""
_MARGIN_S = 1e-3
_MEMORY = 0.2
"""Weight of the newest step in the mean of how long steps and their planning take."""


@dataclass(slots=True)
class Flight:
    """A step that was scheduled, and perhaps sent, and not committed yet."""

    planned: Planned
    record: StepRecord


class Core:
    """State of the engine; everything but ``add`` and ``cancel`` is called by the loop alone."""

    def __init__(self, config: EngineConfig, limits: SchedulerConfig, workers: Workers, max_context_tok: int,
                 eos_ids: tuple[int, ...]) -> None:
        self.config, self.scheduler, self.workers = config, Scheduler(limits), workers
        self.inputs = InputBuilder(limits, max_context_tok)
        self.records: MutableSequence[StepRecord] = deque(maxlen=NUM_RECENT)
        self.is_serving, self.is_idle = False, True
        self._eos = frozenset(eos_ids)
        self._arrived: deque[Request] = deque()
        self._cancelled: deque[Request] = deque()
        self._wake = threading.Condition()
        self._decode_s = self._prefill_tok_s = self._host_s = 0.0
        self._device_end_s = self._sent_s = 0.0
        self.on_finish: Callable[[Request], None] = lambda request: None

    def add(self, request: Request) -> None:
        """Queue a request; from any thread."""
        with self._wake:
            self._arrived.append(request)
            self.is_idle = False
            self._wake.notify()

    def cancel(self, request: Request) -> None:
        """End a request as soon as a step allows; from any thread."""
        with self._wake:
            self._cancelled.append(request)
            self._wake.notify()

    def stop(self) -> None:
        """Let the loop end once nothing is in flight; from any thread."""
        with self._wake:
            self.is_serving = False
            self._wake.notify()

    def has_work(self) -> bool:
        """Take in what came; wait for more while serving; return whether there is anything to do."""
        while True:
            self._take_in()
            if self.scheduler.has_work:
                return True
            with self._wake:
                if self._arrived or self._cancelled:
                    continue
                self.is_idle = True
                if not self.is_serving:
                    return False
                self._wake.wait(0.2)
                self.is_idle = not self._arrived
            self.workers.check()

    def _take_in(self) -> None:
        with self._wake:  # both at once: who is cancelled has arrived before
            arrived, cancelled = list(self._arrived), list(self._cancelled)
            self._arrived.clear()
            self._cancelled.clear()
        for request in arrived:
            self.scheduler.add(request)
        for request in cancelled:
            if request.finish_reason is None:
                self.scheduler.abort(request)
                self._finish(request, FinishReason.ABORT)

    def check_nothing_left(self) -> None:
        """Raise where no step could be made of what is there: only a cancellation may have emptied the queue meanwhile."""
        if self.scheduler.has_work:
            raise AssertionError("sequences that no step can take")

    def await_planning_time(self, flight: Flight) -> None:
        """Wait until the step in flight leaves just the time to plan the next: who arrives until then is in it."""
        begin_s = max(self._sent_s, self._device_end_s)
        device_s = self._decode_s + self._prefill_tok_s * flight.record.num_prefill_tok
        spare_s = begin_s + device_s - 2.0 * self._host_s - _MARGIN_S - time.perf_counter()
        if self.is_serving and spare_s > 0:
            self.workers.has_output(spare_s)

    def schedule(self) -> Flight | None:
        """T1: pick the next step; ``None`` where nothing can run before the step in flight is committed."""
        begin_s = time.perf_counter()
        self._take_in()
        if self.config.delays.schedule_s:
            time.sleep(self.config.delays.schedule_s)
        step = self.scheduler.schedule()
        if step is None:
            return None
        for chunk in step.chunks:
            assert isinstance(chunk.sequence, Request)
            chunk.sequence.start_s = chunk.sequence.start_s or begin_s
        planned = self.inputs.plan(step, list(self.scheduler.decoding))  # type: ignore[arg-type]
        pool = self.scheduler.pool
        record = StepRecord(
            step_index=step.step_index, num_decode_seqs=step.num_decode_seqs, num_prefill_tok=step.num_prefill_tok,
            context_tok=step.context_tok, num_waiting_seqs=len(self.scheduler.waiting) + len(self.scheduler.swapped),
            kv_used_frac=1.0 - pool.num_free / pool.num_blocks, schedule_begin_s=begin_s,
            schedule_s=time.perf_counter() - begin_s)
        return Flight(planned, record)

    def submit(self, flight: Flight, *, ids_on_device: bool) -> None:
        """T2: build the inputs and send them."""
        record = flight.record
        record.prepare_input_begin_s = time.perf_counter()
        if self.config.delays.prepare_input_s:
            time.sleep(self.config.delays.prepare_input_s)
        message = self.inputs.build(flight.planned, ids_on_device=ids_on_device)
        self.workers.submit(message)
        self._sent_s = record.submitted_s = time.perf_counter()
        record.prepare_input_s = self._sent_s - record.prepare_input_begin_s
        self._host_s += _MEMORY * (record.schedule_s + record.prepare_input_s - self._host_s)

    def receive(self, flight: Flight) -> list[int]:
        """Wait for T3 and T4; return the sampled ids, which every sequence has now."""
        output: StepOutput = self.workers.output()
        record = flight.record
        assert output.step_index == record.step_index
        record.device_begin_s, record.forward_s = output.begin_s, output.forward_end_s - output.begin_s
        record.sampling_s = output.end_s - output.forward_end_s
        if self._device_end_s:
            record.exposed_s = max(output.begin_s - self._device_end_s, 0.0)
        self._device_end_s = output.end_s
        self.took(record)
        ids: list[int] = np.frombuffer(output.ids, np.int32).tolist()
        for request, token_id in zip(flight.planned.samples, ids, strict=True):
            if request.finish_reason is None:
                request.output_ids.append(token_id)
        return ids

    def took(self, record: StepRecord) -> None:
        """Learn how long steps take: of prompts each token beside what decoding takes."""
        if record.num_prefill_tok:
            each_s = max(record.device_s - self._decode_s, 0.0) / record.num_prefill_tok
            self._prefill_tok_s += _MEMORY * (each_s - self._prefill_tok_s)
        else:
            self._decode_s += _MEMORY * (record.device_s - self._decode_s)

    def process(self, flight: Flight, ids: list[int]) -> None:
        """T5: text, stops, listeners; commit the step."""
        record = flight.record
        record.process_output_begin_s = time.perf_counter()
        if self.config.delays.process_output_s:
            time.sleep(self.config.delays.process_output_s)
        finished: list[Request] = []
        for request, token_id in zip(flight.planned.samples, ids, strict=True):
            if request.finish_reason is not None:
                record.num_unused_rows += 1
                continue
            reason = self._reason(request, token_id)
            if len(request.output_ids) == 1:
                request.first_token_s = time.perf_counter()
            if reason is None:
                request.tell(request.text.take(ended=False))
            else:
                finished.append(request)
                request.finish_reason = reason
        self.scheduler.commit(flight.planned.step, finished)
        for request in finished:
            self._finish(request, request.finish_reason or FinishReason.STOP)
        record.process_output_s = time.perf_counter() - record.process_output_begin_s
        self.records.append(record)
        if not self.scheduler.has_work:
            self._device_end_s = 0.0  # what follows is idle for want of requests

    def _reason(self, request: Request, token_id: int) -> FinishReason | None:
        params = request.params
        ends = token_id in params.stop_token_ids or (token_id in self._eos and not params.ignore_eos)
        if request.text.add(token_id) or ends:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(request.output_ids) >= params.max_tokens else None

    def _finish(self, request: Request, reason: FinishReason) -> None:
        request.finish_reason = reason
        if request.status is not Status.DONE:
            raise AssertionError(f"{request!r} finished and still scheduled")
        self.inputs.forget(request)
        if reason is FinishReason.LENGTH:
            request.text.finish()
        self.on_finish(request)
        request.tell(request.text.take(ended=True))
