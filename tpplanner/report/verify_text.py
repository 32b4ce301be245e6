"""Predicted against measured, as text, as CSV, and as runs that ``tpplanner validate`` reads."""

import csv
import io
from collections.abc import Mapping, Sequence

TIMES = ("schedule_s", "prepare_input_s", "forward_s", "sampling_s", "process_output_s", "step_s", "tpot_s", "ttft_s")
_SHORT = ("T1", "T2", "T3", "T4", "T5", "step", "TPOT", "TTFT")
Row = Mapping[str, object]
"""model, tp, loop, num_seqs, injected_s, and ``predicted`` and ``measured`` with the names of `TIMES` and throughput_tok_s."""


def header() -> str:
    """Return the heads of the table."""
    tasks = " ".join(f"{name:>15}" for name in _SHORT)
    return f"predicted / measured [ms]\n{'model':<16} TP {'loop':<10} {'seqs':>4} {'slept':>6} {tasks} {'tok/s':>15} {'error':>6}"


def line(row: Row) -> str:
    """Return one case."""
    predicted, measured = _sides(row)
    pairs = " ".join(f"{predicted[n] * 1e3:>7.4g}/{measured[n] * 1e3:<7.4g}" for n in TIMES)
    rate = "throughput_tok_s"
    error = predicted[rate] / measured[rate] - 1.0
    return (f"{str(row['model'])[-16:]:<16} {row['tp']!s:>2} {row['loop']!s:<10} {row['num_seqs']!s:>4} "
            f"{_number(row['injected_s']) * 1e3:>6.3g} {pairs} {predicted[rate]:>7.4g}/{measured[rate]:<7.4g} {error:>+6.0%}")


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
    errors = verdict["speedup_errors_frac"]
    assert isinstance(errors, Sequence)
    speedups = ", ".join(f"{_number(e):+.1%}" for e in errors) or "none measured"
    ranked = f"{verdict['best_tp_right']} of {verdict['num_ranked']}" if verdict["num_ranked"] else "one degree only"
    return (f"mean absolute error: throughput {_number(verdict['throughput_error_frac']):.1%}, decode step "
            f"{_number(verdict['step_error_frac']):.1%}; best degree ranked right: {ranked}; predicted speed-up of overlap "
            f"with injected host time against measured: {speedups}")


def comparison_csv(rows: Sequence[Row]) -> str:
    """Return every case with both sides, times in seconds."""
    names = (*TIMES, "throughput_tok_s")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "tp", "loop", "num_seqs", "injected_s",
                     *(f"{side}_{name}" for name in names for side in ("predicted", "measured"))])
    for row in rows:
        predicted, measured = _sides(row)
        writer.writerow([row["model"], row["tp"], row["loop"], row["num_seqs"], f"{_number(row['injected_s']):.6g}",
                         *(f"{side[name]:.6g}" for name in names for side in (predicted, measured))])
    return out.getvalue()


def runs_csv(rows: Sequence[Row], *, machine: str, dtype: str, isl_tok: int, osl_tok: int) -> str:
    """Return the measured side in the columns of ``tpplanner validate``; cases with injected time are left out."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "model", "system", "engine", "tp", "isl", "osl", "concurrency", "ttft_ms", "tpot_ms",
                     "throughput_tok_s", "dtype", "max_num_seqs", "max_num_batched_tokens", "source"])
    for row in rows:
        if _number(row["injected_s"]):
            continue
        measured = _sides(row)[1]
        name = str(row["model"]).rstrip("/").rpartition("/")[2]
        writer.writerow([f"{name}-tp{row['tp']}-{row['num_seqs']}-{row['loop']}", row["model"], machine,
                         f"tpplanner-{row['loop']}", row["tp"], isl_tok, osl_tok, row["num_seqs"],
                         f"{measured['ttft_s'] * 1e3:.6g}", f"{measured['tpot_s'] * 1e3:.6g}",
                         f"{measured['throughput_tok_s']:.6g}", dtype, row["num_seqs"], 2048, "tpplanner calibrate verify"])
    return out.getvalue()
