"""The page on which the terms are added.

    step(t) = scalable(t) + communication(t) + sampling(t) + host(t) - hidden(t)

T3 is scalable + communication, T4 sampling, T1 + T2 + T5 host (Albireo, arXiv 2606.01927,
sections 1 to 4). Each term is one module beside this one.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from tpplanner.cost.elementwise import launch_s
from tpplanner.cost.host import task_s
from tpplanner.cost.operators import OperatorTimes, operator_times
from tpplanner.cost.overlap import hidden_s
from tpplanner.cost.sampling import sampling_s
from tpplanner.cost.work import work_of
from tpplanner.domain.engine import EngineProfile, SamplingPolicy
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.matrix import FloatOrArray
from tpplanner.domain.model import ModelSpec
from tpplanner.domain.step import Batch, StepTime


def _always_exposed_s(engine: EngineProfile, *, tp: FloatOrArray, num_seqs: FloatOrArray) -> FloatOrArray:
    """What overlapping costs, or what serving runs found exposed beside the tasks [s]."""
    overhead: FloatOrArray = engine.overlap_overhead_s.value if engine.switches.async_sched else 0.0
    return overhead if engine.exposed is None else overhead + task_s(engine.exposed, tp=tp, num_seqs=num_seqs)


@lru_cache(maxsize=256)
def _factors(engine: EngineProfile) -> Mapping[str, float]:
    """Time inside the engine over the time alone, per kind of operator; 1 where no serving runs were fitted."""
    kinds = ("gemm", "expert", "decode_attention", "prefill_attention", "collective")
    terms = engine.terms
    return {kind: 1.0 if terms is None else getattr(terms, f"{kind}_factor").value for kind in kinds}


def with_interference(engine: EngineProfile, *, decode_s: FloatOrArray, mixed_s: FloatOrArray) -> FloatOrArray:
    """Time of a step that carries prompts, from its terms and those of the same step without them [s].

    decode + w (mixed - decode): serving runs found the factor w on what prompts add; 1 without them.
    """
    if engine.terms is None:
        return mixed_s
    return decode_s + engine.terms.prefill_interference.value * (mixed_s - decode_s)


def step_time(
    model: ModelSpec,
    hardware: HardwareProfile,
    engine: EngineProfile,
    *,
    tp: FloatOrArray,
    batch: Batch,
    sampling: SamplingPolicy | None = None,
    ep: FloatOrArray = 1.0,
) -> StepTime:
    """Terms of one engine step of a replica of degree ``tp`` [s].

    Parameters
    ----------
    model, hardware, engine
        What runs, on what, in what.
    tp
        Tensor-parallel degree; a scalar or an array that broadcasts with the batch.
    batch
        What the step processes; scalars or arrays.
    sampling
        Policy; the engine's default where ``None``.
    ep
        Ranks of the replica that hold whole experts; 1 cuts every expert.

    Returns
    -------
    StepTime
        Each term with the broadcast shape of ``tp`` and the batch, in seconds.

    Notes
    -----
    Not modelled: the sawtooth of GEMM tiles, CUDA-graph padding. Expert imbalance and communication that overlaps
    with compute are in the factors where serving runs were fitted. An empty batch still costs its launches.
    """
    alone = operator_times(model, hardware, tp=tp, ep=ep, batch=batch,
                           seq_parallel_sampling=engine.switches.seq_parallel_sampling)
    return step_of(alone, model, engine, tp=tp, batch=batch, sampling=sampling)


def step_of(
    alone: OperatorTimes, model: ModelSpec, engine: EngineProfile, *, tp: FloatOrArray, batch: Batch,
    sampling: SamplingPolicy | None = None,
) -> StepTime:
    """Terms of a step whose operators take ``alone`` by themselves [s]; the sum itself, for fits that vary the rest."""
    switches = engine.switches
    num_sampled, num_seqs = batch.num_sampled, batch.num_seqs
    # scalable(t), T3 on the device, and communication(t): operators alone, times what the engine makes of them
    inside = _factors(engine)
    linear = np.maximum(inside["gemm"] * alone.gemm_s, alone.gemm_floor_s) + inside["expert"] * alone.expert_s
    attention = (inside["decode_attention"] * alone.decode_attention_s
                 + inside["prefill_attention"] * alone.prefill_attention_s)
    elementwise, comm = alone.elementwise_s, inside["collective"] * alone.comm_s
    launch = launch_s(work_of(model), engine, tp=tp, num_seqs=num_seqs)
    # sampling(t): T4
    t4 = sampling_s(engine.sampling[sampling or engine.default_sampling], tp=tp, num_sampled=num_sampled,
                    seq_parallel=switches.seq_parallel_sampling, vocab_size=model.vocab_size)
    # host(t): T1, T2, T5
    t1 = task_s(engine.schedule, tp=tp, num_seqs=num_seqs)
    t2 = task_s(engine.prepare_input, tp=tp, num_seqs=num_seqs)
    t5 = task_s(engine.process_output, tp=tp, num_seqs=num_seqs)
    # hidden(t)
    hidden = hidden_s(switches, tp=tp, schedule_s=t1, prepare_input_s=t2, process_output_s=t5,
                      feedback_from_tp=engine.feedback_from_tp,
                      device_s=linear + attention + elementwise + launch + comm + t4)
    zero = 0.0 * hidden
    return StepTime(
        linear_s=linear, attention_s=attention, elementwise_s=elementwise, launch_s=launch + zero, comm_s=comm,
        sampling_s=t4, schedule_s=t1 + zero, prepare_input_s=t2 + zero, process_output_s=t5 + zero,
        overlap_overhead_s=_always_exposed_s(engine, tp=tp, num_seqs=num_seqs) + zero,
        hidden_s=hidden,
    )
