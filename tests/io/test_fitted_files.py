"""Fitted profiles in files: what is written is read back, whatever else is read is one line of ProfileError."""

import json
import math
import time
from dataclasses import fields, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpplanner.domain.fitted_profile import FittedProfile, MadeFrom, SourceTable, apply_kernels
from tpplanner.domain.hardware import CollectiveCurve, CollectiveOp
from tpplanner.domain.kernels import (
    DecodeAttentionKernel,
    GemmKernel,
    Kernels,
    MoeKernel,
    PrefillAttentionKernel,
    Surface,
)
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.domain.serving_fit import SERVING_TERMS, CovarianceTerm, ResidualModel, ServingFit, ServingTerms
from tpplanner.errors import ProfileError
from tpplanner.io.fitted_files import decode_fitted, encode_fitted, fitted_files, fitted_path, load_fitted, read_fitted
from tpplanner.io.fitted_numbers import rounded
from tpplanner.io.profile_files import packaged_root
from tpplanner.io.profile_hardware import load_hardware

SOURCE = "sys/gemm/eng/1.0/gemm_perf.parquet (k)"
COEFFICIENTS = ("latency_s", "compute_frac", "memory_frac", "sharpness")


def quantity(value, name="x", source=SOURCE, **given):
    return Quantity(value=value, unit="s" if name.endswith("_s") else "1", source=source,
                    **{"provenance": Provenance.FITTED, "std_error": 0.011, "num_samples": 60, **given})


def kernel(kind, dtype="bf16", **given):
    ready = {
        "dtype": dtype, "latency_s": quantity(3.2168e-6, "latency_s"), "compute_frac": quantity(0.8), "sharpness": quantity(2.5),
        "memory_frac": quantity(1.0, std_error=0.0), "held_out_median_frac": 0.0333, "held_out_p90_frac": 0.0942,
        "num_samples": 35742, "source": SOURCE, "notes": ("a note",), "ranges": (("num_tok", 1.0, 32768.0), ("w", 0.0123, 1.0)),
        "surface": Surface(axes=("num_tok", "w"), knots=((1.0, 16.0, 17.0), (0.02, 1.0)),
                           log_ratio=(0.0, -0.378, 1.808, 0.001, -0.001, 0.25)),
    }
    return kind(**{**ready, **given})


def residual(num_runs):
    return ResidualModel(
        terms=(CovarianceTerm(std_frac=0.05, within="cell", num_seqs_len=2.0), CovarianceTerm(std_frac=0.1, within="model")),
        noise_std_frac=0.03, model_keys=tuple(f"m{i % 2}/bf16" for i in range(num_runs)),
        num_seqs=tuple(float(2**i) for i in range(num_runs)), tp=(2.0,) * num_runs, isl_tok=(1024.0,) * num_runs,
        osl_tok=(819.2,) * num_runs, weights=tuple(0.12345 * (-1) ** i for i in range(num_runs)),
    )


def serving():
    terms = ServingTerms(**{name: quantity((50 + i) / 100, name, "runs") for i, name in enumerate(SERVING_TERMS)})
    prior = replace(terms, **{SERVING_TERMS[0]: quantity(1.0, SERVING_TERMS[0], "other machines", std_error=None,
                                                        num_samples=None, provenance=Provenance.EXTRAPOLATED)})
    return ServingFit(machine="m", engine="eng", terms={"dense": terms, "moe": prior}, num_runs=5, source="runs",
                      tpot={"dense": residual(5), "moe": residual(1)}, ttft={"dense": residual(0)})


def profile(**given):
    ready = {
        "machine": "m", "engine": "eng", "serving": serving(),
        "kernels": Kernels(
            gemm={"bf16": kernel(GemmKernel), "fp8": kernel(GemmKernel, "fp8", surface=None, held_out_median_frac=None,
                                                            held_out_p90_frac=None, notes=(), ranges=())},
            decode_attention={"fp8": kernel(DecodeAttentionKernel, "fp8")},
            prefill_attention={"bf16": kernel(PrefillAttentionKernel)},
            moe={"nvfp4": kernel(MoeKernel, "nvfp4", distribution="power_law_1.2", effective_experts_frac=quantity(0.86))}),
        "collectives": (CollectiveCurve(op=CollectiveOp.ALL_REDUCE, tp=2, size_bytes=(256.0, 2.0**30),
                                        latency_s=(4.512e-6, 5.127e-3), source="sys/comm"),),
        "made_from": MadeFrom(package="p", version="0.12.0", notice="licence", tables=(
            SourceTable(path="a/b", framework_version="1.0", num_rows=3),)),
    }
    return FittedProfile(**{**ready, **given})


def content(item):
    """Everything in a record that compares by identity."""
    if hasattr(item, "__dataclass_fields__"):
        return {f.name: content(getattr(item, f.name)) for f in fields(item)}
    if isinstance(item, dict):
        return {key: content(value) for key, value in item.items()}
    return tuple(map(content, item)) if isinstance(item, tuple) else item


SOUND = encode_fitted(profile())


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


# --- bad input ---


def refused(data):
    with pytest.raises(ProfileError) as error:
        decode_fitted(data, "place")
    message = str(error.value)
    assert message.startswith("place: ")
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    return message


def changed(**at):
    """The sound file with one entry replaced; the key is its path, dots as double underscores."""
    document = json.loads(SOUND)
    for dotted, value in at.items():
        *path, last = [int(part) if part.isdigit() else part for part in dotted.split("__")]
        inner = document
        for part in path:
            inner = inner[part]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(("at", "message"), [
    ({"schema_version": 2}, "schema_version: Expected `int` <= 1"),
    ({"engine": None}, "missing required field `engine`"),
    ({"engine": "a/b"}, "machine and engine must be plain names, got 'a/b'"),
    ({"surprise": 1}, "unknown field `surprise`"),
    ({"kernels__gemm__0__surprise": 1}, "kernels.gemm[0]: Object contains unknown field"),
    ({"kernels__gemm__0__latency_s__value": "3"}, "kernels.gemm[0].latency_s.value: Expected `float`, got `str`"),
    ({"kernels__gemm__0__latency_s__value": -1}, "Expected `float` >= 0"),
    ({"kernels__gemm__0__latency_s__value": 1e30}, "Expected `float` <= "),
    ({"kernels__gemm__0__latency_s__std_error": None}, "kernels.gemm[0]: std_error and num_samples must be given for a fit"),
    ({"kernels__gemm__0__latency_s__provenance": "guess"}, "latency_s.provenance must be one of measured, fitted"),
    ({"kernels__gemm__0__compute_frac__value": 1.5}, "kernels.gemm[0]: compute_frac must be in (0, 1], got 1.5"),
    ({"kernels__gemm__0__sharpness__value": 0.5}, "sharpness must be >= 1"),
    ({"kernels__gemm__1__dtype": "bf16"}, "kernels.gemm[1].dtype must occur once, got 'bf16'"),
    ({"kernels__gemm__0__ranges__num_tok": [5, 1]}, "ranges.num_tok must be 0 < least <= greatest"),
    ({"kernels__gemm__0__surface__log_ratio": [1, 2]}, "log_ratio must have 6 values, got 2"),
    ({"kernels__gemm__0__surface__log_ratio": [0.5] * 6}, "log_ratio[0]: Expected `int`, got `float`"),
    ({"kernels__gemm__0__surface__log_ratio": [10**6] * 6}, "Expected `int` <= 50000"),
    ({"kernels__gemm__0__surface__knots__0": [1, 1, 2]}, "knots of num_tok must ascend"),
    ({"kernels__gemm__0__source": "a\nb"}, "kernels.gemm[0].source: Expected `str` matching"),
    ({"kernels__moe__0__distribution": None}, "kernels.moe[0]: Object missing required field `distribution`"),
    ({"collectives__0__op": "gossip"}, "collectives[0].op must be one of all_reduce, all_gather, all_to_all, got 'gossip'"),
    ({"collectives__0__tp": 1}, "collectives[0]: tp must be between 2 and"),
    ({"collectives__0__latency_s": [1e-6]}, "collectives[0]: size_bytes and latency_s must have one length"),
    ({"collectives__0__latency_s": [-1e-6, 1]}, "collectives[0].latency_s[0]: Expected `float` > 0"),
    ({"serving__terms__dense__layer_s": None}, "serving: terms.dense must have the terms"),
    ({"serving__terms__dense__magic": {"value": 1}}, "serving: terms.dense must have the terms"),
    ({"serving__terms": {}}, "serving: m/eng: terms must be given for classes"),
    ({"serving__tpot__dense__model__0": 7}, "serving: tpot.dense.model must count in the 2 model_keys, got 7"),
    ({"serving__tpot__dense__tp": [1]}, "serving: residual must have one entry per run in every column"),
    ({"serving__tpot__dense__terms__0__within": "galaxy"}, "serving: within must be one of"),
    ({"serving__tpot__sparse": {"noise_std_frac": 0.1, "terms": []}}, "serving: m/eng: tpot and ttft must be of dense and moe"),
    ({"serving__tpot__dense__noise_std_frac": 0}, "serving: residual.noise_std_frac must be > 0 where there are runs"),
    ({"serving__tpot__dense__weights__0": "1"}, "serving.tpot[...].weights[0]: Expected `float`, got `str`"),
    ({"serving__num_runs": -1}, "serving.num_runs: Expected `int` >= 0"),
])
def test_one_line_says_what_is_wrong(at, message):
    assert message in refused(changed(**at))


def test_two_curves_of_one_degree_are_refused():
    document = json.loads(SOUND)
    document["collectives"] *= 2
    assert "collectives must have one curve per op and tp" in refused(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema_version":NaN}', b"[" * 100_000, SOUND[:-40]])
def test_what_is_no_such_file_is_refused(data):
    refused(data)


@pytest.mark.parametrize("cut", range(0, len(SOUND) - 2, 97))
def test_a_truncated_file_is_refused(cut):
    refused(SOUND[:cut])


ODD = st.one_of(
    st.none(), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**30), 10**30),
    st.text(max_size=20), st.just([]), st.just({}), st.just([[]]), st.just({"": 0}),
)


def places(item, path=()):
    yield path
    if isinstance(item, dict | list):
        for key, inner in item.items() if isinstance(item, dict) else enumerate(item):
            yield from places(inner, (*path, key))


PLACES = [path for path in places(json.loads(SOUND)) if path]


@given(st.sampled_from(PLACES), ODD)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_stands_anywhere_is_read_or_refused_in_one_line(path, odd):
    document = json.loads(SOUND)
    inner = document
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = odd
    data = json.dumps(document).encode()
    try:
        found = decode_fitted(data, "place")
    except ProfileError:
        refused(data)
    else:
        assert math.isfinite(found.kernels.gemm["bf16"].latency_s.value) if "bf16" in found.kernels.gemm else found.kernels


@pytest.mark.parametrize(("machine", "engine", "message"), [
    ("other", "eng", "machine must be other, as the folder, got 'm'"), ("m", "other", "engine must be that of fitted-other.json"),
])
def test_a_file_in_the_wrong_place_is_refused(tmp_path, machine, engine, message):
    path = tmp_path / machine / f"fitted-{engine}.json"
    path.parent.mkdir()
    path.write_bytes(SOUND)
    with pytest.raises(ProfileError, match=message):
        read_fitted(path)


def test_an_unreadable_or_huge_file_is_refused(tmp_path):
    with pytest.raises(ProfileError, match=r"must be a readable file, got No such file"):
        read_fitted(tmp_path / "fitted-x.json")
    huge = tmp_path / "fitted-x.json"
    huge.write_bytes(b" " * 5_000_001)
    with pytest.raises(ProfileError, match="must be at most 5000000 bytes"):
        read_fitted(huge)
