"""``tpplanner profiles import``: on tables of our own making, on the real ones where they are, and what it refuses."""

import importlib.util
import json
import os

import numpy as np
import pandas as pd
import pytest

from tpplanner.api import profiles_import
from tpplanner.cost.roofline import roofline_s
from tpplanner.errors import ProfileError
from tpplanner.io.fitted_files import encode_fitted, read_fitted
from tpplanner.io.silicon_package import known_systems, silicon_root
from tpplanner.report.fit_plots import fit_plot_png

needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
NAMES = ["fit_report-vllm.md", "fit_report-vllm.png", "fitted-vllm.json"]


def has_package():
    try:
        return "h200_sxm" in known_systems(silicon_root())
    except ProfileError:
        return False


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A package with bf16 GEMMs of H200 with vLLM alone: 5 us, 60 % of the arithmetic, 80 % of the bandwidth."""
    m, n, k = (a.ravel() for a in np.meshgrid([1, 16, 64, 256, 1024, 4096], [512, 2048, 8192], [1024, 4096, 16384]))
    moved = 2.0 * (n * k + m * (n + k))
    time_s = 5e-6 + roofline_s(compute_s=2.0 * m * n * k / (0.6 * 989e12), memory_s=moved / (0.8 * 4.8e12), sharpness=3.0)
    folder = tmp_path / "aiconfigurator_core" / "systems" / "data"
    path = folder / "h200_sxm" / "gemm" / "vllm" / "0.24.0" / "gemm_perf.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame({"framework": "VLLM", "version": "0.24.0", "device": "NVIDIA H200", "op_name": "gemm", "kernel_source": "k",
                  "gemm_dtype": "bfloat16", "m": m, "n": n, "k": k, "latency": time_s * 1e3}).to_parquet(path, engine="pyarrow")
    (tmp_path / "aiconfigurator_core-0.12.9.dist-info").mkdir()
    monkeypatch.setenv("TPPLANNER_SILICON", str(folder))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@needs_pyarrow
def test_an_import_writes_a_profile_its_report_and_a_plot(run, tables, tmp_path):
    code, out, err = run("profiles", "import", "--system", "h200", "--engine", "vLLM")
    assert code == 0
    assert out.splitlines() == ["profiles/h200/fitted-vllm.json: 1 kernels, 0 collectives",
                                "To use it: TPPLANNER_PROFILES=profiles tpplanner ..."]
    assert "gemm bf16: 54 samples" in err
    folder = tmp_path / "work" / "profiles" / "h200"
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    found = read_fitted(folder / "fitted-vllm.json")
    assert found.kernels.gemm["bf16"].compute_frac.value == pytest.approx(0.6, rel=0.02)
    assert (found.made_from.version, found.made_from.tables[0].num_rows) == ("0.12.9", 54)
    report = (folder / "fit_report-vllm.md").read_text()
    for part in ("profiles import --system h200_sxm --engine vllm --out", "| GEMM | bf16 | 54 |", "Apache License 2.0",
                 "| h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet | 0.24.0 | 54 |", "![", "num_tok 17..128", "Largest outliers"):
        assert part in report
    assert (folder / "fit_report-vllm.png").read_bytes().startswith(b"\x89PNG")


@needs_pyarrow
def test_what_was_imported_is_shown_and_wins_over_the_package(run, tables, monkeypatch):
    assert run("profiles", "import", "--system", "h200", "--engine", "vllm")[0] == 0
    monkeypatch.setenv("TPPLANNER_PROFILES", "profiles")
    shown = run("profiles", "show", "h200")[1]
    assert "Fitted engines:" in shown
    row = next(line for line in shown.splitlines() if line.startswith("vllm "))
    assert row.split()[:3] == ["vllm", "gemm", "bf16"]
    assert not [line for line in shown.splitlines() if line.startswith("vllm ") and "moe" in line]


@needs_pyarrow
def test_nothing_is_overwritten_unasked_and_the_serving_fit_is_kept(run, tables, tmp_path):
    command = ("profiles", "import", "--system", "h200_sxm", "--engine", "vllm", "--out", "mine")
    assert run(*command)[0] == 0
    path = tmp_path / "work" / "mine" / "h200" / "fitted-vllm.json"
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert "fitted-vllm.json, fit_report-vllm.md, fit_report-vllm.png already exist; nothing was written" in err
    assert len(err.splitlines()) == 1
    document = json.loads(path.read_text())
    names = profile_terms()
    residual = {"noise_std_frac": 0.1, "terms": []}
    document["serving"] = {"source": "runs", "num_runs": 0, "tpot": {"dense": residual}, "ttft": {"dense": residual}, "terms": {
        "dense": {name: {"value": 1, "std_error": 0.1, "num_samples": 5} for name in names}}}
    path.write_text(json.dumps(document))
    code, out, err = run(*command, "--overwrite")
    assert code == 0
    assert "the serving fit of the old file is kept" in err
    assert read_fitted(path).serving.terms["dense"].layer_s.value == 1.0
    path.write_text("{")
    code, out, err = run(*command, "--overwrite")
    assert code == 2
    assert "its serving fit cannot be kept" in err
    assert len(err.splitlines()) == 1
    assert path.read_text() == "{"


def profile_terms():
    from tpplanner.domain.serving_fit import SERVING_TERMS
    return SERVING_TERMS


@needs_pyarrow
def test_an_interrupted_import_leaves_nothing(run, tables, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(profiles_import, "encode_fitted", interrupt)
    code, out, _ = run("profiles", "import", "--system", "h200", "--engine", "vllm")
    assert (code, out) == (130, "")
    assert files(tmp_path / "work") == []
    monkeypatch.setattr(profiles_import, "encode_fitted", encode_fitted)
    monkeypatch.setattr(os, "replace", interrupt)
    assert run("profiles", "import", "--system", "h200", "--engine", "vllm")[0] == 130
    assert list((tmp_path / "work").iterdir()) == []


@needs_pyarrow
def test_all_imports_what_there_is(run, tables):
    code, out, _ = run("profiles", "import", "--all", "--engine", "vllm-v1", "--out", "mine")
    assert code == 0
    assert out.splitlines()[0] == "mine/h200/fitted-vllm.json: 1 kernels, 0 collectives"


@needs_pyarrow
@pytest.mark.parametrize(("arguments", "message"), [
    (["--system", "h200"], "--system and --engine must be given, or --all, got ('h200', None)"),
    (["--system", "h201", "--engine", "vllm"], "unknown system 'h201'; measured: h200_sxm"),
    (["--system", "h200", "--engine", "sglang"], "h200_sxm: unknown engine 'sglang'; measured: vllm"),
    (["--system", "h200", "--engine", "vllm", "--engine-version", "9"], "h200_sxm/vllm: unknown version '9'; measured: 0.24.0"),
    (["--all", "--engine", "sglang"], "--all must match a machine and engine that was measured, got (None, 'sglang')"),
    (["--system", "h200", "--engine", "vllm", "--out", "no/such"], "no: the folder does not exist"),
])
def test_what_cannot_be_imported_is_one_line(run, tables, tmp_path, arguments, message):
    code, out, err = run("profiles", "import", *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err
    assert files(tmp_path / "work") == []


@needs_pyarrow
def test_a_damaged_table_and_a_machine_without_a_profile_are_one_line(run, tables, tmp_path):
    source = tables / "h200_sxm" / "gemm"
    (tables / "x900_sxm").mkdir()
    source.rename(tables / "x900_sxm" / "gemm")
    code, _, err = run("profiles", "import", "--system", "x900_sxm", "--engine", "vllm")
    assert code == 2
    assert "unknown GPU 'x900_sxm'" in err
    (tables / "x900_sxm").rename(tables / "h200_sxm.new")
    for path in (tables / "h200_sxm.new").rglob("*.parquet"):
        target = tables / "h200_sxm" / "gemm" / "vllm" / "0.24.0" / path.name
        target.parent.mkdir(parents=True)
        target.write_bytes(path.read_bytes()[:-100])
    code, _, err = run("profiles", "import", "--system", "h200", "--engine", "vllm")
    assert code == 2
    assert len([line for line in err.splitlines() if "error" in line]) == 1
    assert "gemm_perf.parquet" in err
    assert files(tmp_path / "work") == []


def test_in_a_checkout_the_package_is_written_to_only_when_named(run, tmp_path, monkeypatch):
    (tmp_path / "profiles").mkdir()
    monkeypatch.setattr("tpplanner.io.fitted_write.packaged_root", lambda: tmp_path / "profiles")
    monkeypatch.chdir(tmp_path)
    code, _, err = run("profiles", "import", "--system", "h200", "--engine", "vllm")
    assert code == 2
    assert "profiles: is the package's own folder of profiles; --out profiles writes into it" in err


def test_without_the_package_the_error_says_how_to_install_it(run, tmp_path, monkeypatch):
    monkeypatch.delenv("TPPLANNER_SILICON", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    code, out, err = run("profiles", "import", "--system", "h200", "--engine", "vllm")
    assert (code, out) == (2, "")
    assert err == ("tpplanner: error: the measured operator tables must be installed, found none: "
                   "pip install 'tpplanner[silicon]', or set TPPLANNER_SILICON to their folder\n")
    assert files(tmp_path) == []


def test_a_plot_of_nothing_is_a_picture():
    assert fit_plot_png((), title="nothing").startswith(b"\x89PNG")


@needs_pyarrow
@pytest.mark.slow
@pytest.mark.skipif(not has_package(), reason="aiconfigurator-core is not installed")
def test_the_packaged_profile_of_h200_vllm_is_what_an_import_gives(run, tmp_path):
    from tpplanner.io.profile_files import packaged_root

    assert run("profiles", "import", "--system", "h200", "--engine", "vllm", "--out", str(tmp_path / "p"))[0] == 0
    new = read_fitted(tmp_path / "p" / "h200" / "fitted-vllm.json")
    old = read_fitted(packaged_root() / "h200" / "fitted-vllm.json")
    for name in ("gemm", "decode_attention", "prefill_attention", "moe"):
        table, packaged = getattr(new.kernels, name), getattr(old.kernels, name)
        assert sorted(table) == sorted(packaged)
        for dtype, kernel in table.items():
            assert kernel.num_samples == packaged[dtype].num_samples
            assert kernel.held_out_median_frac == pytest.approx(packaged[dtype].held_out_median_frac, abs=0.002)
    assert [(c.op, c.tp, c.size_bytes) for c in new.collectives] == [(c.op, c.tp, c.size_bytes) for c in old.collectives]
