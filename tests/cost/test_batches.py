"""What the steps carry, counted in steps: no machine and no clock in it."""

from dataclasses import replace

import numpy as np
import pytest
from builders import make_grid, round_engine, round_hardware, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from tpplanner.cost.batches import BatchPlan, plan_batches
from tpplanner.domain.engine import Preemption
from tpplanner.domain.step import Batch

EXACT = 1e-12


def grid(isl_tok=100.0, osl_tok=250.0, budget=2048.0, preemption=Preemption.RECOMPUTE):
    return make_grid(tiny_model(), round_hardware(), round_engine(preemption=preemption), isl_tok=isl_tok, osl_tok=osl_tok,
                     max_num_batched_tokens=budget)


def test_one_sequence_by_hand():
    # One step of prefill with all 100 tokens, 249 of decode: a request in 250 steps.
    plan = plan_batches(grid(), num_seqs=1.0)
    assert plan.finish_per_step == pytest.approx(1 / 250, rel=EXACT)
    assert plan.prefill_steps == pytest.approx(1.0, rel=1e-9)
    assert plan.mixed_frac == pytest.approx(1 / 250, rel=1e-9)
    assert plan.decode.num_decode_seqs == pytest.approx(249 / 250, rel=EXACT)
    assert plan.mixed.num_prefill_tok == pytest.approx(100.0, rel=1e-9)
    assert (plan.mixed.num_prefill_seqs, plan.mixed.num_prefill_ends) == pytest.approx((1.0, 1.0), rel=1e-9)
    assert (plan.decode.decode_context_tok, plan.mixed.prefill_context_tok) == (225.0, 50.0)
    # 100 tokens in every 250th step of 2,048 - 0.996.
    assert plan.prefill_load == pytest.approx(0.4 / (2048 - 249 / 250), rel=1e-9)
    assert (plan.working, plan.evicted, plan.recomputed, plan.num_waiting) == (1.0, 0.0, 0.0, 0.0)


def test_a_prompt_beyond_the_budget_comes_in_chunks():
    # 8,192 tokens at most 2,048 - x at a time: 4 steps and a little, and 15 of decode.
    plan = plan_batches(grid(isl_tok=8192.0, osl_tok=16.0), num_seqs=1.0)
    assert plan.prefill_steps == pytest.approx(8192 / (2048 - 15 * float(plan.finish_per_step)), rel=1e-9)
    assert plan.finish_per_step == pytest.approx(1 / (15 + float(plan.prefill_steps)), rel=1e-9)
    assert plan.mixed.num_prefill_tok <= 2048
    # A step carries a chunk of one prompt, and every fourth step or so ends one.
    assert plan.mixed.num_prefill_seqs == pytest.approx(float(plan.mixed.num_prefill_ends) * float(plan.prefill_steps), rel=0.01)


def test_one_output_token_makes_every_step_mixed():
    plan = plan_batches(grid(osl_tok=1.0), num_seqs=np.array([1.0, 4.0]))
    assert plan.mixed_frac.tolist() == [1.0, 1.0]
    assert plan.decode.num_decode_seqs.tolist() == [0.0, 0.0]
    # S sequences, each n_p steps there; of four, one now and then waits for the others' 300 tokens.
    assert plan.prefill_steps == pytest.approx([1.0, 1.006], abs=1e-3)
    assert plan.mixed.num_prefill_ends == pytest.approx([1.0, 4.0] / plan.prefill_steps, rel=1e-9)


def test_below_one_sequence_the_replica_rests():
    some, one = plan_batches(grid(), num_seqs=0.25), plan_batches(grid(), num_seqs=1.0)
    assert (some.working, some.num_seqs, one.working) == (0.25, 0.25, 1.0)
    assert some.finish_per_step == one.finish_per_step
    assert some.mixed.num_prefill_tok == one.mixed.num_prefill_tok


@pytest.mark.parametrize(("policy", "evicted", "recomputed"), [
    # 250 / 100 - 1/2 = 2 evictions per request while 50 wait.
    (Preemption.RECOMPUTE, 2.0, 2.0), (Preemption.SWAP, 2.0, 0.0), (Preemption.RESERVE, 0.0, 0.0),
])
def test_a_full_cache_by_policy(policy, evicted, recomputed):
    plan = plan_batches(grid(preemption=policy), num_seqs=20.0, num_waiting=50.0, kv_full=True)
    assert (plan.evicted, plan.recomputed, plan.num_waiting) == (evicted, recomputed, 50.0)
    # Every computation of a prompt takes its tokens, the first token comes once.
    finish = float(plan.finish_per_step)
    assert plan.mixed_frac * plan.mixed.num_prefill_tok == pytest.approx((1 + recomputed) * 100 * finish, rel=1e-9)
    assert plan.mixed_frac * plan.mixed.num_prefill_ends == pytest.approx(finish, rel=1e-9)
    assert float(plan.prefill_steps) >= 1 + recomputed
    # Without a full cache nobody is evicted, however many wait.
    calm = plan_batches(grid(preemption=policy), num_seqs=20.0, num_waiting=50.0)
    assert (calm.evicted, calm.recomputed) == (0.0, 0.0)


@settings(max_examples=150)
@given(isl=st.integers(1, 20_000), osl=st.integers(1, 4000), num_seqs=st.floats(0.01, 2000.0),
       budget=st.sampled_from([64.0, 2048.0, 16_384.0]), evicting=st.booleans())
def test_every_batch_solves_equation_1_within_the_budget(isl, osl, num_seqs, budget, evicting):
    num_seqs = min(num_seqs, budget)
    plan = plan_batches(grid(float(isl), float(osl), budget), num_seqs=num_seqs, num_waiting=9.0, kv_full=evicting)
    finish = float(plan.finish_per_step)
    assert finish * (osl - 1 + float(plan.prefill_steps)) == pytest.approx(max(num_seqs, 1.0), rel=1e-9)
    prefill_tok = isl * (1 + float(plan.recomputed))
    assert finish * (osl - 1 + prefill_tok) <= budget * (1 + 1e-9)
    assert float(plan.mixed.num_tok) <= budget * (1 + 1e-9)
    assert 0 < float(plan.mixed_frac) <= 1
    assert float(plan.mixed_frac * plan.mixed.num_prefill_tok) == pytest.approx(finish * prefill_tok, rel=1e-9)
    assert float(plan.prefill_steps) >= max(1.0, prefill_tok / budget) * (1 - 1e-9)


def test_an_array_call_equals_the_scalar_calls():
    isl, seqs = np.array([[10.0], [9000.0]]), np.array([0.5, 8.0, 64.0])
    waiting, full = np.array([0.0, 0.0, 7.0]), np.array([False, False, True])
    together = plan_batches(replace(grid(), isl_tok=isl), num_seqs=seqs, num_waiting=waiting, kv_full=full)
    for i in range(2):
        for j in range(3):
            one = plan_batches(grid(float(isl[i, 0])), num_seqs=seqs[j], num_waiting=waiting[j], kv_full=bool(full[j]))
            for name in BatchPlan.__slots__:
                pairs = [(getattr(together, name), getattr(one, name))]
                if isinstance(pairs[0][0], Batch):
                    pairs = [(getattr(pairs[0][0], f), getattr(pairs[0][1], f)) for f in Batch.__slots__]
                for several, single in pairs:
                    # Substitution and bisection agree to the last but a few digits.
                    assert np.broadcast_to(several, (2, 3))[i, j] == pytest.approx(float(single), rel=1e-8), name
