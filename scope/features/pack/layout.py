"""How a pack lies on disk: names, types and checksums; written aside and renamed, so that no half pack is ever seen.

manifest.json     schema, what made it, how every number was made, {file: size and sha256}
features.parquet  one row a latent
examples.h5       one chunk a latent, each with its own checksum: examples, their activations, the histogram
relations.h5      neighbours, co-firing, tokens, promoted and suppressed tokens
contexts.npy      token ids [n_contexts context]        documents.npy, documents.json   where each token came from
vocab.json.gz     the piece of every id, so that no tokenizer is needed to read the pack
README.txt        this, at length, for those who read a pack without this program
map.npy           (optional) a place on a flat map for each latent
health.json       (optional) the evaluation report, the certificate and the training curves
notes.sqlite      (later) labels, notes and stars; the only file that is written after the pack was made
"""

import gzip
import io
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from scope.errors import PackError
from scope.features.pack.notes import FILE, Notes
from scope.features.pack.readme import TEXT
from scope.progress import OnProgress
from scope.versions import version_of
from scope.whole_files import file_sha256

SCHEMA = 1
N_BINS = 160
"""Bins of an activation histogram: 8 an octave, 20 octaves."""
GROUPS = ("top", "bands", "random", "near")
NO_BAND = 255
FILES = (
    "features.parquet",
    "examples.h5",
    "relations.h5",
    "contexts.npy",
    "documents.npy",
    "documents.json",
    "vocab.json.gz",
)

EXAMPLES = {
    "position": "i8",  # context * n_ctx + offset of the peak; -1 is an empty place
    "group": "u1",  # 0 empty, then 1 + index into GROUPS
    "band": "u1",
    "value": "f4",
    "acts": "f4",  # [d_sae places 2 * window + 1], the peak in the middle, zero outside the context
    "histogram": "u4",
    "band_edges": "f4",  # [d_sae n_bands + 1]
    "band_count": "i8",
    "band_mass": "f8",
}
RELATIONS = {
    "neighbour_id": "i4",
    "neighbour_cos": "f4",
    "opposite_id": "i4",
    "opposite_cos": "f4",
    "cofiring_id": "i4",
    "cofiring_p": "f4",
    "cofiring_lift": "f4",
    "token_id": "i4",  # most frequent first; -1 is an empty place
    "token_count": "i8",
    "token_sum": "f8",
    "promoted_id": "i4",
    "promoted_logit": "f4",
    "suppressed_id": "i4",
    "suppressed_logit": "f4",
    "measured_id": "i4",
    "measured_rise": "f4",  # rise of the probability, mean over prompts
    "logit_histogram": "u4",  # [d_sae 40] tokens by logit, in bins of equal width between logit_ends
    "logit_ends": "f4",  # [d_sae 2]
}
CONTROLS = {"position": "i8", "start": "i8", "latent": "i4"}
LATER = ("logit_histogram", "logit_ends", "opposite_id", "opposite_cos")
"""Relations that packs of the first months lack."""


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


def write_pack(out: Path, arrays: PackArrays) -> None:
    """Write a whole pack into `out`, which is replaced only when everything lies safely on disk.

    Raises:
        PackError: `out` exists and is not a pack.
    """
    refuse_foreign(out)
    aside = out.with_name(out.name + ".writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    arrays.table.rename_axis("id").to_parquet(aside / "features.parquet")
    _write_examples(aside / "examples.h5", arrays.examples)
    _write_relations(aside / "relations.h5", arrays)
    small = np.uint16 if len(arrays.vocab) <= 1 << 16 else np.uint32
    np.save(aside / "contexts.npy", np.asarray(arrays.contexts).astype(small, copy=False), allow_pickle=False)
    np.save(aside / "documents.npy", np.asarray(arrays.documents).astype(np.int32, copy=False), allow_pickle=False)
    (aside / "documents.json").write_text(json.dumps(arrays.document_names))
    (aside / "vocab.json.gz").write_bytes(_gzipped(json.dumps(arrays.vocab)))
    (aside / "README.txt").write_text(TEXT)
    names = [*FILES, "README.txt"]
    if arrays.health is not None:
        (aside / "health.json").write_text(json.dumps(arrays.health))
        names.append("health.json")
    if arrays.map is not None:
        (aside / "map.npy").write_bytes(npy(arrays.map))
        names.append("map.npy")
    files = {name: _stated(aside / name) for name in names}
    manifest = {"schema": SCHEMA, "d_sae": len(arrays.table), **arrays.manifest, "files": files}
    (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for name in [*names, "manifest.json"]:
        _sync(aside / name)
    _take_along(out, aside, manifest)
    _swap(aside, out)


def npy(array: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def add_file(folder: Path, name: str, content: bytes, told: dict[str, Any]) -> None:
    """Put a further file into a whole pack, and what is told of it into the manifest. Stopped at any moment, the pack is whole:
    until the last step, it is one without this file.

    Raises:
        PackError: no pack, or a damaged one.
    """
    manifest = read_manifest(folder)
    if name in manifest["files"]:
        del manifest["files"][name]
        _put(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    _put(folder / name, content)
    manifest = {**manifest, **told, "files": {**manifest["files"], name: _stated(folder / name)}}
    _put(folder / "manifest.json", json.dumps(manifest, indent=1).encode())


def _stated(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "sha256": file_sha256(file)}


def _put(file: Path, content: bytes) -> None:
    aside = file.with_name(file.name + ".writing")
    aside.write_bytes(content)
    _sync(aside)
    aside.rename(file)
    _sync(file.parent)


def owner_of(manifest: dict[str, Any]) -> str:
    """The hash of the dictionary that a pack shows: what its notes belong to."""
    described = manifest["dictionary"]
    return str(described.get("parameters_sha256") or described.get("weights_sha256"))


def _take_along(out: Path, new: Path, manifest: dict[str, Any]) -> None:
    """Notes on the same dictionary go into the new pack; those on another are put beside it, under a name of their own."""
    if not (out / FILE).exists():
        return
    try:
        Notes(out, owner_of(manifest)).copy_to(new)
    except PackError:
        for file in out.glob(FILE + "*"):
            shutil.copy2(file, out.with_name(f"{out.name}.{int(time.time())}.{file.name}"))


def _gzipped(text: str) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as f:  # no clock in the file: same pack, same bytes
        f.write(text.encode("utf-8", "surrogatepass"))
    return buffer.getvalue()


def _write_examples(file: Path, arrays: dict[str, np.ndarray]) -> None:
    with h5py.File(file, "w", libver="v110") as f:
        for name, dtype in EXAMPLES.items():
            _write_dataset(f, name, arrays[name], dtype, rows=1)


def _write_relations(file: Path, arrays: PackArrays) -> None:
    with h5py.File(file, "w", libver="v110") as f:
        for name, dtype in RELATIONS.items():
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


def _sync(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def refuse_foreign(out: Path) -> None:
    """Refuse to replace a folder that holds something else than a pack."""
    if out.exists() and not (out / "manifest.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise PackError(f"{out} exists and is no feature pack, so it is not overwritten. Choose another --out.")


def _swap(new: Path, out: Path) -> None:
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a pack whose files are there, of the right size and of this schema.

    Raises:
        PackError: no pack, a pack being built, damage, or another schema; each with the way out.
    """
    file = folder / "manifest.json"
    if not file.exists():
        raise PackError(_missing(folder))
    try:
        manifest = json.loads(file.read_text())
        schema, files = manifest["schema"], manifest["files"]
    except (ValueError, KeyError, TypeError):
        raise PackError(f"{file} is damaged. Make the pack again: scope features DICTIONARY --out {folder}") from None
    if schema != SCHEMA:
        raise PackError(_other_schema(folder, manifest))
    for name, stated in files.items():
        found = (folder / name).stat().st_size if (folder / name).exists() else None
        if found != stated["size"]:
            what = "is missing" if found is None else f"has {found:,} bytes; the manifest says {stated['size']:,}"
            raise PackError(
                f"{folder / name} {what}. The pack is damaged or half copied.\n"
                f"  Copy it again, or make it again: scope features DICTIONARY --out {folder}"
            )
    return manifest


def _other_schema(folder: Path, manifest: dict[str, Any]) -> str:
    """An older pack is made again; a newer one wants a newer program, and to make it again with this one would lose it."""
    schema, made = manifest["schema"], manifest.get("made")
    by = made.get("scope") if isinstance(made, dict) else None
    told = f"schema {schema}{f', written by scope {by}' if by else ''}; scope {version_of()} here reads schema {SCHEMA}."
    if isinstance(schema, int) and schema > SCHEMA:
        return (
            f"{folder} is newer than this program: {told}\n"
            f"  Open it with {f'scope {by}' if by else 'a newer scope'} or later,\n"
            f"  or make one of your own beside it: scope features DICTIONARY --out {folder}-{SCHEMA}"
        )
    return f"{folder} is older than this program: {told}\n  Make it again: scope features DICTIONARY --out {folder}"


def _missing(folder: Path) -> str:
    building = folder.with_name(folder.name + ".building") / "build.json"
    if building.exists():
        try:
            state = json.loads(building.read_text())
            told = f"{state['done']:,} of {state['total']:,} tokens"
        except (ValueError, KeyError, TypeError):
            told = "just begun"
        return (
            f"{folder} is being built, or its building was stopped ({told}).\n"
            "  Wait for it, or give the same `scope features` command again to go on where it stopped."
        )
    what = "is no feature pack: it has no manifest.json" if folder.exists() else "does not exist"
    return f"{folder} {what}.\n  To make a pack: scope features DICTIONARY --recording RECORDING --out {folder}"


def verify(folder: Path, on_progress: OnProgress | None = None) -> list[str]:
    """Names of files whose bytes are not those that were written; empty when all is well."""
    files, bad = read_manifest(folder)["files"], []
    for done, (name, stated) in enumerate(files.items(), 1):
        if file_sha256(folder / name) != stated["sha256"]:
            bad.append(name)
        if on_progress:
            on_progress(done, len(files), {})
    return bad


def load_json(file: Path) -> Any:
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        return json.loads(raw.decode("utf-8", "surrogatepass"))
    except (ValueError, OSError, EOFError) as error:
        raise PackError(f"{file} is damaged and cannot be read: {error}. Copy the pack again or make it again.") from None
