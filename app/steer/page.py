"""The Steer page: prompt, strength and the texts of a comparison; or a sweep, effects, saved runs. All else is in a drawer."""

from typing import Any

import streamlit as st
from scope.app.kit import messages
from scope.app.kit.pictures import pictures
from scope.app.kit.plain import plain
from scope.app.serve import models, pack_facts, packs, picture_choice, session
from scope.app.serve.jobs import Job
from scope.app.steer import conditions, controls, draft, edit_list, effects, picker, saved, state, strengths, work
from scope.app.steer import sweep as sweeps
from scope.app.steer.runner import Runner

from scope.errors import ScopeError
from scope.steering.compare.saved_runs import Runs
from scope.steering.compare.steer import SteeringRun
from scope.steering.compare.sweep import Sweep, swept_unit
from scope.steering.edits.interventions import Edits

PICTURE = "steer picture"
"""Begins the keys of the choice of a picture."""
UNSAVED = "unsaved"
"""Stands for the name of a run that could not be saved."""
VIEWS = ("Compare", "Sweep", "Effects", "Saved runs")
store = session.pack()
slug = session.current()
runs = Runs.of_pack(store.folder)
page_state = st.session_state.setdefault(f"steer {slug}", {})
"""Per session and pack: the running job, the last results and refusal, the address that was followed."""
runner = Runner(store, slug, page_state)
of_pictures = store.pictures is not None


def open_address() -> SteeringRun | Sweep | None:
    """Follow the address once: a run fills the controls, a latent or a list from another page replaces the edits."""
    given = st.session_state.setdefault("stacks", {}).pop(slug, None)
    name, latent, settings = (st.query_params.get(key) for key in ("run", "f", draft.PARAMETER))
    followed, page_state["followed"] = page_state.get("followed"), (name, latent)
    fresh, page_state["started"] = not page_state.get("started"), True
    returned = session.went_back()
    opened = None
    state.follow_view(VIEWS, fresh or returned)
    if followed not in (None, (name, latent)):
        page_state.pop("pristine", None)  # another run is the one to compare with
    if name is not None:
        opened = runs.load(name)
        page_state.pop("unsaved", None)
        if (followed != (name, latent) or returned) and page_state.pop("new run", None) != name:
            fill_controls(opened)
    elif given:
        page_state["handed"] = True
        page_state.pop("pristine", None)
        edit_list.clear(slug)
        for one in given:
            edit_list.add(slug, store[one].id)
    elif latent is not None and (followed != (name, latent) or returned):
        asked = session.asked_latent(store)
        edit_list.clear(slug)
        edit_list.add(slug, asked)
    if not edit_list.rows(slug) and fresh:
        asked = session.asked_latent(store)
        edit_list.add(slug, example() if asked is None else asked)
    if settings is not None and (fresh or returned):  # a reload, another server, or Back
        if fresh:
            page_state["pristine"] = None
        wanted = draft.read(settings, store)
        draft.restore(wanted, slug)
        if "tab" not in st.query_params:
            st.session_state["steer view"] = wanted.view
    elif returned and name is None and isinstance(page_state.get("pristine"), draft.Draft):
        draft.restore(page_state["pristine"], slug)
    return opened


def fill_controls(run: SteeringRun | Sweep) -> None:
    """Set every control as it was when the run was made."""
    one = _one(run)
    edit_list.set_rows(slug, one.edits)
    names = ["plain", "steered", "random"] if isinstance(run, Sweep) else [condition.name for condition in one.conditions]
    controls.set_controls(one.prompts[0], one.sampling, 1 if isinstance(run, Sweep) else one.n, names, one.instruction)
    if isinstance(run, Sweep):
        st.session_state["steer sweep prompts"] = "\n".join(prompt.replace("\n", " ") for prompt in one.prompts)
        st.session_state["steer sweep strengths"] = ", ".join(f"{s:g}" for s in run.strengths)
        st.session_state["steer sweep n"] = min(one.n, 16)
        st.session_state["steer sweep by"] = run.by
    if "tab" not in st.query_params:
        st.session_state["steer view"] = "Sweep" if isinstance(run, Sweep) else "Compare"


def presets() -> list[int]:
    """The latents with the highest output scores; those of the Overview page if the pack holds no scores."""
    best = packs.once(store, "steerable", lambda: [int(i) for i in store.steerable(picker.MOST).index])
    return best or list(packs.once(store, "start here", lambda: pack_facts.start_here(store)).values()) or [0]


def example() -> int:
    """The latent to begin with: of those with the highest output scores, the first that promotes whole words."""

    def readable(latent: int) -> bool:
        words = [token for token, _ in store[latent].promoted[:8]]
        return sum(word[:1] == " " and word[1:].isalpha() and len(word) > 3 for word in words) >= 6

    return packs.once(store, "steering example", lambda: next(filter(readable, presets()), presets()[0]))


def no_chat() -> str | None:
    """Why chat is not possible; None if it is."""
    if of_pictures:
        return "A question about a picture is no chat: the model answers it."
    if page_state.get("chat") is None:
        page_state["chat"] = state.chat_template(store.model.name or "bundled")
    return page_state["chat"] or None


def compare(run: SteeringRun | Sweep | None, job: Job | None) -> list[Any]:
    """One prompt under every condition. While texts are generated: the placeholders for them."""
    with settings:
        edits, more = edits_and(job)
        with more:
            chat = controls.chats(no_chat())
            sampling, n = controls.sampling()
            names, instruction = controls.conditions()
    with written:
        prompt, turns = controls.prompt(chat, of_pictures)
    comparison = state.Comparison(prompt, turns, sampling, n, names, instruction)
    asked = {"conditions": names, "instruction": instruction}
    keep_draft(edits, prompt=prompt, turns=turns, sampling=draft.as_sampling(sampling), n=n, **asked)
    off = edits is None or job is not None
    with buttons:
        pressed = st.button("Generate", icon=":material/play_arrow:", type="primary", disabled=off, shortcut="g")
        st.caption(f"{sampling.max_new_tokens} tokens, temperature {sampling.temperature:g}", width="content")
    if pressed:
        runner.start("compare", lambda model, sae: work.compare(store, model, sae, edits, comparison))
        st.rerun()
    with results.container():
        if job is not None and job.kind in ("compare", "replay"):
            return conditions.places_for(job.progress.get("conditions", names))
        if isinstance(run, SteeringRun):
            draw_run(run, open_name())
        elif run is None:
            st.caption(
                "Every condition uses the same random numbers, so the texts differ only by the edit. The model is loaded on "
                "first use. Prompt, settings and edits of latents stand in this page's address, so a reload keeps "
                "them; a direction is lost by it, unless a saved run is open."
            )
    return []


def edits_and(job: Job | None) -> tuple[Edits | None, Any]:
    """The edits, drawn in the left half of the settings, and the container of the right half."""
    left, right = st.columns(2, gap="medium")
    with left:
        edits = edit_list.draw(store, slug, amount)
        try:
            wanted = picker.draw(store, slug, presets())
            if wanted is not None and job is None:
                runner.start("direction", lambda model, sae: work.direction(model, wanted[0], *wanted[1]))
                st.rerun()
        except ScopeError as refusal:
            messages.show_refusal(refusal)
        strengths.draw_total(edits, store, page_state.get("sae"))
    return edits, right


def keep_draft(edits: Edits | None, **settings: Any) -> None:
    """Keep the settings in the address, once they differ from those that it opened with."""
    now = draft.Draft(edits=draft.as_edits(edits), **settings)
    if "pristine" not in page_state:  # what another page handed over stands in no address yet
        handed = page_state.pop("handed", False) or settings.get("prompt", controls.PROMPT) != controls.PROMPT
        page_state["pristine"] = None if handed and "run" not in st.query_params else now
    draft.keep(now, page_state["pristine"])


def draw_run(run: SteeringRun, name: str) -> None:
    """Draw a run: warnings, texts, scores, downloads."""
    conditions.warnings(run)
    replay_result()
    key = f"colour {name}"
    conditions.draw(run, st.session_state.get(key) or conditions.colours(run)[0], name)
    files(run, name)
    st.segmented_control(
        "Colour by", conditions.colours(run), default=conditions.colours(run)[0], required=True, key=key, format_func=plain
    )
    with st.expander("All scores, mean over the texts of each condition", on_change="rerun", key=f"figures {name}") as details:
        if details.open:
            conditions.figures(run)
    conditions.self_check(run)


def open_name() -> str:
    """The name of the run that is shown."""
    return st.query_params.get("run", UNSAVED)


def replay_result() -> None:
    """The result of a replay of the open run."""
    name, replayed = page_state.get("replayed", (None, None))
    if replayed is not None and name == st.query_params.get("run"):
        same, message = saved.replayed(runs.load(name), replayed)
        (st.success if same else st.warning)(plain(message), icon=":material/check:" if same else ":material/difference:")


def files(run: SteeringRun | Sweep, name: str) -> None:
    """The replay button and the downloads of a run; of one that could not be saved, the downloads."""
    if name == UNSAVED:
        saved.download_buttons(run, name, [models.dictionary_of(store)])
        return
    with st.container(horizontal=True, vertical_alignment="top", gap="small"):
        if st.button(
            "Replay",
            icon=":material/replay:",
            disabled="job" in page_state,
            help="Generates the texts again and compares them token by token",
        ):
            runner.start("replay", lambda model, sae: work.replay(run, model, sae))
            st.rerun()
        saved.downloads(run, name, [models.dictionary_of(store)], lambda: delete(name))


def delete(name: str) -> None:
    runs.forget(name)
    st.query_params.from_dict(session.params(**state.in_address()))
    page_state["message"] = "The run was deleted."


def sweep(run: SteeringRun | Sweep | None, job: Job | None) -> Any:
    """Strengths x prompts x seeds, beside the controls. Returns the progress bar of a running sweep."""
    with settings:
        edits, more = edits_and(job)
        with more:
            sampling, _ = controls.sampling(several=False)
    with written:
        grid = sweeps.grid(swept_unit(edits))
    texts = tuple(st.session_state[f"steer sweep {name}"] for name in ("prompts", "strengths"))
    keep_draft(edits, view="Sweep", sampling=draft.as_sampling(sampling), sweep=texts)
    asked = (str(edits), grid, sampling)
    measured, seconds = page_state.get("measured", (None, None))
    if "measure" in page_state:
        measured, seconds = page_state["measured"] = (page_state.pop("measuring"), page_state.pop("measure"))
    off = edits is None or job is not None
    with buttons:
        if st.button("Sweep", icon=":material/play_arrow:", type="primary", disabled=off):
            known = seconds if measured == asked else None
            runner.start("sweep", lambda model, sae: work.dose_response(store, model, sae, edits, grid, sampling, known))
            st.rerun()
        if st.button(
            "Estimate time", icon=":material/timer:", disabled=off, help="Takes about a tenth of the time of one strength"
        ):
            page_state["measuring"] = asked
            runner.start("measure", lambda model, sae: work.measure(store, model, sae, edits, grid, sampling))
            st.rerun()
    bar = None
    with results.container():
        sweeps.cost(grid, sampling.max_new_tokens, seconds if measured == asked else None)
        if job is not None and job.kind == "sweep":
            bar = st.empty()
            bar.progress(*sweeps.progress(job.progress))
            if "sweep" in job.progress:
                sweeps.result(job.progress["sweep"], f"live {id(job)} {len(job.progress['sweep'].runs)}")
        elif isinstance(run, Sweep):
            replay_result()
            sweeps.result(run, open_name())
            files(run, open_name())
            with st.expander("Self-check, strength by strength"):
                for strength, one in zip(run.strengths, run.runs, strict=True):
                    st.caption(f"**Strength {strength:g}**")
                    conditions.warnings(one)
                    conditions.self_check(one)
    return bar


def choose_picture(run: SteeringRun | Sweep | None) -> None:
    """The picture that the prompts are about; of an opened run, the one that it was made about, where the pack has it."""
    made_about = None if run is None else _one(run).model.get("picture_sha256")
    if made_about is not None and page_state.get("picture of") != st.query_params.get("run"):
        page_state["picture of"] = st.query_params.get("run")
        context = picture_choice.context_of(store, made_about)
        if context is not None:
            st.session_state[f"{PICTURE} source"], st.session_state[f"{PICTURE} context"] = "pack", context
    chosen = picture_choice.choose(store, PICTURE)
    runner.picture = None if chosen is None else chosen.picture
    if chosen is not None:
        pictures([picture_choice.chosen_card(chosen)], key="steered picture", wide=150)
        if made_about not in (None, picture_choice.sha256_of(chosen.picture)):
            st.caption("The open run was made about another picture.")


def _one(run: SteeringRun | Sweep) -> SteeringRun:
    return run.runs[0] if isinstance(run, Sweep) else run


if store.site_out is not None:
    st.info(
        plain(f"This pack is of a transcoder, {store.place}: its latents predict one site from another and add up to neither.")
        + "  \nEdits need the pack of an SAE, whose latents add up to the activations that it reads."
    )
    raise session.PageDrawn
if not pack_facts.steers(store):
    places = {"vision": "the tower that sees", "text": "the tower that reads"}
    what = places.get(store.site.split(".")[0], "the way from pictures to the language model")
    st.info(
        plain(f"This pack is of {store.site}, {what}. Edits act at the tokens of a language model.")
        + "  \nOpen a pack of a PaliGemma's own blocks: its latents can be edited at the patches of a picture, or at the text."
    )
    raise session.PageDrawn
if of_pictures and st.session_state.get("steer prompt", controls.PROMPT) == controls.PROMPT:
    st.session_state["steer prompt"] = pack_facts.asked_of_pictures(store) or "caption en"
opened = None
try:
    opened = open_address()
    if opened is None and (unsaved := page_state.get("unsaved")) is not None:
        opened = unsaved.run
        st.warning(plain(f"This run could not be saved. {unsaved.reason}. Download it: a reload of this page loses it."))
except ScopeError as refusal:
    messages.show_refusal(refusal)
    if not edit_list.rows(slug) and "run" not in st.query_params:
        st.stop()
job: Job | None = page_state.get("job")
with st.container(horizontal=True, vertical_alignment="center", key="steer head"):
    st.title(edit_list.title(store, slug), anchor=False, width="content")
    state.choose_view(VIEWS)
view = st.session_state["steer view"]
asks = view in ("Compare", "Effects")
column, beside = st.columns([3, 2], gap="medium") if asks else (st.container(), st.container())
written, amount = column.container(), beside.container()
buttons = (column if asks else st).container(horizontal=True, vertical_alignment="center", key="steer buttons")
settings = state.drawer() if view != "Saved runs" else st.container()
status = st.container()
results = st.empty()
places, bar = [], None
with status:
    line = runner.status_line()
if of_pictures and view != "Saved runs":
    with written:
        choose_picture(opened)
try:
    if view == "Compare":
        places = compare(opened, job)
    elif view == "Sweep":
        bar = sweep(opened, job)
    elif view == "Effects":
        with settings:
            edits, more = edits_and(job)
        with written:
            asked = effects.controls()
        with buttons:
            effects.start(runner, edits, job, *asked)
        with results.container():
            effects.draw(runner, asked[-1])
    else:
        with results.container():
            saved.listed(runs, st.query_params.get("run"), lambda label, name: session.link("steer", label, run=name))
except ScopeError as refusal:
    messages.show_refusal(refusal)
if job is not None:
    runner.show_progress(job, line, places, bar)
