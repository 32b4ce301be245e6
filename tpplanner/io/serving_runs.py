"""A user's own measured serving runs, one row of a CSV file each.

Each row is one benchmark of one replica (``tp`` GPUs) in a closed loop: ``concurrency`` clients that each send
their next request when the last one is answered.

======================  ============================================================================
Column                  Meaning
======================  ============================================================================
id                      any text, different in every row
model, system, engine   as for ``tpplanner recommend``: Hugging Face id or path, GPU, engine profile
tp                      tensor-parallel degree
isl, osl                mean prompt and output tokens of a request
concurrency             requests in flight in the replica
ttft_ms, tpot_ms        mean time to the first token and per output token [ms]
======================  ============================================================================

Optional columns, empty where not known:

========================  ==========================================================================
throughput_tok_s          output tokens of the replica per second, as measured
dtype, kv_cache_dtype     formats of the weights and of the KV cache, as `load_model` takes them
ep                        degree of expert parallelism, a divisor of tp; 1 by default
engine_version            for reports
num_gpus                  GPUs of all equal replicas side by side, a multiple of tp
max_num_seqs              limit of the engine on running requests
max_num_batched_tokens    limit of the engine on tokens per step
gpu_memory_utilization    share of the memory that the engine may use, over 0 and up to 1
prompts_per_client        requests that each client sent, all clients starting at once: the burst of the
                          start is then taken out of the TTFT; empty for a long run or a warmed-up one
source                    for reports
========================  ==========================================================================
"""

import math
from pathlib import Path
from typing import Final

from tpplanner.domain.serving_fit import LoadGenerator
from tpplanner.domain.serving_run import ServingRun
from tpplanner.errors import TpplannerError, WorkloadError
from tpplanner.io.csv_rows import CsvRow, read_rows
from tpplanner.io.model_json import one_line
from tpplanner.io.model_precision import chosen_cache, chosen_weights
from tpplanner.units import MS

REQUIRED: Final = ("id", "model", "system", "engine", "tp", "isl", "osl", "concurrency", "ttft_ms", "tpot_ms")
OPTIONAL: Final = (
    "throughput_tok_s", "dtype", "kv_cache_dtype", "ep", "engine_version", "num_gpus", "max_num_seqs",
    "max_num_batched_tokens", "gpu_memory_utilization", "prompts_per_client", "source",
)
OWN_FAMILY: Final = "own"
"""`ServingRun.family` of the runs of such a file."""


def read_serving_runs(path: str | Path) -> tuple[ServingRun, ...]:
    """Return the measured runs in a CSV file of the columns above, in its order.

    Model, machine and engine are names here: whether they exist is seen when they are loaded.

    Raises
    ------
    WorkloadError
        If the file cannot be read or has no row, a column is missing or unknown, an id is there twice, or a value
        is no number, not positive or impossible; with file, row, column, rule and value.
    """
    return tuple(run_of(row) for row in read_rows(Path(path), REQUIRED, OPTIONAL))


def run_of(row: CsvRow) -> ServingRun:
    """Return the run of one row, which has the required columns.

    Raises
    ------
    WorkloadError
        As `read_serving_runs`.
    """
    model, precision = row.text("model"), row.optional_text("dtype")
    try:
        return ServingRun(
            run_id=row.text("id"), model=model, checkpoint=model, machine=row.text("system"),
            engine=row.text("engine"), engine_version=row.optional_text("engine_version"),
            precision=precision or "", dtype=chosen_weights(precision),
            kv_cache_dtype=chosen_cache(row.optional_text("kv_cache_dtype")),
            isl_tok=row.count("isl"), osl_tok=row.count("osl"), tp=row.count("tp"), ep=row.optional_count("ep") or 1,
            concurrency=row.count("concurrency"), ttft_s=row.positive("ttft_ms") * MS,
            tpot_s=row.positive("tpot_ms") * MS,
            reported_throughput_tok_s=row.optional_positive("throughput_tok_s"),
            num_gpus=row.optional_count("num_gpus"), max_num_seqs=row.optional_count("max_num_seqs"),
            max_num_batched_tokens=row.optional_count("max_num_batched_tokens"),
            gpu_memory_utilization=row.optional_positive("gpu_memory_utilization"),
            load=LoadGenerator(prompts_per_client=row.optional_positive("prompts_per_client") or math.inf),
            family=OWN_FAMILY, source=one_line(row.cells.get("source", "")),
        )
    except TpplannerError as error:
        if str(error).startswith(row.place):
            raise
        # The run's own checks and those of number formats do not know the row.
        raise WorkloadError(f"{row.place}: {error}") from None
