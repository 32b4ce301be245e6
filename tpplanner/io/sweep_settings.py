"""The settings that a plan of a sweep may have, and how a value of each is read."""

import math
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from tpplanner.domain.sweep import Setting, SweepKind
from tpplanner.errors import WorkloadError, nearest, reject

MAX_INTEGER: Final = 2**63 - 1
"""What a column of integers holds."""


class Form(StrEnum):
    """What a value looks like, as a message says it."""

    TEXT = "text on one line"
    INTEGER = "an integer"
    REAL = "a finite number"
    FLAG = "true or false"
    LENGTH = "tokens, or text such as lognormal:800:1.2"
    DEGREES = "all, a degree, or a list of degrees"
    SWITCHES = "a table of switch = true or false"


def _forms(form: Form, names: str) -> dict[str, Form]:
    return dict.fromkeys(names.split(), form)


_OF_BOTH: Final[dict[str, Form]] = {
    **_forms(Form.TEXT, "model gpus engine"), "switches": Form.SWITCHES, "tp": Form.DEGREES,
    **_forms(Form.REAL, "request_rate concurrency batch_per_gpu concurrency_per_replica"), "offline": Form.FLAG,
    **_forms(Form.REAL, "ttft_ms tpot_ms"), **_forms(Form.TEXT, "dtype kv_cache_dtype sampling preemption"),
    **_forms(Form.REAL, "gpu_memory_utilization non_kv_overhead_gib price_usd_h"),
    **_forms(Form.INTEGER, "max_num_seqs max_num_batched_tokens num_gpu_blocks max_tp"),
}
SETTINGS: Final[Mapping[SweepKind, Mapping[str, Form]]] = MappingProxyType({
    SweepKind.RECOMMEND: MappingProxyType({**_OF_BOTH, **_forms(Form.INTEGER, "isl osl")}),
    SweepKind.SIMULATE: MappingProxyType({
        **_OF_BOTH, **_forms(Form.LENGTH, "isl osl"),
        **_forms(Form.TEXT, "workload trace trace_format tokenizer arrivals router"),
        **_forms(Form.INTEGER, "num_requests seed head tail"),
        **_forms(Form.REAL, "chars_per_tok burstiness scale_rate scale_isl scale_osl watermark_frac slo_quantile ramp_s"),
        **_forms(Form.FLAG, "prefix_caching step_by_step"),
    }),
})
"""Arguments of ``tpplanner.simulate`` and ``tpplanner.recommend`` that a plan may have: all that a file can hold and that
changes a figure."""


def check_name(name: object, kind: SweepKind, field: str, place: str) -> str:
    """Return the name of a setting, or refuse what is none for this kind of sweep."""
    known = SETTINGS[kind]
    if isinstance(name, str) and name in known:
        return name
    if name in SETTINGS[SweepKind.SIMULATE]:
        hint = f" ({name} needs run.kind = 'simulate')"
    else:
        near = nearest(str(name)[:100], known)
        hint = f" ({near})" if near else ""
    reject(WorkloadError, f"keys of {field}", f"be arguments of {kind.value}{hint}", name, place)


def read_setting(value: object, form: Form, field: str, place: str) -> Setting:
    """Return one value of a setting, or refuse it; whole numbers are taken for real ones."""
    match form:
        case Form.TEXT | Form.LENGTH if isinstance(value, str):
            return _text(value, form, field, place)
        case Form.FLAG if isinstance(value, bool):
            return value
        case Form.INTEGER | Form.LENGTH if _is_integer(value):
            return _integer(value, field, place)
        case Form.REAL if _is_integer(value) or isinstance(value, float):
            return _real(value, field, place)
        case Form.DEGREES:
            return _degrees(value, field, place)
        case Form.SWITCHES if isinstance(value, Mapping):
            return _switches(value, field, place)
    reject(WorkloadError, field, f"be {form.value}", value, place)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: str, form: Form, field: str, place: str) -> str:
    if not value.strip() or not value.isprintable():
        reject(WorkloadError, field, f"be {form.value}", value, place)
    return value


def _integer(value: object, field: str, place: str) -> int:
    assert isinstance(value, int)
    if abs(value) > MAX_INTEGER:
        # Python refuses to print integers of thousands of digits.
        reject(WorkloadError, field, "have at most 18 digits", f"{value.bit_length()} bits", place)
    return value


def _real(value: object, field: str, place: str) -> float:
    assert isinstance(value, int | float)
    number = float(_integer(value, field, place)) if isinstance(value, int) else value
    if not math.isfinite(number):
        reject(WorkloadError, field, f"be {Form.REAL.value}", number, place)
    # numpy's numbers are floats too, and print otherwise.
    return float(number)


def _degrees(value: object, field: str, place: str) -> Setting:
    if value == "all":
        return "all"
    if _is_integer(value):
        return _integer(value, field, place)
    if isinstance(value, list | tuple) and value and all(map(_is_integer, value)):
        return tuple(sorted({_integer(degree, field, place) for degree in value}))
    reject(WorkloadError, field, f"be {Form.DEGREES.value}", value, place)


def _switches(value: Mapping[object, object], field: str, place: str) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for name, on in value.items():
        if not isinstance(name, str) or not isinstance(on, bool):
            reject(WorkloadError, field, f"be {Form.SWITCHES.value}", {name: on}, place)
        found[name] = on
    return found
