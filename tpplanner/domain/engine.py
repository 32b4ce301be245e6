"""A serving engine: what its host does per step, what it hides, and its defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from tpplanner.domain.checks import check_count, check_real
from tpplanner.domain.quantity import Quantity
from tpplanner.domain.serving_fit import ResidualModel, ServingTerms
from tpplanner.errors import ProfileError, nearest, reject


class Preemption(StrEnum):
    """What happens when the KV cache is full.

    ``recompute`` and ``swap`` take the blocks of the newest sequence and bring it back later; ``reserve``
    admits a request only when its full length fits, so that nobody is preempted and fewer run.
    """

    RECOMPUTE = "recompute"
    SWAP = "swap"
    RESERVE = "reserve"


class SamplingPolicy(StrEnum):
    """How much work sampling is: argmax, temperature with top-k/top-p, or all penalties too."""

    GREEDY = "greedy"
    TOP_P = "top-p"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCost:
    """Time of one task per step: fixed_s + (per_seq_s + per_seq_per_vocab_tok_s * vocabulary) * sequences, and per log2(t).

    ``per_log2_tp_s`` is the fixed and ``per_seq_per_log2_tp_s`` the per-sequence growth with
    the number of ranks (the broadcast of input metadata). ``per_seq_per_vocab_tok_s`` is of sampling only: what a pass
    over a row of logits takes; without it the vocabulary is that of the measured models.
    """

    fixed_s: Quantity
    per_seq_s: Quantity
    per_log2_tp_s: Quantity | None = None
    per_seq_per_log2_tp_s: Quantity | None = None
    per_seq_per_vocab_tok_s: Quantity | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            quantity: Quantity | None = getattr(self, name)
            if quantity is not None and quantity.value < 0:
                reject(ProfileError, name, "be >= 0 s", quantity.value, quantity.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """The three mechanisms of overlap, each settable on its own.

    async_sched
        T1 of the next step and T5 of the last one run while the device works.
    early_feedback
        T2 of the next step too: its inputs are built with placeholders and the sampled ids are
        patched in on the device. Needs ``async_sched``; without effect at t = 1, where nothing is broadcast.
    seq_parallel_sampling
        T4 is divided over the ranks by an all-to-all over the batch. Without effect at t = 1.
    """

    async_sched: bool = False
    early_feedback: bool = False
    seq_parallel_sampling: bool = False

    def __post_init__(self) -> None:
        if self.early_feedback and not self.async_sched:
            reject(ProfileError, "early_feedback", "be off where async_sched is off", "on")


LOOPS: Final[Mapping[str, Switches]] = {
    "sequential": Switches(),
    "overlap": Switches(async_sched=True, early_feedback=True, seq_parallel_sampling=True),
}
"""The two loops of this package's engine, by the names of ``--engine`` and of the profiles ``tpplanner-<loop>``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineProfile:
    """Host work, overlap, memory and defaults of a serving engine.

    Attributes
    ----------
    schedule, prepare_input, process_output
        T1, T2 and T5.
    sampling
        T4 per policy, on one rank.
    layer_overhead_s
        Launch gaps and small kernels of one layer, that no roofline term carries.
    overlap_overhead_s
        What asynchronous execution itself costs per step (queues between threads).
    kv_block_size_tok, max_num_seqs, max_num_batched_tokens, gpu_memory_utilization
        Defaults, as vLLM names them.
    feedback_from_tp
        Least degree at which ``early_feedback`` hides T2: 2 where T2 is a broadcast, 1 where the driver is a process apart.
    graph_bytes
        Memory of captured CUDA graphs.
    request_overhead_s
        What a request waits outside the engine's steps before its first token (tokenisation, transport).
    ratio_error_frac
        Stated error of a predicted ratio of throughputs between two degrees: plans nearer than that tie.
    measured_as
        Name under which serving runs and kernels of this engine were measured; ``None`` where none were.
    exposed
        Host work per step that serving runs found exposed in an engine that schedules asynchronously, whatever its
        tasks; ``None`` where T1, T2 and T5 say it all.
    step_overhead
        What the device does in a step outside layers, LM head and sampling, as microbenchmarks of the engine found it;
        ``None`` where none were made.
    terms, tpot_residual, ttft_residual
        What serving runs on the machine taught, once the profile is bound to a machine and a model
        (:func:`tpplanner.cost.serving.bind`); ``None`` before, and where there are no runs.
    """

    name: str
    title: str
    schedule: TaskCost
    prepare_input: TaskCost
    process_output: TaskCost
    sampling: Mapping[SamplingPolicy, TaskCost]
    layer_overhead_s: Quantity
    overlap_overhead_s: Quantity
    graph_bytes: Quantity
    ratio_error_frac: Quantity
    request_overhead_s: Quantity | None = None
    switches: Switches = field(default_factory=Switches)
    default_sampling: SamplingPolicy = SamplingPolicy.GREEDY
    kv_block_size_tok: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    gpu_memory_utilization: float = 0.9
    feedback_from_tp: int = 2
    preemption: Preemption = Preemption.RECOMPUTE
    launcher: str = "vllm"
    aliases: tuple[str, ...] = ()
    measured_as: str | None = None
    exposed: TaskCost | None = None
    step_overhead: TaskCost | None = None
    terms: ServingTerms | None = None
    tpot_residual: ResidualModel | None = None
    ttft_residual: ResidualModel | None = None
    place: str = "<memory>"

    def __post_init__(self) -> None:
        for name in ("layer_overhead_s", "overlap_overhead_s", "graph_bytes", "ratio_error_frac", "request_overhead_s"):
            quantity: Quantity | None = getattr(self, name)
            if quantity is not None and quantity.value < 0:
                reject(ProfileError, name, "be >= 0", quantity.value, self.place)
        check_count(ProfileError, self.place, kv_block_size_tok=self.kv_block_size_tok,
                    max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.max_num_batched_tokens,
                    feedback_from_tp=self.feedback_from_tp)
        check_real(ProfileError, self.place, minimum=0.01, maximum=1.0,
                   gpu_memory_utilization=self.gpu_memory_utilization)
        missing = [policy.value for policy in SamplingPolicy if policy not in self.sampling]
        if missing:
            reject(ProfileError, "sampling", "give every policy", f"none for {', '.join(missing)}", self.place)

    def with_switch(self, name: str, on: bool) -> "EngineProfile":
        """Return the profile with one switch set; ``async_sched=off`` takes ``early_feedback`` with it."""
        known = tuple(Switches.__slots__)
        if name not in known:
            raise ProfileError(f"--set: unknown switch {name!r}; known: {', '.join(known)}. "
                               f"{nearest(name, known)}".rstrip())
        changes = {name: on}
        if name == "async_sched" and not on:
            changes["early_feedback"] = False
        return replace(self, switches=replace(self.switches, **changes))
