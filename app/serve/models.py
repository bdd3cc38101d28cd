"""The model and the dictionary of a pack: loaded once, when a page first needs them, and used by one reader at a time."""

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st
from scope.app.serve.jobs import ModelQueue
from scope.app.serve.memory import spare_the_collector

from scope.errors import ConfigError, ScopeError
from scope.features.face import Pack
from scope.features.pack.data import dictionary_of
from scope.provenance import ModelId
from scope.typed_json import parse_json, typed
from scope.workflows.settings import ModelSettings

if TYPE_CHECKING:
    import scope.models.face  # loads torch, which browsing does without

MODEL = "SCOPE_MODEL"
"""Environment variable with the fields of `ModelSettings` as JSON."""

READINGS = 256 * 1024**2
"""Bytes of text readings that a session caches."""


@st.cache_resource(show_spinner=False)
def queue() -> ModelQueue:
    """The queue for the model, one for the whole process. It can be used as a lock, too."""
    return ModelQueue()


@contextmanager
def in_turn(store: Pack) -> Iterator[tuple["scope.models.face.LanguageModel", Any]]:
    """Model and dictionary of a pack, loaded on first use and used by this reader alone within the block.

    While another session has the model, the page shows the place in the queue and a button that leaves it.

    Raises:
        ScopeError: the model or the dictionary cannot be loaded, is not the one that made the pack, or the memory does not
            suffice.
    """
    ticket = queue().join()
    try:
        _wait(ticket)
        with memory_errors():
            yield load(store)
    finally:
        queue().leave(ticket)


def load(store: Pack) -> tuple["scope.models.face.LanguageModel", Any]:
    """Model and dictionary of a pack, loaded on first use. Only the holder of the turn may run them: `in_turn`, or a job.

    Raises:
        ScopeError: see `in_turn`.
    """
    from scope.features.reading.read_text import check_same

    model = load_model(store.model)
    sae = load_dictionary(dictionary_of(store))
    check_same(store, model, sae)
    _loaded()["model"] = model
    return model, sae


def _wait(ticket: object) -> None:
    """Wait for this session's turn. A rerun, as by Cancel, ends the wait: Streamlit then raises in `st` calls."""
    if queue().ahead(ticket) == 0:
        return
    place = st.empty()
    with place.container():
        message = st.empty()
        st.button("Cancel", key=f"cancel {id(ticket)}", help="Leaves the queue.")
    while n := queue().ahead(ticket, wait=0.4):
        message.info(
            f"Another session is using the model; {n} ahead of you. This page continues by itself.", icon=":material/hourglass:"
        )
    place.empty()


class OutOfMemory(ScopeError):
    """The model ran out of the memory of the machine or of the GPU."""


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn memory errors of torch and Python into a refusal with a way out.

    Raises:
        OutOfMemory: the block asked for more memory than there is.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        signs = ("out of memory", "not enough memory", "alloc")
        if not isinstance(error, MemoryError) and not any(sign in message.lower() for sign in signs):
            raise
        gc.collect()
        raise OutOfMemory(
            f"There is not enough memory for this: {message[:300]}\n"
            f"  Loaded now: {memory_of(_loaded().get('model')) or 'no model'}.\n"
            "  Give a shorter text, fewer texts or fewer new tokens; or make the pack from a smaller model or dictionary.\n"
            "  All other pages still work, and your text is kept."
        ) from None


@st.cache_resource(show_spinner=False)
def _loaded() -> dict[str, Any]:
    return {}


def memory_of(model: "scope.models.face.LanguageModel | None") -> str:
    """Such as "bundled, 6.5 M parameters, float32, 26 MB"; "" without a model."""
    if model is None:
        return ""
    sizes = [(p.numel(), p.element_size(), str(p.dtype).removeprefix("torch.")) for p in model.parameters()]
    n, held = sum(size for size, _, _ in sizes), sum(size * each for size, each, _ in sizes)
    kind = sizes[0][2] if sizes else "empty"
    name = (ModelId.of(model.provenance).name or "model").rstrip("/").rsplit("/", 1)[-1]
    return f"{name}, {n / 1e6:,.1f} M parameters, {kind}, {held / 1e6:,.0f} MB on {next(model.parameters()).device}"


def status() -> str:
    """The line about the model under the pack's name."""
    held = memory_of(_loaded().get("model"))
    return f"Model ready: {held}" if held else "No model loaded: browsing needs none. Reading a text or steering loads it."


def reading(store: Pack, text: str | int) -> Any:
    """The `TokenView` of a text, or of one of the pack's contexts by number, read with the pack's model and dictionary.

    Views are cached for this session, as many as fit 256 MB.

    Raises:
        ScopeError: see `in_turn`; or a text that is longer than the context.
    """
    kept, key = st.session_state.setdefault("readings", {}), (str(store.folder), id(store), text)
    if key not in kept:
        with in_turn(store) as (model, sae), st.spinner("Reading"):
            from scope.models.face import VisionModel

            if isinstance(model, VisionModel) and not hasattr(model, "to_str_tokens"):
                raise ConfigError(f"A {model.cfg.family_name} continues no text, so its packs are browsed and not prompted.")
            view = store.read(text, model, sae) if isinstance(text, str) else _read_context(store, text, model, sae)
        kept[key] = view
        while len(kept) > 1 and sum(each.latents.nbytes for each in kept.values()) > READINGS:
            del kept[next(iter(kept))]
    return kept[key]


def _read_context(store: Pack, context: int, model: Any, sae: Any) -> Any:
    from scope.features.reading.read_text import read_context  # needs torch, which browsing does not

    return read_context(store, context, model, sae)


def truncated(store: Pack, text: str) -> tuple[str, int, int]:
    """(as much of a text as the model takes, its tokens, how many the model takes), for a text refused as too long."""
    with in_turn(store) as (model, _):
        ids = model.tokenizer.encode(text)
        return model.tokenizer.decode(ids[: model.cfg.n_ctx]), len(ids), model.cfg.n_ctx


def chat_text(store: Pack, text: str) -> str:
    """A text as one turn of a chat in the model's chat template.

    Raises:
        TokensError: the model has no template.
    """
    with in_turn(store) as (model, _):
        return model.tokenizer.chat([{"role": "user", "content": text}])


def settings() -> ModelSettings:
    """Which model to load instead of the one that a pack names, and where it runs: the flags of `scope app`."""
    given = parse_json(os.environ.get(MODEL) or "{}", MODEL, ConfigError, "It is set by scope app.")
    return typed(given, ModelSettings, MODEL, ConfigError, "It is set by scope app.")


def load_model(known: ModelId) -> Any:
    """The model that a pack names, or the one of the app's settings; cached until another is loaded or its weights change."""
    chosen = settings()
    if chosen.model is None:
        place = {name: getattr(chosen, name) or getattr(known, name) for name in ("revision", "window_convention")}
        chosen = replace(chosen, model=known.name or "bundled", **place)
    return _model(chosen, modified(chosen.model))


def load_dictionary(place: str) -> Any:
    """A dictionary, cached until its files change."""
    return _dictionary(place, modified(place))


@cache
def _import_models() -> None:
    """Import what models need, once, before any is loaded: a model must stay with the collector, which frees it."""
    importlib.import_module("scope.models.face")
    spare_the_collector()


@st.cache_resource(show_spinner="Loading the model", max_entries=1)
def _model(chosen: ModelSettings, modified_ns: int) -> Any:
    _import_models()
    return chosen.load_model(pictures=True)


@st.cache_resource(show_spinner="Loading the dictionary", max_entries=4)
def _dictionary(place: str, modified_ns: int) -> Any:
    from scope.sae.files import read_sae

    return read_sae(place, settings().device)


def modified(place: str) -> int:
    """When the weights in a folder were written, in nanoseconds; 0 for what is no folder on this machine, such as a hub id."""
    path = Path(place).expanduser()
    files = [path] if path.is_file() else [f for kind in ("scope.json", "*.safetensors", "*.npz") for f in path.glob(kind)]
    return max((file.stat().st_mtime_ns for file in files if file.exists()), default=0)
