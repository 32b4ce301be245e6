"""Everything that the project lacks from a GPU, in one command of ten minutes at most:

    python benchmarks/gpu_session.py --out $OUT

Calibration, fit, comparison with the packaged profile of the GPU, predicted against measured engine (dummy Llama-3.1-8B and
Qwen2.5-32B, one rank of 2, 4 and 8 emulated), the engine's own benchmark, the tests that need a GPU. Each step has its own
limit, a step that fails or runs out of time is noted, and the rest goes on; after each one DIR/gpu_session.tar.gz holds all
that is there. `--device cpu` rehearses the same steps with small models, so that what is lent is not spent on typing errors.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tpplanner.io.model_registry import find_packaged

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = "gpu_session.tar.gz"
MODELS = {"cuda": ("Llama-3.1-8B-Instruct", "Qwen2.5-32B-Instruct"), "cpu": ()}


@dataclass(frozen=True, slots=True)
class Step:
    """A command line, and the seconds that it may take."""

    name: str
    command: tuple[str, ...]
    limit_s: float


def model_folders(names: tuple[str, ...], folder: Path) -> Iterator[str]:
    """Directories with the packaged config.json of each model, without weights."""
    for name in names:
        packaged = find_packaged(name)
        if packaged is None:
            raise SystemExit(f"{name}: no packaged config")
        target = folder / "models" / name
        target.mkdir(parents=True)
        (target / "config.json").write_bytes(packaged.config.read_bytes())
        yield str(target)


def steps(device: str, machine: str, compare: str | None, folder: Path) -> Iterator[Step]:
    """The commands in the order of what is worth most."""
    planner, profiles = (sys.executable, "-m", "tpplanner"), str(folder / "profiles")
    place = ("--machine", machine, "--out", profiles)
    models = [option for name in model_folders(MODELS[device], folder) for option in ("--model", name)]
    yield Step("calibrate", (*planner, "calibrate", "--quick", "--device", device, *models, *place), 300)
    yield Step("fit", (*planner, "calibrate", "fit", *place, "--overwrite"), 60)
    loads = ("--tp", "1", "--emulate-tp", "2,4,8", "--batch", "1,32,256", "--length", "128/64,1024/64,8128/64") \
        if device == "cuda" else ("--tp", "1,2", "--emulate-tp", "2", "--batch", "1,8")
    yield Step("verify", (*planner, "calibrate", "verify", *models, *loads, *place, "--overwrite"), 200)
    if device == "cuda":
        yield Step("engine", (sys.executable, "benchmarks/gpu_engine.py", "--quick", "--out", str(folder / "engine")), 120)
        yield Step("tests", (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/engine"), 90)
    if compare is not None:
        fitted = str(folder / "profiles" / machine / "fitted-tpplanner.json")
        yield Step("diff", (*planner, "profiles", "diff", compare, fitted), 20)


def run(step: Step, logs: Path, limit_s: float) -> dict[str, object]:
    """Run one command with its output in a log; its end, and what it took [s]."""
    begin_s, environment = time.monotonic(), {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    with (logs / f"{step.name}.log").open("wb") as log:
        child = subprocess.Popen(step.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
                                 start_new_session=True)
        try:
            code: int | str = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGINT)
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            code = f"stopped after {limit_s:.0f} s"
    return {"step": step.name, "exit": code, "wall_s": round(time.monotonic() - begin_s, 1), "command": list(step.command)}


def pack(folder: Path, out: Path) -> None:
    """Write the archive whole: samples, fits, reports, logs; no weights are there."""
    temporary = out / f"{ARCHIVE}.part"
    with tarfile.open(temporary, "w:gz") as archive:
        archive.add(folder, arcname="gpu_session")
    temporary.replace(out / ARCHIVE)


def main() -> None:
    """Run every step within the whole limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--machine", default="h200", help="packaged profile whose datasheet and links are taken, or a new name")
    parser.add_argument("--compare", help="fitted-<engine>.json to set beside the new fit")
    parser.add_argument("--limit-s", type=float, default=560.0, help="for all steps together")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    end_s, ended = time.monotonic() + given.limit_s, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for step in steps(given.device, given.machine, given.compare, folder):
            left_s = end_s - time.monotonic()
            if left_s < 5:
                ended.append({"step": step.name, "exit": "no time left"})
                continue
            ended.append(run(step, folder, min(step.limit_s, left_s)))
            print(json.dumps({k: v for k, v in ended[-1].items() if k != "command"}), flush=True)
            print("\n".join((folder / f"{step.name}.log").read_text(errors="replace").splitlines()[-40:]), flush=True)
            (folder / "steps.json").write_text(json.dumps(ended, indent=1))
            pack(folder, given.out)
    print(f"{given.out / ARCHIVE}: {(given.out / ARCHIVE).stat().st_size / 1e6:.2f} MB")
    sys.exit(any(step["exit"] != 0 for step in ended))


if __name__ == "__main__":
    main()
