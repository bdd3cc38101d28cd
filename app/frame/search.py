"""The search box of every page: a latent's number, label or token, a text to read, a page, a pack or a command."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st
from scope.app.frame.menu import TITLES
from scope.app.kit.plain import show_line
from scope.app.serve import pack_facts, packs, session

from scope.errors import PackError
from scope.features.face import Pack

_HERE = Path(__file__).parent
_mount = st.components.v2.component(
    "scope_search",
    html=_HERE.joinpath("search.html").read_text(encoding="utf-8"),
    css=(_HERE / "search.css").read_text(encoding="utf-8"),
    js=(_HERE / "search.js").read_text(encoding="utf-8"),
)
MOST_LATENTS = 8
WORDS_OF_A_TEXT = 4
"""A search of so many words is first taken for a text to read."""


@dataclass(frozen=True)
class Result:
    """A line of the list: its name, a note at the right, and what Enter does."""

    name: str
    note: str
    open: Callable[[], None]


@st.fragment
def search_box() -> None:
    """Draw the box; a choice opens its page."""
    text = str((st.session_state.get("search box") or {}).get("text") or "")
    hits = results(session.pack(), text) if text.strip() else []
    component = _mount(
        key="search box",
        data={"text": text, "results": [[show_line(one.name, 80), show_line(one.note, 40)] for one in hits]},
        on_text_change=lambda: None,
        on_chosen_change=lambda: None,
    )
    if isinstance(component.chosen, list | tuple):
        asked, n = component.chosen
        hits = hits if asked == text else results(session.pack(), str(asked))
        if 0 <= int(n) < len(hits):
            hits[int(n)].open()


def results(store: Pack, text: str) -> list[Result]:
    """What a text may mean, the likeliest first."""
    text = text.strip()
    latents, commands = _latents(store, text), _commands(store, text)
    every = Result(f"All latents that match “{text}”", "Features", lambda: session.go("features", q=text))
    read = Result(f"Read “{text}”", "Prompt", lambda: session.go("prompt", text=text[:1500]))
    texts = [read] if store.pictures is None else []
    if len(text.split()) >= WORDS_OF_A_TEXT:
        return [*texts, *latents, every, *commands]
    exact = [one for one in commands if one.name.lower() == text.lower()]
    return [*exact, *latents, every, *texts, *(one for one in commands if one not in exact)]


def _latents(store: Pack, text: str) -> list[Result]:
    number = re.fullmatch(r"(?:latent|feature)?\s*#?\s*(\d{1,18})", text, re.IGNORECASE)
    numbered = [int(number[1])] if number and int(number[1]) < store.d_sae else []
    try:
        hits = [(hit.latent, hit.why) for hit in store.search(text, MOST_LATENTS)]
    except PackError:
        hits = []
    hits = [(latent, "by number") for latent in numbered] + [hit for hit in hits if hit[0] not in numbered]

    def opening(latent: int) -> Callable[[], None]:
        return lambda: session.go("feature", f=latent)

    return [
        Result(f"#{latent} {store.table['label'].iat[latent]}", why, opening(latent)) for latent, why in hits[:MOST_LATENTS]
    ]


def _commands(store: Pack, text: str) -> list[Result]:
    """Pages, other packs and commands of which a word begins with the text."""

    def opening(page: str) -> Callable[[], None]:
        return lambda: session.go(page)

    def opening_pack(slug: str) -> Callable[[], None]:
        return lambda: st.switch_page(session.PAGES["overview"], query_params={"pack": slug})

    def steer_with(latent: int) -> Callable[[], None]:
        return lambda: session.go("steer", f=latent)

    every = [Result(title, "page", opening(page)) for page, title in TITLES.items()]
    every.append(Result("Random latent", "command", lambda: session.go("feature", f=store.random(np.random.default_rng()).id)))
    latent = session.last_latent()
    if latent is not None and pack_facts.steers(store):
        every.append(Result(f"Steer with #{latent}", "command", steer_with(latent)))
    every += [
        Result(f"Pack {slug}", "other pack", opening_pack(slug)) for slug in packs.registry() if slug != session.current()
    ]
    wanted = text.lower()
    return [one for one in every if any(one.name.lower()[at:].startswith(wanted) for at in _word_starts(one.name))]


def _word_starts(text: str) -> list[int]:
    return [match.start() for match in re.finditer(r"\b\w", text)]
