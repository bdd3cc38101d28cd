"""Imports activations of other libraries as a recording. The manifest lists what is unknown about them.

SAELens' cached activations: each row of the dataset becomes a context. safetensors: floating-point tensors [row width] or
[context row width] are sites; token_id(s), tokens, position, context, documents and roles are read as exports write them.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scope.activations.config import check_outlier_times
from scope.activations.corpus.files import try_arrow
from scope.activations.corpus.inputs import Cursor
from scope.activations.corpus.outlier_rule import Sample, outlier_rule
from scope.activations.corpus.readers import saved_files
from scope.activations.corpus.roles import Role
from scope.activations.corpus.survey import SAMPLE_CONTEXTS, stored_norms
from scope.activations.errors import CorpusError, RecordingError
from scope.activations.format.files import append_line, write_json
from scope.activations.format.hdf5 import ITEM_BYTES, lay_out
from scope.activations.format.manifest import (
    FORMAT,
    JOURNAL,
    MANIFEST,
    VERSION,
    WITH_ROLES,
    Layout,
    Manifest,
    RecordedConfig,
    versions,
)
from scope.activations.format.norms import lower_median, n_flagged
from scope.activations.format.shard_entry import ShardEntry, layout
from scope.activations.format.shard_writer import ShardWriter
from scope.activations.read.store import ActivationStore
from scope.activations.read.to_other_libraries import SIDECAR, new_folder
from torch import Tensor

from scope.errors import ScopeError
from scope.progress import OnProgress
from scope.typed_json import parse_json, read_json, typed
from scope.whole_files import FULL

_CHUNK_BYTES, _SEGMENT_BYTES = 256 << 20, 65_536
_COUNTED = 256  # rows of a context if contexts are unknown
_SAMPLE_ROWS, _FIRST_ROWS = 4096, "the first rows that were imported"
_TOKENS = ("token_id", "token_ids", "tokens", "input_ids")


@dataclass(kw_only=True)
class Chunk:
    """Rows of all sites with their metadata. `context` counts from 0 within the chunk."""

    acts: dict[str, Tensor]
    context: np.ndarray
    n_contexts: int
    token_id: np.ndarray | None = None
    position: np.ndarray | None = None
    tokens: np.ndarray | None = None
    documents: np.ndarray | None = None
    roles: np.ndarray | None = None
    names: list[str] = field(default_factory=list)
    facts: list[dict] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """The recording.json that an export leaves: the manifest of the recording, and what was exported of it."""

    manifest: Manifest | None = None
    exported: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """Description of foreign activations: format, sites with widths, number of rows, rows per context, dtype, and chunks."""

    form: str
    sites: dict[str, int]
    rows: int
    context: int
    dtype: str
    unknown: tuple[str, ...]
    chunks: Callable[[], Iterator[Chunk]]
    sidecar: Sidecar
    version: int = VERSION


def import_activations(
    source: Path | str,
    out: Path | str,
    dtype: str | None = None,
    on_progress: OnProgress | None = None,
    outlier_times: float = 10.0,
) -> ActivationStore:
    """Make a recording from SAELens' cached activations or safetensors, by default in a dtype that loses nothing.

    Outliers are flagged as in harvesting: by the rule of the recording that was exported, else by `outlier_times` the median
    of the first rows (0: no rule).

    Raises:
        RecordingError: there are no readable activations, `out` is not empty, or a value is NaN or Inf.
    """
    source, out = Path(source), Path(out)
    with _readable(source):
        foreign = _open(source)
    check_outlier_times(outlier_times)
    dtype = dtype or foreign.dtype
    widest = max(foreign.sites.values()) * ITEM_BYTES[dtype]
    segment_rows = min(256, max(8, _SEGMENT_BYTES // widest))
    with new_folder(out) as folder:
        manifest = _manifest(foreign, source, dtype, segment_rows)
        entry: ShardEntry | None = None
        chunks = foreign.chunks()
        while True:
            with _readable(source):
                chunk = next(chunks, None)
                if chunk is None:
                    break
                chunk = _checked(chunk, foreign, source)
            if entry is None:
                manifest = _with_rule(manifest, chunk, foreign.sidecar.manifest, outlier_times)
                write_json(folder / MANIFEST, manifest.to_json())
            entry = _write(folder, chunk, manifest, entry)
            append_line(folder / JOURNAL, entry)
            if on_progress:
                on_progress(entry.rows[1], foreign.rows, {})
    return ActivationStore.open(out)


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    """Turns what safetensors, datasets and numpy raise of damaged files into a RecordingError.

    Raises:
        RecordingError: the source is damaged; errors of a full disk pass.
    """
    try:
        yield
    except CorpusError as error:  # from the list of files of a data set
        raise RecordingError(str(error)) from None
    except ScopeError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise RecordingError(f"{source} cannot be read as activations: {why}.\n  Export or cache them again.") from None


def _checked(chunk: Chunk, foreign: Foreign, source: Path) -> Chunk:
    """A chunk whose arrays fit each other, with a name for every document.

    Raises:
        RecordingError: an array has another shape or type than the rest says, or numbers that lead nowhere.
    """
    n, grid = len(chunk.context), (chunk.n_contexts, foreign.context)
    most = np.iinfo(np.int32).max
    parts: dict[str, tuple[np.ndarray | None, tuple[int, ...], int]] = {
        "context": (chunk.context, (n,), chunk.n_contexts - 1),
        "token_id": (chunk.token_id, (n,), most),
        "position": (chunk.position, (n,), foreign.context - 1),
        "tokens": (chunk.tokens, grid, most),
        "documents": (chunk.documents, grid, most),
        "roles": (chunk.roles, grid, len(Role) - 1),
    }
    for name, (array, shape, highest) in parts.items():
        if array is None:
            continue
        if array.shape != shape or array.dtype.kind not in "iu":
            raise RecordingError(f"{source}: {name} is {array.dtype} {list(array.shape)}; expected are integers {list(shape)}.")
        least = 0 if name in ("context", "roles") else -1
        if array.size and not least <= array.min() <= array.max() <= highest:
            raise RecordingError(f"{source}: {name} holds numbers outside of {least} to {highest}.")
    for site, x in chunk.acts.items():
        if tuple(x.shape) != (n, foreign.sites[site]):
            raise RecordingError(f"{source}: {site} is {list(x.shape)}; expected is {[n, foreign.sites[site]]}.")
    named = int(chunk.documents.max(initial=-1)) + 1 if chunk.documents is not None else 0
    if named > grid[0] * grid[1]:
        raise RecordingError(f"{source}: documents has number {named - 1}, more than there are positions.")
    return replace(chunk, names=[*chunk.names, *(f"document {i}" for i in range(len(chunk.names), named))])


def _write(out: Path, chunk: Chunk, manifest: Manifest, before: ShardEntry | None) -> ShardEntry:
    """Write the next shard; `before` is the entry of the last one."""
    number, context, segment_rows = before.shard + 1 if before else 0, manifest.config.context, manifest.layout.segment_rows
    row, first, document = (before.rows[1], before.contexts[1], before.documents[1]) if before else (0, 0, 0)
    n, c = len(chunk.context), chunk.n_contexts
    names = json.dumps(chunk.names).encode()
    facts = None if chunk.roles is None else json.dumps(chunk.facts).encode()
    n_facts, widths = None if facts is None else len(facts), manifest.layout.widths
    datasets = layout(c, context, n, len(names), widths, manifest.config.dtype, segment_rows, facts=n_facts)
    file_layout = lay_out({"format": FORMAT, "version": manifest.version}, datasets)
    shard = ShardWriter(out / f"shard-{number:05d}.h5", file_layout, segment_rows)
    documents = np.full((c, context), -1) if chunk.documents is None else chunk.documents
    roles = None if chunk.roles is None else chunk.roles[chunk.context, chunk.position]
    try:
        shard.put("document_names", np.frombuffer(names, np.uint8))
        shard.put("tokens", np.full((c, context), -1) if chunk.tokens is None else chunk.tokens)
        shard.put("documents", np.where(documents >= 0, documents + document, -1))
        shard.put("rows/token_id", np.full(n, -1) if chunk.token_id is None else chunk.token_id)
        shard.put("rows/position", np.full(n, -1) if chunk.position is None else chunk.position)
        shard.put("rows/context", chunk.context + first)
        if facts is not None:
            shard.put("roles", chunk.roles)
            shard.put("document_facts", np.frombuffer(facts, np.uint8))
        for site, x in chunk.acts.items():
            shard.append(site, x)
        sealed = shard.seal()
    except BaseException:
        shard.drop()
        raise
    return ShardEntry(
        **sealed,
        shard=number,
        contexts=(first, first + c),
        rows=(row, row + n),
        documents=(document, document + len(chunk.names)),
        cursor=Cursor(),
        exhausted=True,
        outliers=n_flagged(shard.norms, manifest.outliers, roles),
    )


def _with_rule(manifest: Manifest, first: Chunk, original: Manifest | None, times: float) -> Manifest:
    """The manifest with a rule for outliers, measured on the first rows if the recording that was exported had none to give."""
    if manifest.outliers or not times or (original and original.config.outlier_times == 0):
        return manifest
    dtype, known = manifest.config.dtype, first.roles is not None and first.position is not None
    n = max(_SAMPLE_ROWS, int((first.context < SAMPLE_CONTEXTS).sum()))
    patches = first.roles[first.context, first.position][:n] == Role.IMAGE if known else np.zeros(len(first.context[:n]), bool)
    mixed = bool(patches.any() and not patches.all())
    norms = {site: stored_norms(x[:n], dtype).numpy() for site, x in first.acts.items()}
    medians = [
        {site: lower_median(lambda some=x[rows]: [some], int(rows.sum())) for site, x in norms.items()}
        for rows in ([~patches, patches] if mixed else [np.ones(len(patches), bool)])
    ]
    sample: Sample = {"contexts": int(first.context[:n].max(initial=-1)) + 1, "rows": len(patches), "from": _FIRST_ROWS}
    rule = outlier_rule(times, sample, medians[0], medians[1] if mixed else None)
    return replace(manifest, outliers=rule, config=replace(manifest.config, outlier_times=times))


def _manifest(foreign: Foreign, source: Path, dtype: str, segment_rows: int) -> Manifest:
    original = foreign.sidecar.manifest
    rule = original.outliers if original else None
    known = rule is not None and set(foreign.sites) <= set(rule.threshold)  # else it is about other sites
    return Manifest(
        format=FORMAT,
        version=foreign.version,
        model=original.model if original else {"model": None},
        tokenizer=original.tokenizer if original else {},
        corpus={"kind": "imported", "of": original.corpus if original else {}},
        config=RecordedConfig(
            sites=tuple(foreign.sites),
            tokens=foreign.rows,
            context=foreign.context,
            batch_contexts=0,
            shard_rows=0,
            dtype=dtype,
            seed=original.config.seed if original else None,
            exclude=original.config.exclude if original else (),
        ),
        outliers=rule if known else None,
        layout=Layout(
            widths=foreign.sites,
            contexts_per_shard=0,
            segment_rows=segment_rows,
            packing=original.layout.packing if original else "unknown",
        ),
        imported={
            "from": f"{foreign.form} ({source.name})",
            "unknown": sorted({*foreign.unknown, *(() if original else ("model", "corpus", "excluded tokens"))}),
            "exported": foreign.sidecar.exported,
        },
        versions=versions(),
    )


def _sidecar(path: Path) -> Sidecar:
    """The recording.json beside an export; an empty one if there is none.

    Raises:
        RecordingError: it is damaged.
    """
    if not path.is_file():
        return Sidecar()
    way_out = "Restore it from a copy, or move it away: what it says of model and corpus is then unknown."
    value = read_json(path, RecordingError, way_out)
    if isinstance(value, dict) and isinstance(value.get("manifest"), dict):
        value["manifest"] = {"outliers": None} | value["manifest"]
    return typed(value, Sidecar, path, RecordingError, way_out)


def _open(source: Path) -> Foreign:
    if not source.exists():
        raise RecordingError(f"{source} does not exist.")
    beside = (source if source.is_dir() else source.parent) / SIDECAR
    sidecar = _sidecar(beside)
    if (source / "state.json").is_file():
        return _open_dataset(source, sidecar)
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else [source] * (source.suffix == ".safetensors")
    if files:
        return _open_safetensors(files, sidecar)
    raise RecordingError(
        f"{source} holds no readable activations.\n"
        "  Known formats are SAELens' cached activations (a folder with state.json) and *.safetensors."
    )


def _open_dataset(source: Path, sidecar: Sidecar) -> Foreign:
    from datasets import Array2D, Dataset, load_from_disk

    for path in (saved_files(source) or ([], []))[0]:
        try_arrow(path)
    dataset = load_from_disk(str(source))
    if not isinstance(dataset, Dataset):
        raise RecordingError(f"{source} is a dataset of several splits; give the folder of one of them.")
    hooks = {name: kind for name, kind in dataset.features.items() if isinstance(kind, Array2D)}
    if not hooks or len({kind.shape[0] for kind in hooks.values()}) != 1:
        raise RecordingError(f"{source} has columns {', '.join(dataset.features)}; none holds activations [context width].")
    window = next(iter(hooks.values())).shape[0]
    sites = {name: kind.shape[1] for name, kind in hooks.items()}
    known = "token_ids" in dataset.features
    step = max(1, _CHUNK_BYTES // (4 * window * sum(sites.values())))

    def chunks() -> Iterator[Chunk]:
        for start in range(0, len(dataset), step):
            table = dataset.with_format("arrow")[start : start + step]
            n = len(table)
            acts = {}
            for site, width in sites.items():
                column = table.column(site).combine_chunks()
                flat = getattr(column, "storage", column).flatten().flatten().to_numpy(zero_copy_only=False)
                acts[site] = torch.from_numpy(np.array(flat, np.float32).reshape(n * window, width))
            ids = table.column("token_ids").combine_chunks().flatten().to_numpy(zero_copy_only=False) if known else None
            yield Chunk(
                acts=acts,
                context=np.repeat(np.arange(n), window),
                n_contexts=n,
                token_id=ids,
                tokens=None if ids is None else ids.reshape(n, window),
            )

    return Foreign(
        form="SAELens' cached activations",
        sites=sites,
        rows=len(dataset) * window,
        context=window,
        dtype=sidecar.manifest.config.dtype if sidecar.manifest else "float32",
        unknown=("positions", "documents") if known else ("positions", "documents", "token ids"),
        chunks=chunks,
        sidecar=sidecar,
    )


def _open_safetensors(files: list[Path], sidecar: Sidecar) -> Foreign:
    from safetensors import safe_open

    with safe_open(files[0], "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
        kinds = {name: s.get_dtype() for name, s in slices.items()}
    sites = {n: shape[-1] for n, shape in shapes.items() if len(shape) in (2, 3) and kinds[n] in ("F32", "F16", "BF16")}
    if not sites or len({shapes[n][:-1] for n in sites}) != 1:
        raise RecordingError(
            f"{files[0]} holds {', '.join(f'{n} {list(s)} {kinds[n]}' for n, s in shapes.items())}; sites are tensors "
            "[row width] or [context row width] of F32, F16 or BF16, with equally many rows."
        )
    one = shapes[next(iter(sites))]
    ids = next((name for name in _TOKENS if name in shapes and shapes[name] == one[:-1]), None)
    contexts_known = len(one) == 3 or "context" in shapes
    context = one[1] if len(one) == 3 else shapes["tokens"][1] if "context" in shapes and "tokens" in shapes else _COUNTED
    known = {
        "token ids": ids,
        "positions": "position" in shapes,
        "contexts": contexts_known,
        "documents": "documents" in shapes,
    }
    per_row = 4 * sum(sites.values())
    rows_of = [_rows_in(path, next(iter(sites))) for path in files]

    def chunks() -> Iterator[Chunk]:
        for path, n in zip(files, rows_of, strict=True):
            with safe_open(path, "pt") as file:
                if "context" in shapes:
                    yield _exported_chunk(file, sites, context, ids)
                    continue
                step = max(1, _CHUNK_BYTES // (per_row * context)) * context
                for a in range(0, n, step):
                    b = min(a + step, n)
                    cut = slice(a // context, b // context) if len(one) == 3 else slice(a, b)
                    acts = {s: file.get_slice(s)[cut].reshape(b - a, width) for s, width in sites.items()}
                    token_id = file.get_slice(ids)[cut].reshape(-1).numpy() if ids else None
                    c = -(-(b - a) // context)
                    whole = token_id.reshape(c, context) if token_id is not None and len(one) == 3 else None
                    yield Chunk(acts=acts, context=np.arange(b - a) // context, n_contexts=c, token_id=token_id, tokens=whole)

    return Foreign(
        form="safetensors",
        version=WITH_ROLES if "roles" in shapes and "context" in shapes and "position" in shapes else VERSION,
        sites=sites,
        rows=sum(rows_of),
        context=context,
        dtype="bfloat16" if all(kinds[s] == "BF16" for s in sites) else "float32",
        unknown=tuple(what for what, there in known.items() if not there),
        chunks=chunks,
        sidecar=sidecar,
    )


def _exported_chunk(file, sites: dict[str, int], context: int, ids: str | None) -> Chunk:
    """A whole file of `to_safetensors`, which are small."""
    keys = set(file.keys())

    def array(name: str) -> np.ndarray | None:
        return file.get_tensor(name).numpy() if name in keys else None

    of, tokens, names, facts = array("context"), array("tokens"), array("document_names"), array("document_facts")
    assert of is not None
    return Chunk(
        acts={site: file.get_tensor(site) for site in sites},
        context=of,
        n_contexts=len(tokens) if tokens is not None else int(of.max(initial=-1)) + 1,
        token_id=array(ids) if ids else None,
        position=array("position"),
        tokens=tokens,
        documents=array("documents"),
        roles=array("roles"),
        names=_items(names, str, "document_names"),
        facts=_items(facts, dict, "document_facts"),
    )


def _items(data: np.ndarray | None, kind: Any, name: str) -> list[Any]:
    return [] if data is None else typed(parse_json(data.tobytes(), name, RecordingError), list[kind], name, RecordingError)


def _rows_in(path: Path, site: str) -> int:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return int(np.prod(file.get_slice(site).get_shape()[:-1]))
