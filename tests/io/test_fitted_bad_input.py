"""Fitted profiles in files: whatever is not sound is refused in one line of ProfileError."""

import json
import math

import pytest
from fitted_samples import SOUND
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpplanner.errors import ProfileError
from tpplanner.io.fitted_files import decode_fitted, read_fitted


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
