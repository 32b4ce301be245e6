"""Predicted against measured, as text, as CSV, and as runs that ``tpplanner validate`` reads."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence, Set

TIMES = ("schedule_s", "prepare_input_s", "forward_s", "sampling_s", "process_output_s", "step_s", "tpot_s", "ttft_s")
_SHORT = ("T1", "T2", "T3", "T4", "T5", "step", "TPOT", "TTFT")
_FIGURES = (*TIMES, "throughput_tok_s", "num_kv_blocks", "energy_j_per_tok")
_CASE = ("model", "tp", "emulated", "loop", "num_seqs", "isl_tok", "osl_tok", "injected_s", "num_requests")
_NAME_WIDTH = 16
Row = Mapping[str, object]
"""A case with num_requests, max_num_seqs and failure, and ``predicted`` and ``measured`` with the names of `_FIGURES`: measured
has no energy where nothing counts it, and both are empty where the case failed."""


def header() -> str:
    """Return the heads of the table: two lines a case, times in milliseconds."""
    names = " ".join(f"{name:>6}" for name in (*_SHORT, "tok/s", "blocks", "J/tok"))
    return (f"times in ms; error: of the throughput\n{'model':<{_NAME_WIDTH}} {'TP':>3} {'loop':<10} "
            f"{'seqs':>4} {'in/out':>9} {'slept':>5} {'':<9} {names}  error")


def line(row: Row) -> str:
    """Return one case: predicted, and measured below it with the error of the throughput; or why it failed."""
    lengths = f"{row['isl_tok']}/{row['osl_tok']}"
    case = (f"{_model_name(row)[-_NAME_WIDTH:]:<{_NAME_WIDTH}} {row['tp']!s:>3} {row['loop']!s:<10} {row['num_seqs']!s:>4} "
            f"{lengths:>9} {_number(row['injected_s']) * 1e3:>5.3g} ")
    if row["failure"]:
        return f"{case}failed: {row['failure']}"
    predicted, measured = _sides(row)
    error = predicted["throughput_tok_s"] / measured["throughput_tok_s"] - 1.0
    # A prediction of energy that nothing can judge is in verify.csv only.
    names = frozenset(name for name in _FIGURES if name in measured)
    below = f"  emulated: one rank of {row['tp']}" if row["emulated"] else ""
    return (f"{case}predicted {_shown(predicted, names)}\n"
            f"{below:<{len(case)}}measured  {_shown(measured, names)} {error:>+6.0%}")


def _shown(side: Mapping[str, float], names: Set[str]) -> str:
    return " ".join(f"{_cell(name, side[name]) if name in names else '-':>6}" for name in _FIGURES)


def _cell(name: str, value: float) -> str:
    return f"{value:.0f}" if name == "num_kv_blocks" else _digits(value * 1e3 if name in TIMES else value)


def _digits(value: float) -> str:
    """Three digits that count, and all before the point."""
    before = math.floor(math.log10(value)) + 1 if value > 0 else 1
    return f"{value:.{min(max(3 - before, 0), 4)}f}"


def _model_name(row: Row) -> str:
    return str(row["model"]).rstrip("/").rpartition("/")[2]


def _sides(row: Row) -> tuple[Mapping[str, float], Mapping[str, float]]:
    predicted, measured = row["predicted"], row["measured"]
    assert isinstance(predicted, Mapping)
    assert isinstance(measured, Mapping)
    return predicted, measured


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return float(value)


def verdict_text(verdict: Mapping[str, object]) -> str:
    """Return the sum of all cases on a few lines."""
    return "\n".join(_verdict_lines(verdict))


def _verdict_lines(verdict: Mapping[str, object]) -> Iterator[str]:
    speedups = verdict["speedup_errors_frac"]
    assert isinstance(speedups, Sequence)
    shown = ", ".join(f"{_number(e):+.1%}" for e in speedups) or "none measured"
    ranked = (f"{verdict['best_tp_right']} of {verdict['num_ranked']} (one replica each, throughput per device), gain over the "
              f"least degree {_share(verdict['gain_error_frac'])}") if verdict["num_ranked"] else "one degree only"
    yield (f"mean absolute error: throughput {_share(verdict['throughput_error_frac'])}, decode step "
           f"{_share(verdict['step_error_frac'])}; best degree ranked right: {ranked}; predicted speed-up of overlap "
           f"with injected host time against measured: {shown}")
    yield from _means(verdict, emulated=False)
    if verdict["emulated_error_frac"] is not None:
        yield f"emulated, one rank of t on one device, left out above: throughput {_share(verdict['emulated_error_frac'])}"
        yield from _means(verdict, emulated=True)
    yield f"KV blocks: {_share(verdict['kv_blocks_error_frac'])}"
    energy = verdict["energy_error_frac"]
    yield "energy: no counter on this machine" if energy is None else f"energy of a token: {_share(energy)}"
    if verdict["num_failed"]:
        yield f"failed: {verdict['num_failed']} cases, left out of all figures"


def _share(value: object) -> str:
    return "none measured" if value is None else f"{_number(value):.1%}"


def _means(verdict: Mapping[str, object], *, emulated: bool) -> Iterator[str]:
    """Yield one line per model: throughput by degree, mean absolute error and, in brackets, the mean with its sign."""
    every = verdict["by_model"]
    assert isinstance(every, Sequence)
    chosen = [one for one in every if one["emulated"] == emulated]
    for model in dict.fromkeys(one["model"] for one in chosen):
        parts = [f"t = {one['tp']} {one['error_frac']:.1%} ({one['bias_frac']:+.1%})" for one in chosen if one["model"] == model]
        yield f"  {_model_name({'model': model})}: {', '.join(parts)}"


def comparison_csv(rows: Sequence[Row]) -> str:
    """Return every case with both sides, times in seconds; cells without a figure are empty, ``failure`` says why."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*_CASE, *(f"{side}_{name}" for name in _FIGURES for side in ("predicted", "measured")), "failure"])
    for row in rows:
        cells = [f"{row[name]:.6g}" if isinstance(row[name], float) else str(row[name]) for name in _CASE]
        figures = [f"{side[name]:.6g}" if name in side else "" for name in _FIGURES for side in _sides(row)]
        writer.writerow([*cells, *figures, row["failure"]])
    return out.getvalue()


def runs_csv(rows: Sequence[Row], *, machine: str, dtype: str, max_num_batched_tokens: int) -> str:
    """Return the measured side in the columns of ``tpplanner validate``.

    Cases with injected time, emulated ones and those that failed are left out.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "model", "system", "engine", "tp", "isl", "osl", "concurrency", "ttft_ms", "tpot_ms",
                     "throughput_tok_s", "dtype", "max_num_seqs", "max_num_batched_tokens", "prompts_per_client", "source"])
    for row in rows:
        if _number(row["injected_s"]) or row["emulated"] or row["failure"]:
            continue
        measured, num_seqs = _sides(row)[1], _number(row["num_seqs"])
        name = f"{_model_name(row)}-tp{row['tp']}-{row['num_seqs']}-{row['isl_tok']}x{row['osl_tok']}-{row['loop']}"
        writer.writerow([name, row["model"], machine, f"tpplanner-{row['loop']}", row["tp"], row["isl_tok"], row["osl_tok"],
                         row["num_seqs"], f"{measured['ttft_s'] * 1e3:.6g}", f"{measured['tpot_s'] * 1e3:.6g}",
                         f"{measured['throughput_tok_s']:.6g}", dtype, row["max_num_seqs"], max_num_batched_tokens,
                         f"{_number(row['num_requests']) / num_seqs:g}", "tpplanner calibrate verify"])
    return out.getvalue()
