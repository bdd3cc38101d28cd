"""The Monitor page: a text with its score by token, threshold and alarm; what the monitor is worth beside its nulls."""

import streamlit as st
from scope.app.kit import messages
from scope.app.kit.code import heading
from scope.app.kit.plain import plain
from scope.app.monitor import panels
from scope.app.serve import session

from scope.errors import ScopeError

store = session.pack()
folders = panels.folders_of(store)


def offer() -> None:
    """The command that makes a monitor."""
    st.info(
        "There is no monitor beside this pack. A monitor gives each text one score, read off the model's activations, and an "
        "alarm above a threshold. This command fits one to labelled texts, and says what it is worth beside a bag of words, "
        "shuffled labels and random directions."
    )
    beside = store.folder.absolute().parent / "monitor"
    st.code(
        f"scope monitor fit LABELLED.jsonl --latents auto --pack {store.folder} --out {beside}", language=None, wrap_lines=True
    )
    st.caption(plain('A line of LABELLED.jsonl: {"text": "...", "label": 1}. Then load this page again.'))


def live(folder: str, monitor) -> None:
    """The text box, and the text's score by token."""
    lines = f'import scope\n\nrun = scope.run_monitor({folder!r}, text="a text")\nrun.rows[0]'
    meaning = "Each token has a score; the text's score is the " + monitor.aggregation + " of them."
    heading("A text of yours", lines, "py monitor", meaning=meaning)
    text = st.text_area("Text", key="monitor text", height=90, placeholder="The river runs to the sea.")
    messages.show_turning_marks(text)
    st.button("Score", icon=":material/play_arrow:", type="primary", help="Runs the model, which is loaded on first use.")
    if not text.strip():
        st.caption("Write a text and press Score. Nothing leaves this machine.")
        return
    try:
        row, note = panels.scored(store, folder, text)
    except ScopeError as refusal:
        messages.show_refusal(refusal)
        return
    if note:
        st.warning(plain(note))
    panels.verdict(monitor, row)
    panels.strip(monitor, row)


st.title("Monitor", anchor=False)
monitors, refusals = panels.opened(folders)
for refusal in refusals:
    st.warning(plain(refusal))
if not monitors:
    offer()
else:
    chosen = st.selectbox(
        "Monitor", list(monitors), key=f"monitor {store.folder}", format_func=lambda n: panels.title(n, monitors[n])
    )
    monitor = monitors[chosen]
    st.caption(plain(panels.summary(monitor)))
    live(folders[chosen], monitor)
    lines = f"import scope\n\nmonitor = scope.open_monitor({folders[chosen]!r})\n"
    heading("What it is worth", lines + "monitor.to_frame()", "py worth", meaning="On test texts that nothing was chosen on.")
    panels.tiles(monitor)
    panels.nulls(monitor)
    panels.groups(monitor)
    panels.limits(monitor)
