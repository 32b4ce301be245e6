import pytest
from builders import GQA, LINEAR, MLA, WINDOWED, tiny_model

from tpplanner.cost.kv import kv_bytes_per_seq, kv_bytes_per_tok, layer_kv_bytes_per_seq, layer_kv_bytes_per_tok
from tpplanner.cost.work import work_of

EXACT = 1e-12


@pytest.mark.parametrize(("attention", "tp", "expected"), [
    (GQA, 1, 512),  # K and V of 2 heads of 64 in 2 bytes
    (GQA, 2, 256),  # one head per rank
    (GQA, 8, 256),  # replicated: still one head
    (WINDOWED, 1, 512),  # a token costs the same, there are fewer of them
    (MLA, 1, 1152),  # 512 + 64 in 2 bytes
    (MLA, 8, 1152),  # on every rank
    (LINEAR, 1, 0),  # a state, not a cache
])
def test_one_token_in_one_layer(attention, tp, expected):
    assert layer_kv_bytes_per_tok(attention, tp=tp, kv_element_bytes=2) == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize(("attention", "expected"), [
    (GQA, 256_000),  # t = 2: 1,000 tokens of 256 bytes
    (WINDOWED, 25_600),  # 100 of them
    (MLA, 1_152_000),
    (LINEAR, 10_496),  # 8 * 16 * 32 + 3 * (2 * 64 + 256) = 5,248 elements of 4 bytes, halved
])
def test_one_sequence_in_one_layer(attention, expected):
    assert layer_kv_bytes_per_seq(attention, tp=2, context_tok=1000, kv_element_bytes=2) == pytest.approx(
        expected, rel=EXACT)


def test_all_layers_of_a_hybrid():
    work = work_of(tiny_model(GQA, WINDOWED, LINEAR))
    # Two layers of each, t = 2, 1,000 tokens: 2 * (256,000 + 25,600 + 10,496).
    assert kv_bytes_per_seq(work, tp=2, context_tok=1000, kv_element_bytes=2) == pytest.approx(584_192, rel=EXACT)
    # The pool counts every layer as a page of full attention: 6 * 256 bytes.
    assert kv_bytes_per_tok(work, tp=2, kv_element_bytes=2) == pytest.approx(1536, rel=EXACT)


def test_only_recurrent_layers_take_no_pages():
    assert kv_bytes_per_tok(work_of(tiny_model(LINEAR)), tp=2, kv_element_bytes=2) == 0.0
