"""A user's own measured runs: the documented CSV."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpplanner.domain.serving_run import ServingRun
from tpplanner.errors import TpplannerError, WorkloadError
from tpplanner.io.model_config import load_model
from tpplanner.io.serving_runs import OPTIONAL, REQUIRED, read_serving_runs

GOOD = {
    "id": "a", "model": "Qwen/Qwen3-32B", "system": "h100-sxm", "engine": "vllm", "tp": "4", "isl": "1024", "osl": "101",
    "concurrency": "8", "ttft_ms": "500", "tpot_ms": "20",
}
FULL = {
    **GOOD, "id": "b", "throughput_tok_s": "300.5", "dtype": "awq", "kv_cache_dtype": "fp8", "ep": "2",
    "engine_version": "0.12.0", "num_gpus": "8", "max_num_seqs": "64", "max_num_batched_tokens": "8192",
    "gpu_memory_utilization": "0.9", "source": "bench  of\tMay",
}
EMPTY = {**dict.fromkeys(OPTIONAL, ""), **GOOD}


def write(tmp_path: Path, *rows: dict[str, str]) -> Path:
    path = tmp_path / "runs.csv"
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_required_columns_are_enough(tmp_path: Path) -> None:
    expected = ServingRun(
        run_id="a", model="Qwen/Qwen3-32B", checkpoint="Qwen/Qwen3-32B", machine="h100-sxm", engine="vllm",
        isl_tok=1024, osl_tok=101, tp=4, concurrency=8, ttft_s=0.5, tpot_s=0.02, family="own", source="",
    )
    assert read_serving_runs(write(tmp_path, GOOD)) == (expected,)
    assert read_serving_runs(str(write(tmp_path, EMPTY))) == (expected,)
    # 8 x 101 tokens in 0.5 s + 100 x 20 ms = 2.5 s.
    assert expected.throughput_tok_s == pytest.approx(323.2, rel=1e-12)
    assert expected.parallel == "tp"


def test_every_column(tmp_path: Path) -> None:
    first, run = read_serving_runs(write(tmp_path, {**FULL, "id": "z"}, FULL))
    assert (first.run_id, run.run_id) == ("z", "b")
    assert (run.dtype, run.precision, run.kv_cache_dtype, run.engine_version) == ("int4", "awq", "fp8", "0.12.0")
    assert (run.ep, run.parallel, run.num_gpus, run.source) == (2, "tp_ep2", 8, "bench of May")
    assert (run.max_num_seqs, run.max_num_batched_tokens, run.gpu_memory_utilization) == (64, 8192, 0.9)
    assert run.throughput_tok_s == 300.5
    assert load_model(run.checkpoint, dtype=run.dtype, kv_cache_dtype=run.kv_cache_dtype).precision.name == "int4"


def test_a_spreadsheet_s_byte_order_mark_line_ends_and_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, {**GOOD, "id": "c"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert [run.run_id for run in read_serving_runs(path)] == ["a", "c"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"ttft_ms": "0"}, "ttft_ms must be > 0, got '0'"),
    ({"tpot_ms": "-3"}, "tpot_ms must be > 0, got '-3'"),
    ({"tpot_ms": ""}, "tpot_ms must be a number, got ''"),
    ({"tpot_ms": "inf"}, "tpot_ms must be a number, got 'inf'"),
    ({"ttft_ms": "1e300"}, "run: ttft_s must be between 0 and 1e+06"),
    ({"tp": "2.5"}, "tp must be a whole number >= 1, got '2.5'"),
    ({"concurrency": "0"}, "concurrency must be a whole number >= 1, got '0'"),
    ({"isl": "many"}, "isl must be a number, got 'many'"),
    ({"engine": "vl\tlm"}, "engine must be printable on one line, got 'vl\\tlm'"),
    ({"model": ""}, "model must be given, got ''"),
    ({"ep": "3"}, "run: ep must divide tp 4, got 3"),
    ({"ep": "0"}, "ep must be a whole number >= 1, got '0'"),
    ({"num_gpus": "6"}, "run: num_gpus must be a multiple of tp 4, got 6"),
    ({"gpu_memory_utilization": "90"}, "run: gpu_memory_utilization must be between 0 and 1, got 90.0"),
    ({"throughput_tok_s": "0"}, "throughput_tok_s must be > 0, got '0'"),
    ({"dtype": "fp7"}, "dtype: must be one of auto, fp32, bf16"),
    ({"kv_cache_dtype": "int4"}, "kv_cache_dtype: must be one of auto, bf16"),
    ({"id": "a"}, "id must differ from that of row 2, got 'a'"),
])
def test_a_senseless_value_names_file_row_column_rule_and_value(
    tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    path = write(tmp_path, EMPTY, {**EMPTY, "id": "b", **changes})
    with pytest.raises(WorkloadError) as caught:
        read_serving_runs(path)
    assert str(caught.value).startswith(f"{path}: row 3: {message}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("rows", "message"), [
    ([{key: value for key, value in GOOD.items() if key != "tpot_ms"}], "columns must include tpot_ms, got "),
    ([{**GOOD, "kv_cache_dtyp": "fp8"}], "columns must be among id, model"),
    ([{**GOOD, " tp ": "4"}], "columns must differ from each other, got 'tp'"),
])
def test_columns(tmp_path: Path, rows: list[dict[str, str]], message: str) -> None:
    path = write(tmp_path, *rows)
    with pytest.raises(WorkloadError) as caught:
        read_serving_runs(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "kv_cache_dtyp" not in rows[0] or "did you mean kv_cache_dtype" in str(caught.value)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: None])
def test_what_is_no_file(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "runs.csv")
    with pytest.raises(WorkloadError, match=r"runs\.csv: (is no regular file|no such file)"):
        read_serving_runs(tmp_path / "runs.csv")


CELLS = st.one_of(
    st.sampled_from(["", "-1", "0", "1e400", "nan", "1_0", "4.0", "٣", "True", '"', "\x00", "a" * 200_000]),
    st.text(max_size=8), st.floats().map(str), st.integers().map(str),
)


@given(column=st.sampled_from([*REQUIRED, *OPTIONAL]), cell=CELLS, cut=st.integers(0, 600), noise=st.binary(max_size=3))
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_gives_runs_or_one_line(tmp_path: Path, column: str, cell: str, cut: int, noise: bytes) -> None:
    path = tmp_path / "runs.csv"
    lines = [",".join(EMPTY), ",".join({**EMPTY, column: cell}.values()), ",".join({**EMPTY, "id": "b"}.values())]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    path.write_bytes(content[:cut] + noise if noise else content)
    try:
        runs = read_serving_runs(path)
    except TpplannerError as error:
        message = str(error)
    else:
        assert all(run.tpot_s > 0 and run.tp >= 1 for run in runs)
        return
    assert len(message.splitlines()) == 1
    assert message.startswith(str(path))


@given(content=st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.csv"
    path.write_bytes(content)
    with pytest.raises(WorkloadError):
        read_serving_runs(path)


@pytest.mark.parametrize(("changes", "message"), [
    ({"kind": "sparse"}, "run: kind must be one of dense, moe, got 'sparse'"),
    ({"tpot_s": 0.0}, "run: tpot_s must be > 0, got 0"),
    ({"tp": True}, "run: tp must be an integer, got True"),
    ({"ttft_s": float("nan")}, "run: ttft_s must be a finite number, got nan"),
])
def test_a_run_checks_itself(changes: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {
        "run_id": "a", "model": "m", "checkpoint": "m", "machine": "h", "engine": "vllm", "isl_tok": 1, "osl_tok": 1,
        "tp": 2, "concurrency": 1, "ttft_s": 1.0, "tpot_s": 1.0, "family": "own", "source": "",
    }
    with pytest.raises(WorkloadError, match=message):
        ServingRun(**{**fields, **changes})  # type: ignore[arg-type]
