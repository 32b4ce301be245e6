"""Copies between host and device: latency and bandwidth are found again; a swap sees both directions."""

import msgspec
import numpy as np
import pandas as pd
import pytest
from test_power import BOARD_W, BYTES_S, FLOP_S, TRUE
from test_power import samples as power_samples

from tpplanner.api.calibration_machine import fit_machine, machine_report, machine_tables
from tpplanner.cost.preemption import swap_s
from tpplanner.domain.fitted_profile import FittedProfile, MadeFrom, apply_kernels
from tpplanner.domain.kernels import Kernels
from tpplanner.domain.machine_fit import MachineFit
from tpplanner.errors import ProfileError
from tpplanner.fit.calibration_copies import fit_host_link
from tpplanner.fit.calibration_kernels import Peaks
from tpplanner.io.fitted_files import decode_fitted, encode_fitted
from tpplanner.io.profile_hardware import load_hardware
from tpplanner.report.machine_fit_text import machine_sections

RATE = {"h2d": 50e9, "d2h": 30e9, "both": 60e9}
ALPHA_S = {"h2d": 9e-6, "d2h": 11e-6, "both": 15e-6}


def samples(noise=0.0, seed=0, sizes=(2**16, 2**20, 2**24, 2**27)):
    rng = np.random.default_rng(seed)
    return pd.DataFrame([
        {"direction": direction, "kind": kind, "size_bytes": size, "moved_bytes": float(moved),
         "latency_s": (ALPHA_S[direction] + moved / rate / (1.0 if kind == "pinned" else 0.2)) * np.exp(rng.normal(0.0, noise))}
        for direction, rate in RATE.items() for kind in ("pinned", "pageable") for size in sizes
        for moved in (size * (2 if direction == "both" else 1),)])


def test_both_directions_are_found_again():
    link = fit_host_link(samples(), source="by hand")
    assert link.to_device.bandwidth_bytes_s.value == pytest.approx(50e9)
    assert link.to_host.bandwidth_bytes_s.value == pytest.approx(30e9)
    assert link.to_device.alpha_s.value == pytest.approx(9e-6)
    # A byte there and one back: 1 / 50 + 1 / 30 = 16 / 300 ns, 37.5 GB/s.
    swapped = link.link("PCIe")
    assert swapped.bandwidth_bytes_s.value == pytest.approx(37.5e9)
    assert swapped.alpha_s.value == pytest.approx(10e-6)
    assert swap_s(swap_bytes=2e9, link=swapped) == pytest.approx(1e9 / 50e9 + 1e9 / 30e9)


def test_errors_cover_the_truth():
    far = 0
    for seed in range(100):
        link = fit_host_link(samples(noise=0.03, seed=seed), source="x")
        for copy, name in ((link.to_device, "h2d"), (link.to_host, "d2h")):
            rate = copy.bandwidth_bytes_s
            far += abs(rate.value - RATE[name]) > 3.0 * rate.std_error
        # The harmonic mean is surer than the less sure of both.
        assert 0 < link.link("x").bandwidth_bytes_s.std_error < max(
            link.to_device.bandwidth_bytes_s.std_error, link.to_host.bandwidth_bytes_s.std_error)
    assert far <= 40  # of 200, with two degrees of freedom: 10 % are beyond three standard errors


@pytest.mark.parametrize("rows", [pd.DataFrame(), samples().query("direction != 'd2h'"), samples(sizes=(2**16, 2**20)),
                                  samples().query("kind == 'pageable'")])
def test_too_little_is_no_fit(rows):
    assert fit_host_link(rows, source="x") is None


def test_copies_that_shorten_with_size_are_one_error():
    rows = samples()
    rows["latency_s"] = 1e-3 / rows["moved_bytes"]
    with pytest.raises(ProfileError, match="host_copy h2d must take longer the larger it is"):
        fit_host_link(rows, source="x")


def profile():
    return FittedProfile(machine="h200", engine="tpplanner", kernels=Kernels(), collectives=(), serving=None,
                         machine_fit=MachineFit(source="by hand", host_link=fit_host_link(samples(noise=0.01), source="by hand")),
                         made_from=MadeFrom(package="tpplanner calibrate", version="1", tables=(), notice="Measured here."))


def test_the_file_is_read_as_it_was_written_and_the_swap_takes_it():
    content = encode_fitted(profile())
    again = decode_fitted(content, "fitted-tpplanner.json")
    assert encode_fitted(again) == content
    machine = load_hardware("h200")
    measured = apply_kernels(machine, again)
    assert (measured.host_link.name, measured.power) == (machine.host_link.name, machine.power)
    assert measured.host_link.bandwidth_bytes_s.unit == "bytes/s"
    assert swap_s(swap_bytes=1e9, link=measured.host_link) == pytest.approx(1 / 37.5, rel=0.03)


@pytest.mark.parametrize(("old", "new", "words"), [
    (b'"to_host":', b'"to_nobody":', r"machine_fit\.host_link"),
    (b'"bandwidth_bytes_s":{"value":', b'"bandwidth_bytes_s":{"value":-', r"machine_fit\.host_link\.to_device"),
    (b'"alpha_s":{"value":', b'"alpha_s":{"provenance":"guessed","value":', r"machine_fit: alpha_s\.provenance"),
])
def test_a_malformed_record_is_one_error(old, new, words):
    content = encode_fitted(profile())
    assert old in content
    with pytest.raises(ProfileError, match=words):
        decode_fitted(content.replace(old, new, 1), "fitted-tpplanner.json")


def test_nothing_at_all_is_no_fit():
    with pytest.raises(ProfileError, match="machine_fit must give power"):
        MachineFit(source="x")


def test_the_report_has_every_direction():
    found = MachineFit(source="x", host_link=fit_host_link(samples(), source="x"))
    text = "\n".join(machine_sections(found, power=pd.DataFrame(), copies=samples(), launch=pd.DataFrame()))
    # 128 MiB pinned to the device: 9 us + 2.684 ms; the rate of the largest is just below 50 GB/s.
    assert "| h2d | pinned | 10.31 | 49.83 |" in text
    assert "| d2h | pageable |" in text
    assert "37.5 +- " in text


def test_samples_on_disk_become_a_fit_its_tables_and_its_report(tmp_path):
    def write(bench, rows, case, values):
        (tmp_path / f"{bench}.jsonl").write_bytes(b"".join(msgspec.json.encode({
            "bench": bench, "case": {name: row[name] for name in case}, "timer": "event", "times_s": [row.get("latency_s", 1e-3)],
            "values": {name: row[name] for name in values if row[name] == row[name]}}) + b"\n" for row in rows))

    peaks, facts = Peaks(flop_s={"bf16": FLOP_S}, bytes_s=BYTES_S), {"power_limit_w": BOARD_W}
    assert fit_machine(tmp_path, facts, peaks, source="x") is None
    write("host_copy", samples().to_dict("records"), ("direction", "kind", "size_bytes"), ("moved_bytes",))
    alone = fit_machine(tmp_path, facts, peaks, source="x")
    assert (alone.power, alone.host_link.to_host.bandwidth_bytes_s.value) == (None, pytest.approx(30e9))
    write("power", power_samples(error_w=2.0).to_dict("records"), ("state",), (
        "mean_w", "std_error_w", "moved_bytes_per_s", "work_flop_per_s"))
    both = fit_machine(tmp_path, facts, peaks, source="x")
    assert both.power.board_w.value == BOARD_W
    assert abs(both.power.memory_frac.value - TRUE["memory_frac"]) <= 3 * both.power.memory_frac.std_error
    assert fit_machine(tmp_path, facts | {"power_limit_w": None}, peaks, source="x").power is None
    assert [(t.path, t.num_rows) for t in machine_tables(tmp_path, both, path="samples", version="1")] == [
        ("samples/power.jsonl", 5), ("samples/host_copy.jsonl", 24)]
    text = machine_report(tmp_path, both)
    assert "A swap moves there and back one after the other: 37.5" in text
    assert "limit 700 W" in text
