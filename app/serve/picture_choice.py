"""The choice of a picture: one of the pack's, or a file of the reader's, read in this session and written nowhere."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st
from scope.app.kit import messages
from scope.app.kit.pictures import card, pictures
from scope.app.kit.plain import plain, show_line
from scope.app.serve import packs

from scope.errors import ScopeError
from scope.features.face import Pack
from scope.models.pictures.read import read_picture

SOURCES = {"pack": "Of the pack", "own": "Your own file"}
_GALLERY = 12
_MOST = 2000  # pictures that the list of names offers
_OWN = "own picture"  # kept for the whole session, so that other pages can take the same
_KINDS = "PNG, JPEG, WebP and the like, with one frame; an SVG or a PDF is refused."


@dataclass(frozen=True, eq=False)
class ChosenPicture:
    """A picture, decoded and upright, with its name."""

    picture: Any
    name: str
    context: int | None
    """The context of the pack in which it stands; None for a reader's own."""


def choose(store: Pack, key: str) -> ChosenPicture | None:
    """Draw the controls; the picture, or None without one. A refusal is shown.

    The address names a picture of the pack by `context`.
    """
    contexts = packs.once(store, "pictured contexts", lambda: np.flatnonzero(store.pictures.of_context >= 0)[:_MOST].tolist())
    given = st.query_params.get("context", "")
    if given.isdecimal() and int(given) in contexts and st.session_state.get(f"{key} came") != given:
        st.session_state[f"{key} came"], st.session_state[f"{key} source"] = given, "pack"
        st.session_state[f"{key} context"] = int(given)
    st.session_state.setdefault(f"{key} source", "own" if _OWN in st.session_state else "pack")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        source = st.segmented_control(
            "Picture", list(SOURCES), required=True, format_func=SOURCES.get, key=f"{key} source", persist_state="session"
        )
        context = _of_pack(store, contexts, key) if source == "pack" else None
    if source == "own":
        st.query_params.pop("context", None)
        return _upload(key)
    if context is None:
        return _gallery(store, contexts, key)
    st.query_params["context"] = st.session_state[f"{key} came"] = str(context)
    try:
        name = store.document(context, 0)
        data = store.pictures.read_file(int(store.pictures.of_context[context]))
        return ChosenPicture(read_picture(data, f"The picture of {name}"), name, context)
    except ScopeError as refusal:
        messages.show_refusal(refusal)
        return None


def chosen_card(chosen: ChosenPicture) -> dict[str, Any]:
    """The chosen picture to look at."""
    small = chosen.picture.copy()
    small.thumbnail((448, 448))
    return card(small, small, [0.0], (1, 1), chosen.picture.size, alt=chosen.name, notes=[chosen.name])


def sha256_of(picture: Any) -> str:
    """The hash by which a steering run names its picture."""
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()


def context_of(store: Pack, sha256: str) -> int | None:
    """The first context of the pack whose picture has a hash; None without one."""

    def hashes() -> dict[str, int]:
        of_context, found = store.pictures.of_context, {}
        for context in np.flatnonzero(of_context >= 0)[:_MOST].tolist():
            picture = read_picture(store.pictures.read_file(int(of_context[context])))
            found.setdefault(sha256_of(picture), context)
        return found

    return packs.once(store, "hashes of pictures", hashes).get(sha256)


def _of_pack(store: Pack, contexts: list[int], key: str) -> int | None:
    names = {context: show_line(store.document(context, 0), 60) for context in contexts}
    return st.selectbox(
        "Name",
        contexts,
        index=None,
        placeholder="Type a part of its name",
        format_func=lambda context: names.get(context, ""),
        key=f"{key} context",
        persist_state="session",
        help="The pack holds small copies; of a large picture, the model may see more in the file itself.",
    )


def _gallery(store: Pack, contexts: list[int], key: str) -> None:
    """Some pictures of the pack to choose from."""
    seed = st.session_state.setdefault(f"{key} gallery", 0)
    order = np.random.default_rng(seed).permutation(len(contexts))[:_GALLERY]
    some = sorted(contexts[i] for i in order.tolist())

    def cards() -> list[dict[str, Any]]:
        drawn = []
        for context in some:
            picture = read_picture(store.pictures.read_file(int(store.pictures.of_context[context])))
            name = store.document(context, 0)
            drawn.append(card(picture, picture, [0.0], (1, 1), picture.size, alt=name, notes=["", name]))
        return drawn

    try:
        picked = pictures(
            packs.cached_recently(store, "gallery", np.array(some), cards), key=f"{key} gallery of {seed}", pick=True, wide=110
        )
    except ScopeError as refusal:
        messages.show_refusal(refusal)
        return
    if picked is not None:
        st.query_params["context"] = str(some[picked])
        st.rerun()
    if len(contexts) > _GALLERY and st.button("Others", icon=":material/shuffle:", type="tertiary", key=f"{key} others"):
        st.session_state[f"{key} gallery"] = seed + 1
        st.rerun()


def _upload(key: str) -> ChosenPicture | None:
    file = st.file_uploader("A picture of yours", key=f"{key} file", help=f"{_KINDS} It stays on this machine.")
    if file is not None:
        st.session_state[_OWN] = (file.name, file.getvalue())
        st.session_state[f"{key} held"] = True
    elif st.session_state.pop(f"{key} held", False):  # it was taken out of the field
        st.session_state.pop(_OWN, None)
    if _OWN not in st.session_state:
        return None
    name, data = st.session_state[_OWN]
    try:
        picture = read_picture(data, show_line(name, 80))
    except ScopeError as refusal:
        messages.show_refusal(refusal)
        return None
    if file is None:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(plain(f"{show_line(name, 60)}, {picture.width} × {picture.height}"), width="content")
            if st.button("Remove", icon=":material/close:", type="tertiary", key=f"{key} remove"):
                del st.session_state[_OWN]
                st.rerun()
    return ChosenPicture(picture, name, None)
