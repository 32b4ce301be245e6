"""Linears: GEMMs whose weights t divides, bounded by arithmetic or by reading the weights."""

from tpplanner.cost.kernel_time import experts_kernel_s, has_gemm_kernels, has_moe_kernels, layers_kernel_s
from tpplanner.cost.roofline import roofline_s
from tpplanner.cost.work import LinearClass, ModelWork, work_of
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.model import ModelSpec

EQUATION = "sum over linears of ((2 n P s / (ec peak))^p + (P s bytes / (em bw))^p)^(1/p),  s = max(1/t, min share)"


def gemm_s(
    *,
    num_tok: FloatOrArray,
    num_params: FloatOrArray,
    bytes_per_param: float,
    flop_s: float,
    bytes_s: float,
    num_params_read: FloatOrArray | None = None,
    sharpness: float = 4.0,
) -> FloatOrArray:
    """Time of multiplying ``num_tok`` rows by ``num_params`` weights on one rank [s].

    Parameters
    ----------
    num_tok, num_params
        Rows of the activation, and weights that each of them meets on this rank.
    bytes_per_param
        Storage of one weight, scales included [bytes].
    flop_s, bytes_s
        Achievable rates: peak times efficiency [flop/s, bytes/s].
    num_params_read
        Weights that are read, where that is more than one row meets (experts).
    sharpness
        Of the roofline's knee.

    Notes
    -----
    Activation traffic is counted with the element-wise work. Not modelled: tile and wave
    quantisation, so shapes far from multiples of the tile take longer.

    Examples
    --------
    One row by 1e9 bf16 weights is bounded by reading 2 GB: 1 ms at 2 TB/s.

    >>> round(float(gemm_s(num_tok=1, num_params=1e9, bytes_per_param=2, flop_s=1e15, bytes_s=2e12)), 9)
    0.001
    """
    read = num_params if num_params_read is None else num_params_read
    return roofline_s(compute_s=2.0 * num_tok * num_params / flop_s, memory_s=read * bytes_per_param / bytes_s,
                      sharpness=sharpness)


def linear_class_s(
    linear: LinearClass, hardware: HardwareProfile, *, tp: FloatOrArray, num_tok: FloatOrArray
) -> FloatOrArray:
    """Time of one class of linears on one rank of ``tp`` [s]; an expert class reads what its tokens meet."""
    efficiency = hardware.efficiency
    compute = efficiency.expert_compute if linear.is_expert else efficiency.gemm_compute
    memory = efficiency.expert_memory if linear.is_expert else efficiency.gemm_memory
    shard = linear.num_params * linear.shard_frac(tp)
    return gemm_s(
        num_tok=num_tok, num_params=linear.num_active * shard,
        num_params_read=linear.num_copies_read(num_tok) * shard, bytes_per_param=linear.bytes_per_param,
        flop_s=hardware.peak_for(linear.runs_as).value * compute.value,
        bytes_s=hardware.hbm_bytes_s.value * memory.value, sharpness=efficiency.roofline_sharpness.value,
    )


def gemms_s(
    model: ModelSpec, hardware: HardwareProfile, *, tp: FloatOrArray, num_tok: FloatOrArray, num_sampled: FloatOrArray
) -> FloatOrArray:
    """Time of all linears of a step but the routed experts, the LM head on the sampled rows only [s].

    By the fitted kernels where the machine has one for each, else by the roofline of each class.
    """
    if has_gemm_kernels(model, hardware):
        return layers_kernel_s(model, hardware, tp=tp, num_tok=num_tok, num_sampled=num_sampled)
    work = work_of(model)
    total: FloatOrArray = linear_class_s(work.lm_head, hardware, tp=tp, num_tok=num_sampled)
    for linear in work.linears:
        if not linear.is_expert:
            total = total + linear_class_s(linear, hardware, tp=tp, num_tok=num_tok)
    return total


def weights_read_s(work: ModelWork, hardware: HardwareProfile, *, tp: FloatOrArray) -> FloatOrArray:
    """Time of reading one rank's weights outside the experts once at the peak bandwidth [s]."""
    total: FloatOrArray = work.lm_head.num_params * work.lm_head.bytes_per_param * work.lm_head.shard_frac(tp)
    for linear in work.linears:
        if not linear.is_expert:
            total = total + linear.num_params * linear.bytes_per_param * linear.shard_frac(tp)
    return total / hardware.hbm_bytes_s.value


def experts_s(
    model: ModelSpec, hardware: HardwareProfile, *, tp: FloatOrArray, num_tok: FloatOrArray, ep: FloatOrArray = 1.0
) -> FloatOrArray:
    """Time of the routed experts of a step [s]; 0 for a dense model.

    By the fitted kernel where the machine has one, else by the roofline, for which ``ep`` makes no difference.
    """
    if not model.is_moe:
        return 0.0 * num_tok
    if has_moe_kernels(model, hardware):
        return experts_kernel_s(model, hardware, tp=tp, ep=ep, num_tok=num_tok)
    total: FloatOrArray = 0.0
    for linear in work_of(model).linears:
        if linear.is_expert:
            total = total + linear_class_s(linear, hardware, tp=tp, num_tok=num_tok)
    return total


def linear_flop(
    work: ModelWork, *, tp: FloatOrArray, num_tok: FloatOrArray, num_sampled: FloatOrArray
) -> FloatOrArray:
    """Arithmetic of all linears on one rank [flop]: 2 per weight and row."""
    total: FloatOrArray = 2.0 * num_sampled * work.lm_head.num_params * work.lm_head.shard_frac(tp)
    for c in work.linears:
        total = total + 2.0 * num_tok * c.num_active * c.num_params * c.shard_frac(tp)
    return total


def linear_bytes(work: ModelWork, *, tp: FloatOrArray, num_tok: FloatOrArray) -> FloatOrArray:
    """Weights that one rank reads in a step [bytes]."""
    head = work.lm_head
    total: FloatOrArray = head.num_params * head.bytes_per_param * head.shard_frac(tp)
    for c in work.linears:
        total = total + c.num_copies_read(num_tok) * c.num_params * c.bytes_per_param * c.shard_frac(tp)
    return total
