"""The model and the dictionary behind a pack: loaded once, when a page first needs them, and used by one reader at a time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import streamlit as st
from scope.app.serve.turns import Turns

from scope.errors import ScopeError
from scope.features.face import Pack
from scope.features.pack.data import dictionary_of

READINGS = 256 * 1024**2
"""Bytes of readings that a session keeps."""


@st.cache_resource(show_spinner=False)
def turns() -> Turns:
    """One for the whole process: a model serves one person at a time. It may be used as a lock, too."""
    return Turns()


@contextmanager
def live(store: Pack) -> Iterator[tuple[Any, Any]]:
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


def ready(store: Pack) -> tuple[Any, Any]:
    """Model and dictionary of a pack, loaded on first use. Only who has the turn may run them: `live`, or a job.

    Raises:
        ScopeError: see `live`.
    """
    from scope.features.reading.read_text import check_same

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


def status() -> str:
    """What is told of the model under the pack's name."""
    held = memory_of(_loaded().get("model"))
    return f"Model ready: {held}" if held else "Model not loaded: browsing needs none; a live action loads it."


def reading(store: Pack, text: str | int) -> Any:
    """A text, or one of the pack's own contexts by number, read by the model and the dictionary of a pack: a `TokenView`, kept
    for this session, as many as fit 256 MB.

    Raises:
        ScopeError: see `live`; or a text that is longer than the context.
    """
    kept, key = st.session_state.setdefault("readings", {}), (str(store.folder), id(store), text)
    if key not in kept:
        with live(store) as (model, sae), st.spinner("Reading"):
            made = store.read(text, model, sae) if isinstance(text, str) else _read_context(store, text, model, sae)
        kept[key] = made
        while len(kept) > 1 and sum(view.latents.nbytes for view in kept.values()) > READINGS:
            del kept[next(iter(kept))]
    return kept[key]


def _read_context(store: Pack, context: int, model: Any, sae: Any) -> Any:
    from scope.features.reading.read_text import read_context  # needs torch, which browsing does not

    return read_context(store, context, model, sae)


def cut(store: Pack, text: str) -> tuple[str, int, int]:
    """(as much of a text as the model takes, its tokens, how many it takes); of use where it was refused as too long."""
    with live(store) as (model, _):
        ids = model.tokenizer.encode(text)
        return model.tokenizer.decode(ids[: model.cfg.n_ctx]), len(ids), model.cfg.n_ctx


def as_chat(store: Pack, text: str) -> str:
    """A text as one turn of a chat, laid out by the model's template.

    Raises:
        TokensError: the model brings no template.
    """
    with live(store) as (model, _):
        return model.tokenizer.chat([{"role": "user", "content": text}])


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
    from scope.sae.files import read_sae

    return read_sae(place)


def written(place: str) -> int:
    """When the weights in a folder were written, in nanoseconds; 0 for what is no place on this machine, as a hub id."""
    path = Path(place).expanduser()
    files = [path] if path.is_file() else [f for kind in ("scope.json", "*.safetensors", "*.npz") for f in path.glob(kind)]
    return max((file.stat().st_mtime_ns for file in files if file.exists()), default=0)
