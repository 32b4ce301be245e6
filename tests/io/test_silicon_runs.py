"""Reading and cleaning the measured serving runs of aiconfigurator-core."""

import csv
import importlib.util
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpplanner.domain.serving_fit import LoadGenerator
from tpplanner.domain.serving_run import ServingRun
from tpplanner.errors import TpplannerError, WorkloadError
from tpplanner.io.silicon_package import ENV_FOLDER
from tpplanner.io.silicon_run_facts import KV_DTYPE_RULES, kv_cache_dtype_of
from tpplanner.io.silicon_runs import COLUMNS, REASONS, read_silicon_runs

# A dense run that every rule keeps.
GOOD = {
    "id": "good", "silicon_data_source": "source_file=a.csv; silicon_concurrency=8; image=vllm:v1", "backend": "vllm",
    "backend_version": "", "model_path": "meta-llama/Llama-3.1-70B", "system": "h200_sxm", "precision": "fp8",
    "mode": "agg", "isl": "1024", "osl": "101", "batch_size": "8", "tp_size": "2", "attention_dp_size": "1",
    "moe_tp_size": "", "moe_ep_size": "", "silicon_ttft_ms": "500", "silicon_tpot_ms": "20", "unread": "x",
}
MOE = {**GOOD, "model_path": "MiniMaxAI/MiniMax-M2.5", "tp_size": "4", "moe_tp_size": "4", "moe_ep_size": "1"}
R1 = {**MOE, "model_path": "deepseek-ai/DeepSeek-R1", "system": "b200_sxm", "backend": "sglang"}


def as_csv(*rows: dict[str, str]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, [*COLUMNS, "unread"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "id": row["id"] if row["id"] != "good" else f"r{n}"} for n, row in enumerate(rows))
    return out.getvalue()


def clean(tmp_path: Path, *rows: dict[str, str]) -> tuple[tuple[ServingRun, ...], dict[str, int]]:
    path = tmp_path / "sample.csv"
    path.write_text(as_csv(*rows))
    return read_silicon_runs(path)


def test_a_kept_row(tmp_path: Path) -> None:
    (run,), dropped = clean(tmp_path, GOOD)
    assert set(dropped) == set(REASONS)
    assert not any(dropped.values())
    assert run == ServingRun(
        run_id="r0", model="meta-llama/Llama-3.1-70B", checkpoint="meta-llama/Llama-3.1-70B", machine="h200_sxm",
        engine="vllm", precision="fp8", dtype="fp8", kv_cache_dtype="fp8", isl_tok=1024, osl_tok=101, tp=2,
        concurrency=8, ttft_s=0.5, tpot_s=0.02, family="InferenceX", kind="dense",
        source="source_file=a.csv; silicon_concurrency=8; image=vllm:v1",
        load=LoadGenerator(prompts_per_client=10.0, length_frac=0.9),
    )
    # 8 x 101 tokens in 0.5 s + 100 x 20 ms = 2.5 s.
    assert run.throughput_tok_s == pytest.approx(323.2, rel=1e-12)
    assert (run.parallel, run.is_saturated, run.ids) == ("tp", False, ("r0",))


@pytest.mark.parametrize(("reason", "row"), [
    ("not_agg", {**GOOD, "mode": "disagg", "tp_size": "", "silicon_tpot_ms": ""}),
    ("attention_dp", {**MOE, "attention_dp_size": "2"}),
    ("moe_tp_x_ep", {**MOE, "moe_ep_size": "2"}),
    ("multi_node", {**MOE, "tp_size": "12", "moe_tp_size": "12"}),
    ("multi_node", {**GOOD, "tp_size": "16"}),
    ("no_measurement", {**GOOD, "silicon_tpot_ms": ""}),
    ("no_measurement", {**GOOD, "silicon_ttft_ms": "0"}),
    ("several_replicas", {**GOOD, "batch_size": "4"}),
    ("suspected_mtp", R1),
    ("suspected_mtp", {**R1, "model_path": "Qwen/Qwen3.5-397B-A17B"}),
    # -amd64 speaks for a plain run, but on B300.
    ("suspected_mtp", {**R1, "system": "b300_sxm", "silicon_data_source": "a; silicon_concurrency=8; image=x-amd64"}),
])
def test_each_rule_drops_its_row_and_no_other(tmp_path: Path, reason: str, row: dict[str, str]) -> None:
    runs, dropped = clean(tmp_path, GOOD, row)
    assert [run.run_id for run in runs] == ["r0"]
    assert {name: num for name, num in dropped.items() if num} == {reason: 1}


@pytest.mark.parametrize("source", [
    "db-dump/2026; silicon_concurrency=8", "a; silicon_concurrency=8; image=sglang:nightly-1",
    "a; silicon_concurrency=8; image=sglang:v1-amd64", "/x/auto-gap-analysis/data/b200; silicon_concurrency=8",
])
def test_runs_known_to_be_without_speculative_decoding(tmp_path: Path, source: str) -> None:
    (run,), _ = clean(tmp_path, {**R1, "silicon_data_source": source})
    assert run.family == ("NVIDIA internal" if "auto-gap" in source else "InferenceX")


def test_a_copy_in_the_database_dump_clears_the_run(tmp_path: Path) -> None:
    twin = {**R1, "silicon_data_source": "db-dump/2026; silicon_concurrency=8", "silicon_ttft_ms": "500.4"}
    (run,), dropped = clean(tmp_path, R1, twin)
    assert (run.ids, run.ttft_s) == (("r0", "r1"), 0.5)
    assert (dropped["copies"], dropped["suspected_mtp"]) == (1, 0)


def test_copies_agree_to_a_thousandth_in_both_latencies(tmp_path: Path) -> None:
    v3 = {**R1, "model_path": "deepseek-ai/DeepSeek-V3", "silicon_data_source": "db-dump; silicon_concurrency=8"}
    plain = {**v3, "model_path": "deepseek-ai/DeepSeek-R1"}
    runs, dropped = clean(
        tmp_path, plain, {**v3, "silicon_tpot_ms": "20.019"}, {**v3, "silicon_tpot_ms": "20.1"},
        {**plain, "system": "h200_sxm"}, {**plain, "precision": "fp4"},
    )
    # The second is the first under another name, the last the first in another precision: the figures are equal.
    assert [run.ids for run in runs] == [("r0", "r1", "r4"), ("r2",), ("r3",)]
    assert {run.model for run in runs} == {"deepseek-ai/DeepSeek-R1"}
    assert dropped["copies"] == 2


@pytest.mark.parametrize(("tp", "moe_tp", "moe_ep", "expected"), [
    ("16", "4", "4", (4, 4, "tep", True)), ("64", "8", "8", (8, 8, "tep", True)), ("4", "2", "2", (2, 2, "tep", True)),
    ("4", "1", "4", (4, 4, "tep", False)), ("8", "2", "4", (8, 4, "tp_ep4", False)), ("1", "0", "0", (1, 1, "tp", False)),
    ("4", "4", "1", (4, 1, "tp", False)),
])
def test_expert_parallelism(
    tmp_path: Path, tp: str, moe_tp: str, moe_ep: str, expected: tuple[int, int, str, bool]
) -> None:
    (run,), _ = clean(tmp_path, {**MOE, "tp_size": tp, "moe_tp_size": moe_tp, "moe_ep_size": moe_ep})
    assert (run.tp, run.ep, run.parallel, run.is_repaired) == expected
    assert run.kind == "moe"


def test_concurrency_without_a_statement_is_the_batch(tmp_path: Path) -> None:
    (run,), _ = clean(tmp_path, {**GOOD, "silicon_data_source": "a.csv", "batch_size": "16.0"})
    assert run.concurrency == 16


@pytest.mark.parametrize(("ttft_ms", "tpot_ms", "saturated"), [
    ("5000", "10", False), ("5001", "10", True),  # of 5 s + 100 x 10 ms = 6 s
    ("6000", "200", False), ("7000", "200", True),  # a quarter of 26 s is 6.5 s, of 27 s 6.75 s
])
def test_saturated(tmp_path: Path, ttft_ms: str, tpot_ms: str, saturated: bool) -> None:
    (run,), _ = clean(tmp_path, {**GOOD, "silicon_ttft_ms": ttft_ms, "silicon_tpot_ms": tpot_ms})
    assert run.is_saturated == saturated


@pytest.mark.parametrize(("changes", "message"), [
    ({"silicon_ttft_ms": "-1"}, "silicon_ttft_ms must be >= 0, got '-1'"),
    ({"silicon_tpot_ms": "fast"}, "silicon_tpot_ms must be a number, got 'fast'"),
    ({"silicon_tpot_ms": "nan"}, "silicon_tpot_ms must be a number, got 'nan'"),
    ({"silicon_ttft_ms": "1e12"}, "run: ttft_s must be between 0 and 1e+06"),
    ({"tp_size": "2.5"}, "tp_size must be a whole number >= 0, got '2.5'"),
    ({"attention_dp_size": "-1"}, "attention_dp_size must be a whole number >= 0, got '-1'"),
    ({"batch_size": ""}, "batch_size must be a number, got ''"),
    ({"isl": "0"}, "isl must be a whole number >= 1, got '0'"),
    ({"osl": "1e30"}, "run: osl_tok must be between 1 and 1e+13"),
    ({"precision": "fp2"}, "precision must be empty or one of bf16, fp8, fp4, int4, got 'fp2'"),
    ({"mode": ""}, "mode must be given, got ''"),
    ({"system": "a\nb"}, "system must be printable on one line, got 'a\\nb'"),
    ({"id": ""}, "id must be given, got ''"),
])
def test_a_senseless_value_names_file_row_column_rule_and_value(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(WorkloadError) as caught:
        clean(tmp_path, GOOD, {**GOOD, **changes})
    shown = str(caught.value)
    line = 4 if changes.get("system") == "a\nb" else 3
    assert shown.startswith(f"{tmp_path / 'sample.csv'}: row {line}: {message}"), shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(("content", "message"), [
    (b"", "columns must include id, silicon_data_source, "),
    (b"id,mode\na,agg\n", "columns must include silicon_data_source, backend, "),
    ((",".join(COLUMNS) + "\n").encode(), "rows must be at least one, got 0"),
    (as_csv(GOOD).encode() + b"r1,db-dump", "row 3: cells must be 18, as in the header, got 2"),
    (as_csv(GOOD).encode() + b'"r1', "row 3: is no CSV"),
    (as_csv(GOOD, {**GOOD, "id": "r0"}).encode(), "row 3: id must differ from that of row 2, got 'r0'"),
    (b"\xff\xfe\x00", "is not UTF-8 text"),
])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "sample.csv"
    path.write_bytes(content)
    with pytest.raises(WorkloadError) as caught:
        read_silicon_runs(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkloadError, match=r"none\.csv: no such file"):
        read_silicon_runs(tmp_path / "none.csv")
    monkeypatch.delenv(ENV_FOLDER, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TpplannerError, match=r"pip install 'tpplanner\[silicon\]'") as caught:
        read_silicon_runs()
    assert len(str(caught.value).splitlines()) == 1


CELLS = st.sampled_from(["", "-1", "0", "1e400", "nan", "x", "1_0", "4.0", "٣", '"', "\n", "\x00", "a" * 200_000])


@given(cut=st.integers(0, 2000), column=st.sampled_from(COLUMNS), cell=CELLS, noise=st.binary(max_size=4))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_gives_runs_or_one_line(tmp_path: Path, cut: int, column: str, cell: str, noise: bytes) -> None:
    path = tmp_path / "sample.csv"
    content = as_csv(GOOD, {**MOE, column: cell}, R1).encode()
    path.write_bytes(content[:cut] + noise + content[cut + len(noise):] if noise else content)
    try:
        runs, dropped = read_silicon_runs(path)
    except TpplannerError as error:
        message = str(error)
    else:
        assert len(runs) + sum(dropped.values()) <= 3
        return
    assert len(message.splitlines()) == 1
    assert message.startswith(str(path))


def test_rules_of_the_cache() -> None:
    assert all(rule.source for rule in KV_DTYPE_RULES)

    def cache(model: str, engine: str, machine: str, precision: str, version: str | None = None) -> str | None:
        return kv_cache_dtype_of(model=model, engine=engine, machine=machine, precision=precision, version=version)

    assert cache("openai/gpt-oss-120b", "trtllm", "b200_sxm", "fp4") == "fp8"
    assert cache("openai/gpt-oss-120b", "trtllm", "h200_sxm", "fp4") is None
    assert cache("deepseek-ai/DeepSeek-R1", "sglang", "h200_sxm", "fp8") is None
    assert cache("deepseek-ai/DeepSeek-R1", "trtllm", "h200_sxm", "fp8") == "fp8"
    assert cache("MiniMaxAI/MiniMax-M2.5", "vllm", "b200_sxm", "fp8", "0.17.0") is None
    assert cache("MiniMaxAI/MiniMax-M2.5", "vllm", "b200_sxm", "fp8", "0.19.0") == "fp8"
    assert cache("Qwen/Qwen3-32B", "vllm", "h100_sxm", "bf16") is None
