"""The tables of docs/accuracy.md: packaged profiles and every split on the measured sample, beside another tool's predictions.

    python benchmarks/accuracy_tables.py [--given PREDICTIONS.csv --given-name NAME]

Needs the measured runs: pip install 'tpplanner[silicon]' (or TPPLANNER_SILICON=FOLDER).
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import tpplanner
from tpplanner.api.serving_fit import fitted_pairs
from tpplanner.api.validate import Validation
from tpplanner.io.fitted_files import load_fitted

SPLITS = {None: "in-sample (packaged)", "degree": "degree out", "model": "model out", "machine": "machine out",
          "load": "load out (C > 32)", "shape": "shape out", "architecture": "architecture out"}


def percent(figures: Mapping[str, float], *names: str, digits: int = 1) -> str:
    """Join figures as percent, a dash for one that does not exist."""
    return " / ".join(f"{100 * figures[n]:.{digits}f}" if n in figures else "-" for n in names)


def errors(figures: Mapping[str, float], part: str) -> list[str]:
    """Mean / median of TPOT, TTFT and throughput of a partition."""
    return [percent(figures, f"{part}.{q}.mean", f"{part}.{q}.median") for q in ("tpot", "ttft", "throughput")]


def decisions(figures: Mapping[str, float], kind: str) -> list[str]:
    """Hit rate / regret of c, b10, b20, b30, and the mean error of the gain of doubling t."""
    cells = [percent(figures, f"{kind}.{d}.hit", f"{kind}.{d}.regret") for d in ("c", "b10", "b20", "b30")]
    return [*cells, percent(figures, f"{kind}.doubling.mean")]


def coverage(figures: Mapping[str, float], part: str) -> str:
    """Share of runs inside the 80 % intervals of TPOT, TTFT and throughput."""
    return percent(figures, *(f"{part}.coverage.{q}" for q in ("tpot", "ttft", "throughput")), digits=0)


def result_of(split: str | None, folder: Path | None) -> Validation:
    """Score a split: from its file where there is one."""
    file = None if folder is None or split is None else folder / f"{split}.csv"
    if file is not None and file.is_file():
        return tpplanner.validate(predictions=file)
    return tpplanner.validate(split=split)


def operators() -> None:
    """Held-out errors of every fitted kernel, median / p90, per machine and engine: from the packaged profiles."""
    kinds = ("gemm", "decode_attention", "prefill_attention", "moe")
    print("\noperators, held out\n\n| | GEMM | decode attention | prefill attention | experts |\n|---|---|---|---|---|")
    for machine, engine in fitted_pairs():
        profile = load_fitted(machine, engine)
        assert profile is not None
        cells = ["; ".join(f"{k.dtype} {100 * k.held_out_median_frac:.1f} / {100 * k.held_out_p90_frac:.0f}"
                           for k in getattr(profile.kernels, kind).values()
                           if k.held_out_median_frac is not None and k.held_out_p90_frac is not None) for kind in kinds]
        print("|", " | ".join([f"{machine} {engine}", *cells]), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="SPLIT.csv files of validate --predictions-out, in place of fitting anew")
    parser.add_argument("--given", help="predictions of another tool, as for validate --predictions")
    parser.add_argument("--given-name", default="given")
    asked = parser.parse_args()
    operators()
    results = {label: result_of(split, asked.folder) for split, label in SPLITS.items()}
    if asked.given:
        results = {asked.given_name: tpplanner.validate(predictions=asked.given), **results}
    found = {label: result.figures() for label, result in results.items()}
    for part in ("dense", "dense, not in doubt", "moe"):
        print(f"\n{part}\n\n| | TPOT | TTFT | throughput | inside 80 % intervals |\n|---|---|---|---|---|")
        for label, figures in found.items():
            print("|", " | ".join([label, *errors(figures, part), coverage(figures, part)]), "|")
    for kind in ("dense", "moe"):
        print(f"\n{kind}\n\n| | c | b 10 ms | b 20 ms | b 30 ms | gain of doubling t |\n|---|---|---|---|---|---|")
        for label, figures in found.items():
            print("|", " | ".join([label, *decisions(figures, kind)]), "|")
        smallest = next(iter(found.values()))
        cells = [percent(smallest, f"{kind}.{d}.smallest.hit", f"{kind}.{d}.smallest.regret") for d in ("c", "b10", "b20", "b30")]
        print("|", " | ".join(["smallest degree measured", *cells, ""]), "|")
    held_out = results["degree out"]
    print("\nper machine, engine and kind, degree out\n\n| | n | TPOT | TTFT | throughput |\n|---|---|---|---|---|")
    for row in held_out.scores.accuracy:
        if row.partition.count("/") == 2:
            print("|", " | ".join([row.partition, str(row.num_runs), *errors(held_out.figures(), row.partition)]), "|")


if __name__ == "__main__":
    main()
