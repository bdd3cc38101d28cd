"""The script of the app: pages, the choice of a pack, and refusals."""

from contextlib import suppress
from pathlib import Path

import streamlit as st
from scope.app.frame import menu, search
from scope.app.kit import messages
from scope.app.kit.plain import count, plain, short_name
from scope.app.serve import demo, models, pack_facts, packs, session

from scope.errors import ScopeError


def sidebar() -> None:
    """The choice of a pack where there are several, and its main facts."""
    known, slug = list(packs.registry()), session.current()
    if len(known) > 1:
        chosen = st.selectbox("Pack", known, index=known.index(slug), key=f"choose {slug}")
        if chosen != slug:
            st.switch_page(session.PAGES["overview"], query_params={"pack": chosen})
    else:
        st.markdown(f"Pack **{plain(slug)}**")
    store = session.pack()
    rows = f"{count(store.n_tokens)} {pack_facts.rows_noun(store)}"
    facts = (short_name(store.model_name), store.place, f"{count(store.d_sae)} latents", rows)
    with st.expander("Pack facts"):
        st.caption("  \n".join(plain(fact) for fact in facts))


@st.fragment(run_every=2.0)
def watch(slug: str) -> None:
    """Progress of a pack that is being built; the page opens when it is finished."""
    state = packs.building(slug)
    if state is None:
        st.rerun()
    else:
        done, total = state
        st.progress(min(done / total, 1.0), f"{done:,} of {total:,} tokens")
        st.caption("This page updates itself. A pack opens when it is complete, so that no page shows partial counts.")


st.html(Path(__file__).parent / "frame" / "frame.css")
page = menu.navigation()
name = page.url_path or "overview"
icon = str(Path(__file__).with_name("icon.svg"))
st.set_page_config(page_title=menu.tab_title(name), page_icon=icon, layout="wide")  # each call costs the browser milliseconds
menu.history()
try:
    with st.sidebar:
        sidebar()
        status = st.empty()
    menu.complete_address()
    with st.container(key="frame search"):
        search.search_box()
    menu.phone_bar(name)
    before = models.status()
    status.caption(plain(before))
    try:
        with suppress(session.PageDrawn):
            page.run()
    finally:
        if models.status() != before:  # the page loaded the model, or another one
            status.caption(plain(models.status()))
except ScopeError as refusal:
    messages.show_refusal(refusal)
    if not packs.registry():
        demo.offer()
    slug = st.session_state.get("pack")
    if slug and packs.building(slug) is not None:
        watch(slug)
