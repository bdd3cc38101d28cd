"""Steering: edits on the left; on the right the same prompt in every arm, a sweep over strengths, effects, kept runs."""

from typing import Any

import streamlit as st
from scope.app.kit import messages
from scope.app.kit.plain import plain
from scope.app.serve import models, pack_facts, packs, session
from scope.app.serve.jobs import Job
from scope.app.steer import conditions as arms
from scope.app.steer import controls as text
from scope.app.steer import edit_list as stack
from scope.app.steer import picker, saved, state
from scope.app.steer import strengths as units
from scope.app.steer import sweep as sweeps
from scope.app.steer import work as steering
from scope.app.steer.effects import inside
from scope.app.steer.runner import Desk

from scope.errors import ScopeError
from scope.steering.compare.saved_runs import Runs
from scope.steering.compare.steer import SteeringRun
from scope.steering.compare.sweep import Sweep, swept_unit
from scope.steering.edits.interventions import Edits

VIEWS = ("Compare", "Sweep", "Effects", "Kept runs")
store = session.pack()
slug = session.current()
runs = Runs.of_pack(store.folder)
mine = st.session_state.setdefault(f"steer {slug}", {})
"""Of this session and pack: the job at work, the last results, the address that was followed, the last refusal."""
desk = Desk(store, slug, mine)


def open_address() -> SteeringRun | Sweep | None:
    """Follow the address once: a run fills the controls, a latent or a list from another page begins a stack anew."""
    brought = st.session_state.setdefault("stacks", {}).pop(slug, None)
    name, latent = st.query_params.get("run"), st.query_params.get("f")
    followed, mine["followed"] = mine.get("followed"), (name, latent)
    opened = None
    if name is not None:
        opened = runs.load(name)
        if followed != (name, latent) and mine.pop("made", None) != name:
            fill(opened)
    elif brought:
        stack.rows(slug).clear()
        for one in brought:
            stack.add(slug, store[one].id)
    elif latent is not None and followed != (name, latent):
        asked = session.asked_latent(store)
        stack.rows(slug).clear()
        stack.add(slug, asked)
    if not stack.rows(slug) and not mine.get("begun"):
        asked = session.asked_latent(store)
        stack.add(slug, presets()[0] if asked is None else asked)
    mine["begun"] = True
    return opened


def fill(run: SteeringRun | Sweep) -> None:
    """Every control as it was when the run was made."""
    one = run.runs[0] if isinstance(run, Sweep) else run
    stack.put(slug, one.edits, one.sheet)
    names = ["plain", "steered", "random"] if isinstance(run, Sweep) else [arm.name for arm in one.conditions]
    text.put(one.prompts[0], one.sampling, 1 if isinstance(run, Sweep) else one.n, names, one.instruction)
    if isinstance(run, Sweep):
        st.session_state["steer sweep prompts"] = "\n".join(prompt.replace("\n", " ") for prompt in one.prompts)
        st.session_state["steer sweep strengths"] = ", ".join(f"{s:g}" for s in run.strengths)
        st.session_state["steer sweep n"] = one.n
        st.session_state["steer sweep by"] = run.by
    st.session_state["steer view"] = "Sweep" if isinstance(run, Sweep) else "Compare"


def presets() -> list[int]:
    """The latents with the highest output score, and what else the overview begins with where the pack knows none."""
    found = packs.once(store, "steerable", lambda: [int(i) for i in store.steerable(picker.MOST).index])
    return found or list(packs.once(store, "start here", lambda: pack_facts.start_here(store)).values()) or [0]


def no_chat() -> str | None:
    """Why there is no chat, None if there is."""
    if mine.get("chat") is None:
        mine["chat"] = state.chat_template(str(store.manifest["model"].get("model") or "bundled"))
    return mine["chat"] or None


def compare(run: SteeringRun | Sweep | None, edits: Edits | None, job: Job | None) -> list[Any]:
    """One prompt in every arm. Where texts are being written: the places into which they go."""
    prompt, turns = text.prompt(no_chat())
    sampling, n = text.sampling()
    names, instruction = text.arms()
    asked = state.Asked(prompt, turns, sampling, n, names, instruction)
    off = edits is None or job is not None
    if st.button("Generate", icon=":material/play_arrow:", type="primary", disabled=off, shortcut="g"):
        desk.begin("compare", lambda model, sae: steering.compare(store, model, sae, edits, asked))
        st.rerun()
    if job is not None and job.kind in ("compare", "replay"):
        return streaming(job, names)
    if isinstance(run, SteeringRun):
        shown(run)
    elif run is None:
        st.caption(
            "Every arm draws the same noise, so the texts differ only by what the edit does. The model loads on first use. "
            "The edits stay while other pages are looked at; loading this page anew in the browser loses them, unless a run is "
            "open: its link brings everything back."
        )
    return []


def streaming(job: Job, names: tuple[str, ...]) -> list[Any]:
    names = tuple(job.progress.get("arms", names))
    places: list[Any] = []
    for first in range(0, len(names), arms.ABREAST):
        columns = st.columns(min(len(names), arms.ABREAST))
        places += [column.empty() for column, _ in zip(columns, names[first : first + arms.ABREAST], strict=False)]
    return places


def shown(run: SteeringRun) -> None:
    """A run: its texts, what to know before believing them, its figures, its files."""
    name = st.query_params["run"]
    arms.told(run)
    again()
    by = st.segmented_control(
        "Colour by", arms.colours(run), default=arms.colours(run)[0], required=True, key=f"colour {name}", format_func=plain
    )
    arms.draw(run, by, name)
    arms.self_check(run)
    files(run, name)
    with st.expander("All figures, mean over the texts of each arm", on_change="rerun", key=f"figures {name}") as details:
        if details.open:
            arms.figures(run)


def again() -> None:
    """What a replay of the run that is open said."""
    name, made = mine.get("replayed", (None, None))
    if made is not None and name == st.query_params.get("run"):
        same, told = saved.replayed(runs.load(name), made)
        (st.success if same else st.warning)(plain(told), icon=":material/check:" if same else ":material/difference:")


def files(run: SteeringRun | Sweep, name: str) -> None:
    """Replay, and the ways to take a run away."""
    with st.container(horizontal=True, vertical_alignment="top", gap="small"):
        if st.button(
            "Replay", icon=":material/replay:", disabled="job" in mine, help="Makes it again and compares, token by token"
        ):
            desk.begin("replay", lambda model, sae: steering.replay(run, model, sae))
            st.rerun()
        saved.taken_away(run, name, [models.dictionary_of(store)], session.address("steer", run=name), lambda: forget(name))


def forget(name: str) -> None:
    runs.forget(name)
    st.query_params.from_dict(session.params())
    mine["told"] = "The run is gone."


def sweep(run: SteeringRun | Sweep | None, edits: Edits | None, job: Job | None) -> Any:
    """Strengths x prompts x seeds, beside the controls. The bar of one that is at work."""
    grid = sweeps.grid(swept_unit(edits))
    sampling, _ = text.sampling(several=False)
    asked = (str(edits), grid, sampling)
    before, seconds = mine.get("measured", (None, None))
    if "measure" in mine:
        before, seconds = mine["measured"] = (mine.pop("measuring"), mine.pop("measure"))
    sweeps.cost(grid, sampling.max_new_tokens, seconds if before == asked else None)
    off = edits is None or job is not None
    with st.container(horizontal=True):
        if st.button("How long?", icon=":material/timer:", disabled=off, help="Takes about a tenth of one strength"):
            mine["measuring"] = asked
            desk.begin("measure", lambda model, sae: steering.measure(store, model, sae, edits, grid, sampling))
            st.rerun()
        if st.button("Sweep", icon=":material/play_arrow:", type="primary", disabled=off):
            known = seconds if before == asked else None
            desk.begin("sweep", lambda model, sae: steering.dose_response(store, model, sae, edits, grid, sampling, known))
            st.rerun()
    bar = None
    if job is not None and job.kind == "sweep":
        bar = st.empty()
        bar.progress(*sweeps.progress(job.progress))
        if "sweep" in job.progress:
            sweeps.result(job.progress["sweep"], f"live {id(job)} {len(job.progress['sweep'].runs)}")
    elif isinstance(run, Sweep):
        again()
        sweeps.result(run, st.query_params["run"])
        files(run, st.query_params["run"])
        with st.expander("Self-check, strength by strength"):
            for strength, one in zip(run.strengths, run.runs, strict=True):
                st.caption(f"**Strength {strength:g}**")
                arms.told(one)
                arms.self_check(one)
    return bar


opened = None
try:
    opened = open_address()
except ScopeError as refusal:
    messages.show_refusal(refusal)
    if not stack.rows(slug) and "run" not in st.query_params:
        st.stop()
left, right = st.columns([1, 2], gap="medium")
job: Job | None = mine.get("job")
line, places, bar = None, [], None
with left:
    st.header("Edits", anchor=False)
    edits = stack.draw(store, slug)
    try:
        wanted = picker.draw(store, slug, presets())
        if wanted is not None and job is None:
            desk.begin("direction", lambda model, sae: steering.direction(model, wanted[0], *wanted[1]))
            st.rerun()
    except ScopeError as refusal:
        messages.show_refusal(refusal)
    units.draw_gauge(edits, store, mine.get("sae"))
with right:
    st.session_state.setdefault("steer view", "Compare")
    view = st.segmented_control(
        "View", VIEWS, required=True, key="steer view", label_visibility="collapsed", persist_state="session"
    )
    line = desk.line()
    try:
        if view == "Compare":
            places = compare(opened, edits, job)
        elif view == "Sweep":
            bar = sweep(opened, edits, job)
        elif view == "Effects":
            inside(desk, edits, job)
        else:
            saved.listed(runs, st.query_params.get("run"), lambda label, name: session.link("steer", label, run=name))
    except ScopeError as refusal:
        messages.show_refusal(refusal)
if job is not None:
    desk.attend(job, line, places, bar)
