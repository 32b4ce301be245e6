"""Element-wise work and launches: what runs between the linears."""

from tpplanner.cost.work import ModelWork
from tpplanner.domain.engine import EngineProfile
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.matrix import FloatOrArray

EQUATION = "n (replicated bytes + sharded bytes / t) / (ee bw)"
LAUNCH_EQUATION = "L * layer overhead"


def elementwise_s(
    work: ModelWork, hardware: HardwareProfile, *, tp: FloatOrArray, num_tok: FloatOrArray
) -> FloatOrArray:
    """Time of norms, residuals, rotary embedding, gating and KV writes [s].

    Norms, residuals and the embedding look-up are the same on every rank; the rest is divided by t.
    """
    rate = hardware.hbm_bytes_s.value * hardware.efficiency.elementwise_memory.value
    per_tok = work.replicated_activation_bytes_per_tok + work.sharded_activation_bytes_per_tok / tp
    return num_tok * per_tok / rate


def launch_s(work: ModelWork, engine: EngineProfile) -> float:
    """Launch gaps and small kernels of all layers [s]; t divides nothing of it."""
    return work.num_layers * engine.layer_overhead_s.value
