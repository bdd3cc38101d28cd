"""What the pages share: which packs are open, which one is shown, the model once it is needed, and the way between pages.

Packs are named by slugs, in the address too; a path never leaves the machine and is never taken from an address.
"""

import gc
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlencode, urlsplit

import streamlit as st

from app.components.listing import DENSE
from app.components.plain import plain
from app.turns import Turns
from scope.errors import DictionaryError, PackError, ScopeError
from scope.features.store import FeatureStore

PAGES = {
    "overview": "views/overview.py",
    "features": "views/features.py",
    "feature": "views/feature.py",
    "prompt": "views/prompt.py",
    "steer": "views/steer.py",
    "health": "views/health.py",
}
PACKS = "SCOPE_PACKS"
"""Environment variable by which `scope app` names its packs: a JSON list of folders. Without it, runs/ is searched."""

READINGS = 256 * 1024**2
"""Bytes of readings that a session keeps."""

_MAKE = "scope demo                                       makes one from the bundled model in a few minutes"
_COLLECT = "scope features DICTIONARY --recording RECORDING  makes one of a dictionary of yours"


def registry() -> dict[str, Path]:
    """Packs by slug: those given to `scope app`, otherwise those found in runs/ of the working directory, newest first."""
    given = json.loads(os.environ.get(PACKS) or "[]")
    folders = [Path(folder) for folder in given] or found(Path("runs"))
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
    """(tokens read, tokens in all) of a pack that is being built and cannot be opened yet; None of any other."""
    folder = registry().get(slug)
    state = folder.with_name(folder.name + ".building") / "build.json" if folder else None
    if folder is None or (folder / "manifest.json").exists() or not state.exists():
        return None
    try:
        told = json.loads(state.read_text())
        return int(told["done"]), max(int(told["total"]), 1)
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 1


def found(runs: Path) -> list[Path]:
    """Folders under `runs`, up to two deep, that hold a pack, or will when the one being built is done."""
    whole = {file.parent for depth in ("*", "*/*") for file in runs.glob(f"{depth}/features.parquet")}
    whole = {folder for folder in whole if (folder / "manifest.json").exists() and folder.suffix not in (".writing", ".old")}
    built = {file.parent for depth in ("*", "*/*") for file in runs.glob(f"{depth}.building/build.json")}
    begun = {folder.with_suffix("") for folder in built} - whole
    return sorted(whole, key=lambda folder: -(folder / "manifest.json").stat().st_mtime) + sorted(begun)


def slug_of(folder: Path) -> str:
    """A short name for an address: the folder's own, or its parent's where the folder is just called "pack"."""
    folder = folder.absolute()
    name = folder.parent.name if folder.name == "pack" else folder.name.removesuffix(".pack")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "pack"


def current() -> str:
    """Slug of the pack that is shown: the one in the address, else the one shown last, else the first.

    Raises:
        PackError: there are no packs, or the address names one that is not open here.
    """
    known, asked = registry(), st.query_params.get("pack")
    if not known:
        raise PackError(f"No packs in {Path('runs').absolute()}, and none was given to scope app.\n  {_MAKE}\n  {_COLLECT}")
    if asked is not None and asked not in known:
        raise PackError(f"No pack called {asked!r} is open here.\n  Open: {', '.join(known)}")
    slug = asked or st.session_state.get("pack")
    st.session_state["pack"] = slug if slug in known else next(iter(known))
    return st.session_state["pack"]


def pack(slug: str | None = None) -> FeatureStore:
    """A pack opened for reading, kept open and shared between all who look at it; opened anew when it was made anew.

    Raises:
        PackError: it is missing, being built, damaged or of another schema.
    """
    folder = registry()[slug or current()].absolute()
    manifest = folder / "manifest.json"
    store = _open(str(folder), manifest.stat().st_mtime_ns if manifest.exists() else 0)
    store.refresh()
    return store


_OPEN: dict[str, tuple[int, FeatureStore]] = {}
_OPENING = Lock()


def _open(folder: str, made: int) -> FeatureStore:
    """One store a folder for the whole process; a plain dictionary, which Streamlit's cache is 20 times slower than."""
    with _OPENING:
        if folder not in _OPEN or _OPEN[folder][0] != made:
            _OPEN[folder] = (made, FeatureStore.open(folder))
        return _OPEN[folder][1]


def once(store: FeatureStore, name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, made once for each pack that is open and shared by all who look at it, who leave it as it is."""
    kept = _kept(str(store.folder), id(store))
    if name not in kept:
        kept[name] = make()
    return kept[name]


@st.cache_resource(show_spinner=False, max_entries=16)
def _kept(folder: str, opened: int) -> dict[str, Any]:
    return {}


@st.cache_resource(show_spinner=False)
def turns() -> Turns:
    """One for the whole process: a model serves one person at a time. It may be used as a lock, too."""
    return Turns()


_lock = turns


@contextmanager
def live(store: FeatureStore) -> Iterator[tuple[Any, Any]]:
    """Model and dictionary of a pack, loaded on first use and held by this reader alone within the block.

    While another session has the model, the place in the queue is told, with a button that gives it up.

    Raises:
        ScopeError: the model or the dictionary cannot be loaded, is not the one that made the pack, or the memory does not
            suffice.
    """
    ticket = turns().ask()
    try:
        _wait(ticket)
        with spared():
            yield ready(store)
    finally:
        turns().leave(ticket)


def ready(store: FeatureStore) -> tuple[Any, Any]:
    """Model and dictionary of a pack, loaded on first use. Only who has the turn may run them: `live`, or a job.

    Raises:
        ScopeError: see `live`.
    """
    from scope.features.live import check_same

    made = store.manifest["model"]
    model = load_model(made.get("model", "bundled"), made.get("revision"))
    sae = load_dictionary(dictionary_of(store))
    check_same(store, model, sae)
    _loaded()["model"] = model
    return model, sae


def _wait(ticket: object) -> None:
    """Until it is this session's turn. A rerun, as by Cancel, ends the waiting: Streamlit raises in `st` calls then."""
    if turns().before(ticket) == 0:
        return
    place = st.container()
    with place:
        told = st.empty()
        st.button("Cancel", key=f"cancel {id(ticket)}", help="Gives up the place in the queue.")
    while n := turns().before(ticket, wait=0.4):
        told.info(
            f"The model is at work for another session; {n} before you. It goes on by itself.", icon=":material/hourglass:"
        )
    place.empty()


class OutOfMemory(ScopeError):
    """The model ran, and the memory of the machine or of the GPU did not suffice."""


@contextmanager
def spared() -> Iterator[None]:
    """Turn what torch and Python say of missing memory into a refusal with a way out.

    Raises:
        OutOfMemory: the block asked for more memory than there is.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        signs = ("out of memory", "not enough memory", "alloc")
        if not isinstance(error, MemoryError) and not any(sign in told.lower() for sign in signs):
            raise
        gc.collect()
        raise OutOfMemory(
            f"The memory does not suffice for this: {told[:300]}\n"
            f"  Held now: {memory_of(_loaded().get('model')) or 'no model'}.\n"
            "  Give a shorter text, fewer texts or fewer new tokens; or make the pack from a smaller model or dictionary.\n"
            "  Everything else on the pages goes on, and your text is still there."
        ) from None


@st.cache_resource(show_spinner=False)
def _loaded() -> dict[str, Any]:
    return {}


def memory_of(model: Any) -> str:
    """As "bundled, 6.5 M parameters, float32, 26 MB"; empty without a model."""
    if model is None or not hasattr(model, "parameters"):
        return ""
    sizes = [(p.numel(), p.element_size(), str(p.dtype).removeprefix("torch.")) for p in model.parameters()]
    n, held = sum(size for size, _, _ in sizes), sum(size * each for size, each, _ in sizes)
    kind = sizes[0][2] if sizes else "empty"
    name = str(getattr(model, "provenance", {}).get("model", "model")).rstrip("/").rsplit("/", 1)[-1]
    return f"{name}, {n / 1e6:,.1f} M parameters, {kind}, {held / 1e6:,.0f} MB"


def model_status() -> str:
    """What is told of the model under the pack's name."""
    held = memory_of(_loaded().get("model"))
    return f"Model ready: {held}" if held else "Model not loaded: browsing needs none; a live action loads it."


def reading(store: FeatureStore, text: str) -> Any:
    """A text read by the model and the dictionary of a pack: a `TokenView`, kept for this session, as many as fit 256 MB.

    Raises:
        ScopeError: see `live`; or a text that is longer than the context.
    """
    kept, key = st.session_state.setdefault("readings", {}), (str(store.folder), id(store), text)
    if key not in kept:
        with live(store) as (model, sae), st.spinner("Reading"):
            made = store.read(text, model, sae)
        kept[key] = made
        while len(kept) > 1 and sum(view.latents.nbytes for view in kept.values()) > READINGS:
            del kept[next(iter(kept))]
    return kept[key]


def cut(store: FeatureStore, text: str) -> tuple[str, int, int]:
    """(as much of a text as the model takes, its tokens, how many it takes); of use where it was refused as too long."""
    with live(store) as (model, _):
        ids = model.tokenizer.encode(text)
        return model.tokenizer.decode(ids[: model.cfg.n_ctx]), len(ids), model.cfg.n_ctx


def as_chat(store: FeatureStore, text: str) -> str:
    """A text as one turn of a chat, laid out by the model's template.

    Raises:
        TokensError: the model brings no template.
    """
    with live(store) as (model, _):
        return model.tokenizer.chat([{"role": "user", "content": text}])


def refuse(refusal: ScopeError) -> None:
    """A refusal as pages show it: what is wrong, then the way out to be copied."""
    what, _, way_out = str(refusal).partition("\n")
    st.error(plain(what), icon=":material/error:")
    if way_out:
        st.code(way_out.strip("\n"), language=None)


def load_model(name: str, revision: str | None) -> Any:
    """A model kept in memory until another is asked for or its weights change."""
    return _model(name, revision, written(name))


def load_dictionary(place: str) -> Any:
    """A dictionary kept in memory until its files change."""
    return _dictionary(place, written(place))


@st.cache_resource(show_spinner="Loading the model", max_entries=1)
def _model(name: str, revision: str | None, made: int) -> Any:
    from scope.models.load import load_model

    return load_model(name, revision=revision)


@st.cache_resource(show_spinner="Loading the dictionary", max_entries=4)
def _dictionary(place: str, made: int) -> Any:
    from scope.sae.files import load_sae

    return load_sae(place)


def written(place: str) -> int:
    """When the weights in a folder were written, in nanoseconds; 0 for what is no place on this machine, as a hub id."""
    path = Path(place).expanduser()
    files = [path] if path.is_file() else [f for kind in ("scope.json", "*.safetensors", "*.npz") for f in path.glob(kind)]
    return max((file.stat().st_mtime_ns for file in files if file.exists()), default=0)


def dictionary_of(store: FeatureStore) -> str:
    """The dictionary behind a pack: where the manifest says, or beside the pack, where `scope demo` puts it, or a hub id.

    Raises:
        DictionaryError: it is in none of these places.
    """
    stated = store.manifest["dictionary"].get("path")
    places = [Path(stated), store.folder / stated] if stated else []
    places.append(store.folder.parent / "dictionary")
    for place in places:
        if place.exists():
            return str(place)
    if stated and not stated.startswith((".", "/", "~")) and not Path(stated).is_absolute() and stated.count("/") >= 2:
        return stated
    raise DictionaryError(
        f"The dictionary of this pack is not where it was: {stated or places[-1]}.\n"
        "  Browsing needs none; to test text and to steer, put it back or make the pack again."
    )


def asked_latent(store: FeatureStore) -> int | None:
    """The latent in the address, else the one seen last in this pack, else None.

    Parsed by hand: a widget bound to the address would quietly put its default in place of a bad number.

    Raises:
        PackError: it is no whole number, or none of this pack's.
    """
    text = st.query_params.get("f")
    if text is None:
        return st.session_state.get("latents", {}).get(current())
    if not re.fullmatch(r"-?\d{1,18}", text.strip()):
        raise PackError(f"{text!r} is no latent: latents are whole numbers from 0 to {store.d_sae - 1:,}.")
    return store[int(text)].id


def steer_these(latents: list[int]) -> None:
    """Go to the Steer page with these latents as its edits. Ends the run."""
    st.session_state.setdefault("stacks", {})[current()] = list(latents)
    go("steer")


def dense_too(store: FeatureStore, at_first: bool) -> bool:
    """Whether lists tell latents that fire very often: one choice for all pages that ask, kept, and in the address.

    Until somebody chooses, each page begins as it sees fit: a table of all latents with them, a ranking of a text without.
    """
    if "dense told" in st.session_state and "dense" not in st.query_params:
        st.session_state.setdefault("dense", st.session_state["dense told"])
    limit = float((store.manifest.get("flags") or {}).get("dense", 0.1))
    told = f"Latents that fire on more than {limit:.2g} of all tokens; one choice for the lists of all pages."

    def choose() -> None:
        st.session_state["dense told"] = st.session_state["dense"]

    return st.toggle(DENSE, at_first, key="dense", bind="query-params", help=told, on_change=choose)


def remember(latent: int) -> None:
    st.session_state.setdefault("latents", {})[current()] = latent


def results() -> list[int]:
    """The latents of the last list that was looked at in this pack, in its order; [] before any."""
    return st.session_state.get("results", {}).get(current(), [])


def keep_results(latents: list[int]) -> None:
    st.session_state.setdefault("results", {})[current()] = latents


def params(**more: Any) -> dict[str, str]:
    """Parameters of an address within the pack that is shown."""
    return {"pack": current(), **{name: str(value) for name, value in more.items()}}


def go(page: str, **more: Any) -> None:
    """Go to a page; the browser's Back comes back. Ends the run."""
    st.switch_page(PAGES[page], query_params=params(**more))


def link(page: str, label: str, *, icon: str | None = None, help: str | None = None, **more: Any) -> None:
    """A link to a page of the pack that is shown. `label` must already be plain."""
    st.page_link(PAGES[page], label=label, icon=icon, help=help, query_params=params(**more))


def address(page: str, **more: Any) -> str:
    """The whole address of a page, to be copied."""
    parts = urlsplit(st.context.url or "http://localhost:8501/")
    path = "" if page == "overview" else page
    return f"{parts.scheme}://{parts.netloc}/{path}?{urlencode(params(**more))}"
