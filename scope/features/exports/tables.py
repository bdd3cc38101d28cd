"""The table of all latents as a file: Parquet as it is, CSV that no spreadsheet runs, JSON lines that every tool reads."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scope.escape import csv_cell, visible_token


def parquet(table: pd.DataFrame, file: Path) -> None:
    """Rows with their ids; lists stay lists."""
    table.rename_axis("id").to_parquet(file)


def csv(table: pd.DataFrame) -> bytes:
    """The rows as CSV, UTF-8: lists of tokens as one cell, unseen characters as glyphs, formulas as text.

    Each different text is looked at once, and the writing is Arrow's: a row costs about ten microseconds.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    names = [table.index.name or "id", *table.columns]
    columns = [pa.array(table.index), *(_cells(table[name]) for name in table.columns)]
    sink = pa.BufferOutputStream()
    arrow_csv.write_csv(pa.table(columns, names=names), sink)
    return sink.getvalue().to_pybytes()


def _cells(column: pd.Series):
    """A column as Arrow writes it: numbers as they are, all else as safe text, lists joined by spaces into one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column):
        return pa.array(column, from_pandas=True)
    if not isinstance(next(iter(column), None), list | tuple | np.ndarray):
        return _each(pa.array(map(str, column), pa.string()), safe_cell)
    try:
        lists = pa.array(column, pa.list_(pa.string()))
    except pa.ArrowException:  # lone surrogates
        lists = pa.array([[_glyphs(str(text)) for text in row] for row in column], pa.list_(pa.string()))
    joined = pc.binary_join(pa.ListArray.from_arrays(lists.offsets, _each(lists.values, _glyphs)), " ")
    hot = pc.match_substring_regex(joined, r"^[=+\-@\t\r]")
    return pc.if_else(hot, pc.binary_join_element_wise("'", joined, ""), joined)


def _each(texts, change: Callable[[str], str]):
    """Every text changed, each different one once."""
    import pyarrow as pa

    known = texts.dictionary_encode()
    return pa.array([change(text) for text in known.dictionary.to_pylist()], pa.string()).take(known.indices)


def safe_cell(value: object) -> str:
    """A text as one line that is no formula."""
    return csv_cell(_glyphs(str(value)))


@cache
def _glyphs(text: str) -> str:
    return visible_token(text).encode("utf-8", "replace").decode("utf-8")


def rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON holds them: no NaN, no numpy."""
    columns = {name: [plain(value) for value in table[name]] for name in table.columns}
    ids = [plain(i) for i in table.index]
    return [{"id": i, **{name: columns[name][k] for name in columns}} for k, i in enumerate(ids)]


def plain(value: Any) -> Any:
    """A value as JSON holds it: lists for arrays, None for what is no number."""
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value.tolist()]
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if value != value or value in (float("inf"), float("-inf")) else value
    return value


def dumps(value: Any) -> str:
    """JSON on one line; lone surrogates, which token text may hold, are written as escapes."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
