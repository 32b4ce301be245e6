"""Power from utilisation, and what a token costs in joules and in money."""

import numpy as np

from tpplanner.cost.attention import attention_bytes, attention_flop
from tpplanner.cost.linear import linear_bytes, linear_flop
from tpplanner.cost.work import work_of
from tpplanner.domain.hardware import Power
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.model import ModelSpec
from tpplanner.domain.step import Batch
from tpplanner.units import HOUR_S

EQUATION = "idle + (board - idle) min(1, busy base + memory mbu + compute mfu)"


def step_bytes_flop(model: ModelSpec, *, tp: FloatOrArray, batch: Batch) -> tuple[FloatOrArray, FloatOrArray]:
    """What one rank reads of weights and KV cache in a step [bytes], and its arithmetic [flop]."""
    work = work_of(model)
    read = (linear_bytes(work, tp=tp, num_tok=batch.num_tok)
            + attention_bytes(work, tp=tp, batch=batch, kv_element_bytes=model.precision.kv.num_bytes))
    flop = (linear_flop(work, tp=tp, num_tok=batch.num_tok, num_sampled=batch.num_sampled)
            + attention_flop(work, tp=tp, batch=batch))
    return read, flop


def gpu_power_w(
    power: Power, *, busy_frac: FloatOrArray, mbu_frac: FloatOrArray, mfu_frac: FloatOrArray
) -> FloatOrArray:
    """Mean power of one GPU [w].

    Parameters
    ----------
    busy_frac
        Share of time in which the device works.
    mbu_frac, mfu_frac
        Mean shares of peak bandwidth and of the dense peak, over all time.

    Notes
    -----
    Linear in the utilisations and capped at the board's limit; clocks that fall under the cap are not
    modelled. Always idle_w <= result <= board_w.
    """
    drawn = (power.busy_frac.value * busy_frac + power.memory_frac.value * mbu_frac
             + power.compute_frac.value * mfu_frac)
    return power.idle_w.value + (power.board_w.value - power.idle_w.value) * np.clip(drawn, 0.0, 1.0)


def energy_j_per_tok(*, power_w: FloatOrArray, throughput_tok_s: FloatOrArray) -> FloatOrArray:
    """Energy of one output token [j].

    Examples
    --------
    >>> energy_j_per_tok(power_w=5600.0, throughput_tok_s=2800.0)
    2.0
    """
    return power_w / throughput_tok_s


def cost_usd_per_mtok(
    *, num_gpus: FloatOrArray, price_usd_h: float, throughput_tok_s: FloatOrArray
) -> FloatOrArray:
    """Rent of ``num_gpus`` per million output tokens [usd].

    Examples
    --------
    8 GPUs at 2.5 USD/h make 20 USD/h; 10,000 tok/s are 36 million tokens an hour: 0.5556 USD.

    >>> round(cost_usd_per_mtok(num_gpus=8, price_usd_h=2.5, throughput_tok_s=10_000), 4)
    0.5556
    """
    return num_gpus * price_usd_h / HOUR_S / throughput_tok_s * 1e6
