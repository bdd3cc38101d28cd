"""Saved runs: their list, a run's downloads, and the comparison of a replay with the original."""

from collections.abc import Callable, Sequence
from datetime import datetime

import streamlit as st
from scope.app.kit.messages import show_refusal
from scope.app.kit.plain import plain, show_line
from scope.app.serve import session

from scope.errors import EditError, ScopeError
from scope.provenance import ModelId
from scope.steering.compare.saved_runs import Runs, read_saved
from scope.steering.compare.steer import SteeringRun
from scope.steering.compare.sweep import Sweep
from scope.steering.export.page import as_page
from scope.steering.export.places import place_here, without_places
from scope.steering.export.script import as_notebook, as_python


def listed(runs: Runs, opened: str | None, link: Callable[[str, str], None], most: int = 20) -> None:
    """The newest runs as links. `link(label, name)` draws one; labels are plain already."""
    _open_file(runs)
    found, damaged = runs.newest(most)
    if not found and not damaged:
        st.caption("There are no saved runs yet. Every comparison and sweep is saved when it ends.")
        return
    for one in found:
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            when = datetime.fromtimestamp(one.saved).strftime("%d %b %H:%M")
            st.caption(when, width="content")
            if one.sweep:
                st.badge("sweep", color="gray")
            if one.name == opened:
                st.badge("open", color="orange")
            link(plain(f"{show_line(one.edits, 60)} · {show_line(one.prompt, 50)}"), one.name)
    rest = len(runs.names()) - most
    if rest > 0:
        st.caption(plain(f"{rest} older runs are in {runs.folder}."))
    if beside := runs.beside:
        st.info(
            plain(
                f"{beside} runs lie beside the pack, in {', '.join(map(str, runs.older))}, where earlier versions put them. "
                f"They are read; to move them with the pack, put the files into {runs.folder}."
            )
        )
    if damaged:
        st.warning(plain(f"These cannot be read: {', '.join(damaged)} in {runs.folder}."), icon=":material/healing:")


def _open_file(runs: Runs) -> None:
    """A field for a run that was exported as JSON, here or elsewhere: it is saved in this pack and opened."""
    given = st.file_uploader("Open an exported run", ["json"], key="steer run file", help="The JSON of a run or a sweep.")
    if given is not None and st.session_state.get("steer run opened") != given.file_id:
        try:
            name = runs.save(from_upload(given.getvalue()))
        except ScopeError as refusal:
            show_refusal(refusal)
            return
        st.session_state["steer run opened"] = given.file_id
        session.go("steer", run=name)


def from_upload(data: bytes) -> SteeringRun | Sweep:
    """The run in an uploaded file; a text that names a file of this machine is no run.

    Raises:
        EditError: there is no run in it.
    """
    text = data.decode(errors="replace")
    if not text.lstrip().startswith("{"):
        raise EditError("This file holds no steering run. Choose the JSON that the button “JSON” below a run's texts writes.")
    return read_saved(text)


def downloads(run: SteeringRun | Sweep, name: str, dictionaries: Sequence[str], delete: Callable[[], None]) -> None:
    """Downloads of a run, its link, and a button that deletes it."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        download_buttons(run, name, dictionaries)
        session.link_popover("steer", run=name)
        if isinstance(run, SteeringRun) and not _lacks_picture(run):
            with st.popover("Code", icon=":material/code:", type="tertiary", on_change="rerun", key=f"code {name}") as opened:
                if opened.open:
                    st.code(as_python(run, dictionaries, ModelId.of(run.model).name), language="python")
        with st.popover("Delete", icon=":material/delete:", type="tertiary"):
            st.caption("Deletes the saved run; its link will no longer work.")
            st.button("Delete this run", key=f"delete {name}", on_click=delete)


def download_buttons(run: SteeringRun | Sweep, name: str, dictionaries: Sequence[str]) -> None:
    """A run as files that name no folder of this machine; each is written when it is requested."""
    places = [place_here(place) for place in dictionaries]
    files: list[tuple[str, Callable[[], str], str, str, str]] = [
        (
            "JSON",
            lambda: without_places(run).to_json(),
            "json",
            "application/json",
            "As scope steer --replay reads it",
        ),
        ("HTML", lambda: as_page(run, *code()), "html", "text/html", "One page, no script"),
    ]

    def code() -> list[str]:
        return [as_python(run, places)] if isinstance(run, SteeringRun) and not _lacks_picture(run) else []

    if isinstance(run, SteeringRun) and not _lacks_picture(run):
        notebook = (lambda: as_notebook(run, places)), "ipynb", "application/x-ipynb+json"
        files.append(("Python", lambda: code()[0], "py", "text/x-python", "A script that generates the same texts"))
        files.append(("Notebook", *notebook, "The same script in cells"))
    for label, make, suffix, media, meaning in files:
        file, icon = f"steering-{name}.{suffix}", ":material/download:"
        usual = {"icon": icon, "type": "tertiary", "on_click": "ignore"}
        st.download_button(label, make, file, media, key=f"file {file}", help=meaning, **usual)


def _lacks_picture(run: SteeringRun) -> bool:
    """Whether it was made about a picture of which it holds no copy, as runs of earlier versions."""
    return "picture_sha256" in run.model and not run.picture


def replayed(before: SteeringRun | Sweep, again: SteeringRun | Sweep) -> tuple[bool, str]:
    """(whether the texts are the same, a sentence that says so or names the first difference and possible reasons)."""
    if before.same_texts(again):
        n = sum(len(condition.samples) for run in _runs(before) for condition in run.conditions)
        return True, f"Replayed: all {n} texts are the same, token by token."
    import torch

    versions = _runs(before)[0].versions
    message = (
        "Replayed, and the texts differ from the saved ones. "
        f"They were made with torch {versions.get('torch')}, scope {versions.get('scope')}; this is torch {torch.__version__}. "
        "Another machine or number of threads also rounds differently."
    )
    for run, other in zip(_runs(before), _runs(again), strict=False):
        for condition, new in zip(run.conditions, other.conditions, strict=True):
            for i, (old, new_sample) in enumerate(zip(condition.samples, new.samples, strict=True)):
                if old.new_ids != new_sample.new_ids:
                    same = next(
                        (k for k, pair in enumerate(zip(old.new_ids, new_sample.new_ids, strict=False)) if pair[0] != pair[1]),
                        None,
                    )
                    at = min(len(old.new_ids), len(new_sample.new_ids)) if same is None else same
                    return False, f"{message} The first difference: {condition.name}, text {i + 1}, token {at + 1}."
    return False, message


def _runs(run: SteeringRun | Sweep) -> list[SteeringRun]:
    return run.runs if isinstance(run, Sweep) else [run]
