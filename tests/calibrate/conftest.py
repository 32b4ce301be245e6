"""Folders of profiles with samples in them."""

import pytest
from sample_folder import NAME, write_samples

from tpplanner.api.calibration import fit_calibration


@pytest.fixture
def root(tmp_path):
    """A folder of profiles with the samples of one machine."""
    write_samples(tmp_path / "profiles" / NAME / "samples")
    return tmp_path / "profiles"


@pytest.fixture(scope="session")
def fitted_root(tmp_path_factory):
    """The same, fitted; no test writes into it."""
    root = tmp_path_factory.mktemp("fitted") / "profiles"
    write_samples(root / NAME / "samples")
    fit_calibration(root, NAME)
    return root
