"""Settings of the engine."""

from dataclasses import dataclass, field

from tpplanner.domain.checks import check_count, check_real
from tpplanner.domain.engine import Preemption, Switches
from tpplanner.errors import WorkloadError, reject

_PLACE = "engine"


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
