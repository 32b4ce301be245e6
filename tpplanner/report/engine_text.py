"""A benchmark of the engine for people, and as a row that ``tpplanner validate`` reads."""

import csv
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tpplanner.domain.simulation import Quantiles

MS = 1e3


def _latency(name: str, quantiles: "Quantiles | None") -> str:
    if quantiles is None:
        return f"{name:<5} -"
    values = (quantiles.mean_s, quantiles.p50_s, quantiles.p90_s, quantiles.p99_s)
    return f"{name:<5} " + " ".join(f"{label} {value * MS:10.2f}" for label, value in zip(
        ("mean", "p50", "p90", "p99"), values, strict=True)) + " ms"


def engine_text(document: Mapping[str, Any], latencies: "Mapping[str, Quantiles | None]") -> str:
    """Return the figures of a run as lines."""
    d = document
    load = f"{d['concurrency']} clients" if d["concurrency"] is not None else "at its own times"
    lines = [
        f"{d['model']}, t = {d['tp']}, {d['dtype']}, on {d['device']}: {d['loop']}",
        *([d["emulated"]] if d["emulated"] else []),
        f"{d['num_requests']} requests ({d['mean_isl_tok']:.0f} in, {d['mean_osl_tok']:.0f} out), {load}, "
        f"{d['num_kv_blocks']} KV blocks of {d['kv_block_size_tok']} tokens",
        "",
        f"throughput {d['throughput_tok_s']:.1f} tok/s, {d['request_rate_req_s']:.3f} req/s in {d['duration_s']:.2f} s; "
        f"device busy {d['busy_frac']:.0%}; KV peak {d['kv_peak_frac']:.0%}; {d['num_preemptions']} preemptions; "
        f"{d['num_unused_rows']} rows for nobody",
        *(_latency(name, quantiles) for name, quantiles in latencies.items())]
    tasks = d["decode_step"]
    if tasks is not None:
        names = (("T1 schedule", "schedule_s"), ("T2 prepare", "prepare_input_s"), ("T3 forward", "forward_s"),
                 ("T4 sampling", "sampling_s"), ("T5 process", "process_output_s"), ("device waits", "exposed_s"),
                 ("step", "step_s"))
        lines += ["", f"decode step, mean of {tasks['num_steps']} with {tasks['num_decode_seqs']:.1f} sequences [ms]:",
                  "  " + "  ".join(f"{title} {tasks[key] * MS:.3f}" for title, key in names)]
    if d["energy_j_per_tok"] is not None:
        whose = "all GPUs of the machine, of which one ran one rank" if d["emulated"] else "all GPUs of the machine"
        lines.append(f"energy {d['energy_j_per_tok']:.4f} J/tok, {whose}")
    return "\n".join(lines)


RUN_COLUMNS = ("id", "model", "system", "engine", "tp", "isl", "osl", "concurrency", "ttft_ms", "tpot_ms", "throughput_tok_s",
               "dtype", "max_num_seqs", "max_num_batched_tokens", "source")


def run_csv(document: Mapping[str, Any], *, model: str, system: str, engine: str,
            latencies: "Mapping[str, Quantiles | None]") -> str:
    """Return the run as the one row of a file of measured runs; empty for a run that is no closed loop."""
    ttft, tpot = latencies["TTFT"], latencies["TPOT"]
    if document["concurrency"] is None or ttft is None or tpot is None:
        return ""
    emulated, source = document["emulated"], "tpplanner engine bench"
    name = f"{document['model']}-tp{document['tp']}-{document['concurrency']}-{document['loop'].split(':')[0]}"
    values = {
        "id": f"{name}-emulated" if emulated else name,
        "model": model, "system": system, "engine": engine, "tp": document["tp"], "isl": round(document["mean_isl_tok"]),
        "osl": round(document["mean_osl_tok"]), "concurrency": document["concurrency"], "ttft_ms": ttft.mean_s * MS,
        "tpot_ms": tpot.mean_s * MS, "throughput_tok_s": document["throughput_tok_s"],
        "dtype": {"bfloat16": "bf16", "float16": "fp16"}.get(document["dtype"], ""), "max_num_seqs": document["max_num_seqs"],
        "max_num_batched_tokens": document["max_num_batched_tokens"], "source": f"{source}; {emulated}" if emulated else source}
    out = io.StringIO()
    writer = csv.DictWriter(out, RUN_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerow(values)
    return out.getvalue()


def labelled_csv(text: str, emulated: str | None) -> str:
    """Return a CSV text with the label of an emulated run as one more column; as it is where there is none."""
    if emulated is None:
        return text
    rows = list(csv.reader(io.StringIO(text)))
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[*row, emulated if i else "emulated"] for i, row in enumerate(rows)])
    return out.getvalue()


def document_json(document: Mapping[str, Any]) -> str:
    """Return the figures as JSON."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
