"""Everything that the project lacks from a GPU, in one command of ten minutes at most:

    python benchmarks/gpu_session.py --out $OUT

Calibration, fit, comparison with the packaged profile of the GPU, predicted against measured engine (dummy Llama-3.1-8B and
Qwen2.5-32B, one rank of 2, 4 and 8 emulated), the engine's own benchmark, the tests that need a GPU. Each step has its own
limit, a step that fails or runs out of time is noted, and the rest goes on; after each one DIR/gpu_session.tar.gz holds all
that is there. `--device cpu` rehearses the same steps with small models, so that what is lent is not spent on typing errors.
"""

import argparse
import contextlib
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tpplanner.io.model_registry import find_packaged  # noqa: E402

ARCHIVE, MARK = "gpu_session.tar.gz", "TPPLANNER_GPU_SESSION_STEP"
MODELS = {"cuda": ("Llama-3.1-8B-Instruct", "Qwen2.5-32B-Instruct"), "cpu": ()}
VERIFIED = (
    (0, ("--tp", "1", "--batch", "1,32,256", "--length", "128/64")),
    (1, ("--tp", "1", "--batch", "1,32,256", "--length", "128/64")),
    (0, ("--tp", "1", "--batch", "1,16", "--length", "1024/64,8064/64")),
    (0, ("--tp", "1", "--emulate-tp", "2,4,8", "--batch", "32,256", "--length", "128/64")),
    (1, ("--tp", "1", "--emulate-tp", "2,4,8", "--batch", "32,256", "--length", "128/64")),
)
"""A model of the list above and its loads: a run of its own that writes its own files, what is worth most first."""
COPY = "import shutil, sys; shutil.copytree(*sys.argv[1:], ignore=shutil.ignore_patterns('*.jsonl'))"


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
    if device == "cpu":
        loads = ("--tp", "1,2", "--emulate-tp", "2", "--batch", "1,8")
        yield Step("verify", (*planner, "calibrate", "verify", *loads, *place, "--overwrite"), 200)
    else:
        for i, (model, loads) in enumerate(VERIFIED):
            own = str(folder / f"verify-{i}")
            yield Step(f"copy-{i}", (sys.executable, "-c", COPY, profiles, own), 20)
            where = ("--machine", machine, "--out", own, "--overwrite")
            yield Step(f"verify-{i}", (*planner, "calibrate", "verify", "--model", models[2 * model + 1], *loads, *where), 90)
        yield Step("engine", (sys.executable, "benchmarks/gpu_engine.py", "--quick", "--out", str(folder / "engine")), 120)
        yield Step("tests", (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/engine"), 90)
    if compare is not None:
        fitted = str(folder / "profiles" / machine / "fitted-tpplanner.json")
        yield Step("diff", (*planner, "profiles", "diff", compare, fitted), 20)


def end_marked(name: str) -> None:
    """End what a step left running: its workers have sessions of their own, and hold the GPU's memory."""
    mark = f"{MARK}={name}".encode()
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (place / "environ").read_bytes().split(b"\0"):
                os.kill(int(place.name), signal.SIGKILL)


def run(step: Step, logs: Path, limit_s: float) -> dict[str, object]:
    """Run one command with its output in a log; its end, and what it took [s]."""
    begin_s, environment = time.monotonic(), {**os.environ, "PYTHONUNBUFFERED": "1", MARK: step.name}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    with (logs / f"{step.name}.log").open("wb") as log:
        child = subprocess.Popen(step.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
                                 start_new_session=True)
        try:
            code: int | str = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGINT)
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            code = f"stopped after {limit_s:.0f} s"
    end_marked(step.name)
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
            else:
                ended.append(run(step, folder, min(step.limit_s, left_s)))
                print("\n".join((folder / f"{step.name}.log").read_text(errors="replace").splitlines()[-40:]), flush=True)
            print(json.dumps({k: v for k, v in ended[-1].items() if k != "command"}), flush=True)
            (folder / "steps.json").write_text(json.dumps(ended, indent=1))
            pack(folder, given.out)
    print(f"{given.out / ARCHIVE}: {(given.out / ARCHIVE).stat().st_size / 1e6:.2f} MB")
    sys.exit(any(step["exit"] != 0 for step in ended))


if __name__ == "__main__":
    main()
