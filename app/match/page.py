"""The Match page: which latents of another SAE do the same on the same text, beside chance and ceiling."""

import streamlit as st
from scope.app.kit.code import heading
from scope.app.kit.plain import plain, show_line
from scope.app.kit.tiles import tiles
from scope.app.match import panels
from scope.app.serve import session

from scope.features.compare.partners import matches_beside

store = session.pack()
folder = matches_beside(store.folder)


def offer() -> None:
    """The command that makes a match."""
    st.info(
        "No match of this pack's SAE is saved. This command reads one text with both models, finds for each latent of A the "
        "latent of B whose activations correlate most with its own, and saves the result where this page finds it. A third "
        "SAE, such as another seed on the same model, says how much to expect."
    )
    st.code(f"scope match {store.folder} OTHER_PACK --ceiling THIRD_PACK", language=None, wrap_lines=True)


def draw(results: dict) -> None:
    """One result: its shares, the distribution of correlations, the table of pairs, and examples of the pair that is picked."""
    name = st.selectbox(
        "Matched with", list(results), key=f"match {store.folder}", format_func=lambda n: panels.title(n, results[n])
    )
    result, file = results[name], str(folder / f"{name}.json")
    python = f"from scope.features.compare.partners import Match\n\nresult = Match.load({file!r})\n"
    meaning = "A latent's partner is the other SAE's latent whose activations correlate most with its own, word by word."
    heading("Latents with a partner", python + "print(result)", "py match", meaning=meaning)
    tiles(panels.tiles(result), key="match")
    st.caption(plain(panels.summary(result)))
    other, slug = panels.pack_of(result.provenance.get("b"))
    left, right = st.columns([1, 2])
    with left:
        panels.spread(result)
    with right:
        heading("Pairs", python + "result.to_frame()", "py pairs", meaning="A click on a row shows examples of both.")
        picked = panels.pairs(store, other, result, f"match pairs {name}")
    if other is None:
        st.caption("Labels and examples of the other SAE are shown once a pack of it is open too:")
        st.code(f"scope app {store.folder} OTHER_PACK", language=None, wrap_lines=True)
    if picked is None:
        return
    for side, pack, its, latent in zip(st.columns(2), (store, other), (session.current(), slug), picked, strict=True):
        with side:
            label = "" if pack is None or not 0 <= latent < pack.d_sae else show_line(pack.table["label"].iat[latent])
            st.subheader(plain(f"#{latent} {label}"), anchor=False)
            if pack is not None:
                st.caption(plain(f"{its} · {pack.model_name} · {pack.site}"))
                panels.examples(pack, latent, f"{its} {latent}")


st.title("Features across SAEs and models", anchor=False)
saved, refusals = panels.saved(store, folder)
for refusal in refusals:
    st.warning(plain(refusal))
if saved:
    draw(saved)
else:
    offer()
