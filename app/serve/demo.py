"""The way out where there is no pack: `scope demo`, small, run beside the app at the press of a button."""

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
    ("recording/manifest.json", "Harvesting activations"),
    ("dictionary/cfg.json", "Training a dictionary"),
    ("dictionary/evaluation.json", "Scoring it"),
    ("pack/manifest.json", "Collecting what each latent does"),
)
"""What is being done until a file lies in the folder."""


class Making:
    """One process that makes a small lab in a folder; it may be stopped, and picks up what is finished when begun again."""

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
        """(stages finished, what is being done)."""
        for n, (file, told) in enumerate(STAGES):
            if not (self.folder / file).exists():
                return n, told
        return len(STAGES), "Steering with it"

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def told(self) -> str:
        """The last lines that the process wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-8:])


@st.cache_resource(show_spinner=False)
def _makings() -> dict[str, Making]:
    """By folder, for all sessions: two must not make one lab."""
    return {}


_BEGINNING = Lock()


def begin(folder: Path) -> None:
    """Start, unless it runs already."""
    with _BEGINNING:
        known, name = _makings(), str(folder.absolute())
        if name not in known or not known[name].running:
            known[name] = Making(folder)


def offer() -> None:
    """The button, and how far it is once pressed; the page opens on the pack when it is there."""
    making = _makings().get(str(FOLDER.absolute()))
    if making is not None and making.running:
        watch()
        return
    if making is not None and not making.done:
        st.error(
            "The demo was not finished. Begun again, it goes on where it stopped. Its last words:", icon=":material/error:"
        )
        st.code(making.told(), language=None)
    told = f"Runs scope demo, small, into {FOLDER}: no network, about a minute on two cores."
    st.button("Make a demo pack", icon=":material/play_arrow:", type="primary", help=told, on_click=begin, args=(FOLDER,))
    st.caption(plain(told))


@st.fragment(run_every=1.0)
def watch() -> None:
    """How far the demo is; at its end the page is drawn anew."""
    making = _makings().get(str(FOLDER.absolute()))
    if making is None or not making.running:
        st.rerun()
    n, told = making.stage()
    st.progress(n / (len(STAGES) + 1), f"{told}, {time.monotonic() - making.began:.0f} s so far")
    st.button("Stop", icon=":material/stop:", on_click=making.stop)
