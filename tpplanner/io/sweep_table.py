"""The result of a sweep as a pandas frame and as Parquet."""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pandas as pd

from tpplanner.domain.sweep import Cell, ColumnKind
from tpplanner.errors import OutputError, reject
from tpplanner.io.files import check_writable
from tpplanner.io.profile_files import shown

SUFFIXES: Final = (".parquet", ".csv")
INSTALL: Final = "pip install 'tpplanner[sweep]'"

_DTYPES: Final[Mapping[ColumnKind, str]] = {
    ColumnKind.TEXT: "string", ColumnKind.INTEGER: "Int64", ColumnKind.REAL: "float64", ColumnKind.FLAG: "boolean"}
_BATCH_ROWS: Final = 20_000
"""Rows of one group of a Parquet file: a sweep of a million points is never in memory at once as Python objects."""

Row = Mapping[str, Cell]


def check_table_path(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that could not be written at the end. Writes nothing.

    Raises
    ------
    OutputError
        The name ends in neither of `SUFFIXES`, pyarrow is missing for Parquet, or the file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        reject(OutputError, "output", f"end in {' or '.join(SUFFIXES)}", shown(path), "--out")
    if path.suffix.lower() == ".parquet":
        _pyarrow("pyarrow.parquet", path)
    check_writable(path, overwrite=overwrite)


def frame_of(columns: Mapping[str, ColumnKind], rows: Iterable[Row]) -> pd.DataFrame:
    """Return rows as a frame whose types follow from the columns alone; a missing number is NaN, another cell NA."""
    listed = rows if isinstance(rows, Sequence) else list(rows)
    return pd.DataFrame({name: pd.Series([row[name] for row in listed], dtype=_dtype(kind)) for name, kind in columns.items()})


def _dtype(kind: ColumnKind) -> Any:
    return _DTYPES[kind]


def parquet_table(columns: Mapping[str, ColumnKind], rows: Iterable[Row], path: Path) -> bytes:
    """Return rows as the content of a Parquet file; ``path`` is for messages.

    Raises
    ------
    OutputError
        pyarrow is not installed.
    """
    pyarrow, parquet = _pyarrow("pyarrow", path), _pyarrow("pyarrow.parquet", path)
    schema = pyarrow.Schema.from_pandas(frame_of(columns, []), preserve_index=False)
    stream = BytesIO()
    with parquet.ParquetWriter(stream, schema) as writer:
        for batch in _batches(rows):
            writer.write_table(pyarrow.Table.from_pandas(frame_of(columns, batch), schema=schema, preserve_index=False))
    return stream.getvalue()


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    source = iter(rows)
    while batch := list(islice(source, _BATCH_ROWS)):
        yield batch


def _pyarrow(module: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise OutputError(f"{shown(path)}: Parquet needs pyarrow: {INSTALL}, or an output that ends in .csv") from None
