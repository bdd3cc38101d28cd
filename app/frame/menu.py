"""The pages by name, the title of the browser's tab, and the bar of pages on a phone."""

from pathlib import Path

import streamlit as st
from scope.app.kit.plain import short_name, show_line
from scope.app.serve import packs, session

from scope.errors import ScopeError

TITLES = {name: name.capitalize() for name in session.PAGES}
"""Titles by the name that stands in the address."""
_HERE = Path(__file__).parent
_HISTORY = st.components.v2.component(
    "scope_history", html="<span></span>", js=(_HERE / "history.js").read_text(encoding="utf-8")
)
_PHONE_BAR = st.components.v2.component(
    "scope_phone_bar",
    html='<nav aria-label="Pages"></nav>',
    css=(_HERE / "phone_bar.css").read_text(encoding="utf-8"),
    js=(_HERE / "phone_bar.js").read_text(encoding="utf-8"),
)


def navigation() -> st.Page:
    """The menu of pages at the top; returns the page of the address. Without icons, which come from a font server."""
    return st.navigation(
        [
            st.Page(file, title=TITLES[name], url_path="" if name == "overview" else name, default=name == "overview")
            for name, file in session.PAGES.items()
        ],
        position="top",
    )


def history() -> None:
    """Let Back and Forward step through the states of pages, too, and a server that was started again know the page."""
    with st.container(key="frame history"):
        _HISTORY(key="history", data={"soon": 1500}, on_again_change=lambda: None)


def phone_bar(page: str) -> None:
    """The pages as a bar at the bottom of a narrow window, where Streamlit hides its menu."""
    pages = [[name, title, session.address(name)] for name, title in TITLES.items()]
    with st.container(key="frame pages"):
        chosen = _PHONE_BAR(key="pages", data={"page": page, "pages": pages}, on_page_change=lambda: None).page
    if isinstance(chosen, str) and chosen in session.PAGES:
        session.go(chosen)


def tab_title(page: str) -> str:
    """What the browser's tab and its history call a page: the latent or the page, and the pack where several are open."""
    name = TITLES.get(page, page)
    try:
        store = session.pack()
        where = short_name(store.model_name) if len(packs.registry()) < 2 else session.current()
        latent = session.asked_latent(store) if page in ("feature", "steer") else None
        if latent is not None:
            label = show_line(store[latent].label, 40)
            return f"latent {latent} · {label} — scope" if page == "feature" else f"{name} · latent {latent} — scope"
        if page == "features" and (words := st.query_params.get("q")):
            return f"{show_line(words, 40)} · {name} — scope"
        return f"{name} · {where} — scope"
    except ScopeError:
        return f"{name} — scope"


def complete_address() -> None:
    """Write the pack into an address that a menu left without it, so that it opens elsewhere as it is here."""
    if len(packs.registry()) > 1 and "pack" not in st.query_params:
        st.query_params["pack"] = session.current()
