"""Where the measured tables are found, and which names lead to them."""

import pytest

from tpplanner.errors import ProfileError
from tpplanner.io import silicon_package
from tpplanner.io.silicon_package import (
    find_silicon_engine,
    find_system,
    find_version,
    known_engines,
    known_systems,
    known_versions,
    silicon_root,
)
from tpplanner.io.silicon_tables import read_operator_tables

GEMM_FILE = "h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet"
FILES = (
    GEMM_FILE, "h200_sxm/moe/vllm/0.9.1/moe_perf.parquet", "h100_sxm/gemm/trtllm/1.3.0/gemm_perf.parquet",
    "h200_sxm/comm/nccl/2.29.2/nccl_perf.parquet", "rtx_pro_6000_server/gemm/vllm/0.24.0/gemm_perf.parquet",
)


@pytest.fixture
def listing(tmp_path, monkeypatch):
    monkeypatch.setenv("TPPLANNER_SILICON", str(tmp_path))
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.delenv("TPPLANNER_SILICON", raising=False)
    monkeypatch.setattr(silicon_package.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ProfileError, match=r"pip install 'tpplanner\[silicon\]'"):
        read_operator_tables("h200", "vllm")


@pytest.mark.parametrize("inside", ["", "data", "systems/data", "aiconfigurator_core/systems/data"])
def test_the_folder_may_be_named_at_any_height(tmp_path, monkeypatch, inside):
    path = tmp_path / inside / GEMM_FILE
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setenv("TPPLANNER_SILICON", str(tmp_path))
    assert silicon_root() == tmp_path / inside


def test_a_folder_without_tables_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TPPLANNER_SILICON", str(tmp_path))
    with pytest.raises(ProfileError, match=r"^TPPLANNER_SILICON: .* must hold <system>.*found none$"):
        silicon_root()


def test_what_is_there_is_listed(listing):
    assert known_systems(listing) == ("h100_sxm", "h200_sxm", "rtx_pro_6000_server")
    assert known_engines(listing, "h200_sxm") == ("vllm",)
    assert known_versions(listing, "h200_sxm", "vllm") == ("0.9.1", "0.24.0")


@pytest.mark.parametrize(("name", "system"), [
    ("h200", "h200_sxm"), ("H200-SXM", "h200_sxm"), ("h200_sxm", "h200_sxm"), ("h100-sxm", "h100_sxm"), ("h100", "h100_sxm"),
    ("rtx-pro-6000", "rtx_pro_6000_server"),
])
def test_our_machine_names_lead_to_the_systems(listing, name, system):
    assert find_system(listing, name) == system


def test_our_engine_names_lead_to_the_engines(listing):
    assert find_silicon_engine(listing, "h100_sxm", "TensorRT-LLM") == "trtllm"
    assert find_silicon_engine(listing, "h200_sxm", "vllm-v1") == "vllm"


@pytest.mark.parametrize(("find", "words"), [
    (lambda root: find_system(root, "h300"), "unknown system 'h300'; measured: h100_sxm, h200_sxm, rtx_pro_6000_server. did you"),
    (lambda root: find_system(root, "mi300x"), "unknown system 'mi300x'; measured: h100_sxm"),
    (lambda root: find_system(root, "../h200_sxm\0"), "unknown system"),
    (lambda root: find_silicon_engine(root, "h200_sxm", "vlm"),
     "h200_sxm: unknown engine 'vlm'; measured: vllm. did you mean vllm?"),
    (lambda root: find_silicon_engine(root, "h200_sxm", "nccl"), "unknown engine 'nccl'; measured: vllm"),
    (lambda root: find_version(root, "h200_sxm", "vllm", "0.24"),
     "h200_sxm/vllm: unknown version '0.24'; measured: 0.9.1, 0.24.0. did you mean 0.24.0?"),
])
def test_an_unknown_name_is_one_error_that_lists_the_known(listing, find, words):
    with pytest.raises(ProfileError) as caught:
        find(listing)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
