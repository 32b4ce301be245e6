"""The files of a simulation: together or not at all, and refused before the run."""

import json

import pytest

import tpplanner
from tpplanner.api.simulated import check_simulated_outputs, write_simulated
from tpplanner.errors import OutputError

FILES = {"simulation.json", "simulation.csv", "latency_cdf.png", "degrees.png", "launch.sh",
         *(name.format(tp) for tp in (1, 2, 4) for name in ("requests-tp{}.csv", "steps-tp{}.trace.json", "load-tp{}.png"))}


@pytest.fixture(scope="module")
def answer():
    return tpplanner.simulate(model="Qwen/Qwen2.5-7B-Instruct", gpus="4xh100-sxm", isl=256, osl=32, num_requests=60,
                              request_rate=20, num_timeline_steps=100)


def test_files_are_written_together_or_not_at_all(answer, tmp_path):
    folder = tmp_path / "out"
    written = write_simulated(answer, folder, overwrite=False)
    assert {path.name for path in written} == {path.name for path in folder.iterdir()} == FILES
    assert len((folder / "requests-tp2.csv").read_text().splitlines()) == 61
    assert json.loads((folder / "steps-tp1.trace.json").read_text())["traceEvents"]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(OutputError, match="already exist"):
        write_simulated(answer, folder, overwrite=False)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert {path.name for path in write_simulated(answer, folder, overwrite=True)} == FILES


@pytest.mark.parametrize("name", [*sorted(FILES), "requests-tp16.csv", "requests-tp2.parquet", "load-tp128.png"])
def test_any_file_that_might_be_written_refuses_before_the_run(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=name):
        check_simulated_outputs(tmp_path, overwrite=False)
    check_simulated_outputs(tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["requests-tp2.txt", "requests-tpx.csv", "my-requests-tp2.csv", "load-tp2.png.bak", "notes.md"])
def test_other_files_are_no_hindrance(tmp_path, name):
    (tmp_path / name).write_text("mine")
    check_simulated_outputs(tmp_path, overwrite=False)


def test_a_folder_that_cannot_be_written_refuses_before_the_run(tmp_path):
    (tmp_path / "file").write_text("here")
    (tmp_path / "degrees.png").mkdir()
    for folder in ("", " ", tmp_path / "file", tmp_path / "no" / "such", tmp_path):
        for overwrite in (False, True):
            with pytest.raises(OutputError):
                check_simulated_outputs(folder, overwrite=overwrite)
    check_simulated_outputs(tmp_path / "new", overwrite=False)
    assert not (tmp_path / "new").exists()
