"""From arrays to plans: one ``DegreePlan`` per degree of a question."""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from tpplanner.cost.kernel_time import kernels_outside
from tpplanner.cost.replica import ReplicaGrid
from tpplanner.domain.plan import Binding, DegreePlan, MemoryBudget, Outcome, Question, Reason, StepSplit, Uncertainty
from tpplanner.domain.workload import LoadMode
from tpplanner.planner.cluster import ClusterState, evaluate
from tpplanner.planner.degrees import Degree, num_replicas_of
from tpplanner.units import GIB


def grid_of(question: Question, tps: Sequence[int]) -> ReplicaGrid:
    """Return the replica grid of a question, one point per degree."""
    return ReplicaGrid(
        model=question.model, hardware=question.hardware, engine=question.engine, sampling=question.sampling,
        tp=np.asarray(tps, dtype=float), isl_tok=float(question.workload.isl_tok),
        osl_tok=float(question.workload.osl_tok), max_num_seqs=float(question.max_num_seqs),
        max_num_batched_tokens=float(question.max_num_batched_tokens),
        gpu_memory_utilization=question.gpu_memory_utilization,
        non_kv_overhead_bytes=question.non_kv_overhead_bytes, num_gpu_blocks=question.num_gpu_blocks, ep=float(question.ep),
    )


def price_of(question: Question) -> float | None:
    """Price of one GPU-hour: the user's, else the profile's, else none [usd/h]."""
    if question.price_usd_h is not None:
        return question.price_usd_h
    price = question.hardware.price_usd_h
    return None if price is None else price.value


def evaluate_question(question: Question, tps: Sequence[int]) -> ClusterState:
    """Evaluate the degrees ``tps`` of a question."""
    return evaluate(
        grid_of(question, tps), num_gpus=float(question.num_gpus), mode=question.load.mode,
        value=question.load.value or 0.0, targets=question.targets, price_usd_h=price_of(question),
    )


def _at(value: object, i: int) -> float:
    array = np.asarray(value, dtype=float)
    return float(array if array.ndim == 0 else array[i] if array.size > 1 else array.ravel()[0])


def _finite(value: object, i: int) -> float | None:
    number = _at(value, i)
    return number if np.isfinite(number) else None


def _memory(question: Question, state: ClusterState, i: int) -> MemoryBudget:
    m = state.room.memory
    blocks = _at(m.num_kv_blocks, i)
    unlimited = not np.isfinite(blocks)
    return MemoryBudget(
        hbm_bytes=question.hardware.hbm_bytes.value, usable_bytes=_at(m.usable_bytes, i),
        weight_bytes=_at(m.weight_bytes, i), activation_bytes=_at(m.activation_bytes, i),
        runtime_bytes=_at(m.runtime_bytes, i), kv_bytes=max(_at(m.kv_bytes, i), 0.0),
        kv_bytes_per_tok=_at(m.kv_bytes_per_tok, i), num_kv_blocks=0 if unlimited else int(blocks),
        kv_capacity_tok=0 if unlimited else int(_at(m.kv_capacity_tok, i)),
    )


def _step(state: ClusterState, i: int) -> StepSplit:
    s = state.state
    return StepSplit(**{f.name: _at(s.mean_of(f.name), i) for f in fields(StepSplit)})


def _binding(question: Question, state: ClusterState, i: int) -> Binding:
    s, mode = state.state, question.load.mode
    kv_first = _at(state.room.num_seqs, i) <= question.max_num_seqs
    full = Binding.KV_CACHE if kv_first else Binding.MAX_NUM_SEQS
    if _at(s.prefill_util_frac, i) > 0.995:
        return Binding.PREFILL
    if mode is LoadMode.SLO_CAPACITY:
        limit = max(np.floor(min(_at(state.room.num_seqs, i), question.max_num_seqs)), 1.0)
        if _at(state.concurrency_per_replica, i) >= limit:
            return full
        tpot = question.targets.tpot_s
        near = tpot is not None and _at(state.latency.tpot_s, i) > 0.97 * tpot
        return Binding.TPOT if near or question.targets.ttft_s is None else Binding.TTFT
    return full if bool(state.saturated[i]) else Binding.OFFERED_LOAD


def _extrapolated(question: Question, state: ClusterState, i: int) -> tuple[str, ...]:
    """Names of fitted coefficients that are used outside the range of their samples."""
    engine = question.engine
    seqs = _at(state.state.num_running_seqs, i)
    named = {
        "schedule": engine.schedule.per_seq_s, "prepare_input": engine.prepare_input.per_seq_per_log2_tp_s,
        "process_output": engine.process_output.per_seq_s,
        f"sampling.{question.sampling.value}": engine.sampling[question.sampling].per_seq_s,
    }
    outside = [name for name, q in named.items()
               if q is not None and q.valid_for == "num_decode_seqs" and q.provenance_at(seqs) != q.provenance]
    rows = max(_at(state.state.mixed_batch.num_tok, i), _at(state.state.decode_batch.num_tok, i))
    return (*outside, *kernels_outside(question.model, question.hardware, num_tok=rows))


def _outcome(question: Question, state: ClusterState, i: int) -> Outcome:
    s, tok_s = state.state, float(state.throughput_tok_s[i])
    kv_bytes = max(_at(state.room.memory.kv_bytes, i), 1.0)
    active = float(state.num_active_replicas[i])
    resident = _at(s.num_running_seqs, i) / max(_at(state.room.num_seqs, i), 1e-9)
    cost = state.cost_usd_per_mtok
    return Outcome(
        throughput_tok_s=tok_s, throughput_per_gpu_tok_s=tok_s / question.num_gpus,
        request_rate_req_s=float(state.rate_req_s[i]), capacity_req_s=float(state.capacity_req_s[i]),
        ttft_s=_finite(state.latency.ttft_s, i), tpot_s=_finite(state.latency.tpot_s, i),
        e2e_s=_finite(state.latency.e2e_s, i),
        concurrency_total=_finite(active * state.concurrency_per_replica, i) or 0.0,
        concurrency_per_replica=_finite(state.concurrency_per_replica, i) or _at(s.num_running_seqs, i),
        num_running_seqs=_at(s.num_running_seqs, i), num_decode_seqs=_at(s.num_decode_seqs, i),
        num_queued_seqs=_finite(s.num_queued_seqs, i), preemptions_per_req=_at(s.preemptions_per_req, i),
        recompute_tok_per_req=_at(s.recompute_tok_per_req, i), swap_bytes_per_req=_at(s.swap_bytes_per_req, i),
        kv_used_frac=min(resident, 1.0) if kv_bytes > 1.0 else 0.0, busy_frac=float(state.busy_frac[i]),
        mixed_frac=_at(s.mixed_frac, i), mixed_prefill_tok=_at(s.mixed_batch.num_prefill_tok, i),
        swap_stall_s=_at(s.swap_stall_s, i),
        step=_step(state, i), power_w=float(state.power_w[i]), energy_j_per_tok=float(state.energy_j_per_tok[i]),
        cost_usd_per_mtok=None if cost is None else float(cost[i]), binding=_binding(question, state, i),
        saturated=bool(state.saturated[i]), extrapolated=_extrapolated(question, state, i),
    )


def _why_no_fit(question: Question, state: ClusterState, i: int) -> tuple[Reason, str] | None:
    memory = state.room.memory
    if not bool(np.broadcast_to(state.room.fits_weights, state.runs.shape)[i]):
        needed = _at(memory.weight_bytes, i) / GIB
        rest = (_at(memory.activation_bytes, i) + _at(memory.runtime_bytes, i)) / GIB
        usable = _at(memory.usable_bytes, i) / GIB
        return Reason.WEIGHTS, (f"weights {needed:.1f} GiB + activations and runtime {rest:.1f} GiB "
                                f"> {usable:.1f} GiB usable per GPU")
    if not state.runs[i]:
        asked = question.workload.isl_tok + question.workload.osl_tok
        needed = _at(state.room.full_seq_bytes, i) / GIB
        return Reason.KV_CACHE, (f"KV cache of {_at(memory.kv_bytes, i) / GIB:.2f} GiB per GPU, one request of "
                                 f"{asked:,} tokens needs {needed:.2f} GiB")
    return None


def _why_not(question: Question, state: ClusterState, i: int) -> tuple[Reason, str] | None:
    targets = question.targets
    if question.load.mode is LoadMode.REQUEST_RATE and state.saturated[i]:
        return Reason.LOAD, (f"saturates at {float(state.capacity_req_s[i]):.3g} req/s, "
                             f"offered {question.load.value:.3g}")
    if not question.num_gpus_given and state.saturated[i]:
        return Reason.LOAD, "requests queue for a place in the batch, whatever the number of GPUs"
    if not state.meets_tpot[i] and targets.tpot_s is not None:
        return Reason.TPOT, f"TPOT {_at(state.latency.tpot_s, i) * 1e3:.1f} ms > target {targets.tpot_s * 1e3:g} ms"
    if not state.meets_ttft[i] and targets.ttft_s is not None:
        return Reason.TTFT, f"TTFT {_at(state.latency.ttft_s, i) * 1e3:.0f} ms > target {targets.ttft_s * 1e3:g} ms"
    return None


def plan_degree(
    question: Question, degree: Degree, state: ClusterState, i: int, *, uncertainty: Uncertainty | None = None
) -> DegreePlan:
    """Return the plan of grid point ``i``, which was evaluated at ``degree``, with its ``uncertainty`` if it runs."""
    tp = degree.tp
    node = question.hardware.gpus_per_node
    replicas = int(num_replicas_of(question.num_gpus, tp=tp, gpus_per_node=node))
    plan = DegreePlan(tp=tp, num_replicas=replicas, num_gpus_idle=question.num_gpus - replicas * tp,
                      feasible=True, reason=None, reason_detail="", memory=None, outcome=None)
    if degree.obstacle:
        return replace(plan, feasible=False, reason=Reason.HEADS, reason_detail=degree.obstacle)
    if replicas == 0:
        return replace(plan, feasible=False, reason=Reason.GPUS,
                       reason_detail=f"one replica takes {tp} GPUs, there are {question.num_gpus}")
    plan = replace(plan, memory=_memory(question, state, i))
    why = _why_no_fit(question, state, i) or _why_not(question, state, i)
    if why is not None:
        plan = replace(plan, feasible=False, reason=why[0], reason_detail=why[1])
        if why[0] in (Reason.WEIGHTS, Reason.KV_CACHE):
            return plan
    return replace(plan, outcome=_outcome(question, state, i), uncertainty=uncertainty)
