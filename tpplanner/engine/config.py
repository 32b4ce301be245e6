"""Settings of the engine."""

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import pairwise

from tpplanner.domain.checks import check_count, check_real
from tpplanner.domain.engine import Preemption, Switches
from tpplanner.domain.hardware import CollectiveOp
from tpplanner.errors import WorkloadError, reject

_PLACE = "engine"
Points = tuple[tuple[float, float], ...]
"""(size [bytes], time [s]) of a collective, ascending in size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """Time that the driver sleeps in T1, T2 and T5 of every step [s]: host work that this machine does not have."""

    schedule_s: float = 0.0
    prepare_input_s: float = 0.0
    process_output_s: float = 0.0

    def __post_init__(self) -> None:
        check_real(WorkloadError, "delays", maximum=60.0, schedule_s=self.schedule_s,
                   prepare_input_s=self.prepare_input_s, process_output_s=self.process_output_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """One process runs the share of rank 0 of ``tp`` ranks; each collective is replaced by a delay on the device.

    Attributes
    ----------
    tp
        Ranks of the replica, of which one runs.
    all_reduce
        Time over the buffer of one rank.
    all_gather, all_to_all
        The exchange of logits without and with sequence-parallel sampling; time over the whole result (nccl-tests).
    source
        Whose collectives these are: what a run's figures are labelled with.
    """

    tp: int
    all_reduce: Points
    all_gather: Points
    all_to_all: Points
    source: str = "unnamed curves"

    def __post_init__(self) -> None:
        place = "emulation"
        check_count(WorkloadError, place, minimum=2, tp=self.tp)
        check_real(WorkloadError, place, minimum=2, maximum=1024, tp=self.tp)
        if not isinstance(self.source, str) or not self.source.isprintable() or not self.source:
            reject(WorkloadError, "source", "be one line of text", self.source, place)
        for op in CollectiveOp:
            points = getattr(self, op.value)
            if not isinstance(points, tuple) or not points or any(not isinstance(p, tuple) or len(p) != 2 for p in points):
                reject(WorkloadError, op.value, "be at least one pair of size [bytes] and time [s]", points, place)
            for size_bytes, time_s in points:
                check_real(WorkloadError, f"{place}: {op.value}", size_bytes=size_bytes, time_s=time_s)
            sizes = [0.0, *(size_bytes for size_bytes, _ in points)]
            if any(low >= high for low, high in pairwise(sizes)):
                reject(WorkloadError, op.value, "have positive sizes in ascending order", sizes[1:], place)

    @property
    def label(self) -> str:
        """What must stand beside every figure of such a run."""
        return f"emulated: one rank of {self.tp}, collectives are delays of {self.source}"

    def delay_s(self, op: CollectiveOp, size_bytes: float) -> float:
        """Time of one collective [s]: linear between the points, that of the least below, in proportion to the size above.

        Nothing to send takes no time.

        Examples
        --------
        >>> points = ((1000.0, 1e-5), (3000.0, 3e-5))
        >>> emulation = Emulation(tp=2, all_reduce=points, all_gather=points, all_to_all=points)
        >>> [round(1e6 * emulation.delay_s(CollectiveOp.ALL_REDUCE, size), 3) for size in (0, 10, 2000, 6000)]
        [0.0, 10.0, 20.0, 60.0]
        """
        points: Points = getattr(self, op.value)
        if size_bytes <= 0:
            return 0.0
        after = bisect_left(points, (size_bytes, 0.0))
        if after == 0:
            return points[0][1]
        low_bytes, low_s = points[after - 1]
        if after == len(points):
            return low_s * size_bytes / low_bytes
        high_bytes, high_s = points[after]
        return low_s + (high_s - low_s) * (size_bytes - low_bytes) / (high_bytes - low_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What to run and how.

    Attributes
    ----------
    model
        Directory with ``config.json``, safetensors (unless ``load_format`` is ``dummy``) and ``tokenizer.json``.
    tp
        Ranks, one process each.
    device, dtype
        ``auto``: CUDA where there is any; the model's own format there, 32 bits on a CPU.
    load_format
        ``auto`` reads the weights, ``dummy`` draws random ones.
    switches
        The mechanisms of overlap; all off is the sequential loop.
    num_kv_blocks, kv_cache_bytes
        KV blocks, or bytes for them per rank; ``None`` for what the memory has: the smallest over the ranks counts.
    max_context_tok
        Longest prompt and output; ``None`` for the model's own limit.
    cuda_graphs
        Whether decode steps on a GPU are captured.
    num_threads
        Of each worker on a CPU; ``None``: one per rank with several ranks, else all cores but one.
    emulate
        One process runs the share of one rank of several; ``tp`` is then 1, and weights are ``dummy``: its tokens mean nothing.
    """

    model: str
    tp: int = 1
    device: str = "auto"
    dtype: str = "auto"
    load_format: str = "auto"
    switches: Switches = field(default_factory=Switches)
    num_kv_blocks: int | None = None
    kv_cache_bytes: int | None = None
    kv_block_size_tok: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_context_tok: int | None = None
    preemption: Preemption = Preemption.RECOMPUTE
    prefix_caching: bool = False
    gpu_memory_utilization: float = 0.9
    cuda_graphs: bool = True
    num_threads: int | None = None
    seed: int = 0
    delays: Delays = field(default_factory=Delays)
    emulate: Emulation | None = None

    def __post_init__(self) -> None:
        check_count(WorkloadError, _PLACE, tp=self.tp, kv_block_size_tok=self.kv_block_size_tok,
                    max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.max_num_batched_tokens)
        for name in ("num_kv_blocks", "kv_cache_bytes", "num_threads", "max_context_tok"):
            if getattr(self, name) is not None:
                check_count(WorkloadError, _PLACE, **{name: getattr(self, name)})
        check_count(WorkloadError, _PLACE, minimum=0, seed=self.seed)
        for name in ("tp", "num_threads"):
            check_real(WorkloadError, _PLACE, minimum=1, maximum=1024, **{name: getattr(self, name)})
        check_real(WorkloadError, _PLACE, minimum=0.01, maximum=1.0, gpu_memory_utilization=self.gpu_memory_utilization)
        if self.max_num_batched_tokens < self.max_num_seqs:
            reject(WorkloadError, "max_num_batched_tokens", f"be >= max_num_seqs {self.max_num_seqs}",
                   self.max_num_batched_tokens, _PLACE)
        if not isinstance(self.switches, Switches):
            reject(WorkloadError, "switches", "be Switches", self.switches, _PLACE)
        if not isinstance(self.preemption, Preemption):
            reject(WorkloadError, "preemption", "be a Preemption", self.preemption, _PLACE)
        for name, known in (("device", ("auto", "cpu", "cuda")), ("dtype", ("auto", "float32", "bfloat16", "float16")),
                            ("load_format", ("auto", "dummy"))):
            if getattr(self, name) not in known:
                reject(WorkloadError, name, f"be one of {', '.join(known)}", getattr(self, name), _PLACE)
        if self.emulate is not None:
            self._check_emulation()

    def _check_emulation(self) -> None:
        if not isinstance(self.emulate, Emulation):
            reject(WorkloadError, "emulate", "be an Emulation", self.emulate, _PLACE)
        for name, needed in (("tp", 1), ("load_format", "dummy")):
            if getattr(self, name) != needed:
                reject(WorkloadError, name, f"be {needed} where one rank of several is emulated", getattr(self, name), _PLACE)

    @property
    def share_tp(self) -> int:
        """Degree t of which a process holds one rank's share: the emulated one, else ``tp``."""
        return self.tp if self.emulate is None else self.emulate.tp
