"""Between the Steering page and the model: one job at a time for each reader, from its beginning to what it brought."""

from collections.abc import Callable
from typing import Any

import streamlit as st
from scope.app.kit import messages
from scope.app.kit.plain import plain
from scope.app.serve import models, session
from scope.app.serve.jobs import Job
from scope.app.steer import conditions as arms
from scope.app.steer import edit_list as stack
from scope.app.steer import state
from scope.app.steer import sweep as sweeps
from scope.app.steer.work import Work

from scope.errors import ScopeError
from scope.features.face import Pack

DOES = {
    "compare": "Generating",
    "replay": "Replaying",
    "sweep": "Sweeping",
    "measure": "Measuring how long it takes",
    "effects": "Measuring effects",
    "attribution": "Attributing",
    "direction": "Reading the prompts",
}


class Desk:
    """What one reader has asked of the model for one pack. `mine` is kept with the reader's session."""

    def __init__(self, store: Pack, slug: str, mine: dict[str, Any]):
        self.store, self.slug, self.mine = store, slug, mine

    def begin(self, kind: str, make: Callable[[Any, Any], Work]) -> None:
        """Load what is needed and get in line; `make(model, sae)` gives the work."""
        self.mine.pop("refused", None)
        try:
            with models.memory_errors():
                model, sae = models.load(self.store)
            self.mine["sae"] = sae
            self.mine["chat"] = "" if model.words.chat_template else state.NO_TEMPLATE
            here = None if kind == "sweep" else _here()  # a sweep lets others go first, and may run on without a reader
            self.mine["job"] = Job(kind, _spared(make(model, sae)), models.queue(), model, here).start()
        except ScopeError as refusal:
            self.mine["refused"] = refusal

    def take(self, job: Job) -> None:
        """What a finished job brought, put where the page shows it."""
        self.mine.pop("job", None)
        if job.error is not None:
            self.mine["refused"] = job.error
        elif job.state == "done" and job.result is not None:
            if job.kind in ("compare", "sweep"):
                self.mine["made"] = job.result
                st.query_params.from_dict(session.params(run=job.result))
            elif job.kind == "direction":
                stack.add(self.slug, job.result)
            elif job.kind == "replay":
                self.mine["replayed"] = (st.query_params.get("run"), job.result)
            else:
                self.mine[job.kind] = job.result
        elif job.kind == "replay" and job.stopping:
            self.mine["told"] = "The replay was stopped, so nothing is known of whether the texts are the same."
        elif job.state == "cancelled":
            self.mine["told"] = "Cancelled before it began."
        st.rerun()

    def line(self) -> Any:
        """The line above the views: what is at work, how many are before it, and the button that ends it."""
        refused = self.mine.get("refused")
        if isinstance(refused, ScopeError):
            messages.show_refusal(refused)
        elif refused is not None:
            st.error(plain(f"{type(refused).__name__}: {refused}"), icon=":material/error:")
        if "told" in self.mine:
            st.info(self.mine.pop("told"))
        job: Job | None = self.mine.get("job")
        if job is None:
            return None
        with st.container(horizontal=True, vertical_alignment="center"):
            line = st.empty()
            label, way = ("Cancel", "Gives up the place in the line") if job.ahead else ("Stop", "Keeps the text so far")
            st.button(label, icon=":material/stop:", key="steer stop", on_click=job.stop, help=way, disabled=job.stopping)
        return line

    def attend(self, job: Job, line: Any, places: list[Any], bar: Any) -> None:
        """Show how far the job is until it ends. A click interrupts this, the job goes on, and the next run comes here."""
        waiting, swept, drawn = job.ahead, job.progress.get("sweep"), None
        while not job.wait(0.08):
            ahead = job.ahead
            if bool(ahead) != bool(waiting) or job.progress.get("sweep") is not swept:
                st.rerun()  # Cancel becomes Stop, or one more strength is done
            what = DOES[job.kind]
            if ahead:
                line.info(f"Waiting: {ahead} before you have the model. Yours begins by itself.", icon=":material/hourglass:")
            elif job.stopping:
                line.info(f"{what}: stopping at the next token.", icon=":material/hourglass:")
            else:
                written = max(map(len, job.progress.get("ids", [[]])), default=0)
                line.info(f"{what}" + (f": {written} tokens" if written else " …"), icon=":material/play_arrow:")
            if places and "ids" in job.progress and (state := [len(ids) for ids in job.progress["ids"]]) != drawn:
                n, words = job.progress["n"], job.model.words
                grown = [words.decode(list(ids)) for ids in job.progress["ids"]]
                arms.streamed(job.progress["arms"], [grown[i : i + n] for i in range(0, len(grown), n)], places)
                drawn = state
            if bar is not None:
                bar.progress(*sweeps.progress(job.progress))
        self.take(job)


def _spared(work: Work) -> Work:
    """Where the memory does not suffice, a job is refused as everything else is."""

    def done(job: Job) -> Any:
        with models.memory_errors():
            return work(job)

    return done


def _here() -> Callable[[], bool] | None:
    """Whether this reader's page is still open; None where there is no server that knows."""
    from streamlit.runtime import exists, get_instance
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    context = get_script_run_ctx()
    if context is None or not exists():
        return None
    server, reader = get_instance(), context.session_id
    return lambda: server.is_active_session(reader)
