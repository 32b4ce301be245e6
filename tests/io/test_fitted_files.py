"""Fitted profiles in files: what is written is read back, and found where profiles are."""

import json
import time
from dataclasses import fields

import pytest
from fitted_samples import SOUND, kernel, profile, quantity
from hypothesis import given, settings
from hypothesis import strategies as st

from tpplanner.domain.fitted_profile import apply_kernels
from tpplanner.domain.hardware import CollectiveCurve, CollectiveOp
from tpplanner.domain.kernels import GemmKernel, Kernels, Surface
from tpplanner.errors import ProfileError
from tpplanner.io.fitted_files import decode_fitted, encode_fitted, fitted_files, fitted_path, load_fitted, read_fitted
from tpplanner.io.fitted_numbers import rounded
from tpplanner.io.profile_files import packaged_root
from tpplanner.io.profile_hardware import load_hardware


def content(item):
    """Everything in a record that compares by identity."""
    if hasattr(item, "__dataclass_fields__"):
        return {f.name: content(getattr(item, f.name)) for f in fields(item)}
    if isinstance(item, dict):
        return {key: content(value) for key, value in item.items()}
    return tuple(map(content, item)) if isinstance(item, tuple) else item


@pytest.mark.parametrize("without_serving", [False, True])
def test_what_is_written_is_read_back(without_serving):
    written = profile(serving=None) if without_serving else profile()
    assert content(decode_fitted(encode_fitted(written), "f")) == content(written)


def test_the_layout_has_a_line_per_kernel_and_surfaces_in_thousandths():
    lines = [line.rstrip(",]}") for line in SOUND.decode().splitlines() if line.startswith('{"dtype"')]
    document = json.loads(SOUND)
    first = document["kernels"]["gemm"][0]
    assert len(lines) == 5
    assert json.loads(lines[0] + "]}}") == first
    assert first["surface"]["log_ratio"] == [0, -378, 1808, 1, -1, 250]
    assert first["latency_s"] == {"value": 3.2168e-6, "std_error": 0.011}
    assert document["serving"]["tpot"]["dense"]["model"] == [0, 1, 0, 1, 0]
    assert document["serving"]["tpot"]["dense"]["terms"][0] == {"std_frac": 0.05, "within": "cell", "num_seqs_len": 2}


@given(st.floats(1e-9, 1e6), st.lists(st.floats(-3, 3), min_size=6, max_size=6))
@settings(max_examples=50, deadline=None)
def test_numbers_survive_to_the_rounding_and_a_second_round_changes_nothing(latency_s, log_ratio):
    surface = Surface(axes=("num_tok", "w"), knots=((1.0, 16.0, 17.0), (0.02, 1.0)), log_ratio=tuple(log_ratio))
    one = kernel(GemmKernel, latency_s=quantity(latency_s, "latency_s"), surface=surface)
    first = decode_fitted(encode_fitted(profile(kernels=Kernels(gemm={"bf16": one}))), "f")
    found = first.kernels.gemm["bf16"]
    assert found.latency_s.value == pytest.approx(latency_s, rel=5.1e-5)
    assert found.surface.log_ratio == pytest.approx(log_ratio, abs=5.1e-4)
    assert encode_fitted(decode_fitted(encode_fitted(first), "f")) == encode_fitted(first)


def test_rounding_by_hand():
    assert [rounded(v) for v in (123456.0, 0.000123456, -2.0, 0.0)] == [123460, 0.00012346, -2, 0]


# --- found where profiles are ---


def put(folder, machine="h200", engine="vllm", **given):
    path = folder / machine / f"fitted-{engine}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_fitted(profile(machine=machine, engine=engine, serving=None, **given)))
    return path


def test_the_users_folder_wins_and_names_may_be_aliases(tmp_path, monkeypatch):
    first, second = put(tmp_path / "a"), put(tmp_path / "b")
    assert fitted_path("h200", "vllm", (tmp_path / "b",)) == second
    monkeypatch.setenv("TPPLANNER_PROFILES", str(tmp_path / "a"))
    for machine, engine in (("h200", "vllm"), ("H200_SXM", "VLLM"), ("h200-141gb", "vllm-v1")):
        assert fitted_path(machine, engine, (tmp_path / "b",)) == first
    found = load_fitted("h200_sxm", "vllm")
    assert (found.machine, found.engine, found.made_from.version) == ("h200", "vllm", "0.12.0")
    assert fitted_files("h200_sxm")["vllm"] == first


def test_a_machine_given_as_a_path_brings_its_own(tmp_path):
    put(tmp_path, machine="own", engine="eng")
    (tmp_path / "own" / "datasheet.toml").write_bytes((packaged_root() / "h200" / "datasheet.toml").read_bytes())
    for name in (str(tmp_path / "own"), str(tmp_path / "own" / "datasheet.toml")):
        assert load_fitted(name, "eng").machine == "own"


@pytest.mark.parametrize(("machine", "engine"), [
    ("h200", "no-such"), ("no-such", "vllm"), ("", ""), ("..", "vllm"), ("h200", "../vllm"), ("h200", "x" * 500), ("\0", "\0"),
    ("rtx-4090", "vllm"),
])
def test_nothing_fitted_is_none(machine, engine):
    assert load_fitted(machine, engine) is None


def test_packaged_files_are_sound_small_and_fast():
    paths = sorted(packaged_root().glob("*/fitted-*.json"))
    for path in paths:
        start = time.perf_counter()
        found = read_fitted(path)
        assert time.perf_counter() - start < 0.2  # 3 ms on an idle machine
        assert found.kernels.gemm["bf16"].held_out_median_frac < 0.15
        assert "NVIDIA CORPORATION" in found.made_from.notice
        assert path.stat().st_size < 150_000
        assert apply_kernels(load_hardware(found.machine), found).kernels is found.kernels


def test_kernels_are_laid_over_a_machine_and_its_curves_win():
    hardware = load_hardware("h200")
    curve = CollectiveCurve(op=CollectiveOp.ALL_REDUCE, tp=2, size_bytes=(1.0, 2.0), latency_s=(1.0, 2.0), source="new")
    found = apply_kernels(hardware, profile(machine="h200", serving=None, collectives=(curve,)))
    assert found.kernels.gemm["bf16"].num_samples == 35742
    assert [c for c in found.collectives if (c.op, c.tp) == (CollectiveOp.ALL_REDUCE, 2)] == [curve]
    assert len(found.collectives) == len({(c.op, c.tp) for c in (*hardware.collectives, curve)})
    with pytest.raises(ProfileError, match="fitted profile of eng: machine must be h200, got 'm'"):
        apply_kernels(hardware, profile())
