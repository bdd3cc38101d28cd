"""Reads the files of a pack: each held against its checksum once, then against the types and shapes of the format.

The checksum is read again only when size or time of the file changed, so it costs 1.6 s a gigabyte once a process. Examples are
left out of it while browsing: each latent's chunk has a checksum of its own.
"""

import os
import zlib
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import pandas as pd

from scope.errors import PackError
from scope.features.pack.format import CONTROLS, EXAMPLES, LATER, PICTURES, RELATIONS, RULES
from scope.features.pack.manifest import Manifest, make_again
from scope.features.pack.table import COLUMNS, LISTS, SURE, TEXTS
from scope.typed_json import LARGEST, parse_json, read_bytes, typed
from scope.whole_files import file_sha256

T = TypeVar("T")

_INTACT: dict[str, tuple[int, int, str]] = {}
"""(size, time, checksum) of the files that were found intact, by path."""


def require_intact(folder: Path, manifest: Manifest, *names: str) -> None:
    """Refuse files whose bytes are not those that were written.

    Raises:
        PackError: a file differs; the message names it.
    """
    for name in names:
        path, stated = folder / name, manifest.files[name]
        status = os.stat(path)
        known = (status.st_size, status.st_mtime_ns, stated.sha256)
        if _INTACT.get(str(path.absolute())) == known:
            continue
        if file_sha256(path) != stated.sha256:
            raise PackError(f"{path} is damaged: its checksum is not the manifest's.\n  {make_again(folder, name)}")
        _INTACT[str(path.absolute())] = known


def read_value(path: Path, kind: type[T] | Any) -> T:
    """The content of a JSON file, gzipped or not, as an annotated type."""
    way_out, data = make_again(path.parent), read_bytes(path, PackError, make_again(path.parent))
    if path.suffix == ".gz":
        data = _unzipped(data, path)
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise PackError(f"{path} is damaged: it is not UTF-8 text.\n  {way_out}") from None
    return typed(parse_json(text, path, PackError, way_out), kind, path, PackError, way_out)


def _unzipped(data: bytes, path: Path) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        content = stream.decompress(data, LARGEST)
    except zlib.error as problem:
        raise PackError(f"{path} is damaged: {problem}.\n  {make_again(path.parent)}") from None
    if not stream.eof:
        what = f"unpacks to more than {LARGEST:,} bytes" if stream.unconsumed_tail else "ends before its end"
        raise PackError(f"{path} is damaged: it {what}.\n  {make_again(path.parent)}")
    return content


def read_array(path: Path, shape: tuple[int | None, ...], kinds: str) -> np.ndarray:
    """An array of a .npy file, mapped from disk. `shape` may leave sizes open; `kinds` are numpy's, as "iu" for whole numbers.

    Raises:
        PackError: it is no such file, or of another type or shape.
    """
    way_out = make_again(path.parent, path.name)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # numpy raises many kinds, and its texts advise to run what the file holds
        raise PackError(f"{path} is damaged: it is no array of numbers.\n  {way_out}") from None
    fits = array.dtype.kind in kinds and array.ndim == len(shape)
    if not fits or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        expected = " x ".join("any" if size is None else f"{size:,}" for size in shape)
        raise PackError(
            f"{path} is damaged: it holds {array.dtype} of shape {tuple(array.shape)}; expected are {expected} numbers.\n"
            f"  {way_out}"
        )
    return array


def open_hdf5(path: Path, manifest: Manifest) -> h5py.File:
    """examples.h5, relations.h5 or pictures.h5, its datasets of the types and shapes that the format and the manifest say.

    Raises:
        PackError: it cannot be opened, a dataset is missing, lies elsewhere, or is of another type or shape.
    """
    try:
        file = h5py.File(path, "r", locking=False)  # a finished file; some file systems have no locks
    except Exception as problem:  # h5py raises many kinds
        raise _damaged(path, str(problem)) from None
    try:
        for name, (dtype, shape) in _datasets(path.stem, file, manifest).items():
            data = file.get(name)
            if not isinstance(data, h5py.Dataset):
                raise _damaged(path, f"it holds no {name}")
            plain = isinstance(file.get(name, getlink=True), h5py.HardLink) and not data.is_virtual and not data.external
            fits = data.dtype == np.dtype(dtype) and len(shape) == data.ndim
            if not (plain and fits and all(a is None or a == b for a, b in zip(shape, data.shape, strict=True))):
                raise _damaged(path, f"{name} is not of the type or shape that the manifest says")
    except PackError:
        file.close()
        raise
    except Exception as problem:
        file.close()
        raise _damaged(path, str(problem)) from None
    return file


def _damaged(path: Path, problem: str) -> PackError:
    return PackError(f"{path} is damaged: {problem}.\n  {make_again(path.parent)}")


def _datasets(stem: str, file: h5py.File, manifest: Manifest) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """{name: (type, shape)} of what must be in a file; None for a size that nothing says."""
    d_sae = manifest.d_sae
    if stem == "relations":
        tables = {name: (dtype, (d_sae, None)) for name, dtype in RELATIONS.items() if name in file or name not in LATER}
        found = {f"control_{name}": (dtype, (None,)) for name, dtype in CONTROLS.items() if "control_position" in file}
        return {**tables, **found, "token_totals": ("i8", (None,))}
    if stem == "pictures":
        shapes = {"of_context": (manifest.n_contexts,), "size": (None, 2)}
        return {name: (dtype, shapes.get(name, (None,))) for name, dtype in PICTURES.items()}
    places, bands = file["position"].shape[1], file["band_count"].shape[1]
    sizes = {
        "acts": (d_sae, places, 2 * manifest.window + 1),
        "histogram": (d_sae, manifest.histogram.bins),
        "band_edges": (d_sae, bands + 1),
        "band_count": (d_sae, bands),
        "band_mass": (d_sae, bands),
    }
    return {name: (dtype, sizes.get(name, (d_sae, places))) for name, dtype in EXAMPLES.items()}


def read_table(path: Path, rows: int, columns: list[str] | None = None) -> pd.DataFrame:
    """The table of all latents, or some of its columns, in order of id.

    Raises:
        PackError: it is damaged, has another number of rows, or lacks a column, or a column holds something else.
    """
    import pyarrow.parquet as parquet

    way_out = make_again(path.parent)
    try:
        file = parquet.ParquetFile(path)
        if file.metadata.num_rows != rows:
            raise PackError(f"{path} has {file.metadata.num_rows:,} rows; the manifest says {rows:,}.\n  {way_out}")
        cells = file.read(columns)
        wrong = next((name for name in columns or COLUMNS if name not in cells.column_names or not _holds(cells, name)), None)
        if wrong is not None:
            raise PackError(f"{path} is damaged: its column {wrong} is missing or holds something else.\n  {way_out}")
        table = cells.to_pandas(ignore_metadata=True)
        for name in {"p50", "p90", "p99"} & set(table) if "max" in table else ():
            table[name] = np.minimum(table[name], table["max"])  # version 0.1.0 wrote up to 9 % more than the largest
    except PackError:
        raise
    except Exception as problem:  # pyarrow raises many kinds
        raise PackError(f"{path} is damaged: {next(iter(str(problem).splitlines()), '')}.\n  {way_out}") from None
    return table.set_axis(pd.RangeIndex(rows, name="id"))


def read_rules(path: Path, rows: int, columns: list[str], latent: int | None = None) -> Any:
    """Columns of rules.parquet as a table, or one latent's row as a dictionary, of which only its group of rows is read.

    Raises:
        PackError: it is damaged, has another number of rows, or a column holds something else.
    """
    import pyarrow.parquet as parquet
    from pyarrow import types

    tests = {str: _is_text, int: types.is_integer, float: types.is_floating}
    try:
        file = parquet.ParquetFile(path)
        first, group = 0, None
        if latent is not None:
            for group in range(file.num_row_groups):
                if latent < first + file.metadata.row_group(group).num_rows:
                    break
                first += file.metadata.row_group(group).num_rows
        cells = file.read(columns) if group is None else file.read_row_group(group, columns)
        wrong = file.metadata.num_rows != rows or any(
            name not in cells.column_names or not tests[RULES[name]](cells.schema.field(name).type) for name in columns
        )
    except Exception as problem:  # pyarrow raises many kinds
        raise _damaged(path, next(iter(str(problem).splitlines()), "")) from None
    if wrong:
        raise _damaged(path, "a column or a row is missing, or a column holds something else")
    return cells.to_pandas(ignore_metadata=True) if latent is None else cells.slice(latent - first, 1).to_pylist()[0]


def _holds(cells: Any, name: str) -> bool:
    """Whether a column of an Arrow table holds what its name says."""
    import pyarrow.compute as compute
    from pyarrow import types

    kind, column = cells.schema.field(name).type, cells.column(name)
    if name in TEXTS:
        return _is_text(kind) and not column.null_count
    if name in LISTS:  # where no direction has logits, all lists are empty and of no type
        inside = types.is_list(kind) and (_is_text(kind.value_type) or types.is_null(kind.value_type))
        return inside and not column.null_count and not compute.list_flatten(column).null_count
    if not (types.is_integer(kind) or types.is_floating(kind)):
        return False
    if name not in SURE:
        return True
    sure = compute.and_(compute.is_finite(column), compute.greater_equal(column, 0))
    return not column.null_count and bool(compute.all(sure).as_py())


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)
