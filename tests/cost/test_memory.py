from dataclasses import replace

import pytest
from builders import GQA, LINEAR, round_engine, round_hardware, tiny_model, tiny_moe

from tpplanner.cost.memory import activation_bytes, memory_split, weight_bytes
from tpplanner.cost.work import work_of

EXACT = 1e-12
MODEL, HARDWARE, ENGINE = tiny_model(), round_hardware(), round_engine()


@pytest.mark.parametrize(("tp", "tied", "expected"), [
    # Norms 5 * 1024 * 2 bytes; embedding and head 65,536,000 / t each; linears 54,525,952 / t; K, V
    # projections 1,048,576 * max(1/t, 1/2).
    (1, False, 10_240 + 131_072_000 + 54_525_952 + 1_048_576),
    (2, False, 93_333_504),
    (4, False, 10_240 + 32_768_000 + 13_631_488 + 524_288),
    (2, True, 60_565_504),  # no head of its own
])
def test_weights_by_hand(tp, tied, expected):
    assert weight_bytes(work_of(MODEL), tp=tp, tied_embeddings=tied) == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize(("mlp", "seqs", "expected"), [
    (None, 64, 37_748_736),  # t = 2: 2,048 tokens * (3 * 1024 + 3 * 4096 / 2) * 2 bytes
    (None, 1000, 192_000_000),  # logits: 1,000 rows * 32,000 * (2 + 4) bytes
    (replace(tiny_moe(), expert_intermediate_size=2048), 64, 37_748_736),  # 2 * 2048 / 2 > 1024: 3072 + 2 * 3072
    (tiny_moe(), 64, 29_360_128),  # 2,048 * (3 * 1024 + 2 * (max(512, 1024) + 1024)) * 2
])
def test_activations_by_hand(mlp, seqs, expected):
    model = tiny_model(mlp=mlp)
    assert activation_bytes(model, tp=2, max_num_batched_tokens=2048, max_num_seqs=seqs) == pytest.approx(
        expected, rel=EXACT)


def split(tp=2, utilisation=0.5, model=MODEL, overhead=None):
    return memory_split(model, HARDWARE, ENGINE, tp=tp, gpu_memory_utilization=utilisation, max_num_seqs=64,
                        max_num_batched_tokens=2048, non_kv_overhead_bytes=overhead)


def test_split_by_hand():
    memory = split()
    assert memory.usable_bytes == pytest.approx(5e9, rel=EXACT)
    # Runtime 0.5 GB, graphs 0.2 GB, and 0.1 GB for communication from t = 2 on.
    assert memory.runtime_bytes == pytest.approx(0.8e9, rel=EXACT)
    assert split(tp=1).runtime_bytes == pytest.approx(0.7e9, rel=EXACT)
    # 5e9 - 93,333,504 - 37,748,736 - 0.8e9.
    assert memory.kv_bytes == pytest.approx(4_068_917_760, rel=EXACT)
    # Two layers of 256 bytes; a block of 16 tokens takes 8,192: 496,694 blocks and 512 bytes to spare.
    assert memory.kv_bytes_per_tok == pytest.approx(512, rel=EXACT)
    assert (memory.num_kv_blocks, memory.kv_capacity_tok) == (496_694, 7_947_104)


def test_known_overhead_replaces_activations_and_runtime():
    memory = split(overhead=1e9)
    assert (memory.activation_bytes, memory.runtime_bytes) == (0.0, 1e9)
    # 5e9 - 93,333,504 - 1e9 = 3,906,666,496 = 476,888 blocks of 8,192 bytes exactly: the last one counts.
    assert memory.num_kv_blocks == 476_888
    assert split(overhead=1e9 + 1).num_kv_blocks == 476_887


def test_too_small_a_gpu_has_no_blocks():
    memory = split(utilisation=0.05)
    assert memory.kv_bytes < 0
    assert memory.num_kv_blocks == 0


def test_fp8_cache_doubles_the_blocks():
    # The remainder rounds: 4,068,917,760 / 4,096 = 993,388.125.
    assert split(model=tiny_model(kv="fp8")).num_kv_blocks == 993_388


def test_a_recurrent_model_has_no_pool():
    assert split(model=tiny_model(LINEAR)).num_kv_blocks == float("inf")
    assert split(model=tiny_model(GQA, LINEAR)).kv_bytes_per_tok == pytest.approx(1024, rel=EXACT)
