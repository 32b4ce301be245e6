"""Logs of a simulated run as files: one row per request, and the steps as a timeline for Perfetto or chrome://tracing."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tpplanner.domain.simulation import FloatArray, IntArray, LoadSeries, RequestLog, StepLog

if TYPE_CHECKING:
    import pandas as pd

REQUEST_COLUMNS = (
    "request", "replica", "isl_tok", "osl_tok", "arrival_s", "start_s", "first_token_s", "finish_s", "outside_s", "queue_s",
    "ttft_s", "tpot_s", "e2e_s", "num_preemptions",
)
"""Columns of the request log; ``request`` counts from 0 in order of arrival."""

KINDS = ("decode", "prefill", "mixed", "no rows")
"""What a step carries; viewers colour by name."""

# Perfetto takes process 0 and thread 0 for the idle task of a kernel. The one thread of a process has its number.
_FIRST_PROCESS = 1
_NS_PER_S = 1e9
_ROUNDING_NS = 2


def requests_frame(log: RequestLog) -> "pd.DataFrame":
    """Return one row per request, columns `REQUEST_COLUMNS`, SI units.

    NaN where a time never happened; TPOT also where one token was asked for. ``replica`` is -1 for a request that no KV
    cache of the degree can hold.
    """
    import pandas as pd

    columns: dict[str, FloatArray | IntArray] = {"request": np.arange(log.arrival_s.size), "queue_s": log.queue_s,
                                                 "ttft_s": log.ttft_s, "tpot_s": log.tpot_s, "e2e_s": log.e2e_s}
    columns |= {name: getattr(log, name) for name in log.__slots__}
    return pd.DataFrame({name: columns[name] for name in REQUEST_COLUMNS})


def requests_csv(log: RequestLog) -> str:
    """Return one row per request as CSV with a header; empty where there is no number."""
    return requests_frame(log).to_csv(index=False, lineterminator="\n")


def chrome_trace(steps: StepLog, *, series: Sequence[LoadSeries] = (), title: str = "tpplanner simulate") -> str:
    """Return the timeline of a run as trace-event JSON, a process per replica.

    Parameters
    ----------
    steps
        A slice each, named by what it carries (`KINDS`); ``num_steps`` equal decode steps share one.
    series
        Counters of running and waiting sequences and of the KV cache in use, over the whole run, even where ``steps``
        ends before it.
    title
        Kept in the file's ``otherData``.

    Returns
    -------
    str
        JSON, times in microseconds. Where ``steps`` is not complete, an instant event marks its end.
    """
    replicas = sorted({*np.unique(steps.replica).tolist(), *(one.replica for one in series)})
    events = [*_names(replicas), *_slices(steps), *(event for one in series for event in _counters(one))]
    if not steps.complete and steps.start_s.size:
        events.append(_end_mark(steps))
    other = json.dumps({"title": title, "steps_complete": bool(steps.complete)})
    return f'{{"displayTimeUnit":"ms","otherData":{other},"traceEvents":[\n' + ",\n".join(events) + "\n]}\n"


def _names(replicas: Sequence[int]) -> Iterator[str]:
    """Yield the names and the order of the processes."""
    for replica in replicas:
        where = f'"ph":"M",{_process(replica)}'
        yield f'{{"name":"process_name",{where},"args":{{"name":"replica {replica}"}}}}'
        yield f'{{"name":"process_sort_index",{where},"args":{{"sort_index":{replica}}}}}'
        yield f'{{"name":"thread_name",{where},"args":{{"name":"steps"}}}}'


def _slices(steps: StepLog) -> list[str]:
    """Return one complete event per entry of the log."""
    begin_ns, end_ns = _edges_ns(steps)
    length_ns = np.maximum(end_ns - begin_ns, 0)
    kinds = np.where(steps.num_prefill_tok > 0, np.where(steps.num_decode_seqs > 0, 2, 1),
                     np.where(steps.num_decode_seqs > 0, 0, 3))
    columns = (
        [KINDS[kind] for kind in kinds.tolist()], *_micros(begin_ns), *_micros(length_ns),
        [_process(replica) for replica in steps.replica.tolist()], steps.num_steps.tolist(), steps.num_decode_seqs.tolist(),
        steps.num_prefill_tok.tolist(), steps.num_waiting_seqs.tolist(), steps.num_preempted.tolist(),
        steps.kv_used_frac.tolist(),
    )
    form = ('{"name":"%s","cat":"step","ph":"X","ts":%d.%03d,"dur":%d.%03d,%s,'
            '"args":{"num_steps":%d,"num_decode_seqs":%d,"num_prefill_tok":%d,"num_waiting_seqs":%d,"num_preempted":%d,'
            '"kv_used_frac":%.4f}}')
    return [form % row for row in zip(*columns, strict=True)]


def _counters(series: LoadSeries) -> list[str]:
    """Return the counters of one replica: sequences, and the KV cache in use [%]."""
    process = _process(series.replica)
    times = _micros(np.rint(series.time_s * _NS_PER_S).astype(np.int64))
    sequences = f'{{"name":"sequences","ph":"C","ts":%d.%03d,{process},"args":{{"running":%g,"waiting":%g}}}}'
    cache = f'{{"name":"KV used","ph":"C","ts":%d.%03d,{process},"args":{{"percent":%.2f}}}}'
    counts = zip(*times, series.num_running_seqs.tolist(), series.num_waiting_seqs.tolist(), strict=True)
    shares = zip(*times, (100 * series.kv_used_frac).tolist(), strict=True)
    return [*(sequences % row for row in counts), *(cache % row for row in shares)]


def _end_mark(steps: StepLog) -> str:
    us, rest = _micros(np.rint(np.array([np.max(steps.start_s + steps.duration_s)]) * _NS_PER_S).astype(np.int64))
    return (f'{{"name":"later steps were not kept","ph":"i","s":"g","ts":{us[0]}.{rest[0]:03d},'
            f'{_process(int(steps.replica[0]))}}}')


def _process(replica: int) -> str:
    return f'"pid":{replica + _FIRST_PROCESS},"tid":{replica + _FIRST_PROCESS}'


def _edges_ns(steps: StepLog) -> tuple[IntArray, IntArray]:
    """Return begin and end of each entry [ns].

    An end that only rounding puts behind the begin of the next entry of its replica is pulled back: viewers would nest
    the two.
    """
    begin = np.rint(steps.start_s * _NS_PER_S).astype(np.int64)
    end = np.rint((steps.start_s + steps.duration_s) * _NS_PER_S).astype(np.int64)
    order = np.lexsort((begin, steps.replica))
    here, after = order[:-1], order[1:]
    over = end[here] - begin[after]
    touching = (steps.replica[here] == steps.replica[after]) & (over > 0) & (over <= _ROUNDING_NS)
    end[here[touching]] = begin[after[touching]]
    return begin, end


def _micros(time_ns: IntArray) -> tuple[list[int], list[int]]:
    """Split times into whole microseconds and the nanoseconds that are left, so that no digit is lost."""
    whole, rest = np.divmod(time_ns, 1000)
    return whole.tolist(), rest.tolist()
