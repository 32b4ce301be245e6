"""What each step did and when, as JSON lines and as a Chrome trace."""

import json
from dataclasses import asdict, dataclass, fields
from math import isnan
from typing import Any

_US = 1e6


@dataclass(slots=True, kw_only=True)
class StepRecord:
    """One step; times on the clock of the driver [s], NaN where a task has not run.

    T1 is ``schedule``, T2 ``prepare_input``, T3 device begin to forward end, T4 forward end to device end, T5
    ``process_output``. ``exposed_s`` is the time from the end of the step before to the beginning of this one in which
    the device waited for the host (0 where there was nothing to do).
    """

    step_index: int
    num_decode_seqs: int
    num_prefill_tok: int
    context_tok: int
    num_waiting_seqs: int
    kv_used_frac: float
    schedule_begin_s: float = float("nan")
    schedule_s: float = float("nan")
    prepare_input_begin_s: float = float("nan")
    prepare_input_s: float = float("nan")
    submitted_s: float = float("nan")
    device_begin_s: float = float("nan")
    forward_s: float = float("nan")
    sampling_s: float = float("nan")
    process_output_begin_s: float = float("nan")
    process_output_s: float = float("nan")
    exposed_s: float = 0.0
    num_unused_rows: int = 0

    @property
    def device_s(self) -> float:
        """Busy time of the device."""
        return self.forward_s + self.sampling_s

    @property
    def device_end_s(self) -> float:
        """When the ids were sampled."""
        return self.device_begin_s + self.device_s


FIELDS = tuple(field.name for field in fields(StepRecord))


def json_lines(records: list[StepRecord], *, emulated: str | None = None) -> str:
    """One JSON object per step; what was never measured is null. ``emulated`` labels steps of one rank without the others."""
    more = {} if emulated is None else {"emulated": emulated}
    return "".join(json.dumps({k: None if isnan(v) else v for k, v in asdict(r).items()} | more) + "\n" for r in records)


def chrome_trace(records: list[StepRecord], *, emulated: str | None = None) -> str:
    """Events that chrome://tracing and Perfetto read: one row for the host, one for the device, with the label if any."""
    if not records:
        return json.dumps({"traceEvents": []})
    device = "device, rank 0: T3 T4" if emulated is None else f"device, T3 T4, {emulated}"
    zero = min(r.schedule_begin_s for r in records)
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": name}}
        for tid, name in ((1, "host: T1 T2 T5"), (2, device))]
    for record in records:
        about = {"step": record.step_index, "decode": record.num_decode_seqs, "prefill_tok": record.num_prefill_tok,
                 "kv_used": round(record.kv_used_frac, 4)}
        forward_end_s = record.device_begin_s + record.forward_s
        for tid, name, begin_s, time_s in (
                (1, "T1 schedule", record.schedule_begin_s, record.schedule_s),
                (1, "T2 prepare input", record.prepare_input_begin_s, record.prepare_input_s),
                (1, "T5 process output", record.process_output_begin_s, record.process_output_s),
                (2, "T3 forward", record.device_begin_s, record.forward_s),
                (2, "T4 sampling", forward_end_s, record.sampling_s)):
            if not isnan(time_s):
                events.append({"ph": "X", "pid": 1, "tid": tid, "name": name, "ts": (begin_s - zero) * _US,
                               "dur": time_s * _US, "args": about})
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})
