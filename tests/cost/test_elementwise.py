from dataclasses import replace

import pytest
from builders import LINEAR, MLA, round_engine, round_hardware, tiny_model, tiny_moe

from tpplanner.cost.elementwise import elementwise_s, launch_s
from tpplanner.cost.work import work_of
from tpplanner.domain.engine import TaskCost
from tpplanner.domain.quantity import Provenance, Quantity

EXACT = 1e-12


def test_elementwise_by_hand():
    work = work_of(tiny_model())
    # Two norms of 4 * 1024 elements per layer and the embedding 2 * 1024: 18,432 elements of 2 bytes.
    assert work.replicated_activation_bytes_per_tok == 36_864
    # (2 * 8 + 4 * 2 + 8) * 64 + 3 * 4096 = 14,336 elements per layer.
    assert work.sharded_activation_bytes_per_tok == 57_344
    # 100 tokens, t = 2: 100 * (36,864 + 28,672) bytes at 5e11 bytes/s.
    assert elementwise_s(work, round_hardware(), tp=2, num_tok=100) == pytest.approx(13.1072e-6, rel=EXACT)


@pytest.mark.parametrize(("model", "replicated", "sharded"), [
    # MLA: 3 * 8 * 192 = 4,608 in place of 2,048 per layer.
    (tiny_model(MLA), 36_864, 2 * 2 * (4_608 + 12_288)),
    # Recurrent: 4 * (2 * 64 + 256) = 1,536.
    (tiny_model(LINEAR), 36_864, 2 * 2 * (1_536 + 12_288)),
    # Experts: 3 * 2 * 1024 more replicated; width 3 * 2 * 512 = 3,072.
    (tiny_model(mlp=tiny_moe()), 36_864 + 2 * 2 * 6_144, 2 * 2 * (2_048 + 3_072)),
])
def test_other_layers_by_hand(model, replicated, sharded):
    work = work_of(model)
    assert (work.replicated_activation_bytes_per_tok, work.sharded_activation_bytes_per_tok) == (replicated, sharded)


def test_launches_by_hand():
    # Two layers of 50 us.
    assert launch_s(work_of(tiny_model()), round_engine(), tp=1.0, num_seqs=4.0) == pytest.approx(100e-6, rel=EXACT)


def test_a_step_around_the_layers_by_hand():
    # Two layers of 50 us, and 30 us + 4 sequences of 2 us around them.
    def us(value):
        return Quantity(value=value * 1e-6, unit="s", provenance=Provenance.DATASHEET, source="by hand")

    engine = replace(round_engine(), step_overhead=TaskCost(fixed_s=us(30), per_seq_s=us(2)))
    assert launch_s(work_of(tiny_model()), engine, tp=1.0, num_seqs=4.0) == pytest.approx(138e-6, rel=EXACT)
