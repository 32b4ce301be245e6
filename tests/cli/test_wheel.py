"""The built wheel, installed alone outside the checkout, answers as the checkout does."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ["recommend", "--model", "meta-llama/Llama-3.1-70B-Instruct", "--gpus", "8xh100-sxm", "--isl", "1024", "--osl", "1024",
        "--batch-per-gpu", "32"]


@pytest.mark.slow
def test_wheel_alone_runs_the_same_recommendation(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    answers = [
        subprocess.run([p, "-m", "tpplanner", *DEMO], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
        for p in (python, sys.executable)
    ]
    assert answers[0] == answers[1]
    listing = [python, "-m", "tpplanner", "profiles", "list"]
    listed = subprocess.run(listing, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "mi325x" in listed.stdout
