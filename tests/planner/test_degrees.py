import numpy as np
import pytest
from builders import GQA, LINEAR, make_hardware, make_model, tiny_model, tiny_moe
from hypothesis import given, settings
from hypothesis import strategies as st

from tpplanner.domain.attention import GroupedQueryAttention
from tpplanner.domain.model import DenseMlp
from tpplanner.io.model_config import load_model
from tpplanner.planner.degrees import candidate_degrees, degree_obstacle
from tpplanner.planner.ranking import rank

NODE = make_hardware()  # 8 GPUs


def degrees(model, num_gpus=8, max_tp=None):
    return {d.tp: d.obstacle for d in candidate_degrees(model, NODE, num_gpus, max_tp)}


def test_powers_of_two_up_to_the_node():
    # 64 heads over 8 KV heads; 28,672 wide.
    assert degrees(make_model()) == dict.fromkeys((1, 2, 4, 8), "")
    assert list(degrees(make_model(), num_gpus=64)) == [1, 2, 4, 8]
    assert list(degrees(make_model(), num_gpus=6)) == [1, 2, 4]
    assert list(degrees(make_model(), max_tp=4)) == [1, 2, 4]


def test_across_nodes_where_the_user_asks():
    assert list(degrees(make_model(), num_gpus=64, max_tp=32)) == [1, 2, 4, 8, 16, 32]
    # No further than the GPUs there are.
    assert list(degrees(make_model(), num_gpus=16, max_tp=32)) == [1, 2, 4, 8, 16]


def test_a_degree_that_is_no_power_of_two():
    # SmolLM2-135M: 9 heads over 3 KV heads, 1,536 wide.
    found = degrees(load_model("HuggingFaceTB/SmolLM2-135M-Instruct"))
    assert found == {1: "", 2: "2 does not divide 9 heads", 3: "", 4: "4 does not divide 9 heads",
                     8: "8 does not divide 9 heads"}


@pytest.mark.parametrize(("model", "tp", "obstacle"), [
    (tiny_model(), 16, "16 does not divide 8 heads"),
    (tiny_model(LINEAR), 8, "8 does not divide 4 heads"),
    (tiny_model(GQA, LINEAR), 4, ""),
    (tiny_model(mlp=tiny_moe()), 8, ""),
    (tiny_model(), 1, ""),
    # 24 heads over 8 KV heads and 4,098 wide: t = 3 divides both, but neither 3 nor 8 the other.
    (tiny_model(GroupedQueryAttention(num_heads=24, num_kv_heads=8, head_dim=64),
                mlp=DenseMlp(intermediate_size=4098)), 3, "3 ranks, 8 KV heads: neither divides the other"),
    (tiny_model(GroupedQueryAttention(num_heads=9, num_kv_heads=1, head_dim=64)), 3,
     "3 does not divide the MLP width 4096"),
    (tiny_model(GroupedQueryAttention(num_heads=9, num_kv_heads=1, head_dim=64), mlp=tiny_moe()), 3,
     "3 divides neither the expert width 512 nor 8 experts"),
])
def test_obstacles(model, tp, obstacle):
    assert degree_obstacle(model, tp) == obstacle


@pytest.mark.parametrize(("scores", "better", "best", "runner_up", "tied"), [
    ([10.0, 10.0, 9.0], [0.5, 0.5, 0.1], 0, 1, (0, 1)),  # equal: the smaller degree
    ([9.5, 10.0, 9.0], [0.3, 0.5, 0.1], 1, 0, (0, 1)),
    ([9.4, 10.0, 9.0], [0.2, 0.5, 0.1], 1, 0, (0, 1)),  # on the line counts
    ([9.3, 10.0, 9.0], [0.19, 0.5, 0.1], 1, 0, (1,)),
    # The best ties with itself even where its targets are missed in most draws; what is out ties with nothing.
    ([-np.inf, 5.0, -np.inf], [0.6, 0.1, 0.0], 1, None, (1,)),
    ([-np.inf, -np.inf], [0.0, 0.0], None, None, ()),
])
def test_ranking_and_ties(scores, better, best, runner_up, tied):
    found = rank(np.array(scores), lambda _: np.array(better))
    assert (found.best, found.runner_up, found.tied) == (best, runner_up, tied)
    if runner_up is not None:
        assert found.margin_frac == pytest.approx(scores[best] / scores[runner_up] - 1, rel=1e-12)


@settings(max_examples=100)
@given(st.lists(st.one_of(st.just(-np.inf), st.floats(1e-3, 1e6)), min_size=1, max_size=8), st.floats(0, 0.5))
def test_ranking_of_anything(scores, better):
    found = rank(np.array(scores), lambda _: np.full(len(scores), better))
    if found.best is None:
        assert not np.isfinite(scores).any()
        return
    assert scores[found.best] == max(scores)
    assert found.best == scores.index(max(scores))
    assert found.best in found.tied
    assert all(np.isfinite(scores[i]) for i in found.tied)
    assert found.margin_frac is None or found.margin_frac >= 0
