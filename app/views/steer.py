"""Steering: edits on the left, the same prompt plain, steered and pushed at random on the right."""

import streamlit as st

from app import session
from app.components import health, steering
from app.components.code import copy_as_python
from app.components.plain import plain
from scope.errors import ScopeError
from scope.models.generate import SamplingConfig
from scope.steering.gauge import Gauge
from scope.steering.interventions import Edits
from scope.steering.run import SteeringRun
from scope.steering.steer import steer

store = session.pack()
asked = session.asked_latent(store)
stacks = st.session_state.setdefault("stacks", {})
kept_run = f"steer run {session.current()}"
latents = stacks.setdefault(session.current(), [])
if "f" in st.query_params and st.session_state.get("steer from") != st.query_params["f"]:
    st.session_state["steer from"] = st.query_params["f"]
    latents[:] = [asked]
if not latents:
    guides = session.once(store, "start here", lambda: health.start_here(store))
    latents.append(asked if asked is not None else next(iter(guides.values()), 0))


def add_row() -> None:
    latents.append(int(st.session_state["steer add"]))


def drop_row() -> None:
    latents.pop()


def refuse(refusal: ScopeError) -> None:
    what, _, way_out = str(refusal).partition("\n")
    st.error(plain(what), icon=":material/error:")
    if way_out:
        st.code(way_out, language=None)


def generate(edits: Edits, prompt: str, sampling: SamplingConfig, n: int, names: list[str], seed: int) -> SteeringRun:
    """Run all arms, writing their texts into columns as they grow; pressing Stop ends the run at the next token."""
    places = [column.empty() for column in st.columns(len(names))]
    ids: list[list[int]] = [[] for _ in names]
    with session.live(store) as (model, sae):

        def on_token(step: int, said: list[int | None]) -> None:
            for arm, (name, place) in enumerate(zip(names, places, strict=True)):
                token = said[arm * n]
                if token is not None:
                    ids[arm].append(token)
                place.markdown(f"**{plain(name)}**  \n{plain(model.words.decode(ids[arm]))}")

        gauge = Gauge.of_pack(store, edits.latents())
        run = steer(model, sae, edits, prompt, sampling, tuple(names), n=n, gauges=gauge, control_seed=seed, on_token=on_token)
    for place in places:
        place.empty()
    return run


left, right = st.columns([2, 5], gap="medium")
with left:
    st.markdown("##### Edits")
    edits = steering.stack(store, latents)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.number_input("Another latent", 0, store.d_sae - 1, 0, key="steer add", width=140)
        st.button("Add", icon=":material/add:", on_click=add_row)
        st.button("Remove last", icon=":material/remove:", on_click=drop_row, disabled=len(latents) < 2)
with right:
    st.markdown("##### Text")
    prompt = st.text_area("Prompt", "My favourite hobby is", key="steer prompt", height=80)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        tokens = st.number_input("New tokens", 1, 512, 64, 8, key="steer tokens", width=130)
        temperature = st.number_input("Temperature", 0.0, 2.0, 0.7, 0.1, key="steer temperature", width=130)
        top_p = st.number_input("Top p", 0.05, 1.0, 0.95, 0.05, key="steer top p", width=120)
        penalty = st.number_input("Repetition penalty", 1.0, 2.0, 1.1, 0.1, key="steer penalty", width=150)
        seed = st.number_input("Seed", 0, 2**31 - 1, 0, key="steer seed", width=110)
        n = st.number_input("Texts", 1, 8, 1, key="steer n", width=100, help="Texts for each arm, each with its own noise")
    control = st.toggle(
        "Random control", True, help="The same amounts along a random direction: what any push of that size does"
    )
    with st.container(horizontal=True):
        go = st.button("Generate", icon=":material/play_arrow:", type="primary", disabled=edits is None, shortcut="g")
        st.button("Stop", icon=":material/stop:", help="Ends the generation at the next token")
    run_id = st.query_params.get("run")
    if go:
        try:
            sampling = SamplingConfig(
                max_new_tokens=int(tokens),
                temperature=float(temperature),
                top_p=float(top_p),
                repetition_penalty=float(penalty),
                seed=int(seed),
            )
            names = ["plain", "steered", *(["random"] if control else [])]
            run_id = steering.save(store, generate(edits, prompt, sampling, int(n), names, 0))
            st.session_state[kept_run] = run_id
        except ScopeError as refusal:
            refuse(refusal)
            run_id = None
    run_id = st.session_state.get(kept_run) if go or run_id is None else run_id
    run = None
    if run_id in steering.saved(store, 10_000) or "run" in st.query_params:
        try:
            run = steering.load(store, run_id)
        except ScopeError as refusal:
            refuse(refusal)
    if run is None:
        st.caption(
            "Every arm draws the same noise, so the texts differ only by what the edit does. The model loads on first use."
        )
    else:
        largest = {f"latent {i}": v for g in run.gauges.values() for i, v in g.maximum.items()}
        steering.arms(run, largest, run_id)
        st.caption(
            f"Colour: {plain(next(iter(run.promoted)))}, read by the unsteered model. Dotted: tokens at which the edit acted."
        )
        steering.figures(run)
        steering.told(run)
        with st.container(horizontal=True):
            st.download_button("JSON", run.to_json(), f"steering-{run_id}.json", "application/json", icon=":material/download:")
            with st.popover("Link", icon=":material/link:", type="tertiary"):
                st.code(session.address("steer", run=run_id), language=None)
            copy_as_python(steering.python(run, str(store.folder.parent)), key="py steer")
        kept = steering.saved(store)
        with st.expander(f"Saved runs ({len(kept)})"):
            for name in kept:
                session.link("steer", name, run=name)
