"""Runs a reader's jobs for the Steer page, one at a time: start, progress, result."""

from collections.abc import Callable
from typing import Any

import streamlit as st
from scope.app.kit import messages
from scope.app.kit.plain import plain
from scope.app.serve import models, session
from scope.app.serve.jobs import Job
from scope.app.steer import conditions, edit_list
from scope.app.steer import sweep as sweeps
from scope.app.steer.state import NO_TEMPLATE, in_address
from scope.app.steer.work import Unsaved, Work

from scope.errors import EditError, ScopeError
from scope.features.face import Pack

VERBS = {
    "compare": "Generating",
    "replay": "Replaying",
    "sweep": "Sweeping",
    "measure": "Measuring the expected time",
    "effects": "Measuring effects",
    "attribution": "Attributing",
    "direction": "Reading the prompts",
}


class Runner:
    """The jobs of one reader for one pack. `state` is a part of the reader's session state."""

    def __init__(self, store: Pack, slug: str, state: dict[str, Any]):
        self.store, self.slug, self.state = store, slug, state
        self.picture: Any = None
        """What a model that reads pictures is asked about."""

    def start(self, kind: str, make: Callable[[Any, Any], Work]) -> None:
        """Load model and SAE and queue a job; `make(model, sae)` gives its work."""
        self.state.pop("refused", None)
        try:
            with models.memory_errors():
                model, sae = models.load(self.store)
                model = self._with_picture(model)
            self.state["sae"] = sae
            self.state["chat"] = "" if model.words.chat_template else NO_TEMPLATE
            reader = (
                None if kind == "sweep" else _reader_present()
            )  # a sweep lets others go first, and continues without a reader
            self.state["job"] = Job(kind, _memory_checked(make(model, sae)), models.queue(), model, reader).start()
        except ScopeError as refusal:
            self.state["refused"] = refusal

    def _with_picture(self, model: Any) -> Any:
        """The model that reads every prompt after the chosen picture; of a pack of text, the model.

        Raises:
            EditError: no picture is chosen.
        """
        if self.store.pictures is None:
            return model
        if self.picture is None:
            raise EditError("No picture is chosen.\n  Choose one of the pack, or give a file of yours, on the left.")
        from scope.models.paligemma.pictured import with_picture  # needs torch, which browsing does not

        return with_picture(model, self.picture)

    def finish(self, job: Job) -> None:
        """Put the result of a finished job where the page shows it."""
        self.state.pop("job", None)
        if job.error is not None:
            self.state["refused"] = job.error
        elif job.state == "done" and job.result is not None:
            if isinstance(job.result, Unsaved):
                self.state["unsaved"] = job.result
                st.query_params.from_dict(session.params(**in_address()))
            elif job.kind in ("compare", "sweep"):
                self.state.pop("unsaved", None)
                self.state["new run"] = job.result
                st.query_params.from_dict(session.params(run=job.result, **in_address()))
            elif job.kind == "direction":
                edit_list.add(self.slug, job.result)
            elif job.kind == "replay":
                self.state["replayed"] = (st.query_params.get("run"), job.result)
            else:
                self.state[job.kind] = job.result
        elif job.kind == "replay" and job.stopping:
            self.state["message"] = "The replay was stopped, so it is unknown whether the texts are the same."
        elif job.state == "cancelled":
            self.state["message"] = "Cancelled before it began."
        st.rerun()

    def status_line(self) -> Any:
        """The line above the views: errors, the running job, and the button that stops it. Returns its placeholder."""
        refused = self.state.get("refused")
        if isinstance(refused, ScopeError):
            messages.show_refusal(refused)
        elif refused is not None:
            st.error(plain(f"{type(refused).__name__}: {refused}"), icon=":material/error:")
        if "message" in self.state:
            st.info(self.state.pop("message"))
        job: Job | None = self.state.get("job")
        if job is None:
            return None
        with st.container(horizontal=True, vertical_alignment="center"):
            line = st.empty()
            label, way = ("Cancel", "Leaves the queue") if job.ahead else ("Stop", "Keeps the texts so far")
            st.button(label, icon=":material/stop:", key="steer stop", on_click=job.stop, help=way, disabled=job.stopping)
        return line

    def show_progress(self, job: Job, line: Any, places: list[Any], bar: Any) -> None:
        """Show the job's progress until it ends. A click interrupts this; the job continues, and the next run returns here."""
        waiting, swept, drawn = job.ahead, job.progress.get("sweep"), None
        while not job.wait(0.08):
            ahead = job.ahead
            if bool(ahead) != bool(waiting) or job.progress.get("sweep") is not swept:
                st.rerun()  # Cancel becomes Stop, or another strength is finished
            what = VERBS[job.kind]
            if ahead:
                line.info(f"Waiting: {ahead} ahead of you. Your job starts by itself.", icon=":material/hourglass:")
            elif job.stopping:
                line.info(f"{what}: stopping at the next token.", icon=":material/hourglass:")
            else:
                written = max(map(len, job.progress.get("ids", [[]])), default=0)
                line.info(f"{what}" + (f": {written} tokens" if written else " …"), icon=":material/play_arrow:")
            if places and "ids" in job.progress and (lengths := [len(ids) for ids in job.progress["ids"]]) != drawn:
                n, words = job.progress["n"], job.model.words
                grown = [words.decode(list(ids)) for ids in job.progress["ids"]]
                conditions.streamed(job.progress["conditions"], [grown[i : i + n] for i in range(0, len(grown), n)], places)
                drawn = lengths
            if bar is not None:
                bar.progress(*sweeps.progress(job.progress))
        self.finish(job)


def _memory_checked(work: Work) -> Work:
    """The work, with memory errors as refusals."""

    def checked(job: Job) -> Any:
        with models.memory_errors():
            return work(job)

    return checked


def _reader_present() -> Callable[[], bool] | None:
    """A function that says whether this reader's page is still open; None without a server."""
    from streamlit.runtime import exists, get_instance
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    context = get_script_run_ctx()
    if context is None or not exists():
        return None
    server, reader = get_instance(), context.session_id
    return lambda: server.is_active_session(reader)
