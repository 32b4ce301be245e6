"""Sanity of the real tables of aiconfigurator-core 0.12, where it is installed or TPPLANNER_SILICON names it."""

import importlib.util

import pytest

from tpplanner.errors import ProfileError
from tpplanner.io.silicon_columns import FRAMES, empty_frame
from tpplanner.io.silicon_package import known_systems, silicon_root
from tpplanner.io.silicon_tables import read_operator_tables


def has_package():
    try:
        return "h200_sxm" in known_systems(silicon_root()) and importlib.util.find_spec("pyarrow") is not None
    except ProfileError:
        return False


pytestmark = pytest.mark.skipif(not has_package(), reason="aiconfigurator-core or pyarrow is not installed")


def test_fp8_gemm_includes_the_quantisation_of_its_activations():
    """What is left without it stays positive in every shape of H200 TensorRT-LLM."""
    tables = read_operator_tables("h200", "trtllm", families=["gemm", "activation_quant"])
    quant = tables.activation_quant.groupby(["num_tok", "in_features"])["latency_s"].sum().rename("quant_s")
    both = tables.gemm.query("dtype == 'fp8'").join(quant, on=["num_tok", "in_features"], how="inner")
    assert len(both) > 30_000
    assert (both["latency_s"] > both["quant_s"]).all()


@pytest.mark.parametrize(("dtype", "num_tok", "latency_us"), [
    ("bf16", 1, 34.9), ("bf16", 64, 37), ("bf16", 256, 47.7), ("bf16", 1024, 167),
    ("fp8", 1, 22.3), ("fp8", 64, 24.6), ("fp8", 256, 33.7), ("fp8", 1024, 109),
])
def test_published_gemm_of_h200_vllm(dtype, num_tok, latency_us):
    """Known values of aiconfigurator-core 0.12.0, to their printed digits."""
    frame = read_operator_tables("h200", "vllm", families=["gemm"], version="0.24.0").gemm
    row = frame.query("dtype == @dtype and num_tok == @num_tok and out_features == 8192 and in_features == 8192")
    assert row["latency_s"].tolist() == [pytest.approx(latency_us * 1e-6, rel=0.01)]


ALL_REDUCE_US = {  # elements of bf16: latency at 2, 4 and 8 ranks, the faster mode
    ("h200", "vllm"): {1024: (4.5, 4.6, 4.8), 524288: (8.4, 12.1, 14.1), 33554432: (281, 320, 323)},
    ("h200", "trtllm"): {1024: (2.8, 3.1, 3.4), 524288: (6.0, 12.8, 25.7), 33554432: (250, 322, 317)},
    ("b200", "vllm"): {1024: (7.0, 7.1, 7.5), 524288: (13.1, 18.4, 17.2), 33554432: (155, 187, 223)},
    ("a100-sxm", "vllm"): {1024: (4.9, 5.2, 5.6), 524288: (10.7, 18.3, 21.7), 33554432: (389, 540, 594)},
    ("l40s", "vllm"): {1024: (5.3, 13.7, 26.1), 524288: (60, 357, 583), 33554432: (3542, 27242, 59436)},
}


@pytest.mark.parametrize(("system", "engine"), ALL_REDUCE_US)
def test_published_all_reduce(system, engine):
    frame = read_operator_tables(system, engine, families=["collective"]).collective
    own = frame.query("op == 'all_reduce' and mode != 'nccl'")
    fastest = own.groupby(["size_bytes", "tp"])["latency_s"].min() * 1e6
    for elements, latencies in ALL_REDUCE_US[system, engine].items():
        for tp, latency_us in zip((2, 4, 8), latencies, strict=True):
            assert fastest[2 * elements, tp] == pytest.approx(latency_us, rel=0.02)


def test_bus_bandwidths_confirm_what_a_message_is():
    """At 512 MiB every NCCL collective reaches 50 % to 105 % of NVLink's 450 GB/s: elements, of the whole buffer.

    Bytes instead of elements would halve it, one rank's share instead of the whole would give 8 times as much. The
    all-reduce at 8 ranks adds up in the switch: its bus bandwidth is 461 GB/s.
    """
    frame = read_operator_tables("h200", "vllm", families=["collective"]).collective
    large = frame.query("mode == 'nccl' and dtype == 'fp16' and size_bytes == 2**29")
    assert len(large) == 12
    per_size = (large["tp"] - 1) / large["tp"] * large["op"].map({"all_reduce": 2}).fillna(1)
    busbw_bytes_s = large["size_bytes"] * per_size / large["latency_s"]
    assert busbw_bytes_s.between(225e9, 473e9).all()


def test_whole_h200_vllm():
    tables = read_operator_tables("h200", "vllm")
    assert len(tables.gemm) == 107_225
    assert len(tables.prefill_attention) == 50_830
    assert len(tables.decode_attention) == 62_166
    assert (tables.moe["framework_version"] == "0.24.0").sum() == 49_896
    assert set(tables.report.absent) == {"mla_prefill", "mla_decode"}
    for name in FRAMES:
        frame = getattr(tables, name)
        assert list(frame.columns) == list(empty_frame(name).columns)
        assert frame["latency_s"].between(0, 10).all()
        assert not frame.duplicated(list(frame.columns[:-3])).any()
