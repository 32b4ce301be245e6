"""The measured serving runs in the optional package ``aiconfigurator-core``: read and cleaned.

Its ``systems/silicon_sample.csv`` holds closed-loop benchmarks of vLLM, SGLang and TensorRT-LLM on H100 to B300, by
InferenceX and by NVIDIA. Rows are repaired or dropped as follows, in this order:

* ``not_agg``: prefill and decode on different GPUs;
* repaired: tp16 with moe_tp4 and moe_ep4 is TP4 and EP4 on four GPUs (the same figures appear as tp4/1/4);
* ``attention_dp``: data-parallel attention is not tensor parallelism;
* ``moe_tp_x_ep``: moe_tp * moe_ep is not tp;
* ``multi_node``: a degree that one node does not have;
* ``no_measurement``: no TTFT or TPOT;
* ``several_replicas``: the concurrency is not the batch, so a router stood in front;
* ``copies``: the same figures within 0.1 %; one run appears in up to three dumps, DeepSeek-R1 also as V3;
* ``suspected_mtp``: DeepSeek and Qwen3.5 runs of InferenceX that are 1.3 to 2.3 times faster than others of equal
  configuration: the recipes with speculative decoding, which the sample does not label. Runs of its database
  dump, of nightly and (but on B300) ``-amd64`` images are without.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tpplanner.domain.serving_run import ServingRun
from tpplanner.errors import TpplannerError, WorkloadError, reject
from tpplanner.io.csv_rows import CsvRow, read_rows
from tpplanner.io.silicon_load import doubt_of, load_generator_of
from tpplanner.io.silicon_package import silicon_root
from tpplanner.io.silicon_run_facts import DTYPES_OF_PRECISION, checkpoint_and_dtype, kv_cache_dtype_of
from tpplanner.units import MS

SAMPLE_FILE: Final = "silicon_sample.csv"
INFERENCEX: Final = "InferenceX"
NVIDIA: Final = "NVIDIA internal"
COLUMNS: Final = (
    "id", "silicon_data_source", "backend", "backend_version", "model_path", "system", "precision", "mode", "isl",
    "osl", "batch_size", "tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size", "silicon_ttft_ms",
    "silicon_tpot_ms",
)
REASONS: Final = (
    "not_agg", "attention_dp", "moe_tp_x_ep", "multi_node", "no_measurement", "several_replicas", "copies",
    "suspected_mtp",
)
"""Why rows are dropped, in the order of the rules."""

_DEGREES: Final = (1, 2, 4, 8)
_DENSE: Final = re.compile(r"Llama-3\.1|Qwen3-32B")
_MTP: Final = re.compile(r"DeepSeek|Qwen3\.5")
_CONCURRENCY: Final = re.compile(r"silicon_concurrency=(\d{1,9})")
_SAME_MODEL: Final = {"deepseek-ai/DeepSeek-V3": "deepseek-ai/DeepSeek-R1"}
_SAME_FRAC: Final = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """How a row cuts the model: degrees of attention, of its data parallelism and of the experts."""

    tp: int
    attention_dp: int
    moe_tp: int
    moe_ep: int
    is_repaired: bool


def read_silicon_runs(path: str | Path | None = None) -> tuple[tuple[ServingRun, ...], dict[str, int]]:
    """Return the cleaned runs, in the order of the file, and how many rows each rule dropped.

    Parameters
    ----------
    path
        A ``silicon_sample.csv``; ``None`` for that of the installed package, which is found and never imported.

    Returns
    -------
    tuple
        The runs, and `REASONS` -> number of rows.

    Raises
    ------
    TpplannerError
        If the package is not installed, the file cannot be read, lacks a column, or holds a value that makes no
        sense; with row, column, rule and value.
    """
    rows = read_rows(silicon_root().parent / SAMPLE_FILE if path is None else Path(path), COLUMNS)
    found = [_run(row) for row in rows]
    dropped = {**dict.fromkeys(REASONS, 0), **Counter(one for one in found if isinstance(one, str))}
    runs = [one for one in found if isinstance(one, ServingRun)]
    clusters = _clusters(runs)
    kept = [cluster for cluster in clusters if not _is_suspect(cluster)]
    dropped["copies"], dropped["suspected_mtp"] = len(runs) - len(clusters), len(clusters) - len(kept)
    return tuple(replace(first, copies=tuple(copy.run_id for copy in copies)) for first, *copies in kept), dropped


def _clusters(runs: Iterable[ServingRun]) -> list[list[ServingRun]]:
    """Put the copies of one measurement together, in the order of their first appearance."""
    by_key: dict[tuple[object, ...], list[list[ServingRun]]] = defaultdict(list)
    in_order: list[list[ServingRun]] = []
    for run in runs:
        same = by_key[_key(run)]
        twins = next((cluster for cluster in same if _is_copy(cluster[0], run)), None)
        if twins is None:
            same.append([run])
            in_order.append(same[-1])
        else:
            twins.append(run)
    return in_order


def _key(run: ServingRun) -> tuple[object, ...]:
    return (run.model, run.machine, run.engine, run.tp, run.ep, run.isl_tok, run.osl_tok, run.concurrency)


def _is_copy(first: ServingRun, other: ServingRun) -> bool:
    pairs = ((first.ttft_s, other.ttft_s), (first.tpot_s, other.tpot_s))
    return all(abs(one / another - 1) < _SAME_FRAC for one, another in pairs)


def _is_suspect(cluster: Sequence[ServingRun]) -> bool:
    """Whether no copy says that a run of a model with draft layers was without speculative decoding."""
    first = cluster[0]
    return first.family == INFERENCEX and _MTP.search(first.model) is not None and not any(map(_is_plain, cluster))


def _is_plain(run: ServingRun) -> bool:
    source = run.source
    amd64 = source.endswith("-amd64") and run.machine != "b300_sxm"
    return source.startswith("db-dump") or "nightly" in source or amd64


def _run(row: CsvRow) -> ServingRun | str:
    """Return the run of one row, or why it is dropped."""
    if row.text("mode") != "agg":
        return "not_agg"
    is_dense = _DENSE.search(row.text("model_path")) is not None
    cut = _cut(row, is_dense=is_dense)
    reason = _why_dropped(row, cut)
    if reason is not None:
        return reason
    try:
        return _measured(row, cut, "dense" if is_dense else "moe")
    except TpplannerError as error:
        if str(error).startswith(row.place):
            raise
        # The run's own checks do not know the row.
        raise WorkloadError(f"{row.place}: {error}") from None


def _size(row: CsvRow, column: str) -> int:
    """Return a degree; the sample has nothing or 0 where there is no such cut."""
    return row.optional_count(column, minimum=0) or 1


def _cut(row: CsvRow, *, is_dense: bool) -> _Cut:
    tp, attention_dp = _size(row, "tp_size"), _size(row, "attention_dp_size")
    moe_tp, moe_ep = _size(row, "moe_tp_size"), _size(row, "moe_ep_size")
    is_product = moe_tp == moe_ep > 1 and tp == moe_tp * moe_ep and attention_dp == 1
    if is_product:
        tp, moe_tp = moe_ep, 1
    if is_dense:
        moe_tp, moe_ep = tp, 1
    return _Cut(tp=tp, attention_dp=attention_dp, moe_tp=moe_tp, moe_ep=moe_ep, is_repaired=is_product)


def _why_dropped(row: CsvRow, cut: _Cut) -> str | None:
    if cut.attention_dp > 1:
        return "attention_dp"
    if cut.moe_tp * cut.moe_ep != cut.tp:
        return "moe_tp_x_ep"
    if cut.tp not in _DEGREES:
        return "multi_node"
    for column in ("silicon_ttft_ms", "silicon_tpot_ms"):
        latency_ms = row.optional_number(column)
        if latency_ms is not None and latency_ms < 0:
            reject(WorkloadError, column, "be >= 0", row.cells[column], row.place)
        if not latency_ms:
            return "no_measurement"
    return "several_replicas" if _concurrency(row) != row.count("batch_size") else None


def _concurrency(row: CsvRow) -> int:
    stated = _CONCURRENCY.search(row.cells["silicon_data_source"])
    return int(stated[1]) if stated else row.count("batch_size")


def _measured(row: CsvRow, cut: _Cut, kind: str) -> ServingRun:
    model = _SAME_MODEL.get(row.text("model_path"), row.text("model_path"))
    precision, version = row.cells["precision"], row.optional_text("backend_version")
    source = row.text("silicon_data_source")
    if precision not in DTYPES_OF_PRECISION:
        reject(WorkloadError, "precision", f"be empty or one of {', '.join(filter(None, DTYPES_OF_PRECISION))}",
               precision, row.place)
    checkpoint, dtype = checkpoint_and_dtype(model, precision)
    machine, engine = row.text("system"), row.text("backend")
    isl_tok, osl_tok, concurrency = row.count("isl"), row.count("osl"), _concurrency(row)
    family = NVIDIA if "auto-gap-analysis/data" in source else INFERENCEX
    return ServingRun(
        run_id=row.text("id"), model=model, checkpoint=checkpoint, dtype=dtype, precision=precision, machine=machine,
        engine=engine, engine_version=version,
        kv_cache_dtype=kv_cache_dtype_of(
            model=model, engine=engine, machine=machine, precision=precision, version=version
        ),
        isl_tok=isl_tok, osl_tok=osl_tok, tp=cut.tp, ep=cut.moe_ep, concurrency=concurrency,
        ttft_s=row.positive("silicon_ttft_ms") * MS, tpot_s=row.positive("silicon_tpot_ms") * MS,
        family=family, source=source, kind=kind, is_repaired=cut.is_repaired,
        load=load_generator_of(
            model=model, machine=machine, engine=engine, precision=precision, isl_tok=isl_tok, osl_tok=osl_tok, tp=cut.tp,
            concurrency=concurrency, is_inferencex=family == INFERENCEX,
        ),
        doubt=doubt_of(model=model, machine=machine),
    )
