"""Measured terms of the engine in a fitted profile, to and from their records."""

from typing import Any, Final

from tpplanner.domain.engine import SamplingPolicy, TaskCost
from tpplanner.domain.engine_fit import TASKS, EngineFit
from tpplanner.errors import ProfileError, reject
from tpplanner.io.fitted_numbers import quantity_of, quantity_record
from tpplanner.io.fitted_records import HostRecord, TaskRecord

_FIELDS: Final = tuple(TaskCost.__slots__)
_SINGLES: Final = ("layer_overhead_s", "elementwise_memory")


def _task_record(task: TaskCost, source: str) -> TaskRecord:
    given: dict[str, Any] = {name: getattr(task, name) for name in _FIELDS}
    return TaskRecord(**{name: quantity_record(q, source=source) for name, q in given.items() if q is not None})


def _task(record: TaskRecord, source: str) -> TaskCost:
    given = {name: getattr(record, name) for name in _FIELDS}
    return TaskCost(**{name: quantity_of(q, name, source=source) for name, q in given.items() if q is not None})


def host_record(fit: EngineFit) -> HostRecord:
    """Return the record of an engine's measured terms."""
    sampling = {policy.value: _task_record(task, fit.source) for policy, task in fit.sampling.items()}
    fields: dict[str, Any] = {name: _task_record(getattr(fit, name), fit.source) for name in TASKS}
    fields |= {name: quantity_record(getattr(fit, name), source=fit.source) for name in _SINGLES}
    return HostRecord(source=fit.source, sampling=sampling, **fields)


def host_of(record: HostRecord) -> EngineFit:
    """Return the measured terms of a record.

    Raises
    ------
    ProfileError
        A policy is missing or unknown, or a value makes no sense.
    """
    known = [policy.value for policy in SamplingPolicy]
    unknown = sorted(set(record.sampling) - set(known))
    if unknown:
        reject(ProfileError, "host.sampling", f"have the policies {', '.join(known)}", unknown)
    try:
        sampling = {SamplingPolicy(name): _task(task, record.source) for name, task in record.sampling.items()}
        fields: dict[str, Any] = {name: _task(getattr(record, name), record.source) for name in TASKS}
        fields |= {name: quantity_of(getattr(record, name), name, source=record.source) for name in _SINGLES}
        return EngineFit(source=record.source, sampling=sampling, **fields)
    except ProfileError as error:
        raise ProfileError(f"host: {error}") from None
