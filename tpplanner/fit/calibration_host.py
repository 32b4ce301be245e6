"""The engine's own terms from raw samples: T1, T2, T5, what stays exposed, sampling, the small kernels of a layer."""

from typing import Final

import numpy as np
import pandas as pd

from tpplanner.domain.engine import SamplingPolicy, TaskCost
from tpplanner.domain.engine_fit import EngineFit
from tpplanner.domain.quantity import Quantity
from tpplanner.errors import ProfileError, reject
from tpplanner.fit.task_lines import FloatArray, fit_parts

_TASKS: Final = {"schedule": ("schedule",), "prepare_input": ("prepare_input", "deliver"),
                 "process_output": ("process_output", "reply")}
"""Tasks of the cost model, and what the engine's records add up to them in the sequential loop."""
ELEMENT_BYTES: Final = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}


def layer_bytes(rows: pd.DataFrame) -> FloatArray:
    """Bytes that the small operations of one layer move, as ``cost.work`` counts them."""
    heads = 3.0 * rows["num_heads"] + 4.0 * rows["num_kv_heads"]
    elements = 8.0 * rows["hidden_size"] + heads * rows["head_dim"] + 3.0 * rows["num_columns"]
    return (rows["num_tok"] * elements * rows["dtype"].map(ELEMENT_BYTES)).to_numpy(dtype=float)


def _task(times: pd.DataFrame, source: str, *, scale_s: FloatArray | None = None) -> TaskCost:
    """One task over the batch, and where several degrees were measured over log2 t; errors relative to ``scale_s`` [s]."""
    num_seqs, log2_tp = (times[name].to_numpy(dtype=float) for name in ("num_seqs", "log2_tp"))
    parts = {"fixed_s": np.ones(len(times)), "per_seq_s": num_seqs}
    if log2_tp.any():
        parts |= {"per_log2_tp_s": log2_tp, "per_seq_per_log2_tp_s": num_seqs * log2_tp}
    return TaskCost(**fit_parts(parts, times["latency_s"].to_numpy(dtype=float), source=source, scale_s=scale_s))


def _host_tasks(host: pd.DataFrame, source: str) -> dict[str, TaskCost]:
    wide = host.pivot_table(index=["loop", "tp", "num_seqs"], columns="task", values="latency_s").reset_index()
    wide["log2_tp"] = np.log2(wide["tp"])
    sequential, overlap = (wide[wide["loop"] == loop] for loop in ("sequential", "overlap"))
    for loop, rows in (("sequential", sequential), ("overlap", overlap)):
        if rows.empty:
            reject(ProfileError, "host", f"have samples of the {loop} loop; tpplanner calibrate goes on", 0, source)
    tasks = {name: _task(sequential.assign(latency_s=sequential[list(parts)].sum(axis=1)), source)
             for name, parts in _TASKS.items()}
    return tasks | {"exposed": _exposed(wide, source), "restart": _restart(wide, source)}


def _exposed(wide: pd.DataFrame, source: str) -> TaskCost:
    """What the device waits for under overlap, and over t what it takes longer since the host works beside it.

    On a CPU the ranks of a higher degree leave the driver no core of its own: what it does meanwhile it takes from one of them,
    and the others wait for that one.
    """
    both = _both_loops(wide)
    longer_s = np.where(both["tp"] > 1, both["device_overlap"] - both["device_sequential"], 0.0)
    # Relative to the whole step: it may be nothing.
    return _task(both.assign(latency_s=np.maximum(both["exposed_overlap"] + longer_s, 0.0)), source,
                 scale_s=both["device_overlap"].to_numpy(dtype=float))


def _restart(wide: pd.DataFrame, source: str) -> TaskCost:
    """What the device takes longer in a loop that lets it wait for the host; of t = 1, where nobody takes the host's core."""
    both = _both_loops(wide).query("tp == 1")
    if both.empty:
        return TaskCost(**fit_parts(dict.fromkeys(("fixed_s", "per_seq_s"), np.ones(1)), np.zeros(1), source=source,
                                    scale_s=np.ones(1)))
    whole_s, num_seqs = (both[name].to_numpy(dtype=float) for name in ("device_sequential", "num_seqs"))
    # Relative to the whole step: where both loops take alike, the difference is noise.
    parts = {"fixed_s": np.ones(len(both)), "per_seq_s": num_seqs}
    return TaskCost(**fit_parts(parts, whole_s - both["device_overlap"].to_numpy(dtype=float), source=source, scale_s=whole_s))


def _both_loops(wide: pd.DataFrame) -> pd.DataFrame:
    """Cases that were measured in both loops, with the times of each."""
    return wide[wide["loop"] == "overlap"].merge(
        wide[wide["loop"] == "sequential"], on=["tp", "num_seqs", "log2_tp"], suffixes=("_overlap", "_sequential"))


def _sampling(rows: pd.DataFrame, source: str) -> TaskCost:
    if rows.empty:
        reject(ProfileError, "sampling", "have samples of every policy; tpplanner calibrate goes on", 0, source)
    num_rows, vocab = (rows[name].to_numpy(dtype=float) for name in ("num_rows", "vocab_size"))
    parts = {"fixed_s": np.ones(len(rows)), "per_seq_s": num_rows, "per_seq_per_vocab_tok_s": num_rows * vocab}
    return TaskCost(**fit_parts(parts, rows["latency_s"].to_numpy(dtype=float), source=source))


def _step_overhead(rows: pd.DataFrame, source: str) -> TaskCost:
    """What the device does in a step outside layers, LM head and sampling, over the sequences."""
    num_seqs = rows["num_seqs"].to_numpy(dtype=float)
    parts = {"fixed_s": np.ones(len(rows)), "per_seq_s": num_seqs}
    return TaskCost(**fit_parts(parts, rows["latency_s"].to_numpy(dtype=float), source=source))


def fit_engine(
    *, host: pd.DataFrame, sampling: pd.DataFrame, layer: pd.DataFrame, step: pd.DataFrame, hbm_bytes_s: float, source: str
) -> EngineFit:
    """Fit the engine's own terms.

    Parameters
    ----------
    host
        Columns loop, tp, num_seqs, task, latency_s [s].
    sampling
        Columns policy, num_rows, vocab_size, latency_s [s].
    layer
        Columns dtype, num_tok, hidden_size, num_heads, num_kv_heads, head_dim, num_columns, latency_s [s].
    step
        Columns num_seqs, latency_s [s].
    hbm_bytes_s
        Peak bandwidth of the machine [bytes/s].
    source
        Names the samples.

    Raises
    ------
    ProfileError
        If a benchmark has no samples.
    """
    for name, frame in (("host", host), ("sampling", sampling), ("layer", layer), ("step", step)):
        if frame.empty:
            reject(ProfileError, name, "have samples", 0, source)
    small = fit_parts({"layer_overhead_s": np.ones(len(layer)), "per_byte_s": layer_bytes(layer)},
                      layer["latency_s"].to_numpy(dtype=float), source=source)
    return EngineFit(
        source=source, layer_overhead_s=small["layer_overhead_s"],
        elementwise_memory=_share(small["per_byte_s"], hbm_bytes_s), step_overhead=_step_overhead(step, source),
        sampling={policy: _sampling(sampling[sampling["policy"] == policy.value], source) for policy in SamplingPolicy},
        **_host_tasks(host, source))


def _share(per_byte_s: Quantity, hbm_bytes_s: float) -> Quantity:
    """Share of the peak bandwidth; 1 where the operands never left the caches."""
    share = min(1.0 / max(per_byte_s.value * hbm_bytes_s, 1e-12), 1.0)
    error = share * (per_byte_s.std_error or 0.0) / max(per_byte_s.value, 1e-300)
    return Quantity(value=share, unit="1", provenance=per_byte_s.provenance, source=per_byte_s.source,
                    std_error=min(error, 1.0), num_samples=per_byte_s.num_samples)
