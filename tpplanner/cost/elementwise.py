"""Element-wise work and launches: what runs between the linears."""

from tpplanner.cost.host import task_s
from tpplanner.cost.work import ModelWork
from tpplanner.domain.engine import EngineProfile
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.matrix import FloatOrArray

EQUATION = "n (replicated bytes + sharded bytes / t) / (ee bw)"
LAUNCH_EQUATION = "L * layer overhead + (a + b n) per step"


def elementwise_s(
    work: ModelWork, hardware: HardwareProfile, *, tp: FloatOrArray, num_tok: FloatOrArray
) -> FloatOrArray:
    """Time of norms, residuals, rotary embedding, gating and KV writes [s].

    Norms, residuals and the embedding look-up are the same on every rank; the rest is divided by t.
    """
    rate = hardware.hbm_bytes_s.value * hardware.efficiency.elementwise_memory.value
    per_tok = work.replicated_activation_bytes_per_tok + work.sharded_activation_bytes_per_tok / tp
    return num_tok * per_tok / rate


def launch_s(work: ModelWork, engine: EngineProfile, *, tp: FloatOrArray, num_seqs: FloatOrArray) -> FloatOrArray:
    """Launch gaps and small kernels of all layers, and of the step around them [s]; t divides nothing of it."""
    layers = work.num_layers * engine.layer_overhead_s.value
    return layers if engine.step_overhead is None else layers + task_s(engine.step_overhead, tp=tp, num_seqs=num_seqs)
