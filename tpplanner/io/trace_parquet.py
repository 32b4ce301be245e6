"""Our own traces in Parquet files, through pyarrow."""

import importlib
import io
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np
import pandas as pd

from tpplanner.domain.traffic import FloatArray, IntArray, Traffic
from tpplanner.errors import WorkloadError, reject
from tpplanner.io.model_json import one_line
from tpplanner.io.trace_build import MAX_TRACE_REQUESTS, ReadTrace, TraceBuilder
from tpplanner.io.trace_columns import Column
from tpplanner.io.trace_csv import CSV_FORMS, check_columns
from tpplanner.io.trace_file import TraceFormat

INSTALL: Final = "pip install 'tpplanner[sweep]'"


def read_parquet_trace(path: Path, place: str) -> ReadTrace:
    """Return the trace in a Parquet file of the columns ``arrival_s`` (optional), ``isl_tok`` and ``osl_tok``.

    Raises
    ------
    WorkloadError
        pyarrow is not installed, the file is damaged, a column is missing, unknown or not of numbers, or a value
        makes no sense. Rows are counted from 1.
    """
    form = CSV_FORMS[TraceFormat.TPPLANNER]
    table = _table(_pyarrow("pyarrow.parquet", place), path, place)
    names = [str(name) for name in table.columns]
    check_columns(names, form, place)
    rows = range(1, len(table) + 1)
    builder = TraceBuilder(place, one_line(path.name), drops_zeros=False)

    def column(name: str) -> Column:
        values = table[name]
        if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
            reject(WorkloadError, name, "be a column of numbers", str(values.dtype), place)
        return builder.column(name, values.to_numpy(dtype=np.float64, na_value=np.nan), rows)

    arrival = column(form.arrival) if form.arrival in names else None
    if len(table):
        builder.add(isl=column(form.isl), osl=column(form.osl), arrival=arrival)
    return builder.trace()


def parquet_bytes(traffic: Traffic) -> bytes:
    """Return ``traffic`` as the content of a Parquet file.

    Raises
    ------
    WorkloadError
        pyarrow is not installed.
    """
    pyarrow = _pyarrow("pyarrow", traffic.name)
    columns: dict[str, FloatArray | IntArray] = {} if traffic.arrival_s is None else {"arrival_s": traffic.arrival_s}
    columns |= {"isl_tok": traffic.isl_tok, "osl_tok": traffic.osl_tok}
    buffer = io.BytesIO()
    _pyarrow("pyarrow.parquet", traffic.name).write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def _table(parquet: ModuleType, path: Path, place: str) -> pd.DataFrame:
    try:
        with parquet.ParquetFile(path) as file:
            num_rows = file.metadata.num_rows
            if num_rows <= MAX_TRACE_REQUESTS:
                table = file.read()
                return pd.DataFrame({
                    name: table.column(index).to_pandas() for index, name in enumerate(table.column_names)
                })
    except Exception as error:  # pyarrow's errors share no base below Exception, and a damaged file may raise any
        raise WorkloadError(f"{place}: is no readable Parquet file ({one_line(error, 120)})") from None
    reject(WorkloadError, "rows", f"be at most {MAX_TRACE_REQUESTS:.0e}", num_rows, place)


def _pyarrow(module: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise WorkloadError(f"{place}: pyarrow must be installed for Parquet: {INSTALL}") from None
