"""Measured operator latencies of ``aiconfigurator-core``, as tidy frames in SI units."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tpplanner.errors import ProfileError, nearest, reject
from tpplanner.io.silicon_columns import FRAMES, SPECS, TableSpec, empty_frame
from tpplanner.io.silicon_package import find_silicon_engine, find_system, find_version, silicon_root, table_files
from tpplanner.io.silicon_read import merge_repeats, read_table


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReport:
    """What became of the rows of one file: ``num_read == num_kept + num_merged + num_dropped``.

    Attributes
    ----------
    frame, source
        The frame they went to, and the file relative to ``systems/data``.
    num_read, num_kept
        Rows in the file, and in the frame.
    num_merged
        Repeats of a sample that went into the median of one row.
    num_dropped
        Rows of curves that a newer version measured too.
    num_multi_kernel
        Kept rows whose shape was measured with several kernels: ``kernel_source`` tells them apart.
    """

    frame: str
    source: str
    num_read: int
    num_kept: int
    num_merged: int
    num_dropped: int
    num_multi_kernel: int

    @property
    def version(self) -> str:
        """The version of the engine, from the folder."""
        return self.source.split("/")[-2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What was read, file by file, and which frames stayed empty for want of a table."""

    system: str
    engine: str
    tables: tuple[TableReport, ...]
    absent: tuple[str, ...]

    @property
    def num_read(self) -> int:
        """Rows in all files."""
        return sum(table.num_read for table in self.tables)

    @property
    def num_kept(self) -> int:
        """Rows in all frames."""
        return sum(table.num_kept for table in self.tables)

    @property
    def num_merged(self) -> int:
        """Repeats that went into a median."""
        return sum(table.num_merged for table in self.tables)

    @property
    def num_dropped(self) -> int:
        """Rows for which a newer version has the same curve."""
        return sum(table.num_dropped for table in self.tables)

    def lines(self) -> list[str]:
        """Return one line per file: what was kept, merged and dropped."""
        return [
            f"{table.frame}: {table.num_kept:,} of {table.num_read:,} rows kept, {table.num_merged:,} merged, "
            f"{table.num_dropped:,} dropped for a newer version ({table.source})"
            for table in self.tables
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperatorTables:
    """Measured latencies of one machine and engine; a frame without a table has its columns and no rows.

    Every frame ends in ``kernel_source``, ``latency_s`` [s], ``framework_version`` (as the rows say) and ``source``
    (file below ``systems/data``), is sorted by its other columns, and has one row per shape and kernel. Heads
    and widths are those of one rank, except in ``moe``.

    Attributes
    ----------
    gemm
        ``dtype, num_tok, out_features, in_features``: [num_tok, in] x [in, out]. fp8 rows include the dynamic quantisation
        of the activations: H200 TensorRT-LLM [16,384, 65,536] x 32 is 2.56 ms = 1.55 + 0.74 + 0.26, the last half of bf16.
    activation_quant
        ``op, dtype, num_tok, in_features``: that quantisation alone; ``scale_matrix`` is the kernel with a given scale,
        ``compute_scale`` what finding the scale adds, 0 where nothing. SGLang's ``scale_matrix`` exceeds the whole
        fp8 GEMM in 39 % of shapes (H200) and cannot be a part of it.
    prefill_attention
        ``dtype, kv_dtype, num_seqs, isl_tok, prefix_tok, num_heads, num_kv_heads, head_dim, window_tok``; ``window_tok``
        is NaN for full attention, ``prefix_tok`` (the table's ``step``) are tokens that were in the cache.
    decode_attention
        The same with ``context_tok`` for ``isl_tok, prefix_tok``: the table's ``step + isl``, that is the cached tokens
        and the new one; 2, 4, ... 131,072.
    moe
        ``dtype, num_tok, hidden_size, expert_intermediate_size, num_experts_per_tok, num_experts, moe_tp, moe_ep,
        distribution``; width and experts are the model's, before division by ``moe_tp`` and ``moe_ep``, and the tokens
        are those of all its ranks.
    collective
        ``op, dtype, tp, mode, size_bytes``; ``mode`` is ``graph``, ``eager`` or ``trtllm`` for the engine's own
        all-reduce, else ``nccl`` or ``oneccl``. Sizes follow nccl-tests: the buffer of one rank for all-reduce,
        the whole result for all-gather, the whole input for reduce-scatter, what one rank sends for all-to-all.
        The tables' ``message_size`` counts elements of these; H200 at 8 ranks and 512 MiB, fp16: all-gather and
        reduce-scatter 337 GB/s, all-to-all 311 GB/s, all-reduce (in the switch) 461 GB/s of bus bandwidth.
    mla_prefill, mla_decode
        ``dtype, kv_dtype, num_heads, num_seqs`` with ``isl_tok, prefix_tok`` or ``context_tok``: the kernel alone.
    mla_prefill_module, mla_decode_module
        The same with ``architecture`` and ``gemm_dtype``: the whole attention layer, its linears included.
    mla_bmm
        ``op, dtype, num_heads, num_tok``: absorption before (``mla_gen_pre``) and after (``mla_gen_post``) decoding.
    linear_attention
        Gated delta net: ``phase`` (``prefill``, ``decode``), ``stage`` (``conv``, ``recurrence``: a layer has both),
        ``num_seqs, isl_tok, num_key_heads, key_head_dim, num_value_heads, value_head_dim, conv_kernel_size``.
    report
        What was read, merged and dropped.
    """

    gemm: pd.DataFrame
    activation_quant: pd.DataFrame
    prefill_attention: pd.DataFrame
    decode_attention: pd.DataFrame
    moe: pd.DataFrame
    collective: pd.DataFrame
    mla_prefill: pd.DataFrame
    mla_decode: pd.DataFrame
    mla_prefill_module: pd.DataFrame
    mla_decode_module: pd.DataFrame
    mla_bmm: pd.DataFrame
    linear_attention: pd.DataFrame
    report: ImportReport


def read_operator_tables(
    system: str, engine: str, *, version: str | None = None, families: Sequence[str] | None = None
) -> OperatorTables:
    """Return the measured operator latencies of ``engine`` on ``system``.

    Parameters
    ----------
    system
        A machine, by the package's name or by one of ours: ``h200`` is ``h200_sxm``.
    engine
        ``vllm``, ``sglang``, ``trtllm`` or one of our aliases.
    version
        Only that version of the engine; NCCL is always the newest. By default every curve (one GEMM width, one pair of
        head counts, one MoE layer) comes whole from the newest version that has it: see `ImportReport.tables`.
    families
        The frames to read; all by default.

    Raises
    ------
    ProfileError
        The package is not installed; system, engine, version or family is unknown; ``families`` names one that was not
        measured; or a file is damaged (see `read_table`).
    """
    wanted = _checked_families(families)
    root = silicon_root()
    system = find_system(root, system)
    engine = find_silicon_engine(root, system, engine)
    version = None if version is None else find_version(root, system, engine, version)
    frames: dict[str, pd.DataFrame] = {}
    reports: list[TableReport] = []
    for frame in FRAMES:
        specs = [spec for spec in SPECS if spec.frame == frame and frame in wanted]
        found = [_read_spec(root, system, engine, version, spec) for spec in specs]
        frames[frame] = _joined(frame, [part for rows, _ in found for part in rows])
        reports += [one for _, of_table in found for one in of_table]
    absent = tuple(name for name in FRAMES if name in wanted and frames[name].empty)
    if len(absent) == len(wanted) or (families is not None and absent):
        reject(ProfileError, "families", f"be measured for {engine} {version or ''}".rstrip(), ", ".join(absent), system)
    report = ImportReport(system=system, engine=engine, tables=tuple(reports), absent=absent)
    return OperatorTables(**frames, report=report)


def _checked_families(families: Iterable[str] | None) -> frozenset[str]:
    if families is None:
        return frozenset(FRAMES)
    if isinstance(families, str) or not families:
        reject(ProfileError, "families", f"be a list of some of {', '.join(FRAMES)}", families)
    for name in families:
        if name not in FRAMES:
            reject(ProfileError, "families", f"be among {', '.join(FRAMES)}. {nearest(str(name)[:100], FRAMES)}".strip(), name)
    return frozenset(families)


def _joined(frame: str, parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the parts of ``frame`` as one, sorted by all columns before the latency."""
    if not parts:
        return empty_frame(frame)
    whole = pd.concat(parts, ignore_index=True)
    names = list(whole.columns)
    return whole.sort_values(names[: names.index("latency_s")], ignore_index=True)


def _read_spec(
    root: Path, system: str, engine: str, version: str | None, spec: TableSpec
) -> tuple[list[pd.DataFrame], list[TableReport]]:
    """Return the rows of one table, every curve from the newest version that has it."""
    kept: list[pd.DataFrame] = []
    reports: list[TableReport] = []
    seen: pd.MultiIndex | None = None
    for folder, path in table_files(root, system, spec.family, spec.library or engine, spec.table):
        if version is not None and spec.library is None and folder != version:
            continue
        rows = read_table(path, spec, path.relative_to(root).as_posix())
        curves = pd.MultiIndex.from_frame(rows[spec.curve].fillna(0))
        newest = rows if seen is None else rows[~curves.isin(seen)]
        seen = curves.unique() if seen is None else seen.append(curves.unique())
        merged = merge_repeats(newest, [*spec.key, "kernel_source"])
        kept += [] if merged.empty else [merged]
        reports.append(TableReport(
            frame=spec.frame, source=str(rows["source"].iloc[0]), num_read=len(rows), num_kept=len(merged),
            num_merged=len(newest) - len(merged), num_dropped=len(rows) - len(newest),
            num_multi_kernel=int(merged.duplicated(list(spec.key), keep=False).sum()),
        ))
    return kept, reports
