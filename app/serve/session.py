"""State that the pages of one reader share, which pack and latent are shown, and links between pages."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import streamlit as st
from scope.app.kit import link as kit_link
from scope.app.serve import packs
from scope.app.serve.pack_facts import flag_limits

from scope.errors import PackError
from scope.features.face import Pack

PAGES = {
    "overview": "overview/page.py",
    "features": "features/page.py",
    "feature": "feature/page.py",
    "prompt": "prompt/page.py",
    "steer": "steer/page.py",
    "health": "health/page.py",
    "monitor": "monitor/page.py",
    "match": "match/page.py",
}


class PageDrawn(Exception):
    """All of a page is drawn, and the rest of its script is for other packs. After `st.stop` nothing could be drawn any more,
    not even which model is loaded now."""


DENSE = "Include dense latents"
"""The toggle by which lists include latents that fire very often."""

_MAKE = "scope demo                                       makes one from the bundled model in a few minutes"
_COLLECT = "scope features DICTIONARY --recording RECORDING  makes one from your SAE"


def current() -> str:
    """Slug of the current pack: the one in the address, else the last one, else the first.

    Raises:
        PackError: there are no packs, or the address names one that is not open here.
    """
    known, asked = packs.registry(), st.query_params.get("pack")
    if not known:
        raise PackError(
            f"There are no packs in {Path('runs').absolute()}, and none was given to scope app.\n  {_MAKE}\n  {_COLLECT}"
        )
    if asked is not None and asked not in known:
        raise PackError(f"No pack called {asked!r} is open here.\n  Open: {', '.join(known)}")
    slug = asked or st.session_state.get("pack")
    st.session_state["pack"] = slug if slug in known else next(iter(known))
    return st.session_state["pack"]


def pack(slug: str | None = None) -> Pack:
    """The current pack, or another open one, for reading.

    Raises:
        PackError: it is missing, being built, damaged or of another schema.
    """
    return packs.open_pack(slug or current())


def asked_latent(store: Pack) -> int | None:
    """The latent in the address, else the last one shown of this pack, else None.

    Parsed here, since a widget bound to the address would silently replace a bad number by its default.

    Raises:
        PackError: it is no whole number, or none of this pack's.
    """
    text = st.query_params.get("f")
    if text is None:
        return last_latent()
    if not re.fullmatch(r"-?\d{1,18}", text.strip()):
        raise PackError(f"{text!r} is not a latent: latents are whole numbers from 0 to {store.d_sae - 1:,}.")
    return store[int(text)].id


def last_latent() -> int | None:
    """The latent of the current pack that was shown last."""
    return st.session_state.get("latents", {}).get(current())


def went_back() -> bool:
    """Whether this run shows an address of the browser's history, by Back or Forward."""
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def steer_these(latents: list[int]) -> None:
    """Go to the Steer page with these latents as its edits. Ends the run."""
    st.session_state.setdefault("stacks", {})[current()] = list(latents)
    go("steer")


def include_dense(store: Pack, at_first: bool) -> bool:
    """Whether lists include dense latents: one setting for all pages, remembered and in the address.

    Its default depends on the page: a table of all latents includes them, a ranking of a text does not.
    """
    if "dense chosen" in st.session_state and "dense" not in st.query_params:
        st.session_state.setdefault("dense", st.session_state["dense chosen"])
    limit = flag_limits(store).dense
    meaning = f"Dense latents fire on at least {limit:.2g} of all tokens. One setting for the lists of all pages."

    def choose() -> None:
        st.session_state["dense chosen"] = st.session_state["dense"]

    return st.toggle(DENSE, at_first, key="dense", bind="query-params", help=meaning, on_change=choose)


def remember(latent: int) -> None:
    st.session_state.setdefault("latents", {})[current()] = latent


def results() -> list[int]:
    """Latents of the last list shown of this pack, in its order; [] before any."""
    return st.session_state.get("results", {}).get(current(), [])


def keep_results(latents: list[int]) -> None:
    st.session_state.setdefault("results", {})[current()] = latents


def params(**more: Any) -> dict[str, str]:
    """Parameters of an address within the current pack."""
    return {"pack": current(), **{name: str(value) for name, value in more.items()}}


def go(page: str, /, **more: Any) -> None:
    """Go to a page; the browser's Back comes back. Ends the run."""
    st.switch_page(PAGES[page], query_params=params(**more))


def link(page: str, label: str, /, *, icon: str | None = None, help: str | None = None, **more: Any) -> None:
    """A link to a page of the current pack. `label` must already be plain."""
    st.page_link(PAGES[page], label=label, icon=icon, help=help, query_params=params(**more))


def address(page: str, /, **more: Any) -> str:
    """The whole address of a page, to copy."""
    parts = urlsplit(st.context.url or "http://localhost:8501/")
    base, _, last = parts.path.rstrip("/").rpartition("/")
    base = base if last in PAGES else f"{base}/{last}".rstrip("/")  # what a proxy puts before the pages stays
    path = "" if page == "overview" else page
    return f"{parts.scheme}://{parts.netloc}{base}/{path}?{urlencode(params(**more))}"


def link_popover(page: str, /, live: Sequence[str] = (), **more: Any) -> None:
    """A button that shows the whole address of a page; `live` parameters are those of the browser at that moment."""
    kit_link.link_popover(address(page, **more), live)
