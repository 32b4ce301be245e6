"""From names and numbers to a question."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Required, TypedDict, TypeVar

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

_LOADS: Mapping[str, LoadMode] = {
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
        return Load(mode=_LOADS[name], value=float(value))
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
    sampling: str | None
    preemption: str | None
    max_tp: int | None
    price_usd_h: float | None


def question(
    *,
    model: str | ModelSpec,
    gpus: str | tuple[int | None, HardwareProfile],
    isl: int,
    osl: int,
    engine: str | EngineProfile = "vllm-0.11",
    switches: Mapping[str, bool] | None = None,
    request_rate: float | None = None,
    concurrency: float | None = None,
    batch_per_gpu: float | None = None,
    concurrency_per_replica: float | None = None,
    offline: bool = False,
    ttft_ms: float | None = None,
    tpot_ms: float | None = None,
    dtype: str | None = None,
    kv_cache_dtype: str | None = None,
    gpu_memory_utilization: float | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    non_kv_overhead_gib: float | None = None,
    sampling: str | None = None,
    preemption: str | None = None,
    max_tp: int | None = None,
    price_usd_h: float | None = None,
) -> Question:
    """Build a question from names and numbers; see :func:`tpplanner.recommend` for the parameters."""
    spec = load_model(model, dtype=dtype, kv_cache_dtype=kv_cache_dtype) if isinstance(model, str) else model
    if isinstance(gpus, str):
        num_gpus, machine = parse_gpus(gpus)
        hardware = load_hardware(machine)
    else:
        num_gpus, hardware = gpus
    profile = engine_with(engine, switches)
    if preemption is not None:
        profile = replace(profile, preemption=_choice(Preemption, preemption, "--preemption"))
    targets = Targets(ttft_s=None if ttft_ms is None else ttft_ms * MS,
                      tpot_s=None if tpot_ms is None else tpot_ms * MS)
    load = _load_of({"request_rate": request_rate, "concurrency": concurrency, "batch_per_gpu": batch_per_gpu,
                     "concurrency_per_replica": concurrency_per_replica}, offline, targets)
    asked = Question(
        model=spec, hardware=hardware, engine=profile, num_gpus=num_gpus or hardware.gpus_per_node,
        workload=Workload(isl_tok=isl, osl_tok=osl), load=load, targets=targets,
        sampling=profile.default_sampling if sampling is None else _choice(SamplingPolicy, sampling, "--sampling"),
        max_num_seqs=profile.max_num_seqs if max_num_seqs is None else max_num_seqs,
        max_num_batched_tokens=(profile.max_num_batched_tokens if max_num_batched_tokens is None
                                else max_num_batched_tokens),
        gpu_memory_utilization=(profile.gpu_memory_utilization if gpu_memory_utilization is None
                                else gpu_memory_utilization),
        non_kv_overhead_bytes=None if non_kv_overhead_gib is None else non_kv_overhead_gib * GIB,
        max_tp=max_tp, price_usd_h=price_usd_h, num_gpus_given=num_gpus is not None,
    )
    return asked if num_gpus is not None else sized(asked)
