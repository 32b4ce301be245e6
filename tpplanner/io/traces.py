"""Reading and writing traces of requests: which format a file has, and who reads it."""

from pathlib import Path

from tpplanner.domain.traffic import Traffic
from tpplanner.errors import WorkloadError, reject
from tpplanner.io.files import write_bytes_whole
from tpplanner.io.model_json import one_line
from tpplanner.io.trace_build import ReadTrace
from tpplanner.io.trace_csv import read_csv_trace
from tpplanner.io.trace_file import TraceFormat, check_trace_file, chosen_format, container_of
from tpplanner.io.trace_json import read_lines_trace
from tpplanner.io.trace_sharegpt import CountTok, read_sharegpt

__all__ = ["ReadTrace", "TraceFormat", "read_trace", "write_trace"]


def read_trace(
    path: str | Path, *, trace_format: TraceFormat | str | None = None, chars_per_tok: float | None = None,
    tokenizer: CountTok | str | Path | None = None,
) -> ReadTrace:
    """Return the requests in a file, the first of them at 0 s, and how many rows are no requests.

    Parameters
    ----------
    path
        CSV, JSON lines, JSON or Parquet, at most 2 GB, not compressed; ``docs/workloads.md`` lists the formats.
    trace_format
        Its format; ``None`` to tell it from the name and the columns or keys.
    chars_per_tok
        Characters per token of ShareGPT texts that are not tokenized; 4 unless told.
    tokenizer
        Counts the tokens of a ShareGPT text, or is the path of a ``tokenizer.json``.

    Raises
    ------
    WorkloadError
        If the file cannot be read, is of no known format, or a value makes no sense: one line with the file, the row,
        the field, the rule and the value.
    """
    path, wanted = Path(path), chosen_format(trace_format)
    place = one_line(path)
    container = container_of(path, wanted, place)
    given = [name for name, value in (("chars_per_tok", chars_per_tok), ("tokenizer", tokenizer)) if value is not None]
    if given and container != "json":
        reject(WorkloadError, given[0], "be given with texts (sharegpt) only", container, place)
    check_trace_file(path, place)
    match container:
        case "csv":
            return read_csv_trace(path, wanted, place)
        case "jsonl":
            return read_lines_trace(path, wanted, place)
        case "parquet":
            # It brings pandas, which takes longer to import than the other formats to read.
            from tpplanner.io.trace_parquet import read_parquet_trace

            return read_parquet_trace(path, place)
        case _:
            return read_sharegpt(path, place, chars_per_tok=chars_per_tok, tokenizer=tokenizer)


def write_trace(traffic: Traffic, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write ``traffic`` in our own format, as the name ends: ``.csv``, ``.jsonl`` or ``.parquet``.

    Times and lengths are read back bit for bit, but for the origin of time: `read_trace` puts the first request at 0.

    Raises
    ------
    WorkloadError
        The name ends otherwise, pyarrow is missing for Parquet, or the traffic has prefixes, which the format has not.
    OutputError
        The file exists and ``overwrite`` is false, or cannot be written.
    """
    path = Path(path)
    if traffic.prefix_ids is not None:
        reject(WorkloadError, "prefix_ids", "be absent: the format has no prefixes", f"{len(traffic.prefix_ids)} requests",
               traffic.name)
    match container_of(path, TraceFormat.TPPLANNER, one_line(path)):
        case "csv":
            content = _csv_bytes(traffic)
        case "jsonl":
            content = _lines_bytes(traffic)
        case _:
            from tpplanner.io.trace_parquet import parquet_bytes

            content = parquet_bytes(traffic)
    return write_bytes_whole(path, content, overwrite=overwrite)


def _csv_bytes(traffic: Traffic) -> bytes:
    columns = [traffic.isl_tok.tolist(), traffic.osl_tok.tolist()]
    if traffic.arrival_s is None:
        lines = ["isl_tok,osl_tok", *(f"{isl},{osl}" for isl, osl in zip(*columns, strict=True))]
    else:
        rows = zip(traffic.arrival_s.tolist(), *columns, strict=True)
        lines = ["arrival_s,isl_tok,osl_tok", *(f"{arrival!r},{isl},{osl}" for arrival, isl, osl in rows)]
    return ("\n".join(lines) + "\n").encode()


def _lines_bytes(traffic: Traffic) -> bytes:
    rows = zip(traffic.isl_tok.tolist(), traffic.osl_tok.tolist(), strict=True)
    lines = [f'"isl_tok": {isl}, "osl_tok": {osl}}}\n' for isl, osl in rows]
    if traffic.arrival_s is None:
        return "".join("{" + line for line in lines).encode()
    times = traffic.arrival_s.tolist()
    return "".join(f'{{"arrival_s": {arrival!r}, {line}' for arrival, line in zip(times, lines, strict=True)).encode()
