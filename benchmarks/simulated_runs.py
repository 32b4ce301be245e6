"""How well the request-level simulator reproduces measured serving runs, beside the closed form, as Markdown.

    python benchmarks/simulated_runs.py [--without-residuals] [--jobs 2] [--every 10] [--out ROWS.csv]

The engine's terms and residuals were fitted on these very runs, by the closed form; the simulator was fitted on nothing and
uses them as they are. What is judged is what it makes of single requests: batches, queues, starts and ends. Runs of InferenceX
are simulated as they were loaded (all clients at once, ten prompts each, lengths uniform in [0.8 L, L]); how NVIDIA's internal
runs were loaded is not documented, and they are simulated twice. Ten to fifteen minutes on one core. Needs the measured runs:
pip install 'tpplanner[silicon]', or their folder in $TPPLANNER_SILICON.
"""

import argparse
import csv
import math
import multiprocessing
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from simulated_run import AT_ONCE, CLOSED, SPREAD, TEN, TEN_EACH, Compared, by_replica, compare

from tpplanner.domain.run_prediction import RunPrediction, ScoredRun
from tpplanner.domain.scores import ErrorStats
from tpplanner.domain.serving_run import ServingRun
from tpplanner.io.silicon_runs import INFERENCEX, NVIDIA, read_silicon_runs
from tpplanner.units import MS
from tpplanner.validation.partitions import concurrency_band, error_stats
from tpplanner.validation.score import figures, match, score

ORDER = ("ttft", "tpot", "throughput")
TITLES = {"ttft": "TTFT", "tpot": "TPOT", "throughput": "throughput"}
STARTS = {INFERENCEX: (AT_ONCE, TEN_EACH), NVIDIA: (AT_ONCE, SPREAD)}
NUM_WORST = 10
Part = Callable[[ServingRun], str | None]


def ratio(one: Compared, method: str, quantity: str) -> float:
    """Predicted over measured."""
    found = ScoredRun(run=one.run, prediction=one.predictions[method]).ratio(quantity)
    assert found is not None  # only runs that every method predicts are judged
    return found


def is_whole(one: Compared, methods: Sequence[str]) -> bool:
    return all(method in one.predictions and one.predictions[method].ttft_s is not None for method in methods)


def told(stats: ErrorStats) -> str:
    """Mean / median / 90 % quantile of the absolute error, and the median of the signed one [%]."""
    return (f"{100 * stats.mean_frac:.1f} / {100 * stats.median_frac:.1f} / {100 * stats.p90_frac:.0f} "
            f"({100 * (stats.median_ratio - 1.0):+.1f})")


def accuracy_table(compared: Sequence[Compared], part: Part, methods: Sequence[str]) -> None:
    """Errors of each part of the runs, one row per method."""
    parts: dict[str, list[Compared]] = defaultdict(list)
    for one in compared:
        name = part(one.run)
        if name is not None and is_whole(one, methods):
            parts[name].append(one)
    if not parts:
        print("\nnone")
        return
    print(f"\n| runs | n | | {' | '.join(TITLES.values())} |\n|---|---|---|---|---|---|")
    for name, own in sorted(parts.items()):
        for method in methods:
            stats = [error_stats([ratio(one, method, quantity) for one in own]) for quantity in ORDER]
            print(f"| {name} | {len(own)} | {method} | {' | '.join(told(s) for s in stats if s is not None)} |")


def decision_table(compared: Sequence[Compared], methods: Sequence[str]) -> None:
    """Hit rate and regret of the degrees that each method chooses, and the error of the gain of doubling the degree [%]."""
    names = ("c", "b10", "b20", "b30")
    kept = [one for one in compared if is_whole(one, methods)]
    print("\n| runs | | c | b 10 ms | b 20 ms | b 30 ms | gain of doubling t |\n|---|---|---|---|---|---|---|")
    for kind in sorted({one.run.kind or "" for one in kept}):
        for method in methods:
            points = match([one.run for one in kept], [one.predictions[method] for one in kept])
            scores = score(points, name=method, label=method)
            found = figures(scores)
            count = {row.definition: row.policies["ours"].num for row in scores.decisions if row.partition == kind}
            cells = [f"{100 * found[f'{kind}.{n}.hit']:.1f} / {100 * found[f'{kind}.{n}.regret']:.1f} ({count[n]})"
                     if n in count else "-" for n in names]
            gain = found.get(f"{kind}.doubling.mean")
            print(f"| {kind} | {method} | {' | '.join(cells)} | {'-' if gain is None else f'{100 * gain:.1f}'} |")


def described(run: ServingRun) -> str:
    return (f"{run.model.split('/')[-1]} {run.precision or 'bf16'}, {run.machine}, {run.engine} {run.engine_version or '?'}, "
            f"{run.isl_tok}/{run.osl_tok}, {run.parallel}{run.tp}, {run.concurrency}")


def times(prediction: RunPrediction) -> str:
    assert prediction.ttft_s is not None
    assert prediction.tpot_s is not None
    return f"{prediction.ttft_s / MS:,.0f}; {prediction.tpot_s / MS:.1f}"


def worst_table(compared: Sequence[Compared], method: str, quantity: str, num: int) -> None:
    """Runs with the largest |log| of predicted over measured, and what the simulator saw in them."""
    kept = [one for one in compared if is_whole(one, (CLOSED, method))]
    kept.sort(key=lambda one: -abs(math.log(ratio(one, method, quantity))))
    print(f"\n| run, requests in flight | {TITLES[quantity]}, predicted / measured | measured TTFT; TPOT ms | closed form "
          "| simulated | wait in the queue, before it s | in the batch | evictions per request | KV peak |\n"
          "|---|---|---|---|---|---|---|---|---|")
    for one in kept[:num]:
        run, saw = one.run, one.pressure[method]
        print(f"| {described(run)} | {ratio(one, method, quantity):.2f} | {run.ttft_s / MS:,.0f}; {run.tpot_s / MS:.1f} "
              f"| {times(one.predictions[CLOSED])} | {times(one.predictions[method])} "
              f"| {saw.queue_s:.2f}, {saw.outside_s:.2f} | {saw.running_seqs:.0f} | {saw.preemptions_per_req:.2f} "
              f"| {100 * saw.kv_peak_frac:.0f} % |")


def rows_of(compared: Sequence[Compared]) -> Iterator[dict[str, object]]:
    """One row per run and method, for a file."""
    for one in compared:
        run = one.run
        for method, prediction in one.predictions.items():
            saw = one.pressure.get(method)
            yield {"run_id": run.run_id, "family": run.family, "kind": run.kind, "model": run.model, "precision": run.precision,
                   "machine": run.machine, "engine": run.engine, "engine_version": run.engine_version, "isl": run.isl_tok,
                   "osl": run.osl_tok, "tp": run.tp, "ep": run.ep, "concurrency": run.concurrency,
                   "prompts_per_client": run.load.prompts_per_client, "ttft_s": run.ttft_s, "tpot_s": run.tpot_s,
                   "method": method, "status": prediction.status, "predicted_ttft_s": prediction.ttft_s,
                   "predicted_tpot_s": prediction.tpot_s,
                   "queue_s": None if saw is None else saw.queue_s, "outside_s": None if saw is None else saw.outside_s,
                   "running_seqs": None if saw is None else saw.running_seqs,
                   "preemptions_per_req": None if saw is None else saw.preemptions_per_req,
                   "kv_peak_frac": None if saw is None else saw.kv_peak_frac}


def all_compared(family: str, *, jobs: int, every: int, with_residuals: bool) -> list[Compared]:
    """Compare the runs of a family that are not in doubt, a replica at a time."""
    runs = [run for run in read_silicon_runs()[0] if run.family == family and run.doubt is None]
    groups = list(islice(by_replica(runs), 0, None, every))
    one = partial(compare, with_residuals=with_residuals, starts=STARTS[family])
    found: list[Compared] = []
    start = time.perf_counter()
    with multiprocessing.Pool(jobs) as pool:
        for done, own in enumerate(pool.imap_unordered(one, groups), 1):
            found += own
            print(f"\r{family}: {done} of {len(groups)} replicas", end="", file=sys.stderr, flush=True)
    print(f" in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return sorted(found, key=lambda c: c.run.run_id)


def _other_load(run: ServingRun) -> str | None:
    prompts = run.load.prompts_per_client
    return None if prompts == TEN else f"{run.model.split('/')[-1]}, {run.machine}, {prompts:g} per client"


def inferencex(compared: Sequence[Compared]) -> None:
    methods = (CLOSED, AT_ONCE)
    parts: dict[str, Part] = {
        "all": lambda run: run.kind,
        "by prompts per client, as recorded": lambda run: f"{run.kind}, {run.load.prompts_per_client:g} per client",
        "by engine": lambda run: f"{run.kind}, {run.engine}",
        "by prompt and output": lambda run: f"{run.kind}, {run.isl_tok}/{run.osl_tok}",
        "by requests in flight": lambda run: f"{run.kind}, {concurrency_band(run.concurrency)}",
        "that queued for memory, as measured": lambda run: run.kind if run.is_saturated else None,
    }
    for name, part in parts.items():
        print(f"\n{INFERENCEX}, {name}: mean / median / p90 (signed median) [%]")
        accuracy_table(compared, part, methods)
    print(f"\n{INFERENCEX}, recorded with other than {TEN:g} prompts per client: mean / median / p90 (signed median) [%]")
    accuracy_table(compared, _other_load, (*methods, TEN_EACH))
    print(f"\n{INFERENCEX}, decisions: hit / regret [%] (number)")
    decision_table(compared, methods)
    for quantity in ("throughput", "ttft"):
        print(f"\n{INFERENCEX}, worst runs by {TITLES[quantity]}")
        worst_table(compared, AT_ONCE, quantity, NUM_WORST)


def _dense_by_prompt_share(run: ServingRun) -> str | None:
    tokens = run.isl_tok / run.osl_tok
    band = "0 to 4" if tokens <= 4 else "5 to 8" if tokens <= 8 else "over 8"
    return f"{run.engine}, {run.machine}, prompt / output {band}" if run.kind == "dense" else None


def nvidia(compared: Sequence[Compared]) -> None:
    methods = (CLOSED, AT_ONCE, SPREAD)
    print(f"\n{NVIDIA}, two starts: mean / median / p90 (signed median) [%]")
    accuracy_table(compared, lambda run: f"{run.kind}, {run.engine}, {run.machine}", methods)
    print(f"\n{NVIDIA}, dense, by length of the prompt over that of the output: mean / median / p90 (signed median) [%]")
    accuracy_table(compared, _dense_by_prompt_share, methods)
    print(f"\n{NVIDIA}, decisions: hit / regret [%] (number)")
    decision_table(compared, methods)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-residuals", action="store_true",
                        help="terms alone: without the factors by which runs of the same model correct step times and TTFT")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--every", type=int, default=1, help="of the replicas, for a quick look")
    parser.add_argument("--out", type=Path, help="CSV with one row per run and method")
    asked = parser.parse_args()
    found = {family: all_compared(family, jobs=asked.jobs, every=asked.every, with_residuals=not asked.without_residuals)
             for family in (INFERENCEX, NVIDIA)}
    for family, compared in found.items():
        whole = sum(is_whole(one, (CLOSED, AT_ONCE)) for one in compared)
        print(f"{family}: {len(compared)} runs not in doubt; closed form and simulator serve {whole}, which the figures are of")
    inferencex(found[INFERENCEX])
    nvidia(found[NVIDIA])
    if asked.out:
        rows = [row for compared in found.values() for row in rows_of(compared)]
        with asked.out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
