"""Reading hardware profiles: names, units, overlays, and one-line errors."""

import json
import shutil
from pathlib import Path

import pytest

from tpplanner.domain.hardware import CollectiveOp
from tpplanner.domain.quantity import Provenance
from tpplanner.errors import ProfileError
from tpplanner.io.profile_check import check_profile, load_profile
from tpplanner.io.profile_engine import load_engine
from tpplanner.io.profile_files import MAX_FILE_BYTES, packaged_root, parse_gpus
from tpplanner.io.profile_hardware import known_hardware, load_hardware


@pytest.fixture
def machine(tmp_path):
    """A copy of h100-sxm under another name, in a folder of profiles of its own."""
    folder = tmp_path / "mine"
    shutil.copytree(packaged_root() / "h100-sxm", folder, ignore=shutil.ignore_patterns("fitted.json"))
    datasheet = folder / "datasheet.toml"
    datasheet.write_text(datasheet.read_text().replace('["h100", ', '["my-alias", '))
    return folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def error_of(call, *arguments, **options) -> str:
    with pytest.raises(ProfileError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8xh100-sxm", (8, "h100-sxm")),
        ("h100-sxm:8", (8, "h100-sxm")),
        ("h100-sxm", (None, "h100-sxm")),
        ("16xH100", (16, "H100")),
        ("4xrtx-4090", (4, "rtx-4090")),
        ("rtx_pro_6000:2", (2, "rtx_pro_6000")),
        (" 8 x b200 ", (8, "b200")),
    ],
)
def test_parse_gpus(text, expected):
    assert parse_gpus(text) == expected


@pytest.mark.parametrize(
    "text",
    ["0xh100", "-1x", "-1xh100", "1.5x", "1.5xh100", "x", "xh100", "", " ", "1e30", "1e30xh100", "8x", ":",
     "h100:", "h100:0", "h100:-2", "h100:2.5", "99999999xh100", "8xh100:8", "٣xh100", "8x\nh100\n\0"],
)  # fmt: skip
def test_parse_gpus_refuses(text):
    assert error_of(parse_gpus, text)


def test_unknown_gpu_lists_the_known_ones_and_the_nearest():
    message = error_of(parse_gpus, "8xh100-sxn")
    assert "unknown GPU 'h100-sxn'" in message
    assert all(name in message for name in known_hardware())
    assert "did you mean h100-sxm" in message
    assert "unknown engine 'vlm'" in error_of(load_engine, "vlm")
    assert "vllm-0.11" in error_of(load_engine, "vlm")
    assert "unknown profile 'nonsense'" in error_of(load_profile, "nonsense")


def test_path_extra_folder_and_environment(machine, monkeypatch):
    assert load_hardware(str(machine)).name == "mine"
    assert load_hardware(str(machine / "datasheet.toml")).name == "mine"
    assert load_hardware("MINE", extra_dirs=[machine.parent]).name == "mine"
    assert load_hardware("My_Alias", extra_dirs=[machine.parent]).name == "mine"
    assert parse_gpus("2xmine", extra_dirs=[machine.parent]) == (2, "mine")
    assert "unknown GPU" in error_of(load_hardware, "mine")
    monkeypatch.setenv("TPPLANNER_PROFILES", str(machine.parent))
    assert load_hardware("my-alias").name == "mine"
    assert "mine" in known_hardware()
    assert load_hardware("h200").name == "h200"


def test_own_folder_hides_the_packaged_profile_of_the_same_name(machine):
    machine.rename(machine.parent / "h100-sxm")
    edit(machine.parent / "h100-sxm" / "datasheet.toml", "value = 3.35", "value = 3.00")
    assert load_hardware("h100-sxm", extra_dirs=[machine.parent]).hbm_bytes_s.value == 3.0e12
    assert load_hardware("h100-sxm").hbm_bytes_s.value == 3.35e12


@pytest.mark.parametrize(
    ("record", "value"),
    [
        ('{value = 3350, unit = "GB/s", source = "sheet"}', 3.35e12),
        ('{value = 3.35e12, unit = "bytes/s", source = "sheet"}', 3.35e12),
        ('{value = 400, unit = "Gbit/s", source = "sheet"}', 50e9),
        ('{value = 1024, unit = "GiB/s", source = "sheet"}', 1024 * 2**30),
    ],
)
def test_friendly_units_become_si(machine, record, value):
    edit(machine / "datasheet.toml", '{value = 3.35, unit = "TB/s", source = "sheet"}', record)
    quantity = load_hardware(str(machine)).hbm_bytes_s
    assert (quantity.value, quantity.unit) == (value, "bytes/s")
    assert "H100 Tensor Core GPU datasheet" in quantity.source  # by key of [sources]


def test_microseconds_are_exact_to_the_last_bit():
    assert load_hardware("h200").intra_link.alpha_s.value == 4.6e-6


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('unit = "TB/s"', 'unit = "TFLOP/s"', "hbm_bytes_s.unit must be one of bytes/s"),
        ('unit = "TB/s"', "unit = 3", "hbm_bytes_s.unit must be one of"),
        ("value = 3.35", "value = nan", "hbm_bytes_s must be between 0 and"),
        ("value = 3.35", "value = inf", "hbm_bytes_s must be between 0 and"),
        ("value = 3.35", "value = -1.0", "hbm_bytes_s must be between 0 and"),
        ("value = 3.35", "value = 0", "hbm_bytes_s must be > 0"),
        ("value = 3.35", "value = 1e30", "hbm_bytes_s must be between 0 and"),
        ("value = 3.35", "value = 1" + "0" * 400, "hbm_bytes_s must be between 0 and"),
        ("value = 3.35", "value = 0x" + "f" * 6000, "no number of over 300 digits"),
        ("value = 3.35", 'value = "3.35"', "hbm_bytes_s must be a number, got '3.35'"),
        ("value = 3.35", "value = true", "hbm_bytes_s must be a number, got True"),
        ("value = 3.35, ", "", "hbm_bytes_s.value must be given"),
        ("value = 3.35", "valeu = 3.35", "hbm_bytes_s.key must be a known one (did you mean value"),
        ("value = 3.35", "value = 3.35, provenance = 'fitted'", "std_error and num_samples must be given"),
        ("value = 3.35", "value = 3.35, provenance = 'guess'", "hbm_bytes_s.provenance must be one of"),
        ("value = 3.35", "value = 3.35, valid_min = 2, valid_max = 1", "valid_min must not exceed valid_max"),
        ('source = "sheet"', 'source = ""', "source must be one line of text"),
        ('source = "sheet"', 'source = """a\nb"""', "source must be one line of text"),
        ("hbm_bytes_s = ", "hbm_byte_s = ", "key must be a known one (did you mean hbm_byte"),
        ("hbm_bytes_s = ", "# ", "hbm_bytes_s must be given"),
        ('title = "', 'titel = "', "did you mean title"),
        ("bf16 = ", "bf61 = ", "peak_flop_s.key must be a known one"),
        ("bf16 = ", "# ", "peak_flop_s must give bf16"),
        ("[power]", "[powr]", "did you mean power"),
        ("[power]", "[[power]]", "power must be a table"),
        ('inherits = ["base", "hopper"', 'inherits = ["base", "hoper"', "did you mean hopper"),
        ('inherits = ["base", ', "inherits = [", "gpus_per_node must be given"),
        ('"my-alias"', "7", "aliases must be one line of text, got 7"),
        ("value = 70,", "value = 701,", "idle_w must be in [0, board_w = 700)"),
        ("tp = 2", "tp = 1", "tp must be between 2"),
        ("tp = 2", "tp = 4", "collectives must have one curve per op and tp"),
        ("all_reduce", "all-reduce", "collectives[0].op must be one of all_reduce"),
        ("[2, 16,", "[16, 2,", "size_bytes must be positive and ascending"),
        ("[2, 16,", "[16,", "have one length"),
        ("[4.5, ", "[0, ", "latency_s must be positive"),
        ("[4.5, ", "['x', ", "latency.values must be a number"),
        ("title", "title = [", "must be valid TOML"),
    ],
)  # fmt: skip
def test_one_clear_error(machine, old, new, said):
    edit(machine / "datasheet.toml", old, new)
    message = error_of(load_hardware, str(machine))
    assert said in message
    assert str(machine) in message


def test_a_file_that_is_no_text(machine):
    datasheet = machine / "datasheet.toml"
    datasheet.write_bytes(b"title = \xff\xfe")
    assert "must be UTF-8 text" in error_of(load_hardware, str(machine))
    datasheet.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    assert "must be at most 5000000 bytes" in error_of(load_hardware, str(machine))
    datasheet.unlink()
    assert "No such file" in error_of(load_hardware, str(machine))
    datasheet.mkdir()
    assert "directory" in error_of(load_hardware, str(datasheet)).lower()
    assert error_of(load_hardware, "/nowhere/\0/datasheet.toml")
    assert error_of(load_hardware, "a\nb/c")
    assert error_of(load_hardware, "x" * 10_000)


FIT = {
    "machine": "mine",
    "date": "2026-01-01",
    "command": "tpplanner fit",
    "sources": {"gemm": "microbenchmark of GEMMs"},
    "quantities": {
        "efficiency.gemm_memory": {
            "value": 91, "unit": "%", "std_error": 1, "valid_min": 1, "valid_max": 256,
            "valid_for": "num_decode_seqs", "num_samples": 40, "samples": "samples/gemm.csv", "source": "gemm",
        },
    },
    "collectives": [
        {"op": "all_gather", "tp": 2, "size": {"values": [1, 2], "unit": "MiB"},
         "latency": {"values": [10, 20], "unit": "us"}, "source": "gemm"},
        {"op": "all_reduce", "tp": 2, "size": {"values": [1, 2], "unit": "MiB"},
         "latency": {"values": [9, 18], "unit": "us"}, "source": "gemm"},
    ],
}  # fmt: skip


def write_fit(folder: Path, **changes: object) -> None:
    (folder / "fitted.json").write_text(json.dumps(FIT | changes))


def test_fitted_json_lies_over_the_datasheet(machine):
    write_fit(machine)
    profile = load_hardware(str(machine))
    fitted = profile.efficiency.gemm_memory
    assert (fitted.value, fitted.unit, fitted.std_error) == (0.91, "1", 0.01)
    assert (fitted.provenance, fitted.num_samples) == (Provenance.FITTED, 40)
    assert fitted.source == "microbenchmark of GEMMs (samples: samples/gemm.csv)"
    assert fitted.provenance_at(256) is Provenance.FITTED
    assert fitted.provenance_at(257) is Provenance.EXTRAPOLATED
    assert fitted.provenance_at(0.5) is Provenance.EXTRAPOLATED
    assert profile.efficiency.gemm_compute.provenance is Provenance.DATASHEET
    curves = {(curve.op, curve.tp): curve for curve in profile.collectives}
    assert len(curves) == 4
    assert curves[CollectiveOp.ALL_REDUCE, 2].latency_s == (9e-6, 18e-6)
    assert curves[CollectiveOp.ALL_GATHER, 2].size_bytes == (2**20, 2**21)
    assert curves[CollectiveOp.ALL_REDUCE, 8].latency_s[-1] == 323e-6


def test_check_misses_the_fit_only_while_there_is_none(machine):
    assert any("no fitted.json" in doubt for doubt in check_profile(str(machine)))
    write_fit(machine)
    assert not any("no fitted.json" in doubt for doubt in check_profile(str(machine)))


def test_check_suspects_sparsity_and_bandwidth(machine):
    edit(machine / "datasheet.toml", "fp8 = {value = 1978.9", "fp8 = {value = 3957.8")
    edit(machine / "datasheet.toml", "value = 3.35", "value = 335")
    doubts = "\n".join(check_profile(str(machine)))
    assert "peak_flop_s.fp8 is 4 times bf16" in doubts
    assert "hbm_bytes_s is 335000 GB/s" in doubts


def test_check_suspects_a_source_that_is_an_undefined_key(machine):
    edit(machine / "datasheet.toml", 'unit = "TB/s", source = "sheet"', 'unit = "TB/s", source = "shet"')
    record = {"value": 0.5, "unit": "1", "std_error": 0.1, "num_samples": 3}
    write_fit(machine, quantities={
        "power.busy_frac": record | {"source": "bench"},
        "power.memory_frac": record | {"source": "key"},
        "power.compute_frac": record | {"source": "samples/power.csv"},
    }, sources={"key": "word"}, collectives=[])
    assert [doubt for doubt in check_profile(str(machine)) if "source" in doubt] == [
        "mine: hbm_bytes_s.source is 'shet', which datasheet.toml does not define in [sources]",
        "mine: quantities.power.busy_frac.source is 'bench', which fitted.json does not define in [sources]",
    ]


def test_link_domain(machine):
    assert load_hardware(str(machine)).link_domain_gpus is None
    text = (machine / "datasheet.toml").read_text()
    (machine / "datasheet.toml").write_text("link_domain_gpus = 4\n" + text)
    assert load_hardware(str(machine)).link_domain_gpus == 4
    for value, said in (("0", "link_domain_gpus"), ("2.5", "link_domain_gpus"), ("9", "at most gpus_per_node 8")):
        (machine / "datasheet.toml").write_text(f"link_domain_gpus = {value}\n" + text)
        assert said in error_of(load_hardware, str(machine))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"machine": "other"}, "machine must be mine, as the folder, got 'other'"),
        ({"quantites": {}}, "did you mean quantities"),
        ({"quantities": {"efficiency.gem_memory": {}}}, "did you mean"),
        ({"quantities": {"title": {}}}, "must be a known one"),
        ({"quantities": {"runtime_bytes": {"value": 1, "unit": "GiB", "source": "s"}}}, "std_error and num_samples"),
        ({"quantities": []}, "quantities must be a table"),
        ({"collectives": {}}, "collectives must be a list"),
        ({"quantities": {"efficiency": {"gemm_memory": {
            "value": 1.2, "unit": "1", "std_error": 0, "num_samples": 1, "source": "s"}}}}, "gemm_memory must be in"),
    ],
)  # fmt: skip
def test_one_clear_error_in_fitted_json(machine, changes, said):
    write_fit(machine, **changes)
    message = error_of(load_hardware, str(machine))
    assert said in message
    assert str(machine) in message


def test_json_that_is_none(machine):
    for text in ("[]", "{", '{"date": "a", "date": "b"}', "[" * 100_000, '{"quantities": {"x": NaN}}'):
        (machine / "fitted.json").write_text(text)
        assert str(machine) in error_of(load_hardware, str(machine))


def test_own_defaults_win_over_the_packaged_ones(machine):
    own = (packaged_root() / "defaults.toml").read_text().replace("value = 1.2,", "value = 2,")
    (machine.parent / "defaults.toml").write_text(own)
    assert load_hardware(str(machine)).runtime_bytes.value == 2 * 2**30
    (machine.parent / "defaults.toml").write_text(own.replace("[base.power]", "[base.pover]"))
    message = error_of(load_hardware, str(machine))
    assert "defaults.toml [base]" in message
    assert "did you mean power" in message
