"""Saved runs: their list, a run's downloads, and the comparison of a replay with the original."""

from collections.abc import Callable, Sequence
from datetime import datetime

import streamlit as st
from scope.app.kit.plain import plain, show_line

from scope.steering.compare.saved_runs import Runs
from scope.steering.compare.steer import SteeringRun
from scope.steering.compare.sweep import Sweep
from scope.steering.export.page import as_page
from scope.steering.export.script import as_notebook, as_python


def listed(runs: Runs, opened: str | None, link: Callable[[str, str], None], most: int = 20) -> None:
    """The newest runs as links. `link(label, name)` draws one; labels are plain already."""
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
    if damaged:
        st.warning(plain(f"These cannot be read: {', '.join(damaged)} in {runs.folder}."), icon=":material/healing:")


def downloads(
    run: SteeringRun | Sweep, name: str, dictionaries: Sequence[str], address: str, forget: Callable[[], None]
) -> None:
    """Downloads of a run, its link, and a button that deletes it. A file is written when it is requested."""
    sweep = isinstance(run, Sweep)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        _file(
            "JSON", run.to_json, f"steering-{name}.json", "application/json", "The whole run, as scope steer --replay reads it"
        )
        page = (lambda: as_page(run)) if sweep else (lambda: as_page(run, as_python(run, dictionaries)))
        _file("HTML", page, f"steering-{name}.html", "text/html", "One page, no script")
        if not sweep:
            _file(
                "Python",
                lambda: as_python(run, dictionaries),
                f"steering-{name}.py",
                "text/x-python",
                "A script that generates the same texts",
            )
            _file(
                "Notebook",
                lambda: as_notebook(run, dictionaries),
                f"steering-{name}.ipynb",
                "application/x-ipynb+json",
                "The same script in cells",
            )
        with st.popover("Link", icon=":material/link:", type="tertiary"):
            st.code(address, language=None)
        if not sweep:
            with st.popover("Code", icon=":material/code:", type="tertiary", on_change="rerun", key=f"code {name}") as code:
                if code.open:
                    st.code(as_python(run, dictionaries), language="python")
        with st.popover("Delete", icon=":material/delete:", type="tertiary"):
            st.caption("Deletes the saved run; its link will no longer work.")
            st.button("Delete this run", key=f"forget {name}", on_click=forget)


def _file(label: str, make: Callable[[], str], file: str, kind: str, meaning: str) -> None:
    st.download_button(
        label,
        make,
        file,
        kind,
        icon=":material/download:",
        type="tertiary",
        key=f"file {file}",
        help=meaning,
        on_click="ignore",
    )


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
