"""Engine profiles: ``engines/<name>.toml``, one file per engine; ``inherits`` names one that it differs from."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

from tpplanner.domain.engine import EngineProfile, Preemption, SamplingPolicy, Switches, TaskCost
from tpplanner.domain.quantity import Quantity
from tpplanner.errors import ProfileError, reject
from tpplanner.io.profile_files import engine_files, find_engine, read_toml, shown
from tpplanner.io.profile_records import (
    Field,
    Schema,
    need_quantity,
    need_text,
    read_fields,
    read_sources,
    read_text,
    text_list,
)

_Choice = TypeVar("_Choice", bound=StrEnum)
_TASKS: Final = (
    "schedule",
    "prepare_input",
    "process_output",
    *(f"sampling.{policy.value}" for policy in SamplingPolicy),
)
_TASK_FIELDS: Final = tuple(TaskCost.__slots__)
_SINGLES: Final = {
    "layer_overhead_s": "s",
    "overlap_overhead_s": "s",
    "graph_bytes": "bytes",
    "ratio_error_frac": "1",
    "request_overhead_s": "s",
}
_SWITCHES: Final = tuple(Switches.__slots__)
_COUNTS: Final = ("kv_block_size_tok", "max_num_seqs", "max_num_batched_tokens", "feedback_from_tp")
SCHEMA: Final = Schema(
    quantities={**{f"{task}.{field}": "s" for task in _TASKS for field in _TASK_FIELDS}, **_SINGLES},
    plain={
        "title": str,
        "launcher": str,
        "measured_as": str,
        "inherits": str,
        "aliases": tuple,
        "default_sampling": str,
        "preemption": str,
        "gpu_memory_utilization": float,
        **dict.fromkeys(_COUNTS, int),
        **dict.fromkeys((f"switches.{switch}" for switch in _SWITCHES), bool),
    },
)


def known_engines(*, extra_dirs: Sequence[Path] = ()) -> tuple[str, ...]:
    """Return the names of all engines that can be loaded, sorted.

    Examples
    --------
    >>> "albireo" in known_engines()
    True
    """
    return tuple(engine_files(extra_dirs))


def load_engine(name: str, *, extra_dirs: Sequence[Path] = ()) -> EngineProfile:
    """Return an engine by name, alias or path of its ``.toml``.

    Raises
    ------
    ProfileError
        No such engine, or its file is malformed: one line with the file, the field and the rule.

    Examples
    --------
    >>> load_engine("vllm-0.11").switches.async_sched
    False
    """
    return read_engine(find_engine(name, extra_dirs))


def read_engine(path: Path) -> EngineProfile:
    """Return the engine of one file.

    Raises
    ------
    ProfileError
        The file is malformed or incomplete.
    """
    place = shown(path)
    fields = _fields(path)
    parent = fields.get("inherits")
    if isinstance(parent, str):
        inherited = _fields(find_engine(parent))
        if "inherits" in inherited:
            reject(ProfileError, "inherits", "name an engine that inherits nothing itself", parent, place)
        # A name belongs to one engine: aliases are not passed on, nor what was measured.
        fields = {**{k: v for k, v in inherited.items() if k != "measured_as"}, "aliases": (), **fields}
    try:
        return _build(path, fields, place)
    except ProfileError as error:
        message = str(error)
        raise ProfileError(message if message.startswith(place) else f"{place}: {message}") from None


def _fields(path: Path) -> dict[str, Field]:
    data, place = read_toml(path), shown(path)
    return dict(read_fields(data, SCHEMA, place, sources=read_sources(data, place)))


def _build(path: Path, fields: Mapping[str, Field], place: str) -> EngineProfile:
    read_text(path.stem, "the file's name", place)
    tasks = {task: _task(fields, task, place) for task in _TASKS}
    return EngineProfile(
        name=path.stem,
        title=need_text(fields, "title", place),
        schedule=tasks["schedule"],
        prepare_input=tasks["prepare_input"],
        process_output=tasks["process_output"],
        sampling={policy: tasks[f"sampling.{policy.value}"] for policy in SamplingPolicy},
        layer_overhead_s=need_quantity(fields, "layer_overhead_s", place),
        overlap_overhead_s=need_quantity(fields, "overlap_overhead_s", place),
        graph_bytes=need_quantity(fields, "graph_bytes", place),
        ratio_error_frac=need_quantity(fields, "ratio_error_frac", place),
        request_overhead_s=_optional(fields, "request_overhead_s"),
        switches=Switches(**{name: fields.get(f"switches.{name}") is True for name in _SWITCHES}),
        default_sampling=_choice(fields, "default_sampling", SamplingPolicy.GREEDY, place),
        preemption=_choice(fields, "preemption", Preemption.RECOMPUTE, place),
        launcher=need_text(fields, "launcher", place),
        aliases=text_list(fields, "aliases", place),
        measured_as=_measured_as(fields),
        place=place,
        **_plain_numbers(fields),
    )


def _plain_numbers(fields: Mapping[str, Field]) -> dict[str, Any]:
    """Return the plain numbers that the file gives; the others keep the defaults of ``EngineProfile``."""
    return {name: fields[name] for name in (*_COUNTS, "gpu_memory_utilization") if name in fields}


def _task(fields: Mapping[str, Field], task: str, place: str) -> TaskCost:
    return TaskCost(
        fixed_s=need_quantity(fields, f"{task}.fixed_s", place),
        per_seq_s=need_quantity(fields, f"{task}.per_seq_s", place),
        per_log2_tp_s=_optional(fields, f"{task}.per_log2_tp_s"),
        per_seq_per_log2_tp_s=_optional(fields, f"{task}.per_seq_per_log2_tp_s"),
        per_seq_per_vocab_tok_s=_optional(fields, f"{task}.per_seq_per_vocab_tok_s"),
    )


def _measured_as(fields: Mapping[str, Field]) -> str | None:
    name = fields.get("measured_as")
    return name if isinstance(name, str) else None


def _optional(fields: Mapping[str, Field], dotted: str) -> Quantity | None:
    item = fields.get(dotted)
    return item if isinstance(item, Quantity) else None


def _choice(fields: Mapping[str, Field], dotted: str, default: _Choice, place: str) -> _Choice:
    """Return the member of an enumeration that a file names, or the default."""
    text = fields.get(dotted, default.value)
    known = [member.value for member in type(default)]
    if text not in known:
        reject(ProfileError, dotted, f"be one of {', '.join(known)}", text, place)
    return type(default)(text)
