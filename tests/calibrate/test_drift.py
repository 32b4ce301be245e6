"""Two fits side by side: what moved by more than its error."""

from dataclasses import replace

import pytest
from click.testing import CliRunner
from test_calibration_fit import host_samples, layer_samples, sampling_samples, step_samples

from tpplanner.cli.main import cli
from tpplanner.domain.fitted_drift import coefficients, drift
from tpplanner.domain.fitted_profile import FittedProfile, MadeFrom
from tpplanner.domain.hardware import Contention
from tpplanner.domain.kernels import Kernels
from tpplanner.domain.machine_fit import MachineFit
from tpplanner.domain.quantity import Provenance, Quantity
from tpplanner.fit.calibration_host import fit_engine
from tpplanner.io.fitted_files import encode_fitted
from tpplanner.report.drift_text import drift_text


@pytest.fixture
def profile():
    host = fit_engine(host=host_samples(), sampling=sampling_samples(), layer=layer_samples(20e9), step=step_samples(),
                      hbm_bytes_s=20e9, source="x")
    return FittedProfile(machine="a-cpu", engine="tpplanner", kernels=Kernels(), collectives=(), serving=None, host=host,
                         made_from=MadeFrom(package="tpplanner calibrate", version="1", tables=(), notice="Measured here."))


def moved(profile, value, std_error):
    quantity = replace(profile.host.layer_overhead_s, value=value, std_error=std_error)
    return replace(profile, host=replace(profile.host, layer_overhead_s=quantity))


def test_a_fit_against_itself_has_not_moved(profile):
    every = drift(profile, profile)
    assert [d.name for d in every] == list(coefficients(profile))
    assert all(d.num_std_errors in (0.0, None) for d in every)


def test_a_difference_counts_in_standard_errors(profile):
    # 100 and 150 us, +- 30 and 40 us: 50 us is one standard error of the difference.
    [found] = [d for d in drift(moved(profile, 100e-6, 30e-6), moved(profile, 150e-6, 40e-6)) if d.name == "layer_overhead_s"]
    assert found.num_std_errors == pytest.approx(1.0)


def test_what_neighbours_take_away_is_compared_too(profile):
    share = Quantity(value=0.8, unit="1", provenance=Provenance.FITTED, source="x", std_error=0.02, num_samples=9)
    shared = Contention(num_busy=2, compute_frac=share, memory_frac=share)
    both = replace(profile, machine_fit=MachineFit(source="x", contention=(shared,)))
    names = {d.name: d for d in drift(both, profile)}
    assert names["contention.2.memory_frac"].first is share
    assert names["contention.2.memory_frac"].second is None


def test_what_moved_is_marked_and_counted(profile):
    text = drift_text(drift(moved(profile, 100e-6, 3e-6), moved(profile, 150e-6, 4e-6)), first="a", second="b")
    [line] = [line for line in text.splitlines() if "layer_overhead_s" in line]
    assert line.split() == ["layer_overhead_s", "0.0001", "+-", "3e-06", "0.00015", "+-", "4e-06", "1.50", "10.0", "moved"]
    num = len([d for d in drift(profile, profile) if d.num_std_errors is not None])
    assert text.splitlines()[-1] == f"{num - 1} of {num} coefficients within 2 standard errors of each other"


def test_a_coefficient_of_one_fit_only_is_shown(profile):
    text = drift_text(drift(profile, replace(profile, host=None)), first="a", second="b")
    assert text.splitlines()[-1].startswith("0 of 0")
    assert "schedule.fixed_s" in text


def test_the_command(profile, tmp_path):
    paths = []
    for name, one in (("one", profile), ("two", moved(profile, 1.0, 1e-3))):
        folder = tmp_path / name / "a-cpu"
        folder.mkdir(parents=True)
        paths.append(folder / "fitted-tpplanner.json")
        paths[-1].write_bytes(encode_fitted(one))
    result = CliRunner().invoke(cli, ["profiles", "diff", *map(str, paths)])
    assert result.exit_code == 0
    assert "moved" in result.output
