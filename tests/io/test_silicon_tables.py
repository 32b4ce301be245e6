"""The importer of measured operator tables: units and names by hand, every way a table can be wrong."""

import importlib.util
import math

import pandas as pd
import pytest

from tpplanner.errors import ProfileError
from tpplanner.io import silicon_read
from tpplanner.io.silicon_columns import FRAMES, SPECS, empty_frame
from tpplanner.io.silicon_tables import read_operator_tables

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None
needs_pyarrow = pytest.mark.skipif(not HAS_PYARROW, reason="pyarrow is not installed")
COMMON = {"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H200", "op_name": "gemm", "kernel_source": "k"}
GEMM = {**COMMON, "gemm_dtype": "bfloat16", "m": 1, "n": 8192, "k": 4096, "latency": 0.0349}
ATTENTION = {
    **COMMON, "batch_size": 4, "isl": 1, "num_heads": 8, "num_key_value_heads": 1, "head_dim": 128, "beam_width": 1,
    "attn_dtype": "bfloat16", "kv_cache_dtype": "fp8", "step": 1023, "window_size": 0, "latency": 0.02,
}
MOE = {
    **COMMON, "moe_dtype": "fp8_block", "num_tokens": 64, "hidden_size": 4096, "inter_size": 1536, "topk": 8,
    "num_experts": 128, "moe_tp_size": 4, "moe_ep_size": 1, "distribution": "power_law_1.2", "latency": 0.5,
}
ALL_REDUCE = {
    **COMMON, "op_name": "all_reduce", "allreduce_dtype": "bfloat16", "num_gpus": 8, "message_size": 131072,
    "latency": 0.01, "backend": "vllm_graph",
}
NCCL = {
    "op_name": "alltoall", "kernel_source": "NCCL", "nccl_dtype": "half", "num_gpus": 8, "message_size": 2**28,
    "latency": 1.5,
}
MLA = {
    **COMMON, "mla_dtype": "bfloat16", "kv_cache_dtype": "fp8", "num_heads": 16, "batch_size": 2, "isl": 1,
    "tp_size": 8, "step": 511, "latency": 0.02,
}
MODULE = {**MLA, "model": "m", "architecture": "DeepseekV3ForCausalLM", "gemm_type": "fp8_block"}
GDN = {
    **COMMON, "kernel_source": "causal_conv1d_update", "phase": "generation", "batch_size": 2, "seq_len": 1,
    "num_tokens": 2, "d_model": 4096, "d_conv": 4, "num_k_heads": 4, "head_k_dim": 128, "num_v_heads": 8,
    "head_v_dim": 128, "model_name": "q", "latency": 0.002,
}
BMM = {**COMMON, "op_name": "mla_gen_pre", "bmm_dtype": "bfloat16", "num_tokens": 8, "num_heads": 16, "latency": 0.004}
SCALE = {**COMMON, "op_name": "compute_scale", "m": 8, "k": 4096, "quant_dtype": "fp8", "latency": 0.0}
GEMM_FILE = "h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A function that writes rows to <folder>/<path>; the folder is the one that is read."""
    monkeypatch.setenv("TPPLANNER_SILICON", str(tmp_path))

    def write(path, *rows):
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if rows and HAS_PYARROW:
            pd.DataFrame(list(rows)).to_parquet(target, engine="pyarrow")
        else:
            target.touch()
        return target

    return write


def read(*families, **more):
    return read_operator_tables("h200", "vllm", families=families or None, **more)


def only_row(frame):
    assert len(frame) == 1
    return frame.iloc[0].to_dict()


@needs_pyarrow
def test_gemm_by_hand(folder):
    """0.0349 ms is 34.9 us; m, n, k are tokens, output and input features."""
    folder(GEMM_FILE, GEMM)
    row = only_row(read().gemm)
    assert row.pop("latency_s") == pytest.approx(34.9e-6, rel=1e-12)
    assert row == {
        "dtype": "bf16", "num_tok": 1, "out_features": 8192, "in_features": 4096, "kernel_source": "k",
        "framework_version": "0.24.0", "source": GEMM_FILE,
    }


@needs_pyarrow
def test_decode_attention_by_hand(folder):
    """1,023 cached tokens and the new one are a context of 1,024; a window of 0 is none."""
    folder("h200_sxm/attention/vllm/0.24.0/generation_attention_perf.parquet", ATTENTION, {**ATTENTION, "window_size": 128})
    frame = read("decode_attention").decode_attention
    assert frame["context_tok"].tolist() == [1024, 1024]
    assert frame["window_tok"].tolist()[0] == 128
    assert math.isnan(frame["window_tok"].tolist()[1])
    assert frame.iloc[0][["dtype", "kv_dtype", "num_seqs", "num_heads", "num_kv_heads", "head_dim"]].tolist() == [
        "bf16", "fp8", 4, 8, 1, 128,
    ]


@needs_pyarrow
def test_prefill_attention_without_a_window_column(folder):
    row = {**ATTENTION, "isl": 2048, "step": 512}
    del row["window_size"]
    folder("h200_sxm/attention/vllm/0.24.0/context_attention_perf.parquet", row)
    got = only_row(read("prefill_attention").prefill_attention)
    assert (got["isl_tok"], got["prefix_tok"]) == (2048, 512)
    assert math.isnan(got["window_tok"])


@needs_pyarrow
def test_moe_by_hand(folder):
    folder("h200_sxm/moe/vllm/0.24.0/moe_perf.parquet", MOE)
    row = only_row(read("moe").moe)
    assert row["latency_s"] == pytest.approx(0.5e-3, rel=1e-12)
    assert [row[name] for name in SPECS[3].key] == ["fp8_block", 64, 4096, 1536, 8, 128, 4, 1, "power_law_1.2"]


@needs_pyarrow
def test_collective_sizes_by_hand(folder):
    """131,072 bf16 elements are 262,144 bytes, 2**28 halves 2**29; int8 is a byte each."""
    folder("h200_sxm/comm/vllm/0.24.0/custom_allreduce_perf.parquet", ALL_REDUCE, {**ALL_REDUCE, "backend": "vllm_eager"})
    folder("h200_sxm/comm/nccl/2.29.2/nccl_perf.parquet", NCCL, {**NCCL, "nccl_dtype": "int8"})
    frame = read("collective").collective
    assert list(zip(frame["op"], frame["dtype"], frame["tp"], frame["mode"], frame["size_bytes"], strict=True)) == [
        ("all_reduce", "bf16", 8, "eager", 262144), ("all_reduce", "bf16", 8, "graph", 262144),
        ("all_to_all", "fp16", 8, "nccl", 2**29), ("all_to_all", "int8", 8, "nccl", 2**28),
    ]
    assert frame["framework_version"].tolist() == ["0.24.0", "0.24.0", "2.29.2", "2.29.2"]


@needs_pyarrow
@pytest.mark.parametrize(("column", "value", "mode"), [("implementation", "trtllm", "trtllm"), (None, None, "trtllm")])
def test_all_reduce_mode_of_trtllm(folder, column, value, mode):
    row = {name: one for name, one in ALL_REDUCE.items() if name != "backend"} | {"kernel_source": "TRTLLM"}
    folder("h200_sxm/comm/trtllm/1.3.0/custom_allreduce_perf.parquet", row | ({column: value} if column else {}))
    frame = read_operator_tables("h200_sxm", "tensorrt-llm", families=["collective"]).collective
    assert frame["mode"].tolist() == [mode]


@needs_pyarrow
def test_latent_and_linear_attention_and_quantisation(folder):
    folder("h200_sxm/mla/vllm/0.24.0/generation_mla_perf.parquet", MLA, {**MLA, "tp_size": 4, "latency": 0.04})
    folder("h200_sxm/mla/vllm/0.24.0/mla_generation_module_perf.parquet", MODULE)
    folder("h200_sxm/mla/vllm/0.24.0/context_mla_perf.parquet", {**MLA, "isl": 2048, "step": 0})
    folder("h200_sxm/mla_bmm/vllm/0.24.0/mla_bmm_perf.parquet", BMM)
    folder("h200_sxm/linear_attention/vllm/0.24.0/gdn_perf.parquet", GDN, {**GDN, "kernel_source": "chunk"})
    folder("h200_sxm/quantize/vllm/0.24.0/computescale_perf.parquet", SCALE)
    tables = read()
    decode = only_row(tables.mla_decode)  # 16 heads are one shape, of 128 heads at t = 8 and of 64 at t = 4
    assert (decode["context_tok"], decode["num_heads"]) == (512, 16)
    assert decode["latency_s"] == pytest.approx(30e-6, rel=1e-12)
    assert only_row(tables.mla_decode_module)["gemm_dtype"] == "fp8_block"
    assert only_row(tables.mla_prefill)["isl_tok"] == 2048
    assert only_row(tables.mla_bmm)["op"] == "mla_gen_pre"
    assert tables.linear_attention[["phase", "stage", "num_value_heads"]].to_numpy().tolist() == [
        ["decode", "conv", 8], ["decode", "recurrence", 8],
    ]
    assert only_row(tables.activation_quant)["latency_s"] == 0.0
    assert set(tables.report.absent) == set(FRAMES) - {
        "mla_decode", "mla_decode_module", "mla_prefill", "mla_bmm", "linear_attention", "activation_quant",
    }


@needs_pyarrow
def test_repeats_are_merged_by_median_and_counted(folder):
    folder(GEMM_FILE, *[{**GEMM, "latency": ms} for ms in (9.0, 1.0, 2.0)], {**GEMM, "m": 2}, {**GEMM, "kernel_source": "other"})
    tables = read("gemm")
    assert tables.gemm[["num_tok", "kernel_source"]].to_numpy().tolist() == [[1, "k"], [1, "other"], [2, "k"]]
    assert tables.gemm["latency_s"].tolist()[0] == pytest.approx(2e-3, rel=1e-12)
    (report,) = tables.report.tables
    assert (report.num_read, report.num_kept, report.num_merged, report.num_dropped) == (5, 3, 2, 0)
    assert report.num_multi_kernel == 2
    assert tables.report.lines() == [
        f"gemm: 3 of 5 rows kept, 2 merged, 0 dropped for a newer version ({GEMM_FILE})"
    ]


@needs_pyarrow
def test_each_curve_comes_whole_from_the_newest_version_that_has_it(folder):
    folder("h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet", GEMM)
    folder("h200_sxm/gemm/vllm/0.9.1/gemm_perf.parquet", *[
        {**GEMM, "version": "0.9.1", "m": m, "n": n} for m in (1, 2) for n in (8192, 1024)
    ])
    tables = read("gemm")
    assert tables.gemm[["num_tok", "out_features", "framework_version"]].to_numpy().tolist() == [
        [1, 1024, "0.9.1"], [1, 8192, "0.24.0"], [2, 1024, "0.9.1"],
    ]
    assert [(one.version, one.num_kept, one.num_dropped) for one in tables.report.tables] == [("0.24.0", 1, 0), ("0.9.1", 2, 2)]
    assert tables.report.num_read == tables.report.num_kept + tables.report.num_merged + tables.report.num_dropped
    assert set(read("gemm", version="0.9.1").gemm["framework_version"]) == {"0.9.1"}


@needs_pyarrow
def test_a_curve_with_a_window_is_not_one_without(folder):
    path = "h200_sxm/attention/vllm/{}/generation_attention_perf.parquet"
    folder(path.format("0.24.0"), {**ATTENTION, "window_size": 128})
    folder(path.format("0.9.1"), ATTENTION, {**ATTENTION, "window_size": 128})
    assert [one.num_kept for one in read("decode_attention").report.tables] == [1, 1]


@needs_pyarrow
@pytest.mark.parametrize(("change", "words"), [
    ({"latency": -1.0}, ["row 1", "latency must be a finite number of ms > 0", "-1.0"]),
    ({"latency": 0.0}, ["row 1", "latency", "0.0"]),
    ({"latency": math.nan}, ["row 1", "latency", "nan"]),
    ({"latency": math.inf}, ["row 1", "latency", "inf"]),
    ({"m": 0}, ["row 1", "m must be a whole number from 1"]),
    ({"m": 1.5}, ["row 1", "m must", "1.5"]),
    ({"n": 1e30}, ["row 1", "n must", "1e+30"]),
    ({"k": None}, ["row 1", "k must", "nan"]),
    ({"gemm_dtype": "fp7"}, ["row 1", "gemm_dtype must be one of bfloat16", "'fp7'"]),
    ({"gemm_dtype": None}, ["row 1", "gemm_dtype must be a name"]),
    ({"kernel_source": ""}, ["row 1", "kernel_source must be a name"]),
])
def test_one_bad_row_is_one_error_with_its_place(folder, change, words):
    folder(GEMM_FILE, GEMM, {**GEMM, **change})
    assert_error(words, "gemm")


@needs_pyarrow
@pytest.mark.parametrize(("column", "value", "words"), [
    ("latency", "fast", ["latency must be a column of numbers"]),
    ("m", True, ["m must be a column of numbers, got 'bool'"]),
    ("version", 24, ["version must be a name"]),
])
def test_a_column_of_the_wrong_type_is_one_error(folder, column, value, words):
    folder(GEMM_FILE, {**GEMM, column: value})
    assert_error(words, "gemm")


@needs_pyarrow
@pytest.mark.parametrize("column", ["m", "n", "k", "latency", "gemm_dtype", "kernel_source"])
def test_a_missing_column_is_one_error(folder, column):
    folder(GEMM_FILE, {name: value for name, value in GEMM.items() if name != column})
    assert_error([f"columns must include {column}"], "gemm")


@needs_pyarrow
def test_a_truncated_file_is_one_error(folder):
    path = folder(GEMM_FILE, GEMM, {**GEMM, "m": 2})
    whole = path.read_bytes()
    for size in [0, 1, 4, *range(8, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert_error(["the file must be whole, readable parquet"], "gemm")


@needs_pyarrow
@pytest.mark.parametrize("content", [b"m,n,k,latency\n1,2,3,4\n", b"PAR1" * 100, bytes(range(256)) * 8])
def test_a_file_that_is_no_parquet_is_one_error(folder, content):
    folder(GEMM_FILE, GEMM).write_bytes(content)
    assert_error(["the file must be whole, readable parquet"], "gemm")


@needs_pyarrow
def test_a_table_without_rows_is_one_error(folder):
    pd.DataFrame([GEMM]).iloc[:0].to_parquet(folder(GEMM_FILE, GEMM), engine="pyarrow")
    assert_error(["the table must have at least one row"], "gemm")


def assert_error(words, *families):
    with pytest.raises(ProfileError) as caught:
        read(*families)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(GEMM_FILE)
    for word in words:
        assert word in message


def test_without_pyarrow_the_error_says_what_to_install(folder, monkeypatch):
    folder(GEMM_FILE)
    found = importlib.util.find_spec
    monkeypatch.setattr(silicon_read.importlib.util, "find_spec", lambda name: None if name == "pyarrow" else found(name))
    assert_error(["pyarrow must be installed", "pip install 'tpplanner[silicon]'"], "gemm")


@pytest.mark.parametrize("families", [["gem"], [], "gemm", [3]])
def test_unknown_families_are_one_error(families):
    with pytest.raises(ProfileError, match="families must be") as caught:
        read_operator_tables("h200", "vllm", families=families)
    assert "gemm" in str(caught.value)


@needs_pyarrow
def test_a_family_that_was_not_measured_is_one_error(folder):
    folder(GEMM_FILE, GEMM)
    with pytest.raises(ProfileError, match=r"^h200_sxm: families must be measured for vllm, got 'mla_decode'$"):
        read("gemm", "mla_decode")


@pytest.mark.parametrize("name", FRAMES)
def test_an_empty_frame_has_the_columns(name):
    frame = empty_frame(name)
    assert frame.empty
    assert frame["latency_s"].dtype == float
    assert list(frame.columns[-4:]) == ["kernel_source", "latency_s", "framework_version", "source"]
