"""From names and numbers to a question."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Required, TypedDict, TypeVar, Unpack, cast

from tpplanner.api.loaded import with_kernels, with_runs
from tpplanner.domain.contention import with_busy
from tpplanner.domain.engine import EngineProfile, Preemption, SamplingPolicy
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.model import ModelSpec
from tpplanner.domain.plan import Question
from tpplanner.domain.workload import Load, LoadMode, Targets, Workload
from tpplanner.errors import ProfileError, WorkloadError, nearest, reject
from tpplanner.io.model_config import load_model
from tpplanner.io.profile_engine import load_engine
from tpplanner.io.profile_files import parse_gpus
from tpplanner.io.profile_hardware import load_hardware
from tpplanner.planner.sizing import sized
from tpplanner.units import GIB, MS

Policy = TypeVar("Policy", SamplingPolicy, Preemption)
T = TypeVar("T")

DEFAULT_ENGINE = "vllm"

LOADS: Mapping[str, LoadMode] = {
    "request_rate": LoadMode.REQUEST_RATE,
    "concurrency": LoadMode.CONCURRENCY,
    "batch_per_gpu": LoadMode.BATCH_PER_GPU,
    "concurrency_per_replica": LoadMode.CONCURRENCY_PER_REPLICA,
}


def parse_switch(text: str) -> tuple[str, bool]:
    """Read ``async_sched=off`` into (name, on).

    Raises
    ------
    ProfileError
        If it is not NAME=on or NAME=off.
    """
    name, equals, value = text.partition("=")
    states = {"on": True, "off": False, "true": True, "false": False, "1": True, "0": False}
    if not equals or value.lower() not in states:
        reject(ProfileError, "switch", "be NAME=on or NAME=off", text, "--set")
    return name.strip(), states[value.lower()]


def engine_with(engine: str | EngineProfile, switches: Mapping[str, bool] | None = None) -> EngineProfile:
    """Load an engine profile by name (or take one) and set switches on it."""
    profile = load_engine(engine) if isinstance(engine, str) else engine
    # Turning async_sched on first lets early_feedback follow in the same call.
    for name, on in sorted((switches or {}).items()):
        profile = profile.with_switch(name, on)
    return profile


def _load_of(load: Mapping[str, float | None], offline: bool, targets: Targets) -> Load:
    given = {name: value for name, value in load.items() if value is not None}
    if len(given) + offline > 1:
        names = [*given, *(["offline"] if offline else [])]
        reject(WorkloadError, "load", "be given in one way", names)
    if given:
        name, value = next(iter(given.items()))
        return Load(mode=LOADS[name], value=float(value))
    if targets.any_set and not offline:
        return Load(mode=LoadMode.SLO_CAPACITY)
    return Load(mode=LoadMode.OFFLINE)


def _choice(policies: type[Policy], name: str, place: str) -> Policy:
    known = [policy.value for policy in policies]
    if name not in known:
        raise WorkloadError(f"{place}: unknown policy {name!r}; known: {', '.join(known)}. {nearest(name, known)}".rstrip())
    return policies(name)


class Asked(TypedDict, total=False):
    """Arguments of a question; ``recommend`` documents them."""

    model: Required[str | ModelSpec]
    gpus: Required[str | tuple[int | None, HardwareProfile]]
    isl: Required[int]
    osl: Required[int]
    engine: str | EngineProfile
    switches: Mapping[str, bool] | None
    request_rate: float | None
    concurrency: float | None
    batch_per_gpu: float | None
    concurrency_per_replica: float | None
    offline: bool
    ttft_ms: float | None
    tpot_ms: float | None
    dtype: str | None
    kv_cache_dtype: str | None
    gpu_memory_utilization: float | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    non_kv_overhead_gib: float | None
    num_gpu_blocks: int | None
    sampling: str | None
    preemption: str | None
    max_tp: int | None
    price_usd_h: float | None


_TYPES: Mapping[str, tuple[tuple[type, ...], str]] = {
    "model": ((str, ModelSpec), "a name, a path or a ModelSpec"),
    "gpus": ((str, tuple), "text such as 8xh100-sxm"),
    "engine": ((str, EngineProfile), "a name, a path or an EngineProfile"),
    "switches": ((Mapping,), "a mapping of switch to True or False"),
    "offline": ((bool,), "True or False"),
    **dict.fromkeys(("isl", "osl", "max_num_seqs", "max_num_batched_tokens", "max_tp", "num_gpu_blocks"), ((int,), "an integer")),
    **dict.fromkeys(("dtype", "kv_cache_dtype", "sampling", "preemption"), ((str,), "text")),
}
_REAL: tuple[tuple[type, ...], str] = ((int, float), "a number")


def _check_types(asked: Mapping[str, object]) -> None:
    """Refuse unknown, missing and wrongly typed arguments, so that none of them is a traceback further down."""
    for name in ("model", "gpus", "isl", "osl"):
        if asked.get(name) is None:
            reject(WorkloadError, name, "be given", None, "question")
    for name, value in asked.items():
        if name not in Asked.__annotations__:
            raise WorkloadError(f"question: unknown argument {name!r}. {nearest(name, Asked.__annotations__)}".rstrip())
        types, wanted = _TYPES.get(name, _REAL)
        fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        if value is not None and not fits:
            reject(WorkloadError, name, f"be {wanted}", value, "question")
    for switch, on in cast(Mapping[str, object], asked.get("switches") or {}).items():
        if not isinstance(on, bool):
            reject(ProfileError, str(switch), "be True or False", on, "switches")


def _either(given: T | None, default: T) -> T:
    return default if given is None else given


def _engine_of(asked: Asked, hardware: HardwareProfile, model: ModelSpec) -> tuple[HardwareProfile, EngineProfile]:
    """Return the machine with the engine's kernels, and the engine as runs on it taught, switches set after that."""
    plain = engine_with(asked.get("engine", DEFAULT_ENGINE))
    hardware = with_kernels(hardware, plain)
    profile = engine_with(with_runs(plain, hardware, model), asked.get("switches"))
    preemption = asked.get("preemption")
    if preemption is not None:
        profile = replace(profile, preemption=_choice(Preemption, preemption, "--preemption"))
    return hardware, profile


def _machine_of(gpus: str | tuple[int | None, HardwareProfile]) -> tuple[int | None, HardwareProfile]:
    if not isinstance(gpus, str):
        return gpus
    num_gpus, machine = parse_gpus(gpus)
    return num_gpus, load_hardware(machine)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds * MS


def question(**asked: Unpack[Asked]) -> Question:
    """Build a question from names and numbers; see :func:`tpplanner.recommend` for the arguments.

    Raises
    ------
    TpplannerError
        On bad input, with the field, the rule, the value and the place.
    """
    _check_types(asked)
    sampling, overhead_gib = asked.get("sampling"), asked.get("non_kv_overhead_gib")
    num_gpus, machine = _machine_of(asked["gpus"])
    given = asked["model"]
    model = given if isinstance(given, ModelSpec) else load_model(
        given, dtype=asked.get("dtype"), kv_cache_dtype=asked.get("kv_cache_dtype"))
    hardware, engine = _engine_of(asked, machine, model)
    targets = Targets(ttft_s=_seconds(asked.get("ttft_ms")), tpot_s=_seconds(asked.get("tpot_ms")))
    built = Question(
        model=model, hardware=hardware, engine=engine, num_gpus=num_gpus or hardware.gpus_per_node,
        workload=Workload(isl_tok=asked["isl"], osl_tok=asked["osl"]), targets=targets,
        load=_load_of({name: cast(float | None, asked.get(name)) for name in LOADS}, bool(asked.get("offline")), targets),
        sampling=engine.default_sampling if sampling is None else _choice(SamplingPolicy, sampling, "--sampling"),
        max_num_seqs=_either(asked.get("max_num_seqs"), engine.max_num_seqs),
        max_num_batched_tokens=_either(asked.get("max_num_batched_tokens"), engine.max_num_batched_tokens),
        gpu_memory_utilization=_either(asked.get("gpu_memory_utilization"), engine.gpu_memory_utilization),
        non_kv_overhead_bytes=None if overhead_gib is None else overhead_gib * GIB,
        num_gpu_blocks=asked.get("num_gpu_blocks"),
        max_tp=asked.get("max_tp"), price_usd_h=asked.get("price_usd_h"), num_gpus_given=num_gpus is not None,
    )
    if num_gpus is None:
        # With every device of a node at work no number is too small; the plan then counts those that it has.
        built = replace(sized(replace(built, hardware=with_busy(hardware, hardware.gpus_per_node))), hardware=hardware)
    return replace(built, hardware=with_busy(hardware, built.num_gpus))
