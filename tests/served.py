"""Serving runs of our own making: known coefficients, the planner's closed loop, and noise where it is asked for."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from builders import round_engine, round_hardware, task, tiny_model

from tpplanner.cost.latency import latency_of
from tpplanner.cost.serving import bind_terms
from tpplanner.cost.steady_state import closed_loop
from tpplanner.domain.attention import GroupedQueryAttention
from tpplanner.domain.engine import EngineProfile, Switches
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.domain.model import DenseMlp, LayerGroup, ModelSpec, MoeMlp
from tpplanner.domain.serving_fit import LoadGenerator, ServingTerms
from tpplanner.domain.serving_run import ServingRun
from tpplanner.fit.serving_groups import Group, Served, groups_of
from tpplanner.fit.serving_splits import trusted
from tpplanner.fit.serving_terms import terms_of

BENCHMARK = LoadGenerator(prompts_per_client=10.0, length_frac=0.9)


def model(num_layers: int, hidden: int, *, moe: bool = False) -> ModelSpec:
    """A model whose heads and MLP go with its width."""
    attention = GroupedQueryAttention(num_heads=hidden // 128, num_kv_heads=8, head_dim=128)
    mlp = MoeMlp(num_experts=8, num_experts_per_tok=2, expert_intermediate_size=2 * hidden) if moe else DenseMlp(
        intermediate_size=4 * hidden)
    group = LayerGroup(num_layers=num_layers, attention=attention, mlp=mlp)
    return replace(tiny_model(), name=f"m{num_layers}x{hidden}", hidden_size=hidden, layer_groups=(group,))


MODELS = {m.name: m for m in (model(24, 2048), model(40, 4096))}
SMALL = next(iter(MODELS.values()))
MOE = model(16, 2048, moe=True)


def machine(name: str, hbm_bytes_s: float) -> HardwareProfile:
    """A machine with 80 GB and two FLOP per... a peak in proportion to its bandwidth."""
    plain = round_hardware(gpus_per_node=8)

    def of(quantity: object, value: float) -> object:
        return replace(quantity, value=value)

    return replace(plain, name=name, hbm_bytes=of(plain.hbm_bytes, 80e9), hbm_bytes_s=of(plain.hbm_bytes_s, hbm_bytes_s),
                   peak_flop_s={"bf16": of(plain.peak_flop_s["bf16"], 200.0 * hbm_bytes_s)})


MACHINES = {m.name: m for m in (machine("slow", 1e12), machine("fast", 3e12))}
ENGINES: dict[str, EngineProfile] = {
    "plain": replace(round_engine(prepare_input=task(2e-3)), name="plain"),
    "overlap": replace(round_engine(Switches(async_sched=True)), name="overlap"),
}
LENGTHS = ((1024, 128), (512, 512))


def truth(kind: str, engine: str) -> ServingTerms:
    """Coefficients that the runs are made with: some of each engine's own, the rest at their starts."""
    from tpplanner.fit.serving_spec import SPECS

    own = {"plain": {"gemm_factor": 0.9, "step_s": 2e-3, "request_s": 0.05},
           "overlap": {"gemm_factor": 0.82, "step_s": 0.8e-3, "request_s": 0.03}}[engine]
    values = {c.name: c.start for c in SPECS[kind]} | own
    return terms_of(kind, np.asarray([values[c.name] for c in SPECS[kind]]))


def blank_runs(
    *, machines: Sequence[str] = tuple(MACHINES), engines: Sequence[str] = tuple(ENGINES),
    models: Sequence[ModelSpec] = tuple(MODELS.values()), degrees: Sequence[int] = (1, 2, 4, 8),
    loads: Sequence[int] = (4, 64), lengths: Sequence[tuple[int, int]] = LENGTHS, load: LoadGenerator = BENCHMARK,
) -> list[Served]:
    """Every combination, measured as one second and one hundredth of one."""
    return [
        Served(model=spec, hardware=MACHINES[machine_name], engine=ENGINES[engine], run=ServingRun(
            run_id=f"{machine_name}-{engine}-{spec.name}-{tp}-{concurrency}-{isl}", model=spec.name, checkpoint=spec.name,
            machine=machine_name, engine=engine, isl_tok=isl, osl_tok=osl, tp=tp, concurrency=concurrency, ttft_s=1.0,
            tpot_s=0.01, family="bench", source="made", load=load))
        for machine_name in machines for engine in engines for spec in models for tp in degrees for concurrency in loads
        for isl, osl in lengths
    ]


def predicted(group: Group, terms: ServingTerms) -> tuple[np.ndarray, np.ndarray]:
    """TPOT and TTFT of the planner's closed loop, no correction beside the terms [s]."""
    grid = replace(group.grid, engine=bind_terms(group.grid.engine, terms))
    latency = latency_of(grid, closed_loop(grid, group.room, group.concurrency))
    return np.asarray(latency.tpot_s, dtype=float), np.asarray(latency.ttft_s, dtype=float)


def with_latencies(served: Sequence[Served], *, noise: float = 0.0, seed: int = 0,
                   terms: Callable[[str, str], ServingTerms] = truth) -> list[Served]:
    """The runs as measured under known coefficients; ``noise`` is the standard deviation of the logarithms."""
    rng = np.random.default_rng(seed)
    found = list(served)
    for group in groups_of(served):
        kind = "moe" if group.grid.model.is_moe else "dense"
        tpot, ttft = predicted(group, terms(kind, group.grid.engine.name))
        for place, tpot_s, ttft_s in zip(group.where, tpot, ttft, strict=True):
            a, b = np.exp(noise * rng.standard_normal(2))
            found[place] = replace(found[place], run=replace(found[place].run, tpot_s=float(tpot_s * a),
                                                             ttft_s=float(ttft_s * b)))
    return found


def split_of(served: Sequence[Served]) -> tuple[tuple[Group, ...], np.ndarray]:
    """Groups, and which runs may be fitted."""
    return groups_of(served), trusted(served)
