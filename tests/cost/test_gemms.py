"""The multiplications of a model: what runs as one, how each is cut, and which kernel runs it."""

import numpy as np
import pytest
from builders import GQA, LINEAR, MLA, WINDOWED, tiny_model, tiny_moe
from hypothesis import given
from hypothesis import strategies as st

from tpplanner.cost.gemms import by_degree, experts_of, gemms_of, kernel_names, lm_head_of, runnable_by
from tpplanner.cost.work import work_of

MODELS = (
    tiny_model(), tiny_model(GQA, WINDOWED), tiny_model(MLA, mlp=tiny_moe()), tiny_model(GQA, LINEAR, mlp=tiny_moe()),
    tiny_model(weights="fp8"), tiny_model(tied=True),
)


def test_a_dense_layer_runs_four_with_q_k_and_v_in_one():
    qkv, o, gate_up, down = gemms_of(tiny_model())
    # 8 heads and 2 KV heads of 64: q 1024 x 512, K and V 1024 x 256, of which half stays on every rank from t = 2 on.
    assert (qkv.in_features, qkv.parts, qkv.is_row_cut) == (1024, ((512, 0.0), (256, 0.5)), False)
    assert (o.in_features, o.parts, o.is_row_cut) == (512, ((1024, 0.0),), True)
    assert (gate_up.in_features, gate_up.parts, gate_up.is_row_cut) == (1024, ((8192, 0.0),), False)
    assert (down.in_features, down.parts, down.is_row_cut) == (4096, ((1024, 0.0),), True)
    assert {g.num_layers for g in (qkv, o, gate_up, down)} == {2}


@pytest.mark.parametrize(("tp", "shapes"), [
    # (input, output) of qkv, o, gate_up, down: columns are cut for the first and third, rows for the others.
    (1, [(1024, 768), (512, 1024), (1024, 8192), (4096, 1024)]),
    (2, [(1024, 384), (256, 1024), (1024, 4096), (2048, 1024)]),
    (8, [(1024, 64 + 128), (64, 1024), (1024, 1024), (512, 1024)]),  # one KV head of two is 128 wide with K and V
])
def test_shapes_on_a_rank_by_hand(tp, shapes):
    assert [(g.in_features_on(tp), g.out_features_on(tp)) for g in gemms_of(tiny_model())] == shapes


@given(model=st.sampled_from(MODELS), tp=st.sampled_from([1, 2, 3, 4, 8, 16]))
def test_no_weight_is_lost_and_none_is_there_twice(model, tp):
    found = sum(g.num_layers * g.in_features_on(tp) * g.out_features_on(tp) for g in gemms_of(model))
    expected = sum(c.num_params * c.shard_frac(tp) for c in work_of(model).linears if not c.is_expert)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_latent_attention_keeps_its_projections_apart():
    # q and kv_a read the same input, but kv_a stays whole on every rank.
    q, kv_a, kv_b, o = gemms_of(tiny_model(MLA, mlp=tiny_moe()))[:4]
    assert [g.parts for g in (q, kv_a, kv_b, o)] == [((1536, 0.0),), ((576, 1.0),), ((2048, 0.0),), ((1024, 0.0),)]
    assert [g.is_row_cut for g in (q, kv_a, kv_b, o)] == [False, False, False, True]
    assert (kv_a.out_features_on(8), q.out_features_on(8)) == (576, 192)


def test_experts_are_layers_of_their_own_and_the_router_is_not():
    model = tiny_model(mlp=tiny_moe())
    (layers,) = experts_of(model)
    assert (layers.num_layers, layers.hidden_size, layers.mlp) == (2, 1024, tiny_moe())
    assert [g.parts[0][0] for g in gemms_of(model)] == [512, 1024, 8]  # qkv, o, router
    assert gemms_of(model)[-1].out_features_on(8) == 8  # the router is on every rank
    assert experts_of(tiny_model()) == ()


def test_the_head_is_cut_by_columns():
    head = lm_head_of(tiny_model())
    assert (head.num_layers, head.in_features_on(4), head.out_features_on(4)) == (1, 1024, 8000)


@pytest.mark.parametrize(("stored", "is_moe", "own"), [
    ("bf16", False, ("bf16", "fp16")), ("fp8", False, ("fp8", "fp8_block")), ("fp8", True, ("fp8_block", "fp8")),
    ("int4", True, ("int4_wo",)), ("mxfp4", True, ("w4a16_mxfp4", "w4a8_mxfp4_mxfp8")), ("nvfp4", False, ("nvfp4",)),
    ("int8", False, ("int8_sq", "int8_wo")),
])
def test_kernels_by_the_format_of_the_weights(stored, is_moe, own):
    assert kernel_names(stored, is_moe=is_moe) == own
    # Neighbours come after a format's own kernels, bf16 after all; each is named once.
    names = runnable_by(stored, is_moe=is_moe)
    assert names[:len(own)] == own
    assert len(set(names)) == len(names)
    assert "bf16" in names
    assert stored == "bf16" or names[-1] == "bf16"


def test_each_multiplication_has_the_format_of_its_own_weights():
    model = tiny_model(weights="fp8", mlp=tiny_moe())
    qkv, _, router = gemms_of(model)
    assert (qkv.bytes_per_param, qkv.runs_as, qkv.kernels[0]) == (1.0, "fp8", "fp8_block")
    assert (router.bytes_per_param, router.runs_as, router.kernels[0]) == (2.0, "bf16", "bf16")
    assert gemms_of(tiny_model(weights="fp8"))[0].kernels[0] == "fp8"


def test_by_degree_splits_what_broadcasts():
    shape, found = by_degree(np.array([[2.0], [4.0]]), np.arange(3.0))
    assert shape == (2, 3)
    assert [degree for degree, _ in found] == [2.0, 4.0]
    assert found[1][1].tolist() == [[False] * 3, [True] * 3]
    assert by_degree(8)[0] == ()
