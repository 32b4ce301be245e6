"""One measured operator table: read, checked and put into our columns."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from tpplanner.domain.checks import MAX_COUNT
from tpplanner.errors import ProfileError, nearest, reject
from tpplanner.io.silicon_columns import DEFAULTS, OPTIONAL_TEXTS, TABLE_DTYPES, ZERO_ALLOWED, TableSpec
from tpplanner.io.silicon_package import INSTALL
from tpplanner.units import MS


def read_table(path: Path, spec: TableSpec, source: str) -> pd.DataFrame:
    """Return the rows of one table, one per measurement, with the columns of ``spec``.

    Parameters
    ----------
    path
        ``<root>/<system>/<family>/<engine>/<version>/<table>_perf.parquet``.
    spec
        What the columns mean.
    source
        ``path`` relative to the root: it becomes a column, and the place of every error.

    Raises
    ------
    ProfileError
        pyarrow is missing, the file is damaged or empty, a column is missing, a number is no positive
        finite number, a name is empty, or a number format is unknown. The row is counted from 0.
    """
    raw = _load(path, source)
    if raw.empty:
        reject(ProfileError, "the table", "have at least one row", 0, source)
    for column, value in DEFAULTS.items():
        if column in spec.counts and column not in raw:
            raw = raw.assign(**{column: value})
    _check_columns(raw, spec, source)
    tidy = pd.DataFrame(index=raw.index)
    for column, name in spec.counts.items():
        tidy[name] = _counts(raw[column], column, source)
    optional = {name: name for name in OPTIONAL_TEXTS if name in raw}
    for column, name in {**spec.texts, **optional, "kernel_source": "kernel_source"}.items():
        tidy[name] = _texts(raw[column], column, source)
    for column, name in spec.dtypes.items():
        tidy[name] = _dtypes(raw[column], column, source)
    tidy["latency_s"] = _latency_s(raw["latency"], source, zero=spec.zero_latency)
    version = raw["version"] if "version" in raw else pd.Series(path.parent.name, index=raw.index)
    tidy["framework_version"] = _texts(version, "version", source)
    tidy["source"] = source
    return spec.derive(tidy)[list(spec.columns)]


def merge_repeats(rows: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """Return ``rows`` with the samples of one key merged into one row, their median.

    Examples
    --------
    >>> rows = pd.DataFrame({"m": [2, 1, 2, 2], "latency_s": [3.0, 1.0, 9.0, 4.0], "framework_version": "1", "source": "x"})
    >>> merge_repeats(rows, ["m"])["latency_s"].tolist()
    [1.0, 4.0]
    """
    repeated = rows.duplicated(key, keep=False)
    if repeated.any():
        merged = rows[repeated].groupby(key, dropna=False, sort=False, as_index=False).agg(
            latency_s=("latency_s", "median"), framework_version=("framework_version", "last"), source=("source", "last")
        )
        return pd.concat([rows[~repeated], merged[list(rows.columns)]], ignore_index=True)
    return rows


def _load(path: Path, source: str) -> pd.DataFrame:
    if importlib.util.find_spec("pyarrow") is None:
        raise ProfileError(f"{source}: pyarrow must be installed to read it: {INSTALL}")
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except Exception as error:  # pyarrow's errors share no base below Exception, and a damaged file may raise any
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ProfileError(f"{source}: the file must be whole, readable parquet, got {reason}") from None


def _check_columns(raw: pd.DataFrame, spec: TableSpec, source: str) -> None:
    needed = [*spec.counts, *spec.dtypes, *spec.texts, "kernel_source", "latency"]
    missing = [name for name in needed if name not in raw.columns]
    if missing:
        reject(ProfileError, "columns", f"include {', '.join(missing)}", ", ".join(map(str, raw.columns)), source)


def _numbers(values: pd.Series, column: str, source: str) -> npt.NDArray[np.float64]:
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        reject(ProfileError, column, "be a column of numbers", str(values.dtype), source)
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _counts(values: pd.Series, column: str, source: str) -> npt.NDArray[np.int64]:
    numbers = _numbers(values, column, source)
    minimum = 0 if column in ZERO_ALLOWED else 1
    good = (numbers >= minimum) & (numbers <= MAX_COUNT) & (numbers == np.floor(numbers))
    _check_rows(good, numbers, column, f"be a whole number from {minimum} to {MAX_COUNT:.0e}", source)
    return numbers.astype(np.int64)


def _latency_s(values: pd.Series, source: str, *, zero: bool) -> npt.NDArray[np.float64]:
    numbers = _numbers(values, "latency", source)
    good = np.isfinite(numbers) & ((numbers >= 0) if zero else (numbers > 0))
    _check_rows(good, numbers, "latency", f"be a finite number of ms {'>= 0' if zero else '> 0'}", source)
    return numbers * MS


def _texts(values: pd.Series, column: str, source: str) -> pd.Series:
    good = values.map(lambda value: isinstance(value, str) and value != "").to_numpy(dtype=bool)
    _check_rows(good, values.to_numpy(dtype=object), column, "be a name", source)
    return values.astype(str)


def _dtypes(values: pd.Series, column: str, source: str) -> pd.Series:
    names = _texts(values, column, source)
    hints: Mapping[str, str] = {name: nearest(name[:100], TABLE_DTYPES) for name in set(names) - set(TABLE_DTYPES)}
    good = ~names.isin(list(hints)).to_numpy(dtype=bool)
    rule = f"be one of {', '.join(TABLE_DTYPES)}"
    _check_rows(good, names.to_numpy(dtype=object), column, rule, source)
    return names.map(dict(TABLE_DTYPES))


def _check_rows(
    good: npt.NDArray[np.bool_], values: npt.NDArray[np.float64] | npt.NDArray[np.object_], column: str, rule: str, source: str
) -> None:
    """Reject the first row that is not good."""
    if not good.all():
        row = int(np.argmin(good))
        value = values[row]
        reject(ProfileError, column, rule, value.item() if isinstance(value, np.generic) else value, f"{source} row {row}")
