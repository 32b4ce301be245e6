"""From operator tables to kernels: which rows count, what is taken from elsewhere, what is left out."""

import numpy as np
import pandas as pd
import pytest
from operator_frames import LATENCY_S, attention, collective, frames, gemm, moe

from tpplanner.domain.hardware import CollectiveOp
from tpplanner.fit.operator_profile import fit_operator_tables
from tpplanner.fit.operator_rows import (
    FORMATS,
    asked_for,
    collective_rows,
    decode_rows,
    gemm_rows,
    moe_rows,
    one_kernel_per_shape,
    prefill_rows,
)
from tpplanner.io.profile_hardware import load_hardware

H200 = load_hardware("h200")


def fit(**given):
    others = given.pop("other_gemms", None)
    return fit_operator_tables(frames(**given), hardware=H200, engine="eng", other_gemms=others)


def test_a_fit_recovers_the_coefficients_of_its_tables():
    kernel = fit().kernels.gemm["bf16"]
    for found, true in ((kernel.latency_s, LATENCY_S), (kernel.compute_frac, 0.6), (kernel.memory_frac, 0.8)):
        assert abs(found.value - true) < 3 * found.std_error + 0.02 * true
    assert kernel.held_out_median_frac < 0.02
    assert kernel.ranges == (("num_tok", 1.0, 8192.0), ("out_features", 512.0, 8192.0), ("in_features", 1024.0, 16384.0))


def test_every_kind_of_kernel_and_its_residuals_are_there():
    found = fit()
    tables = (found.kernels.gemm, found.kernels.decode_attention, found.kernels.prefill_attention, found.kernels.moe)
    assert [list(table) for table in tables] == [["bf16"]] * 4
    assert [r.operator for r in found.evidence.residuals] == ["gemm", "decode_attention", "prefill_attention", "moe"]
    for residuals in found.evidence.residuals:
        assert residuals.measured_s.shape == residuals.predicted_s.shape == residuals.sizes[residuals.driver].shape
        assert np.median(np.abs(residuals.error_frac)) < 0.05
    assert [t.num_rows for t in found.tables] == [63 + 70 + 56 + 60 + 20]


@pytest.mark.parametrize(("donor_latency_s", "kept"), [(LATENCY_S, True), (60e-6, False)])
def test_a_format_whose_table_timed_the_host_comes_from_another_engine(donor_latency_s, kept):
    slow = pd.concat([gemm("bf16"), gemm("fp8", num_bytes=1.0, latency_s=60e-6)])
    donor = gemm("fp8", num_bytes=1.0, latency_s=donor_latency_s, flop_s=H200.peak_for("fp8").value, source="sys/gemm/o/2.0/t")
    found = fit(gemm=slow, other_gemms={"empty": lambda: gemm("bf16"), "other": lambda: donor})
    assert ("fp8" in found.kernels.gemm) == kept
    assert len(found.evidence.warnings) == 1
    assert "timed the host's launches" in found.evidence.warnings[0]
    if kept:
        kernel = found.kernels.gemm["fp8"]
        assert kernel.source == "sys/gemm/o/2.0/t (k)"
        assert kernel.notes[0].startswith("from the tables of other: those of eng")
        assert "sys/gemm/o/2.0/t" in {t.path for t in found.tables}


def test_without_another_engine_a_host_bound_format_is_left_out():
    found = fit(gemm=gemm("bf16", latency_s=60e-6))
    assert dict(found.kernels.gemm) == {}
    assert found.evidence.warnings[0].startswith("gemm bf16: left out, the table timed the host's launches")


def test_formats_that_no_model_is_planned_with_are_left_out():
    found = fit(moe=pd.concat([moe("bf16"), moe("w4afp8"), moe("fp8"), moe("fp8_block")]))
    assert sorted(found.kernels.moe) == ["bf16", "fp8_block"]
    assert [w.split(":")[0] for w in found.evidence.warnings] == ["moe fp8", "moe w4afp8"]
    assert asked_for(FORMATS, experts_only=True) < asked_for(FORMATS, experts_only=False) <= set(FORMATS)


def test_too_few_samples_are_left_out_with_a_warning():
    found = fit(moe=moe("bf16").head(49))
    assert dict(found.kernels.moe) == {}
    assert found.evidence.warnings == ("moe bf16: left out, 49 samples are under 50",)


def test_a_shape_that_several_kernels_ran_counts_with_the_usual_one():
    rare = gemm("bf16", kernel="rare").head(5).assign(latency_s=1.0)
    rows = gemm_rows(pd.concat([rare, gemm("bf16", kernel="usual")]), "bf16")
    assert set(rows["kernel_source"]) == {"usual"}
    assert len(rows) == 63
    alone = rare.head(1).assign(num_tok=3)
    assert len(one_kernel_per_shape(pd.concat([alone, rows]))) == 64


def test_prefill_is_in_bf16_unless_that_is_the_exception():
    def rows(bf16):
        return pd.concat([attention("fp8", decode=False, num_seqs=bf16), attention("fp8", dtype="fp8", decode=False)])

    assert set(prefill_rows(rows((1, 2, 4, 8)), "fp8")["dtype"]) == {"bf16"}
    assert set(prefill_rows(rows((1, 4)), "fp8")["dtype"]) == {"fp8"}
    assert prefill_rows(rows((1,)), "bf16").empty
    found = fit(prefill_attention=attention("fp8", dtype="fp8", decode=False))
    assert found.kernels.prefill_attention["fp8"].notes[-1] == "computes in fp8; compute_frac is of the bf16 peak"


def test_prefill_with_cached_tokens_is_left_out():
    table = attention("bf16", decode=False)
    assert len(prefill_rows(pd.concat([table, table.assign(prefix_tok=128)]), "bf16")) == len(table)


def test_attention_keeps_the_usual_head_sizes():
    for decode, choose in ((True, decode_rows), (False, prefill_rows)):
        table = attention("bf16", decode=decode)
        assert len(choose(pd.concat([table, table.assign(head_dim=192), table.assign(head_dim=512)]), "bf16")) == len(table)


def test_experts_keep_one_kernel_and_one_routing():
    table = pd.concat([
        moe("bf16", kernel="usual"), moe("bf16", kernel="usual", distribution="balanced"), moe("bf16", kernel="rare").head(9),
        moe("bf16", kernel="x_nongated"), moe("bf16", kernel="x_nongated", distribution="power_law_1.01"),
        moe("bf16", kernel="usual").assign(moe_ep=32),
    ])
    rows = moe_rows(table, "bf16")
    assert set(rows["kernel_source"]) == {"usual"}
    assert set(rows["distribution"]) == {"power_law_1.2"}
    assert len(rows) == 60
    assert set(moe_rows(table[table["distribution"] == "balanced"], "bf16")["distribution"]) == {"balanced"}
    fp4 = pd.concat([moe("nvfp4", kernel="cutlass"), moe("nvfp4", kernel="min_latency").head(50)])
    assert set(moe_rows(fp4, "nvfp4")["kernel_source"]) == {"min_latency"}


def test_all_reduce_is_the_engines_own_and_the_librarys_where_it_has_none():
    table = pd.concat([collective(mode="graph"), collective(mode="eager", scale=0.5), collective(mode="nccl", scale=0.5),
                       collective(mode="nccl", tp=4, dtype="fp16"), collective(mode="nccl", tp=4, dtype="int8", scale=0.1)])
    rows = collective_rows(table, CollectiveOp.ALL_REDUCE)
    assert {(tp, mode) for tp, mode in zip(rows["tp"], rows["mode"], strict=True)} == {(2, "graph"), (4, "nccl")}
    assert rows["latency_s"].min() == pytest.approx(5e-6 + 1024 / 3e11)


def test_the_faster_kernel_of_one_size_counts():
    table = pd.concat([collective(mode="trtllm", kernel="a"), collective(mode="trtllm", kernel="b", scale=0.5)])
    assert set(collective_rows(table, CollectiveOp.ALL_REDUCE)["kernel_source"]) == {"b"}


def test_the_size_of_an_all_to_all_is_that_of_all_ranks():
    """The tables count what one of 4 ranks sends; the planner's curve counts all: 4 x 1 KiB to 4 x 512 MiB."""
    found = fit(collective=collective("all_to_all", mode="nccl", tp=4, dtype="fp16"))
    curve, = found.collectives
    assert (curve.op, curve.tp, curve.size_bytes[0], curve.size_bytes[-1]) == (CollectiveOp.ALL_TO_ALL, 4, 4096, 2**31)
    assert found.evidence.collective_errors[0].held_out_median_frac < 0.05
