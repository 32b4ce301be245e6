"""The tables give what the cost functions give, to rounding."""

from dataclasses import replace

import numpy as np
import pytest
from builders import (
    ALL_SWITCHES,
    LINEAR,
    MLA,
    WINDOWED,
    curve,
    kernel,
    make_grid,
    round_engine,
    round_hardware,
    serving_terms,
    tiny_model,
    tiny_moe,
    wavy,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tpplanner.api.question import question
from tpplanner.cost.serving import bind_terms
from tpplanner.domain.kernels import DecodeAttentionKernel, GemmKernel, Kernels
from tpplanner.planner.plans import grid_of
from tpplanner.sim.clock import StepClock
from tpplanner.sim.step_cost import DirectClock, Shape

MODELS = {
    "grouped": tiny_model(), "windowed": tiny_model(WINDOWED), "latent": tiny_model(MLA), "recurrent": tiny_model(LINEAR),
    "mixed layers, experts": tiny_model(WINDOWED, LINEAR, mlp=tiny_moe()),
}


def shapes() -> st.SearchStrategy[Shape]:
    decode = st.tuples(st.integers(0, 64), st.integers(1, 9000))
    prompts = st.one_of(
        st.just((0, 0, 0, 0)),
        st.tuples(st.integers(1, 2048), st.integers(1, 9000), st.integers(1, 4), st.integers(0, 1)))
    return st.tuples(decode, prompts).map(lambda p: Shape(p[0][0], p[0][1] if p[0][0] else 0, *p[1]))


def same(shape: Shape, table: StepClock, direct: DirectClock) -> None:
    for mine, theirs in zip(table.cost(shape), direct.cost(shape), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("switches", ALL_SWITCHES[::3])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tp", [1.0, 4.0])
def test_tables_equal_the_cost_functions(name, tp, switches):
    grid = make_grid(MODELS[name], round_hardware(curves=(curve(),)), round_engine(switches), tp=tp)
    table, direct = StepClock(grid), DirectClock(grid)

    @settings(max_examples=40)
    @given(shapes())
    def check(shape):
        same(shape, table, direct)

    check()


def test_tables_equal_the_cost_functions_with_terms_of_serving_runs():
    terms = serving_terms(gemm_factor=0.9, collective_factor=1.3, prefill_interference=1.4, step_s=1e-3, seq_s=2e-5)
    grid = make_grid(tiny_model(), round_hardware(), bind_terms(round_engine(), terms), tp=2.0)
    table, direct = StepClock(grid), DirectClock(grid)
    for shape in (Shape(0, 0, 512, 512, 1, 1), Shape(7, 300), Shape(7, 300, 512, 512, 1, 1), Shape(64, 5000, 2048, 1024, 3, 1)):
        same(shape, table, direct)


def test_tables_equal_the_cost_functions_with_measured_profiles():
    asked = question(model="meta-llama/Llama-3.1-8B-Instruct", gpus="8xh100-sxm", isl=1024, osl=256, concurrency=64)
    grid = replace(grid_of(asked, [2]), tp=2.0)
    assert grid.hardware.kernels is not None
    assert grid.engine.tpot_residual is not None
    table, direct = StepClock(grid), DirectClock(grid)
    rng = np.random.default_rng(1)
    for _ in range(60):
        rows, tok = int(rng.integers(0, 256)), int(rng.integers(0, 2)) * int(rng.integers(1, 8000))
        if rows + tok:
            same(Shape(rows, int(rng.integers(1, 5000)) if rows else 0, tok, int(rng.integers(1, 5000)) if tok else 0,
                       int(tok > 0), int(tok > 0)), table, direct)


def test_kernels_with_surfaces_are_followed():
    kernels = Kernels(gemm={"bf16": kernel(GemmKernel, surface=wavy("num_tok"))},
                      decode_attention={"bf16": kernel(DecodeAttentionKernel, surface=wavy("read_tok"))})
    grid = make_grid(tiny_model(), replace(round_hardware(), kernels=kernels), round_engine())
    table, direct = StepClock(grid), DirectClock(grid)
    for shape in (Shape(3, 65), Shape(3, 64), Shape(17, 1024, 100, 99, 1, 1), Shape(0, 0, 2000, 2000, 1, 1)):
        same(shape, table, direct)


@given(st.integers(1, 64), st.integers(1, 500), st.integers(1, 200))
def test_a_run_of_decodes_is_the_sum_of_its_steps(num_seqs, context, steps):
    grid = make_grid(tiny_model(), round_hardware(), round_engine())
    table = StepClock(grid)
    run = table.decode_run(num_seqs, context, steps, float("inf"))
    single = [table.cost(Shape(num_seqs, context + i)) for i in range(run.num_steps)]
    assert 1 <= run.num_steps <= steps
    assert run.total_s == pytest.approx(sum(c.total_s for c in single), rel=1e-12)
    assert run.flop == pytest.approx(sum(c.flop for c in single), rel=1e-12)
    assert run.context_s == pytest.approx(sum((context + i) * c.total_s for i, c in enumerate(single)), rel=1e-12)
    assert run.duration_s == pytest.approx([c.total_s for c in single], rel=1e-12)


def test_a_run_ends_with_the_last_step_that_begins_in_time():
    table = StepClock(make_grid(tiny_model(), round_hardware(), round_engine()))
    three_s = table.decode_run(4, 100, 3, float("inf")).total_s
    assert table.decode_run(4, 100, 50, three_s).num_steps == 3
    assert table.decode_run(4, 100, 50, three_s * (1 + 1e-12)).num_steps == 4
    assert table.decode_run(4, 100, 50, 0.0).num_steps == 1
