from hypothesis import given
from hypothesis import strategies as st
from plan_factory import make_engine, make_hardware

from tpplanner.domain.explain import ExplainLine
from tpplanner.report.explain_text import explain_text, shown_value
from tpplanner.report.profiles_text import (
    engine_list_text,
    hardware_list_text,
    profile_rows,
    profile_show_text,
)


def line(**changes: object) -> ExplainLine:
    fields = {
        "term": "linear",
        "equation": "max(compute, memory)",
        "inputs": "rows 32",
        "value": 0.0101,
        "unit": "s",
        "provenance": "datasheet",
        "source": "H100 datasheet",
        "level": 1,
    }
    return ExplainLine(**(fields | changes))


def test_aligned_with_times_in_ms() -> None:
    text = explain_text(
        "TP 8",
        [
            line(
                term="step",
                value=0.0231,
                level=0,
                equation="scalable + comm",
                inputs="",
                provenance="",
                source="",
            ),
            line(),
        ],
    )
    assert text.splitlines() == [
        "TP 8",
        "====",
        "step      23.1 ms  scalable + comm",
        "  linear  10.1 ms  max(compute, memory)",
        "                   rows 32",
        "                   [datasheet, H100 datasheet]",
    ]


words = st.lists(st.text(st.sampled_from("abcdef_+*/"), max_size=30), max_size=20).map(" ".join)


@given(
    st.lists(st.builds(line, equation=words, inputs=words, level=st.integers(0, 3), value=st.floats(0, 1e3)))
)
def test_readable_at_100_columns(lines: list[ExplainLine]) -> None:
    text = explain_text("TP 8", lines)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("linear") == len(lines)


def test_units() -> None:
    assert shown_value(8e-6, "s") == "8 us"
    assert shown_value(0.0, "s") == "0.00 ms"
    assert shown_value(3 * 2**20, "bytes") == "3 MiB"
    assert shown_value(512, "bytes") == "512 bytes"
    assert shown_value(667216, "tok") == "667,216 tok"


def test_empty_explanation_keeps_its_title() -> None:
    assert explain_text("TP 8", []) == "TP 8\n===="


def test_hardware_list() -> None:
    text = hardware_list_text([make_hardware(), make_hardware("h200")], width=80)
    row = text.splitlines()[-2]
    assert row.startswith("h100-sxm")
    for shown in ("80", "3.35", "989", "NVLink 4, 450", "8"):
        assert shown in row
    assert max(map(len, text.splitlines())) <= 80


def test_engine_list() -> None:
    row = engine_list_text([make_engine()], width=80).splitlines()[-1]
    assert row.split() == ["vllm-0.11", "vLLM", "0.11", "none", "256", "8192", "0.9", "vllm"]


def test_every_coefficient_is_shown_with_unit_provenance_and_source() -> None:
    rows = {row[0]: row[1:] for row in profile_rows(make_hardware())}
    assert rows["hbm_bytes"] == ("80", "GiB", "datasheet", "H100 datasheet, page 2")
    assert rows["peak_flop_s.bf16"][:2] == ("989", "TFLOP/s")
    assert rows["intra_link.alpha_s"][:2] == ("5", "us")
    assert rows["gpus_per_node"] == ("8", "", "", "")
    fitted = {row[0]: row[1:] for row in profile_rows(make_engine())}["schedule.per_seq_s"]
    assert fitted == ("20", "us", "fitted (+-1, n=12, num_seqs 1..512)", "samples.csv")
    assert "switches.async_sched" in profile_show_text(make_engine(), width=100)
