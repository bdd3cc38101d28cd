"""The packs that can be shown: those given to `scope app`, or found in runs/; each is opened once for all readers.

Addresses name a pack by its slug. A path is never written into an address nor read from one.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import streamlit as st

from scope.errors import PackError
from scope.features.face import Pack
from scope.features.pack.manifest import build_state
from scope.typed_json import parse_json, typed
from scope.whole_files import beside

PACKS = "SCOPE_PACKS"
"""Environment variable by which `scope app` names its packs: a JSON list of folders. Without it, runs/ is searched."""


def registry() -> dict[str, Path]:
    """Packs by slug: those given to `scope app`, otherwise those found in runs/ of the working directory, newest first."""
    way_out = 'It is a JSON list of folders, such as ["runs/demo/pack"].'
    listed = parse_json(os.environ.get(PACKS) or "[]", PACKS, PackError, way_out)
    folders = [Path(folder) for folder in typed(listed, list[str], PACKS, PackError, way_out)] or find_packs(Path("runs"))
    names: dict[str, Path] = {}
    for folder in folders:
        slug = first = slug_of(folder)
        for n in range(2, len(folders) + 2):
            if slug not in names:
                break
            slug = f"{first}-{n}"
        names[slug] = folder
    return names


def building(slug: str) -> tuple[int, int] | None:
    """(tokens read, tokens in all) of a pack that is still being built; None for any other."""
    folder = registry().get(slug)
    if folder is None or (folder / "manifest.json").exists() or not beside(folder, ".building").exists():
        return None
    state = build_state(folder)
    return (state.done, max(state.total, 1)) if state else (0, 1)


def find_packs(runs: Path) -> list[Path]:
    """Folders under `runs`, up to two deep, that hold a pack or one being built."""
    whole = {file.parent for depth in ("*", "*/*") for file in runs.glob(f"{depth}/features.parquet")}
    unfinished = (".writing", ".old", ".tmp")
    whole = {folder for folder in whole if (folder / "manifest.json").exists() and folder.suffix not in unfinished}
    built = {file.parent for depth in ("*", "*/*") for file in runs.glob(f"{depth}.building/build.json")}
    begun = {folder.with_suffix("") for folder in built} - whole
    return sorted(whole, key=lambda folder: -(folder / "manifest.json").stat().st_mtime) + sorted(begun)


def slug_of(folder: Path) -> str:
    """A short name for addresses: the folder's name, or its parent's where the folder is just called "pack"."""
    folder = folder.absolute()
    name = folder.parent.name if folder.name == "pack" else folder.name.removesuffix(".pack")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "pack"


def open_pack(slug: str) -> Pack:
    """A pack, opened once and shared by all readers; opened again when its files were replaced.

    Raises:
        PackError: it is missing, being built, damaged or of another schema.
    """
    folder = registry()[slug].absolute()
    manifest = folder / "manifest.json"
    store = _open(str(folder), manifest.stat().st_mtime_ns if manifest.exists() else 0)
    store.refresh()
    return store


_OPEN: dict[str, tuple[int, Pack]] = {}
_OPENING = Lock()
_RECENTLY = Lock()


def _open(folder: str, modified_ns: int) -> Pack:
    """One store per folder for the whole process. A plain dict is 20 times faster than Streamlit's cache."""
    with _OPENING:
        if folder not in _OPEN or _OPEN[folder][0] != modified_ns:
            _OPEN[folder] = (modified_ns, Pack.open(folder))
        return _OPEN[folder][1]


def once(store: Pack, name: str, make: Callable[[], Any]) -> Any:
    """The result of `make`, computed once per open pack and shared by all readers, who must not change it."""
    results = _results(str(store.folder), id(store))
    if name not in results:
        results[name] = make()
    return results[name]


def cached_recently(store: Pack, name: str, latents: np.ndarray, make: Callable[[], Any], most: int = 8) -> Any:
    """The result of `make` for these latents and the current labels; the last few results are cached per pack.

    A page runs again at every click, and what it draws of thousands of latents is then usually the same."""
    table, digest = store.table, hashlib.blake2b(np.ascontiguousarray(latents).data, digest_size=16).digest()
    with _RECENTLY:
        results = once(store, "recently", dict)
        of, value = results.pop((name, digest), (None, None))
        if of is not table:
            of, value = table, make()
        results[name, digest] = of, value
        while len(results) > most:
            results.pop(next(iter(results)))
    return value


@st.cache_resource(show_spinner=False, max_entries=16)
def _results(folder: str, opened: int) -> dict[str, Any]:
    return {}


def same_model(store: Pack, other: Pack) -> bool:
    """Whether two packs were made with the same model weights; unknown weights count as one model."""
    one, two = store.model, other.model
    return one.weights_sha256 == two.weights_sha256 or bool(one.same_weights(two))
