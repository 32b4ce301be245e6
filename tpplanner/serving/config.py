"""Limits of a replica."""

from dataclasses import dataclass

from tpplanner.domain.checks import check_count, check_real
from tpplanner.domain.engine import Preemption
from tpplanner.errors import WorkloadError, reject


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of a replica, as vLLM names them.

    ``watermark_frac`` of the blocks stay free when a sequence is admitted.
    """

    num_kv_blocks: int
    kv_block_size_tok: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    preemption: Preemption = Preemption.RECOMPUTE
    watermark_frac: float = 0.0
    prefix_caching: bool = False

    def __post_init__(self) -> None:
        check_count(WorkloadError, "scheduler", num_kv_blocks=self.num_kv_blocks, max_num_seqs=self.max_num_seqs,
                    kv_block_size_tok=self.kv_block_size_tok, max_num_batched_tokens=self.max_num_batched_tokens)
        check_real(WorkloadError, "scheduler", maximum=0.5, watermark_frac=self.watermark_frac)
        if self.max_num_batched_tokens < self.max_num_seqs:
            reject(WorkloadError, "max_num_batched_tokens", f"be >= max_num_seqs {self.max_num_seqs}",
                   self.max_num_batched_tokens, "scheduler")
