"""The frame around every page: which pages there are, which pack is shown, and how refusals look."""

from pathlib import Path

import streamlit as st
from scope.app.kit import messages
from scope.app.kit.plain import count, plain, short_name
from scope.app.serve import demo, models, packs, session

from scope.errors import ScopeError


def sidebar() -> None:
    """The pack that is shown, and what it is."""
    known, slug = list(packs.registry()), session.current()
    chosen = st.selectbox("Pack", known, index=known.index(slug), key=f"choose {slug}")
    if chosen != slug:
        st.switch_page(session.PAGES["overview"], query_params={"pack": chosen})
    store = session.pack()
    facts = (short_name(store.model_name), store.site, f"{count(store.d_sae)} latents", f"{count(store.n_tokens)} tokens")
    st.caption("  \n".join(plain(fact) for fact in facts))


@st.fragment(run_every=2.0)
def watch(slug: str) -> None:
    """How far a pack is that is being built; the page opens by itself when it is whole."""
    state = packs.building(slug)
    if state is None:
        st.rerun()
    else:
        done, total = state
        st.progress(min(done / total, 1.0), f"{done:,} of {total:,} tokens")
        st.caption("This line renews itself. A pack is browsed when it is whole, so that no page shows half a count.")


st.set_page_config(page_title="scope", page_icon=str(Path(__file__).with_name("icon.svg")), layout="wide")
st.html(Path(__file__).with_name("frame.css"))
# Without icons of their own: the tab would fetch a page's icon from a font server.
page = st.navigation(
    [
        st.Page("overview/page.py", title="Overview", default=True),
        st.Page("features/page.py", title="Features", url_path="features"),
        st.Page("feature/page.py", title="Feature", url_path="feature"),
        st.Page("prompt/page.py", title="Prompt", url_path="prompt"),
        st.Page("steer/page.py", title="Steer", url_path="steer"),
        st.Page("health/page.py", title="Health", url_path="health"),
    ],
    position="top",
)
try:
    with st.sidebar:
        sidebar()
        status = st.empty()
    status.caption(plain(models.status()))
    try:
        page.run()
    finally:
        status.caption(plain(models.status()))  # the page may have loaded it
except ScopeError as refusal:
    messages.refuse(refusal)
    if not packs.registry():
        demo.offer()
    slug = st.session_state.get("pack")
    if slug and packs.building(slug) is not None:
        watch(slug)
