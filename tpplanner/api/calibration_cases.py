"""What `calibrate verify` runs, and what the cost model says of it before."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tpplanner.api.simulation import simulate_question
from tpplanner.cost.kv import kv_bytes_per_tok
from tpplanner.cost.step_time import step_time
from tpplanner.cost.work import work_of
from tpplanner.domain.attention import Attention, GroupedQueryAttention
from tpplanner.domain.contention import with_busy
from tpplanner.domain.engine import LOOPS, EngineProfile
from tpplanner.domain.engine_fit import with_engine_fit
from tpplanner.domain.fitted_profile import FittedProfile, apply_kernels
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.model import DenseMlp, Mlp, ModelSpec
from tpplanner.domain.step import Batch, StepTime
from tpplanner.errors import ProfileError, WorkloadError, reject
from tpplanner.io.profile_engine import load_engine
from tpplanner.io.profile_hardware import load_hardware

BLOCK_TOK: Final = 16
MAX_NUM_BATCHED_TOKENS: Final = 2048
MEMORY_FRAC: Final = 0.9
"""Of a GPU's memory that the engine may take."""
LEAST_OSL_TOK: Final = 4
"""Shorter outputs leave no two decode steps in a row, which a step's time is taken from."""
_SERVED_S: Final = 1.5
"""Of one run; every case is run several times, in turns with the others."""
_WAVES: Final = 1
_MAX_REQUESTS: Final = 4096
_SPARE_BLOCKS: Final = 2
_INJECTED_FRAC: Final = 0.25
"""Host time that is injected, as a share of the predicted forward: where the host's own share is small, overlap shows nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run of the engine.

    Attributes
    ----------
    num_seqs
        Clients of the closed loop.
    injected_s
        Slept in T1, T2 and T5 of each step together [s].
    emulated
        One rank of ``tp`` on one device, collectives replaced by delays.
    """

    model: str
    tp: int
    loop: str
    num_seqs: int
    isl_tok: int = 64
    osl_tok: int = 32
    injected_s: float = 0.0
    emulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the engine of several cases is started with.

    ``kv_cache_bytes`` is the KV cache of one rank [bytes]; ``None``: the engine takes what its memory has left.
    """

    max_num_seqs: int
    max_context_tok: int
    kv_cache_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Cases that one engine serves, one after the other: they differ in load and injected time only."""

    spec: ModelSpec
    limits: Limits
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is varied; ``emulated`` are degrees of which one rank is run on one device, ``lengths`` (prompt, output) [tok]."""

    models: tuple[str, ...]
    degrees: tuple[int, ...]
    batches: tuple[int, ...]
    lengths: tuple[tuple[int, int], ...] = ((64, 32),)
    emulated: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.degrees or not self.batches or not self.lengths:
            reject(WorkloadError, "degrees, batches and lengths", "hold at least one each",
                   (self.degrees, self.batches, self.lengths), "verify")
        for isl_tok, osl_tok in self.lengths:
            if isl_tok < 1 or osl_tok < LEAST_OSL_TOK:
                reject(WorkloadError, "lengths", f"be a prompt of 1 and an output of {LEAST_OSL_TOK} tokens or more",
                       (isl_tok, osl_tok), "verify")
        for tp in self.emulated:
            if tp < 2:
                reject(WorkloadError, "--emulate-tp", "be 2 or more: there is nothing to emulate at 1", tp)


def padded(model: ModelSpec, tp: int) -> ModelSpec:
    """Return the model with the heads and the width of the MLP that the engine adds where t does not divide them.

    KV heads up to the next multiple of t, or to t where t is larger and no multiple of them; where it is a multiple, the
    query heads of a group up to a multiple of its copies.
    """
    def wider(attention: Attention) -> Attention:
        if not isinstance(attention, GroupedQueryAttention):
            return attention
        kv, group = attention.num_kv_heads, attention.num_heads // attention.num_kv_heads
        if tp > kv and tp % kv == 0:
            return replace(attention, num_heads=tp * -(-group * kv // tp))
        kv = -(-kv // tp) * tp
        return replace(attention, num_kv_heads=kv, num_heads=kv * group)

    def rounded(mlp: Mlp) -> Mlp:
        return replace(mlp, intermediate_size=-(-mlp.intermediate_size // tp) * tp) if isinstance(mlp, DenseMlp) else mlp

    return replace(model, layer_groups=tuple(
        replace(group, attention=wider(group.attention), mlp=rounded(group.mlp)) for group in model.layer_groups))


class Machine:
    """A calibrated machine: its profile with the fitted kernels, and the engine with its measured terms.

    ``device`` is ``cpu`` or ``cuda``; ``num_gpus`` are those of the machine that a counter of energy sums up.
    """

    def __init__(self, folder: Path, fitted: FittedProfile, *, device: str = "cpu", num_gpus: int = 1) -> None:
        if fitted.host is None:
            raise ProfileError(f"{folder}: has no measured terms of the engine; run tpplanner calibrate fit")
        sheet = folder / "datasheet.toml"
        self.hardware: HardwareProfile = apply_kernels(
            load_hardware(str(sheet) if sheet.exists() else fitted.machine), fitted)
        self.device, self.num_gpus = device, num_gpus
        self._fit = fitted.host

    def at_work(self, case: Case) -> HardwareProfile:
        """The machine as the ranks of a case see it: those of a CPU share its memory; an emulated rank is alone."""
        return replace(self.hardware, contention=()) if case.emulated else with_busy(self.hardware, case.tp)

    def engine(self, loop: str, injected_s: float) -> EngineProfile:
        """Return the engine of a loop; ``injected_s`` is divided over its three host tasks."""
        engine = replace(with_engine_fit(load_engine(f"tpplanner-{loop}"), self._fit), measured_as=None)
        tasks = {}
        for name in ("schedule", "prepare_input", "process_output"):
            task = getattr(engine, name)
            tasks[name] = replace(task, fixed_s=replace(task.fixed_s, value=task.fixed_s.value + injected_s / 3))
        return replace(engine, **tasks)


def block_bytes(model: ModelSpec, tp: int) -> float:
    """Bytes of one KV block on one rank of ``tp``, padded heads included."""
    per_tok = kv_bytes_per_tok(work_of(padded(model, tp)), tp=float(tp), kv_element_bytes=model.precision.kv.num_bytes)
    return BLOCK_TOK * float(per_tok)


def predicted_blocks(model: ModelSpec, tp: int, kv_cache_bytes: int) -> int:
    """KV blocks that fit into the cache of one rank.

    Examples
    --------
    SmolLM2-135M has 3 KV heads: a rank of two holds 2 of 4, so that half as many again fit, not twice as many.

    >>> from tpplanner.io.model_config import load_model
    >>> model = load_model("HuggingFaceTB/SmolLM2-135M-Instruct", dtype="fp32")
    >>> [predicted_blocks(model, tp, 300 * 30 * 2 * 64 * 4 * 16) for tp in (1, 2, 3)]
    [100, 150, 300]
    """
    return int(kv_cache_bytes // block_bytes(model, tp))


def num_requests(request_rate_req_s: float, num_seqs: int) -> int:
    """Requests of a run: a second and a half of serving, and every client as many as the others.

    Examples
    --------
    >>> [num_requests(rate, 8) for rate in (0.5, 10.0, 1e6)]
    [8, 16, 4096]
    """
    waves = math.ceil(_SERVED_S * request_rate_req_s / num_seqs)
    return num_seqs * max(min(waves, _MAX_REQUESTS // num_seqs), _WAVES)


def predict(machine: Machine, model: ModelSpec, case: Case, limits: Limits) -> tuple[dict[str, float], int]:
    """Predict a case with the cost model alone and, for what requests meet, with the simulator on it.

    Returns
    -------
    The figures by name: tasks of a decode step, TPOT and TTFT [s], throughput [tok/s], KV blocks of a rank, joules per output
    token; and how many requests the run has.
    """
    engine, shape = machine.engine(case.loop, case.injected_s), padded(model, case.tp)
    step = _step(machine, shape, engine, case)
    first = _requests(machine, shape, engine, case, limits, count=_WAVES * case.num_seqs)
    count = num_requests(first["rate_req_s"], case.num_seqs)
    requests = _requests(machine, shape, engine, case, limits, count=count)
    return {"schedule_s": float(step.schedule_s), "prepare_input_s": float(step.prepare_input_s), "forward_s": _forward_s(step),
            "sampling_s": float(step.sampling_s), "process_output_s": float(step.process_output_s),
            "step_s": float(step.total_s), "throughput_tok_s": requests["rate_req_s"] * case.osl_tok,
            **{name: requests[name] for name in ("tpot_s", "ttft_s", "num_kv_blocks", "energy_j_per_tok")}}, count


def _step(machine: Machine, shape: ModelSpec, engine: EngineProfile, case: Case) -> StepTime:
    batch = Batch(num_decode_seqs=float(case.num_seqs), decode_context_tok=case.isl_tok + case.osl_tok / 2)
    return step_time(shape, machine.at_work(case), engine, tp=float(case.tp), batch=batch)


def _forward_s(step: StepTime) -> float:
    return float(step.linear_s + step.attention_s + step.elementwise_s + step.launch_s + step.comm_s)


def _requests(machine: Machine, shape: ModelSpec, engine: EngineProfile, case: Case, limits: Limits,
              *, count: int) -> dict[str, float]:
    """What ``count`` requests meet: rates over the whole run, as the engine's are."""
    blocks = None if limits.kv_cache_bytes is None else predicted_blocks(shape, case.tp, limits.kv_cache_bytes)
    degree = simulate_question(
        tp=case.tp, traffic={"isl": case.isl_tok, "osl": case.osl_tok, "num_requests": count}, options={"ramp_s": 0.0},
        asked={"model": shape, "gpus": (case.tp, machine.at_work(case)), "engine": engine, "concurrency": case.num_seqs,
               "num_gpu_blocks": blocks, "max_num_seqs": limits.max_num_seqs, "gpu_memory_utilization": MEMORY_FRAC,
               "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS}).degree(case.tp)
    found = degree.outcome
    if found is None or found.tpot is None or found.ttft is None or degree.memory is None:
        raise WorkloadError(f"the planner cannot run it: {degree.reason_detail}")
    tok_s = found.num_completed * case.osl_tok / found.duration_s
    # The engine takes no more than every sequence at its longest.
    longest = limits.max_num_seqs * -(-min(limits.max_context_tok, shape.max_context_tok) // BLOCK_TOK)
    num_blocks = degree.memory.num_kv_blocks if blocks is not None else min(degree.memory.num_kv_blocks, longest)
    return {"rate_req_s": tok_s / case.osl_tok, "tpot_s": found.tpot.mean_s, "ttft_s": found.ttft.mean_s,
            "num_kv_blocks": float(num_blocks), "energy_j_per_tok": _energy_j_per_tok(machine, case, found.power_w, tok_s)}


def _energy_j_per_tok(machine: Machine, case: Case, power_w: float, tok_s: float) -> float:
    """Energy of all GPUs of the machine per output token: those that serve, one of them where it stands for t, and idle ones."""
    used, drawn_w = (1, power_w / case.tp) if case.emulated else (case.tp, power_w)
    return (drawn_w + max(machine.num_gpus - used, 0) * machine.hardware.power.idle_w.value) / tok_s


def limits_of(machine: Machine, model: ModelSpec, cases: Sequence[Case]) -> Limits:
    """Return what one engine needs for its cases.

    On a CPU, whose memory others use too, the KV cache has bytes for every sequence of the model at t = 1, at every degree
    the same: how many blocks fit is then the geometry of padded heads. On a GPU the engine takes what the memory has left, as
    in service, and the planner's own capacity is the prediction.
    """
    most = max(case.num_seqs for case in cases)
    longest_tok = max(case.isl_tok + case.osl_tok for case in cases)
    if machine.device == "cuda":
        return Limits(max_num_seqs=most, max_context_tok=max(32768, longest_tok), kv_cache_bytes=None)
    blocks = most * (-(-longest_tok // BLOCK_TOK) + _SPARE_BLOCKS)
    # Half a block more than a whole number of them: neither side may round up.
    return Limits(max_num_seqs=most, max_context_tok=max(1024, longest_tok),
                  kv_cache_bytes=int((blocks + 0.5) * block_bytes(model, 1)))


def groups(machine: Machine, name: str, spec: ModelSpec, asked: Asked) -> Iterator[Group]:
    """Yield every degree and loop with its lengths and batches, and at the first degree one case more with injected host time.

    Host time is injected at the middle batch and the first length.
    """
    loads = [{"num_seqs": n, "isl_tok": isl, "osl_tok": osl} for isl, osl in asked.lengths for n in asked.batches]
    degrees = [(tp, False) for tp in asked.degrees] + [(tp, True) for tp in asked.emulated]
    every = [[Case(model=name, tp=tp, loop=loop, emulated=emulated, **load) for load in loads]
             for tp, emulated in degrees for loop in LOOPS]
    limits = limits_of(machine, spec, [case for cases in every for case in cases])
    isl_tok, osl_tok = asked.lengths[0]
    middle = Case(model=name, tp=asked.degrees[0], loop="sequential", isl_tok=isl_tok, osl_tok=osl_tok,
                  num_seqs=sorted(asked.batches)[len(asked.batches) // 2])
    step = _step(machine, padded(spec, middle.tp), machine.engine(middle.loop, 0.0), middle)
    for cases, loop in zip(every, LOOPS, strict=False):  # both loops of the first degree come first
        cases.append(replace(middle, loop=loop, injected_s=_INJECTED_FRAC * _forward_s(step)))
    yield from (Group(spec=spec, limits=limits, cases=tuple(cases)) for cases in every)
