"""The button shown where there is no pack: it runs a small `scope demo` beside the app."""

import subprocess
import sys
import time
from pathlib import Path
from threading import Lock

import streamlit as st
from scope.app.kit.plain import plain

FOLDER = Path("runs") / "quick-demo"
SIZE = ("--tokens", "40000", "--d-sae", "512", "--target-l0", "16", "--steps", "300")
STAGES = (
    ("recording/manifest.json", "Recording activations"),
    ("dictionary/cfg.json", "Training an SAE"),
    ("dictionary/evaluation.json", "Evaluating it"),
    ("pack/manifest.json", "Collecting features"),
)
"""What is running until a file exists in the folder."""


class DemoRun:
    """A process that runs the demo in a folder. It can be stopped; started again, it continues."""

    def __init__(self, folder: Path, command: list[str] | None = None):
        self.folder, self.began = folder, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "demo.log"
        line = command or [sys.executable, "-m", "scope.cli.main", "demo", "--no-app", "--out", str(folder), *SIZE]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def done(self) -> bool:
        return (self.folder / "pack" / "manifest.json").exists()

    def stage(self) -> tuple[int, str]:
        """(finished stages, name of the running one)."""
        for n, (file, name) in enumerate(STAGES):
            if not (self.folder / file).exists():
                return n, name
        return len(STAGES), "Steering with it"

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def last_lines(self) -> str:
        """The last lines of the process's output."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-8:])


_RUNS: dict[str, DemoRun] = {}
"""By folder, for all sessions, so that two never write one folder."""
_BEGINNING = Lock()


def start(folder: Path) -> None:
    """Start the demo unless it is running."""
    with _BEGINNING:
        name = str(folder.absolute())
        if name not in _RUNS or not _RUNS[name].running:
            _RUNS[name] = DemoRun(folder)


def stop_all() -> None:
    """End the demos that are running, when the server ends; started again, they continue."""
    for run in _RUNS.values():
        if run.running:
            run.stop()


def offer() -> None:
    """The button, and progress once pressed; the page opens on the pack when it is finished."""
    run = _RUNS.get(str(FOLDER.absolute()))
    if run is not None and run.running:
        watch()
        return
    if run is not None and not run.done:
        st.error(
            "The demo did not finish. Started again, it continues where it stopped. Its last output:", icon=":material/error:"
        )
        st.code(run.last_lines(), language=None)
    meaning = f"Runs a small scope demo into {FOLDER}: no network, about a minute on two cores."
    st.button("Make a demo pack", icon=":material/play_arrow:", type="primary", help=meaning, on_click=start, args=(FOLDER,))
    st.caption(plain(meaning))


@st.fragment(run_every=1.0)
def watch() -> None:
    """Progress of the demo; at its end the page runs again."""
    run = _RUNS.get(str(FOLDER.absolute()))
    if run is None or not run.running:
        st.rerun()
    n, stage = run.stage()
    st.progress(n / (len(STAGES) + 1), f"{stage}, {time.monotonic() - run.began:.0f} s so far")
    st.button("Stop", icon=":material/stop:", on_click=run.stop)
