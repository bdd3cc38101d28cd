"""Writing a pack: whole and synced, so that no half pack is ever seen."""

import gzip
import io
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from scope.errors import PackError
from scope.features.pack.format import BY_ROLE, CONTROLS, EXAMPLES, FILES, FIRINGS, PICTURES, RELATIONS, RULES_FILE, SCHEMA
from scope.features.pack.manifest import read_manifest
from scope.features.pack.notes import FILE, Notes
from scope.features.pack.readme import TEXT
from scope.whole_files import file_sha256, whole_folder, write_whole

SAVED = ("steering", "prompts")
"""Folders of a pack that hold people's saved runs and readings."""


@dataclass(kw_only=True)
class PackArrays:
    """What a pack is made of. Arrays may be memory maps: they are copied block by block."""

    table: pd.DataFrame
    examples: dict[str, np.ndarray]
    relations: dict[str, np.ndarray]
    token_totals: np.ndarray
    """[d_vocab] how often each token stood where latents could fire."""
    contexts: np.ndarray
    documents: np.ndarray
    """[n_contexts context] index into `document_names`, -1 where unknown."""
    document_names: list[str]
    vocab: list[str]
    manifest: dict[str, Any]
    health: dict[str, Any] | None = None
    controls: dict[str, np.ndarray] | None = None
    """Windows of text: "position" [n] of their middles, "latent" [start[i] : start[i + 1]] those that fire in window i."""
    map: np.ndarray | None = None
    """[d_sae 2] where latents lie on a flat map; what it is worth stands in the manifest under "map"."""
    firings: np.ndarray | None = None
    """[d_sae n] positions of firings, drawn uniformly from all of a latent's; -1 is an empty place."""
    rules: pd.DataFrame | None = None
    """The rule that best predicts each latent's firing, with its scores; see `scope.features.pack.format.RULES`."""
    pictures: dict[str, np.ndarray] | None = None
    """Small pictures, and where in them latents fire; see `scope.features.pack.format.PICTURES`."""


def write_pack(out: Path, arrays: PackArrays) -> None:
    """Write a whole pack into `out`, which is replaced only when everything lies safely on disk.

    Raises:
        PackError: `out` exists and is not a pack.
    """
    refuse_foreign(out)
    small = np.uint16 if len(arrays.vocab) <= 1 << 16 else np.uint32
    content = {
        "documents.json": json.dumps(arrays.document_names).encode(),
        "vocab.json.gz": _gzipped(json.dumps(arrays.vocab)),
        "README.txt": TEXT.encode(),
    }
    if arrays.health is not None:
        content["health.json"] = json.dumps(arrays.health).encode()
    if arrays.map is not None:
        content["map.npy"] = npy(arrays.map)
    if arrays.firings is not None:
        whole = arrays.contexts.size <= np.iinfo(np.int32).max
        content[FIRINGS] = npy(arrays.firings.astype(np.int32 if whole else np.int64))
    if arrays.rules is not None:
        content[RULES_FILE] = parquet(arrays.rules)
    more = [] if arrays.pictures is None else ["pictures.h5"]
    with whole_folder(out) as aside:
        arrays.table.rename_axis("id").to_parquet(aside / "features.parquet")
        _write_examples(aside / "examples.h5", arrays.examples)
        _write_relations(aside / "relations.h5", arrays)
        if arrays.pictures is not None:
            _write_pictures(aside / "pictures.h5", arrays.pictures)
        np.save(aside / "contexts.npy", np.asarray(arrays.contexts).astype(small, copy=False), allow_pickle=False)
        np.save(aside / "documents.npy", np.asarray(arrays.documents).astype(np.int32, copy=False), allow_pickle=False)
        for name, data in content.items():
            (aside / name).write_bytes(data)
        files = {name: _size_and_hash(aside / name) for name in dict.fromkeys([*FILES, *more, *content])}
        manifest = {"schema": SCHEMA, "d_sae": len(arrays.table), **arrays.manifest, "files": files}
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
        _copy_notes(out, aside)
        for name in SAVED:
            if (out / name).is_dir():
                shutil.copytree(out / name, aside / name)


def npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def parquet(table: pd.DataFrame) -> bytes:
    """A table as the bytes of a Parquet file, in groups of rows that can be read alone."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, row_group_size=2048, index=False)
    return buffer.getvalue()


def add_file(folder: Path, name: str, content: bytes, entries: dict[str, Any]) -> None:
    """Add a file to a finished pack, and entries about it to the manifest. Stopped at any moment, the pack is whole: until the
    last step it is one without this file.

    Raises:
        PackError: no pack, or a damaged one.
    """
    manifest = read_manifest(folder).as_written
    if name in manifest["files"]:
        del manifest["files"][name]
        write_whole(folder / "manifest.json", json.dumps(manifest, indent=1))
    write_whole(folder / name, content)
    manifest = {**manifest, **entries, "files": {**manifest["files"], name: _size_and_hash(folder / name)}}
    write_whole(folder / "manifest.json", json.dumps(manifest, indent=1))


def _size_and_hash(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": file_sha256(file)}


def _copy_notes(out: Path, new: Path) -> None:
    """Copy notes on the same dictionary into the new pack; put those on another beside it, under another name."""
    if not (out / FILE).exists():
        return
    try:
        Notes(out, read_manifest(new).owner).copy_to(new)
    except PackError:
        for file in out.glob(FILE + "*"):
            shutil.copy2(file, out.with_name(f"{out.name}.{int(time.time())}.{file.name}"))


def _gzipped(text: str) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as f:  # no clock in the file: same pack, same bytes
        f.write(text.encode("utf-8", "surrogatepass"))
    return buffer.getvalue()


def _write_examples(file: Path, arrays: dict[str, np.ndarray]) -> None:
    with h5py.File(file, "w", libver="v110", locking=False) as f:
        for name, dtype in EXAMPLES.items():
            _write_dataset(f, name, arrays[name], dtype, rows=1)


def _write_relations(file: Path, arrays: PackArrays) -> None:
    with h5py.File(file, "w", libver="v110", locking=False) as f:
        for name, dtype in RELATIONS.items():
            if name in BY_ROLE and name not in arrays.relations:
                continue
            nothing = np.zeros((len(arrays.table), 0))
            _write_dataset(f, name, arrays.relations.get(name, nothing), dtype, rows=256)
        whole = {"token_totals": arrays.token_totals.astype("i8")}
        for name, array in (arrays.controls or {}).items():
            whole[f"control_{name}"] = array.astype(CONTROLS[name])
        for name, array in whole.items():
            if len(array):
                f.create_dataset(name, data=array, chunks=True, fletcher32=True, compression="gzip")
            else:
                f.create_dataset(name, data=array)


def _write_pictures(file: Path, pictures: dict[str, np.ndarray]) -> None:
    with h5py.File(file, "w", libver="v110", locking=False) as f:
        for name, dtype in PICTURES.items():
            array = pictures[name].astype(dtype, copy=False)
            packed = {} if name == "file" else {"compression": "gzip", "shuffle": True}
            stored = {"chunks": True, "fletcher32": True, **packed} if array.size else {}
            f.create_dataset(name, data=array, **stored)


def _write_dataset(f: h5py.File, name: str, array: np.ndarray, dtype: str, rows: int) -> None:
    n, rest = len(array), array.shape[1:]
    if 0 in array.shape:  # nothing was collected under this name
        f.create_dataset(name, array.shape, dtype)
        return
    chunks = (min(rows, n), *(max(1, size) for size in rest))
    data = f.create_dataset(
        name, array.shape, dtype, chunks=chunks, compression="gzip", compression_opts=1, shuffle=True, fletcher32=True
    )
    for start in range(0, n, 4096):
        data[start : start + 4096] = array[start : start + 4096]


def refuse_foreign(out: Path) -> None:
    """Refuse to replace the working directory, or a folder that holds something else than a pack."""
    if out.absolute() == Path.cwd() or out.name == "..":
        raise PackError(f"A pack takes the place of its folder, and {out} is the one you are in. Name one: --out pack")
    if out.exists() and not (out / "manifest.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise PackError(f"{out} exists and is no feature pack, so it is not overwritten. Choose another --out.")
