"""The panel that adds an edit: of a latent, a direction between prompts, a vector from a file, or tokens to forget."""

import re
import tempfile
from pathlib import Path
from typing import Any

import streamlit as st
from scope.app.kit.plain import number, show_line
from scope.app.serve import packs
from scope.app.steer import edit_list
from scope.app.steer.state import has_state

from scope.errors import EditError
from scope.features.face import Pack
from scope.steering.edits.interventions import Direction, Span

MOST = 30
SOURCES = ("Latent", "Prompts", "File")
TOKENS = "Forget"
"""The source for packs of a recurrent model."""


def draw(store: Pack, slug: str, presets: list[int]) -> tuple[str, tuple[Any, ...]] | None:
    """Draw the panel. Returns the kind and arguments of a direction that needs the model, else None."""
    with st.popover("Add an edit", icon=":material/add:", width="stretch", key="steer add"):
        remembers = ".rec." in store.site or packs.once(store, "has a state", lambda: has_state(store.model.name or "bundled"))
        sources = (*SOURCES, TOKENS) if remembers else SOURCES
        source = st.segmented_control(
            "What to edit", sources, default="Latent", required=True, key="steer source", label_visibility="collapsed"
        )
        if source == "Latent":
            latent(store, slug, presets)
        elif source == "File":
            file(store, slug)
        elif source == TOKENS:
            tokens(slug)
        else:
            return prompts(store)
    return None


def latent(store: Pack, slug: str, presets: list[int]) -> None:
    """Search a latent by label, token or number; without a search, the presets of the pack."""
    words = st.text_input("Find a latent", key="steer find", placeholder="label, token, or #number")
    found = matches(store, words) if words.strip() else presets
    if not found:
        st.caption("No latent of this pack matches.")
        return
    st.caption("Highest output scores of the pack:" if not words.strip() else f"{len(found)} matches, best first:")
    chosen = st.selectbox(
        "Latent", found, format_func=lambda i: described(store, i), key="steer found", label_visibility="collapsed"
    )
    st.button("Add", icon=":material/add:", key="steer add latent", on_click=edit_list.add, args=(slug, chosen))


def matches(store: Pack, words: str) -> list[int]:
    """Latents that match; a number means that latent only.

    Raises:
        PackError: a number that the pack does not have; the message names the nearest.
    """
    one = re.fullmatch(r"\s*#?(\d{1,18})\s*", words)
    if one:
        return [store[int(one[1])].id]
    return [int(i) for i in store.find(words).index[:MOST]]


def described(store: Pack, latent: int) -> str:
    label, score = store.table["label"].iat[latent], store.index.column("out_score")[latent]
    return f"#{latent} {show_line(label, 34)} · output {number(score, '+.3f')}"


def file(store: Pack, slug: str) -> None:
    """A vector from a file. Pickles are refused."""
    given = st.file_uploader("A vector", ["npy", "npz", "json", "safetensors"], key="steer file", help="As wide as the site.")
    key = st.text_input("Name in the file", key="steer file key", placeholder="the only vector")
    if st.button("Add", icon=":material/add:", key="steer add file", disabled=given is None):
        edit_list.add(slug, read_vector(given.name, given.getvalue(), store.site, key or None))
        st.rerun()


def tokens(slug: str) -> None:
    """Tokens of the prompt that are to be forgotten: words, or positions."""
    help = "Words as they stand in the prompt, or positions, such as 4 or 4:7 (BOS is 0)."
    words = st.text_input("Tokens of the prompt", key="steer forget", placeholder="apple", help=help)
    if st.button("Add", icon=":material/add:", key="steer add forget", disabled=not words.strip()):
        edit_list.add(slug, Span.parsed(words.strip()))
        st.rerun()


def read_vector(name: str, data: bytes, site: str, key: str | None) -> Direction:
    """The direction in an uploaded file.

    Raises:
        EditError: it holds none; the message names the uploaded file.
    """
    path = Path(name)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / f"{path.stem[:80].replace('/', '_') or 'vector'}{path.suffix}"
        kept.write_bytes(data)
        try:
            return Direction.from_file(kept, site, key)
        except EditError as refusal:
            raise EditError(str(refusal).replace(str(kept), kept.name)) from None


def prompts(store: Pack) -> tuple[str, tuple[Any, ...]] | None:
    """Two sets of prompts, between which the model finds a direction."""
    toward = st.text_area("Toward, one prompt per line", key="steer toward", height=90, placeholder="I love this.\nWhat joy!")
    away = st.text_area("Away from, one prompt per line", key="steer away", height=90, placeholder="I hate this.\nHow sad.")
    kind = st.selectbox(
        "Direction",
        ("Difference of means", "Linear probe"),
        key="steer between",
        help="The probe ignores what also varies within one side. Its name contains its leave-one-out accuracy.",
    )
    if not st.button("Compute and add", icon=":material/add:", key="steer add between"):
        return None
    sides = [[line for line in text.splitlines() if line.strip()] for text in (toward, away)]
    if not all(sides):
        raise EditError("A direction between prompts needs at least one prompt on both sides, each on its own line.")
    return ("probe" if kind == "Linear probe" else "between"), (store.site, *sides)
