"""Power: known shares are found again, states are counted by hand, a machine without a counter says so."""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from calibrate import bench_power
from calibrate.bench import Bench
from calibrate.machine import Nvml
from tpplanner.cost.energy import gpu_power_w
from tpplanner.domain.fitted_profile import FittedProfile, MadeFrom, apply_kernels
from tpplanner.domain.kernels import Kernels
from tpplanner.domain.machine_fit import MachineFit
from tpplanner.errors import ProfileError
from tpplanner.fit.calibration_power import fit_power
from tpplanner.io.fitted_files import decode_fitted, encode_fitted
from tpplanner.io.profile_hardware import load_hardware
from tpplanner.report.machine_fit_text import machine_sections

FLOP_S, BYTES_S, BOARD_W = 1e15, 4e12, 700.0
TRUE = {"busy_frac": 0.25, "memory_frac": 0.45, "compute_frac": 0.6}
STATES = {"idle": (0.0, 0.0), "cache": (0.0, 0.0), "memory": (0.9, 0.0), "compute": (0.05, 0.7), "decode": (0.8, 0.05)}


def samples(error_w=0.0, seed=0):
    rng, rows = np.random.default_rng(seed), []
    for state, (mbu, mfu) in STATES.items():
        share = 0.0 if state == "idle" else TRUE["busy_frac"] + TRUE["memory_frac"] * mbu + TRUE["compute_frac"] * mfu
        rows.append({"state": state, "mean_w": 80.0 + (BOARD_W - 80.0) * share + rng.normal(0.0, error_w or 1e-12),
                     "std_error_w": error_w, "moved_bytes_per_s": mbu * BYTES_S or np.nan,
                     "work_flop_per_s": mfu * FLOP_S or np.nan})
    return pd.DataFrame(rows)


def fit(rows, **given):
    return fit_power(rows, **{"board_w": BOARD_W, "flop_s": FLOP_S, "hbm_bytes_s": BYTES_S, "source": "by hand", **given})


def test_shares_are_found_again():
    power = fit(samples())
    assert (power.idle_w.value, power.board_w.value) == (pytest.approx(80.0), BOARD_W)
    for name, true in TRUE.items():
        assert getattr(power, name).value == pytest.approx(true, abs=1e-9)
    # 0.25 + 0.45 * 0.9 of the 620 W above idle.
    assert gpu_power_w(power, busy_frac=1.0, mbu_frac=0.9, mfu_frac=0.0) == pytest.approx(80.0 + 620.0 * 0.655)


def test_errors_cover_the_truth_as_often_as_they_say():
    true, far = {"idle_w": 80.0, **TRUE}, 0
    for seed in range(100):
        power = fit(samples(error_w=5.0, seed=seed))
        far += sum(abs(getattr(power, n).value - v) > 3.0 * getattr(power, n).std_error for n, v in true.items())
        assert all(getattr(power, n).std_error > 0 for n in true)
    assert far <= 4  # of 400; 1 is expected


def test_a_share_ends_at_its_bound_and_the_report_says_so():
    rows = samples()
    rows.loc[rows["state"] == "compute", "mean_w"] = 120.0
    power = fit(rows)
    assert power.compute_frac.value == pytest.approx(0.0, abs=1e-9)
    at_bound = replace(power, compute_frac=replace(power.compute_frac, value=0.0))
    text = report(MachineFit(source="x", power=at_bound), power=rows)
    assert "At a bound: compute_frac." in text


@pytest.mark.parametrize("rows", [pd.DataFrame(), samples().query("state != 'idle'"),
                                  samples().query("state in ('idle', 'memory', 'compute')")])
def test_what_does_not_tell_the_shares_apart_is_no_fit(rows):
    assert fit(rows) is None


def test_a_limit_that_is_not_known_is_no_fit():
    assert fit(samples(), board_w=None) is None


@pytest.mark.parametrize(("column", "value", "words"), [
    ("mean_w", -1.0, "mean_w must be finite and > 0"), ("mean_w", float("nan"), "mean_w must be finite and > 0")])
def test_nonsense_is_one_error(column, value, words):
    rows = samples()
    rows.loc[2, column] = value
    with pytest.raises(ProfileError, match=words):
        fit(rows)
    with pytest.raises(ProfileError, match="idle must be below the limit of 60 W"):
        fit(samples(), board_w=60.0)


def report(found, *, power=(), copies=(), launch=()):
    frames = {"power": power, "copies": copies, "launch": launch}
    return "\n".join(machine_sections(found, **{name: pd.DataFrame(rows) for name, rows in frames.items()}))


def test_the_report_says_what_was_measured_and_what_was_not():
    text = report(MachineFit(source="x", power=fit(samples(error_w=1.0))), power=samples(error_w=1.0), launch=[
        {"kind": "dispatch", "latency_s": 3e-6}, {"kind": "launch", "latency_s": 4e-6}, {"kind": "graph", "latency_s": 1.5e-6}])
    assert "| memory | " in text
    assert "of the difference a busy device draws 2" in text
    assert "| on the device, in a replayed graph | 1.5 |" in text
    assert "A step outside graphs would add 2.5 us per operation" in text
    nothing = report(None)
    assert "no counter of energy" in nothing
    assert nothing.count("Not measured") == 3


def profile(machine_fit):
    return FittedProfile(machine="h200", engine="tpplanner", kernels=Kernels(), collectives=(), serving=None,
                         machine_fit=machine_fit,
                         made_from=MadeFrom(package="tpplanner calibrate", version="1", tables=(), notice="Measured here."))


def test_the_file_is_read_as_it_was_written_and_the_machine_takes_it():
    found = profile(MachineFit(source="by hand", power=fit(samples(error_w=2.0))))
    content = encode_fitted(found)
    again = decode_fitted(content, "fitted-tpplanner.json")
    assert encode_fitted(again) == content
    machine = load_hardware("h200")
    measured = apply_kernels(machine, again)
    assert measured.power.board_w.unit == "w"
    assert measured.power.idle_w.value == pytest.approx(found.machine_fit.power.idle_w.value, rel=1e-4)
    assert measured.host_link == machine.host_link
    assert apply_kernels(machine, profile(None)).power == machine.power
    assert b"machine_fit" not in encode_fitted(profile(None))


@pytest.mark.parametrize(("old", "new", "words"), [
    (b'"busy_frac":{"value":0.2', b'"busy_frac":{"value":3.2', r"machine_fit: busy_frac must be in \[0, 1\]"),
    (b'"idle_w":{"value":8', b'"idle_w":{"value":99998', r"machine_fit: idle_w must be in"),
    (b'"idle_w"', b'"idle_watts"', r"machine_fit\.power"),
    (b'"power":{', b'"wattage":{', "machine_fit"),
])
def test_a_malformed_record_is_one_error(old, new, words):
    content = encode_fitted(profile(MachineFit(source="by hand", power=fit(samples(error_w=2.0)))))
    assert old in content
    with pytest.raises(ProfileError, match=words):
        decode_fitted(content.replace(old, new, 1), "fitted-tpplanner.json")


class Counter(Nvml):
    """Counts 100 W, whatever happens."""

    energy_j = property(lambda self: 100.0 * time.perf_counter())


def test_idle_power_is_the_counters_and_its_spread_is_small():
    sample = bench_power.measure({"state": "idle", "duration_ms": 1000}, Bench(device=torch.device("cpu"), nvml=Counter(None)))
    assert sample.values["mean_w"] == pytest.approx(100.0, rel=1e-3)
    assert 0 <= sample.values["std_error_w"] < 0.1
    assert len(sample.times_s) >= 4
    assert sum(sample.times_s) * 20 == pytest.approx(1.0, abs=0.3)


def test_without_a_counter_there_is_a_note_and_no_power():
    sample = bench_power.measure({"state": "memory", "duration_ms": 1000}, Bench(device=torch.device("cpu"), nvml=Nvml(None)))
    assert (sample.times_s, sample.values) == ([], {})
    assert "no counter of energy" in sample.note


def test_a_decode_step_counts_weights_and_cache_by_hand(monkeypatch):
    monkeypatch.setattr(bench_power, "_DECODE", {"kv_dtype": "fp32", "num_seqs": 2, "context_tok": 32, "num_heads": 4,
                                                 "num_kv_heads": 2, "head_dim": 16})
    monkeypatch.setattr(bench_power, "_PRODUCT", {"dtype": "fp32", "num_tok": 2, "out_features": 64, "in_features": 64})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        call, work = bench_power._WORK["decode"](Bench(device=torch.device("cpu"), nvml=Nvml(None)))
        call()
    finally:
        torch.set_num_threads(before)
    # In 2 bytes: 4 matrices of 64 x 64; keys and values of 2 x 32 tokens in 2 heads of 16.
    assert work["moved_bytes"] == 2 * (4 * 4096 + 2 * 2 * 32 * 2 * 16)
    # 2 rows in the products; each query of 4 heads of 16 against 32 keys, and their values.
    assert work["work_flop"] == 4 * 2 * 2 * 4096 + 2 * 2 * 2 * 32 * 4 * 16


def test_every_state_is_asked_for():
    assert set(bench_power.STATES) == set(bench_power._WORK)
