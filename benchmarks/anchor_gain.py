"""What a few runs of one's own are worth: errors for a model that no fit has seen, with 0, 3 and 8 runs of it as anchors.

    python benchmarks/anchor_gain.py [--draws 3]

Each model and precision is left out everywhere; then, on each machine and engine, a few of its runs with at most 32 requests
in flight condition the residuals (as tpplanner calibrate anchor does) and all its other runs are judged. Needs the measured
runs: pip install 'tpplanner[silicon]'.
"""

import argparse
from collections import defaultdict

import numpy as np

from tpplanner.api.serving_fit import served_runs
from tpplanner.fit.serving_groups import Served, groups_of
from tpplanner.fit.serving_residuals import fit_residuals
from tpplanner.fit.serving_splits import part_of, predict_all, trusted
from tpplanner.fit.serving_terms import ServingModel, fit_serving, kind_of
from tpplanner.io.silicon_runs import read_silicon_runs

NUM_ANCHORS = (0, 3, 8)
LIGHT = 32


def anchored_use(served: list[Served], part: np.ndarray, use: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Mask of the runs to condition on: the others, and ``num`` light runs of the part per machine and engine."""
    chosen = use.copy()
    cells = defaultdict(list)
    for i in np.flatnonzero(part & trusted(served)):
        if served[i].run.concurrency <= LIGHT:
            cells[served[i].hardware.name, served[i].engine.name].append(i)
    for rows in cells.values():
        chosen[rng.permutation(rows)[:num]] = True
    return chosen


def judge(served: list[Served], kind: str, draws: int) -> dict[int, list[tuple[float, float]]]:
    """Absolute relative errors of TPOT and TTFT per number of anchors."""
    is_kind = np.asarray([s.model.is_moe == (kind == "moe") for s in served])
    groups = [g for g in groups_of(served) if kind_of(g) == kind]
    parts = np.asarray([part_of(s, "model") for s in served])
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for name in sorted(set(parts[is_kind])):
        part = (parts == name) & is_kind
        use = trusted(served) & is_kind & ~part
        model: ServingModel = fit_serving(groups, use)
        for num in NUM_ANCHORS:
            for draw in range(1 if num == 0 else draws):
                chosen = anchored_use(served, part, use, num, np.random.default_rng(draw))
                judged = part & ~chosen & trusted(served)
                predicted = predict_all(served, groups, model, fit_residuals(groups, model, chosen), judged)
                for i, p in predicted.items():
                    if p.tpot_s is not None and p.ttft_s is not None:
                        run = served[i].run
                        found[num].append((abs(p.tpot_s / run.tpot_s - 1), abs(p.ttft_s / run.ttft_s - 1)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3, help="random choices of anchors")
    asked = parser.parse_args()
    served, _ = served_runs(read_silicon_runs()[0])
    print("| models | anchors | TPOT mean / median % | TTFT mean / median % |\n|---|---|---|---|")
    for kind in ("dense", "moe"):
        for num, errors in sorted(judge(served, kind, asked.draws).items()):
            tpot, ttft = 100 * np.asarray(errors).T
            print(f"| {kind} | {num} | {tpot.mean():.1f} / {np.median(tpot):.1f} | {ttft.mean():.1f} / {np.median(ttft):.1f} |")


if __name__ == "__main__":
    main()
