"""Exports recordings as SAELens' cached activations or as safetensors.

safetensors   values as stored, with token ids, positions, contexts, documents and roles, in files of about 256 MB
sae_lens      a Hugging Face dataset as `CacheActivationsRunner` leaves it: one site, float32 (arrow has no bfloat16), windows
              of equally many rows. Where rows were left out (<bos>, <eos> between documents), windows are cut from the stored
              rows end to end; rows that do not fill the last window are not exported but counted.

Both have a recording.json with the manifest.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scope.activations.errors import RecordingError
from scope.activations.format.row_bytes import to_tensor
from scope.activations.read.store import ActivationStore

from scope.progress import OnProgress
from scope.typed_json import as_json
from scope.whole_files import whole_folder

SIDECAR = "recording.json"
_FILE_BYTES, _BATCH_BYTES = 256 << 20, 32 << 20


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Result of an export. For SAELens, `window` is the rows of a window and `left_over` those that filled none."""

    folder: Path
    rows: int
    nbytes: int
    files: int
    window: int = 0
    left_over: int = 0


def to_sae_lens(
    store: ActivationStore, site: str, out: Path | str, window: int | None = None, on_progress: OnProgress | None = None
) -> Exported:
    """Export one site for `cached_activations_path`; SAELens calls `window` context_size.

    `window` None takes the rows of a context where all contexts have equally many, else the recording's context.

    Raises:
        UnknownSite: the recording does not hold the site.
        RecordingError: `out` is not empty, or there are fewer rows than a window has.
    """
    import pyarrow as pa
    from datasets import Array2D, DatasetInfo, Features, Sequence, Value

    width, window = store.width(site), window or _window(store)
    if not 0 < window <= store.n_rows:
        raise RecordingError(f"A window of {window} rows cannot be cut from {store.n_rows} rows. Give a smaller --context.")
    known = "token ids" not in store.manifest.unknown
    columns = {site: Array2D((window, width), "float32")}
    columns |= {"token_ids": Sequence(Value("int32"), length=window)} if known else {}
    features = Features(columns)
    schema, n = features.arrow_schema, store.n_rows // window
    per_file, per_batch = (max(1, most // (4 * width * window)) for most in (_FILE_BYTES, _BATCH_BYTES))
    starts = range(0, n, per_file)
    names = [f"data-{i:05d}-of-{len(starts):05d}.arrow" for i in range(len(starts))]
    with new_folder(Path(out)) as folder:
        for name, start in zip(names, starts, strict=True):
            with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                for at in range(start, min(start + per_file, n), per_batch):
                    stop = min(at + per_batch, start + per_file, n)
                    rows = slice(at * window, stop * window)
                    arrays = [_nested(schema.field(site).type, store[site][rows].numpy(), window)]
                    if known:
                        ids = pa.array(store.token_ids[rows], pa.int32())
                        arrays.append(pa.FixedSizeListArray.from_arrays(ids, window))
                    writer.write_batch(pa.record_batch(arrays, schema=schema))
                    if on_progress:
                        on_progress(rows.stop, n * window, {})
        DatasetInfo(features=features).write_to_directory(str(folder))
        state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": _fingerprint(store, site, window)}
        state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
        (folder / "state.json").write_text(json.dumps(state | {"_split": None}, indent=2))
        _sidecar(folder, store, {"site": site, "window": window, "rows": n * window})
    return _exported(Path(out), n * window, window=window, left_over=store.n_rows - n * window)


def to_safetensors(store: ActivationStore, out: Path | str, on_progress: OnProgress | None = None) -> Exported:
    """Export every site, with tokens and documents where they are known, in the dtype in which they are stored.

    Raises:
        RecordingError: `out` is not empty.
    """
    import torch
    from safetensors.torch import save_file

    unknown = store.manifest.unknown
    per_context = max(1, sum(store.sites.values()) * store.context * (2 if store.dtype == "bfloat16" else 4))
    step = max(1, _FILE_BYTES // per_context)
    whole = "contexts" not in unknown  # else contexts only count rows
    n = store.n_contexts if whole else -(-store.n_rows // store.context)
    starts = list(range(0, n, step))
    with new_folder(Path(out)) as folder:
        for i, start in enumerate(starts):
            stop = min(start + step, n)
            edges = (
                store.row_starts[[start, stop]]
                if whole
                else np.minimum([start * store.context, stop * store.context], len(store))
            )
            rows = slice(int(edges[0]), int(edges[1]))
            tensors = {s: to_tensor(store.raw(s, rows.start, rows.stop), store.dtype) for s in store.sites}
            if whole:
                tensors["context"] = torch.from_numpy(store.contexts_of[rows] - start)
            if "positions" not in unknown:
                tensors["position"] = torch.from_numpy(store.positions[rows].copy())
            if "token ids" not in unknown:
                tensors["token_id"] = torch.from_numpy(store.token_ids[rows].copy())
                tensors["tokens"] = torch.from_numpy(store.tokens[start:stop].copy())
            if store.has_roles:
                tensors["roles"] = torch.from_numpy(store.roles[start:stop].copy())
            if "documents" not in unknown:
                numbers, where = np.unique(store.documents[start:stop], return_inverse=True)
                names = ["" if n < 0 else store.document_names[n] for n in numbers.tolist()]
                local = np.where(store.documents[start:stop] < 0, -1, where.reshape(stop - start, -1)).astype(np.int32)
                tensors["documents"] = torch.from_numpy(local)
                tensors["document_names"] = _bytes_of(names)
                if store.has_roles:
                    tensors["document_facts"] = _bytes_of([{} if n < 0 else store.document_facts[n] for n in numbers.tolist()])
            name = folder / f"activations-{i:05d}-of-{len(starts):05d}.safetensors"
            save_file(tensors, name, {"format": "pt", "first_context": str(start), "first_row": str(rows.start)})
            if on_progress:
                on_progress(rows.stop, store.n_rows, {})
        _sidecar(folder, store, {"rows": store.n_rows})
    return _exported(Path(out), store.n_rows)


def _bytes_of(value: list):
    import torch

    return torch.from_numpy(np.frombuffer(json.dumps(value).encode(), np.uint8).copy())


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that is renamed to `out` when it is complete.

    Raises:
        RecordingError: `out` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecordingError(f"{out} is there already and not empty. Give a new folder to --out.")
    with whole_folder(out) as folder:
        yield folder


def _window(store: ActivationStore) -> int:
    if "contexts" in store.manifest.unknown:
        return store.context
    rows = np.unique(np.diff(store.row_starts))
    return int(rows[0]) if len(rows) == 1 else store.context


def _nested(kind, rows: np.ndarray, window: int):
    """Rows [n * window, width] as the nested lists in which datasets stores an Array2D, without a copy."""
    import pyarrow as pa

    n, width = rows.shape
    inner = pa.ListArray.from_arrays(np.arange(0, n * width + 1, width, dtype=np.int32), pa.array(rows.reshape(-1)))
    outer = pa.ListArray.from_arrays(np.arange(0, n + 1, window, dtype=np.int32), inner)
    return pa.ExtensionArray.from_storage(kind, outer)


def _sidecar(folder: Path, store: ActivationStore, what: dict) -> None:
    text = json.dumps({"exported": what, "manifest": store.manifest.to_json()}, indent=1, sort_keys=True)
    (folder / SIDECAR).write_text(text + "\n")


def _fingerprint(store: ActivationStore, site: str, window: int) -> str:
    import xxhash

    return xxhash.xxh64_hexdigest(json.dumps(as_json([store.manifest, store.entries, site, window]), sort_keys=True).encode())


def _exported(out: Path, rows: int, window: int = 0, left_over: int = 0) -> Exported:
    files = [p for p in out.iterdir() if p.suffix in (".arrow", ".safetensors")]
    nbytes = sum(p.stat().st_size for p in files)
    return Exported(folder=out, rows=rows, nbytes=nbytes, files=len(files), window=window, left_over=left_over)
