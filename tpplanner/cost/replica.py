"""A grid of replicas: one model, machine and engine, with degree, lengths and limits that may be arrays."""

from dataclasses import dataclass

import numpy as np

from tpplanner.cost.kv import kv_bytes_per_seq
from tpplanner.cost.memory import MemorySplit, memory_split
from tpplanner.cost.step_time import step_time
from tpplanner.cost.work import work_of
from tpplanner.domain.engine import EngineProfile, Preemption, SamplingPolicy
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.matrix import BoolOrArray, FloatOrArray
from tpplanner.domain.model import ModelSpec
from tpplanner.domain.serving_fit import STEADY, LoadGenerator
from tpplanner.domain.step import Batch, StepTime


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReplicaGrid:
    """Replicas to evaluate at once. Every number may be an array; all broadcast together.

    Attributes
    ----------
    tp, isl_tok, osl_tok
        Degree, prompt and output length.
    max_num_seqs, max_num_batched_tokens, gpu_memory_utilization
        Limits of the engine.
    non_kv_overhead_bytes
        Replaces the modelled activations and runtime of a rank.
    num_gpu_blocks
        Replaces the modelled number of KV blocks of a rank.
    ep
        Ranks that hold whole experts; 1 cuts every expert.
    load
        The benchmark that loads the replicas; the steady state without one.
    """

    model: ModelSpec
    hardware: HardwareProfile
    engine: EngineProfile
    sampling: SamplingPolicy
    tp: FloatOrArray
    isl_tok: FloatOrArray
    osl_tok: FloatOrArray
    max_num_seqs: FloatOrArray
    max_num_batched_tokens: FloatOrArray
    gpu_memory_utilization: FloatOrArray
    non_kv_overhead_bytes: float | None = None
    num_gpu_blocks: FloatOrArray | None = None
    ep: FloatOrArray = 1.0
    load: LoadGenerator = STEADY

    def step(self, batch: Batch) -> StepTime:
        """Terms of one step [s]."""
        return step_time(self.model, self.hardware, self.engine, tp=self.tp, ep=self.ep, batch=batch,
                         sampling=self.sampling)

    def memory(self) -> MemorySplit:
        """Memory of one rank [bytes]."""
        return memory_split(
            self.model, self.hardware, self.engine, tp=self.tp,
            gpu_memory_utilization=self.gpu_memory_utilization, max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            non_kv_overhead_bytes=self.non_kv_overhead_bytes, num_gpu_blocks=self.num_gpu_blocks,
        )

    def seq_kv_bytes(self, context_tok: FloatOrArray) -> FloatOrArray:
        """Cache of one sequence on one rank, with the half block that it wastes in the mean [bytes]."""
        waste = (self.engine.kv_block_size_tok - 1) / 2.0
        return kv_bytes_per_seq(work_of(self.model), tp=self.tp, context_tok=context_tok + waste,
                                kv_element_bytes=self.model.precision.kv.num_bytes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KvRoom:
    """How many sequences the KV cache holds.

    ``num_seqs`` at mean length (prompt and half the output), or at full length where the engine
    reserves it; ``full_seq_bytes`` what one request takes at its full length and ``fits_one`` whether it
    fits; ``fits_weights`` whether the weights leave anything at all.
    """

    memory: MemorySplit
    num_seqs: FloatOrArray
    full_seq_bytes: FloatOrArray
    fits_one: BoolOrArray
    fits_weights: BoolOrArray


def kv_room(grid: ReplicaGrid) -> KvRoom:
    """Evaluate the memory of the grid."""
    memory = grid.memory()
    kv_bytes = np.maximum(memory.kv_bytes, 0.0)
    mean_seq = grid.seq_kv_bytes(grid.isl_tok + grid.osl_tok / 2.0)
    full_seq = grid.seq_kv_bytes(grid.isl_tok + grid.osl_tok)
    held = full_seq if grid.engine.preemption is Preemption.RESERVE else mean_seq
    return KvRoom(
        memory=memory,
        num_seqs=np.maximum(kv_bytes / held, 1e-9),
        full_seq_bytes=full_seq,
        fits_one=np.greater_equal(kv_bytes, full_seq),
        fits_weights=np.greater(memory.kv_bytes, 0.0),
    )
