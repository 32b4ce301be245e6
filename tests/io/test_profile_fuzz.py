"""Whatever a profile file holds, the answer is a profile or one line of ProfileError."""

import json
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpplanner.domain.engine import EngineProfile
from tpplanner.domain.hardware import HardwareProfile
from tpplanner.errors import ProfileError
from tpplanner.io.profile_check import load_profile
from tpplanner.io.profile_files import packaged_root, parse_gpus

FAST = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DATASHEET = (packaged_root() / "h100-sxm" / "datasheet.toml").read_bytes()
DEFAULTS = (packaged_root() / "defaults.toml").read_bytes()
ENGINE = (packaged_root() / "engines" / "vllm-0.11.toml").read_bytes()
FITTED = json.dumps({
    "machine": "m",
    "quantities": {"efficiency.gemm_memory": {
        "value": 0.9, "unit": "1", "std_error": 0.01, "num_samples": 4, "source": "s", "samples": "f.csv"}},
    "collectives": [{"op": "all_reduce", "tp": 2, "size": {"values": [1, 2], "unit": "MiB"},
                     "latency": {"values": [1, 2], "unit": "us"}, "source": "s"}],
}).encode()  # fmt: skip
FILES = {"m/datasheet.toml": DATASHEET, "defaults.toml": DEFAULTS, "m/fitted.json": FITTED, "own.toml": ENGINE}
ODD = [
    "nan", "inf", "-inf", "-1", "0", "1e400", "1" * 5000, "0x" + "f" * 5000, "true", '""', '"x"', '"a\\nb"',
    '"""a\nb"""', '"\\u0085"', "[]", "[[]]", "{}", "{value = 1}", "1979-05-27", "07:32:00", "[" * 3000, "\0", "ü",
]  # fmt: skip
VALUE = re.compile(rb'(?<== )("[^"]*"|[0-9.]+)|(?<=: )("[^"]*"|[0-9.]+)|[a-z_0-9]+(?= = )')


def outcome(changed: str, content: bytes) -> HardwareProfile | EngineProfile | str:
    """Load the profile whose one file holds ``content``; the other files are sound."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "m").mkdir()
        for name, sound in FILES.items():
            (root / name).write_bytes(content if name == changed else sound)
        try:
            profile = load_profile(str(root / ("own.toml" if changed == "own.toml" else "m")))
        except ProfileError as error:
            message = str(error)
            assert message
            assert len(message.splitlines()) == 1
            return message
    assert isinstance(profile, HardwareProfile | EngineProfile)
    return profile


def test_the_sound_files_load():
    for name, content in FILES.items():
        assert not isinstance(outcome(name, content), str)


@FAST
@given(st.sampled_from(sorted(FILES)), st.data())
def test_truncated_anywhere(name, data):
    content = FILES[name]
    outcome(name, content[: data.draw(st.integers(0, len(content)))])


@FAST
@given(st.sampled_from(sorted(FILES)), st.data(), st.sampled_from(ODD))
def test_one_value_or_key_replaced(name, data, odd):
    content = FILES[name]
    spans = [match.span() for match in VALUE.finditer(content)]
    start, end = data.draw(st.sampled_from(spans))
    outcome(name, content[:start] + odd.encode() + content[end:])


@FAST
@given(st.sampled_from(sorted(FILES)), st.data(), st.binary(min_size=1, max_size=4))
def test_some_bytes_replaced(name, data, wrong):
    content = FILES[name]
    start = data.draw(st.integers(0, len(content)))
    outcome(name, content[:start] + wrong + content[start + len(wrong) :])


@FAST
@given(st.sampled_from(sorted(FILES)), st.binary(max_size=200))
def test_random_bytes(name, content):
    outcome(name, content)


def gpus_or_error(text: str) -> tuple[int | None, str]:
    """Return the count and the name, or (None, message) for a message of one line."""
    try:
        return parse_gpus(text)
    except ProfileError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1
    return None, lines[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@FAST
@given(JSON, st.sampled_from([(), ("quantities",), ("quantities", "runtime_bytes"), ("collectives",), ("machine",),
                              ("quantities", "efficiency.gemm_memory", "value"), ("sources",), ("sources", "s"),
                              ("quantities", "efficiency.gemm_memory", "source"), ("notes",)]))  # fmt: skip
def test_any_json_in_any_place(value, place):
    data = json.loads(FITTED)
    if not place:
        outcome("m/fitted.json", json.dumps(value).encode())
        return
    table = data
    for key in place[:-1]:
        table = table.setdefault(key, {})
    table[place[-1]] = value
    outcome("m/fitted.json", json.dumps(data).encode())


@FAST
@given(st.text(max_size=30))
def test_any_text_as_gpus(text):
    count, name = gpus_or_error(text)
    assert name
    assert count is None or count >= 1


def test_folders_with_odd_names_do_not_spoil_the_list(tmp_path):
    shutil.copytree(packaged_root() / "l4", tmp_path / "new\nline")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "datasheet.toml").write_bytes(b'aliases = ["h\xff", "a\x0bb"]')
    with pytest.raises(ProfileError, match=r"unknown GPU 'nowhere'[^\n]*$"):
        parse_gpus("8xnowhere", extra_dirs=[tmp_path])
    assert parse_gpus("8xh100", extra_dirs=[tmp_path]) == (8, "h100")
