"""Make the recorded comparison that `make validate` judges, from what `tpplanner calibrate verify` wrote.

    tpplanner calibrate verify --model SmolLM2-135M-Instruct --model tiny
    python benchmarks/record_verify.py profiles/cpu-amd-epyc

in the same folder. Replaces benchmarks/validation/calibrated: the machine's datasheet and fit, the measured runs with the
config.json of every model, and limits: the figures reached, and a little room. Where t does not divide a model's heads or width,
the run is of the model with what the engine adds (`NAME-tp2`): the planner refuses such a degree of the model itself.
"""

import argparse
import csv
import io
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tpplanner.api.calibration_cases import padded
from tpplanner.api.validate import validate
from tpplanner.domain.model import ModelSpec
from tpplanner.io.calibration_samples import read_machine
from tpplanner.io.model_config import load_model

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "validation" / "calibrated"
ROOM_FRAC = 0.05
"""Of a limit over its figure: the runs do not change, so that only the prediction moves a figure."""
MAXIMA = ("all.throughput.mean", "all.throughput.median", "dense tp1.throughput.mean", "dense tp2.throughput.mean",
          "all.tpot.mean", "all.tpot.median", "dense.a.regret")
MINIMA = ("runs", "predicted", "dense.a.hit")


def model_files(runs: list[dict[str, str]], out: Path) -> dict[Path, str]:
    """Return the config.json of every model of the runs, and name it in them."""
    sources: dict[str, Path] = {}
    files: dict[Path, str] = {}
    for run in runs:
        folder, tp = Path(run["model"]), int(run["tp"])
        if sources.setdefault(folder.name, folder) != folder:
            raise SystemExit(f"two models are called {folder.name}")
        name, config = folder.name, json.loads((folder / "config.json").read_text(encoding="utf-8"))
        whole = load_model(str(folder), dtype=run["dtype"])
        shape = padded(whole, tp)
        if shape != whole:
            name, config = f"{name}-tp{tp}", with_shape(config, shape)
        place = out / "models" / name
        files[place / "config.json"] = json.dumps(config, indent=1) + "\n"
        run["model"] = str(place.relative_to(ROOT) if place.is_relative_to(ROOT) else place)
    return files


def with_shape(config: dict[str, Any], shape: ModelSpec) -> dict[str, Any]:
    """Return the configuration with the heads and the width of a padded model, whose layers are alike."""
    [group] = shape.layer_groups
    return config | {"num_attention_heads": group.attention.num_heads, "num_key_value_heads": group.attention.num_kv_heads,
                     "head_dim": group.attention.head_dim, "intermediate_size": group.mlp.intermediate_size}


def limits_text(figures: dict[str, float], facts: dict[str, Any]) -> str:
    """Return the file of limits for the figures reached."""
    lines = [
        "# Limits on the figures of the recorded `tpplanner calibrate verify` beside it: `make validate`.",
        f"# Written by benchmarks/record_verify.py on {datetime.now(UTC):%Y-%m-%d}: {facts['name']}, {facts['num_cores']} cores, "
        f"torch {facts['torch']}.",
        f"# Each limit is the figure reached, in the comment, and {ROOM_FRAC:.0%} of it.",
        "# The clients of verify start together and stay in step; the closed form of validate spreads their prompts over time:",
        "# it misses TTFT and, with many clients, TPOT. What the simulator makes of such runs is in docs/accuracy.md.",
        "", "[packaged.max]",
        *(f'"{name}" = {figures[name] * (1 + ROOM_FRAC):.4f}  # {figures[name]:.4f}' for name in MAXIMA if name in figures),
        "", "[packaged.min]", *(f'"{name}" = {figures[name]:g}' for name in MINIMA if name in figures)]
    return "\n".join([*lines, ""])


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def csv_text(rows: list[dict[str, str]]) -> str:
    """Return rows as a CSV file."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def record(folder: Path, out: Path) -> None:
    """Write everything but the limits anew."""
    folder = folder.resolve()
    # A GPU that the package knows keeps the packaged datasheet.
    names = [name for name in ("datasheet.toml", "fitted-tpplanner.json") if (folder / name).exists()]
    files = {out / folder.name / name: (folder / name).read_text(encoding="utf-8") for name in names}
    runs, both = rows_of(folder / "runs.csv"), rows_of(folder / "verify.csv")
    for row in both:
        config = Path(row["model"]) / "config.json"
        row["model"] = f"models/{Path(row['model']).name}"
        files[out / row["model"] / "config.json"] = config.read_text(encoding="utf-8").rstrip() + "\n"
    files |= model_files(runs, out)
    files |= {out / "runs.csv": csv_text(runs), out / "verify.csv": csv_text(both)}
    shutil.rmtree(out, ignore_errors=True)
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main(folder: Path) -> None:
    """Record a folder, and set its limits."""
    facts = dict(read_machine(folder / "samples"))
    before = OUT.with_name(f"{OUT.name}.before")
    if OUT.exists():
        OUT.replace(before)
    try:
        record(folder, OUT)
        _limit(facts)
    except BaseException:
        # What was there stays.
        shutil.rmtree(OUT, ignore_errors=True)
        if before.exists():
            before.replace(OUT)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _limit(facts: dict[str, Any]) -> None:
    os.chdir(ROOT)  # where the models' paths begin
    os.environ["TPPLANNER_PROFILES"] = str(OUT)
    figures = validate(OUT / "runs.csv").figures()
    (OUT / "validation.toml").write_text(limits_text(figures, facts), encoding="utf-8")
    print("\n".join(f"{name} {figures[name]:.4g}" for name in (*MAXIMA, *MINIMA) if name in figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="profiles/<machine>, after tpplanner calibrate verify")
    main(parser.parse_args().folder)
