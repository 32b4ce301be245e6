"""Times of the operators of one step, each as if it ran alone: what engines then fuse, overlap or hold up."""

from dataclasses import dataclass

from tpplanner.cost.attention import decode_attention_s, prefill_attention_s
from tpplanner.cost.communication import communication_s
from tpplanner.cost.elementwise import elementwise_s
from tpplanner.cost.linear import experts_s, gemms_s, weights_read_s
from tpplanner.cost.work import work_of
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.model import ModelSpec
from tpplanner.domain.step import Batch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperatorTimes:
    """Time of each kind of operator in one step on one rank [s].

    ``gemm_floor_s`` is what reading the weights outside the experts takes at the peak bandwidth: no fusion goes below it.
    """

    gemm_s: FloatOrArray
    gemm_floor_s: FloatOrArray
    expert_s: FloatOrArray
    decode_attention_s: FloatOrArray
    prefill_attention_s: FloatOrArray
    elementwise_s: FloatOrArray
    comm_s: FloatOrArray


def operator_times(
    model: ModelSpec, hardware: HardwareProfile, *, tp: FloatOrArray, batch: Batch, ep: FloatOrArray = 1.0,
    seq_parallel_sampling: bool = False,
) -> OperatorTimes:
    """Times of the operators of ``batch`` on a replica of degree ``tp`` [s].

    Parameters
    ----------
    tp, ep
        Degree, and how many of its ranks hold whole experts (1: every expert is cut by t).
    batch
        What the step processes; scalars or arrays.
    """
    work = work_of(model)
    kv_element_bytes = model.precision.kv.num_bytes
    num_tok, num_sampled = batch.num_tok, batch.num_sampled
    return OperatorTimes(
        gemm_s=gemms_s(model, hardware, tp=tp, num_tok=num_tok, num_sampled=num_sampled),
        gemm_floor_s=weights_read_s(work, hardware, tp=tp),
        expert_s=experts_s(model, hardware, tp=tp, ep=ep, num_tok=num_tok),
        decode_attention_s=decode_attention_s(work, hardware, tp=tp, num_seqs=batch.num_decode_seqs,
                                              context_tok=batch.decode_context_tok, kv_element_bytes=kv_element_bytes),
        prefill_attention_s=prefill_attention_s(work, hardware, tp=tp, num_tok=batch.num_prefill_tok,
                                                context_tok=batch.prefill_context_tok,
                                                kv_element_bytes=kv_element_bytes),
        elementwise_s=elementwise_s(work, hardware, tp=tp, num_tok=num_tok),
        comm_s=communication_s(work, hardware, tp=tp, num_tok=num_tok, num_sampled=num_sampled,
                               seq_parallel_sampling=seq_parallel_sampling),
    )
