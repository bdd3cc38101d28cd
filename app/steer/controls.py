"""What is continued and how: a prompt or the turns of a chat, the sampling, and the arms."""

import re
from collections.abc import Sequence

import streamlit as st
from scope.app.kit.plain import plain
from scope.app.steer.state import ARM_NAMES, kept

from scope.models.text.sampling_config import SamplingConfig
from scope.steering.compare.steer import CONDITIONS

LONGEST_TEXT = 4096
MOST_TOKENS = 1_000_000
_SPELLED = {"n": "\n", "r": "\r", "t": "\t", "s": " ", "\\": "\\"}
FIRST_ARMS = {"plain", "steered", "random"}


def prompt(why_no_chat: str | None) -> tuple[str, list[dict[str, str]] | None]:
    """(the text to continue, None) or ("", turns). `why_no_chat` greys the chat out and says why."""
    chat = st.toggle(
        "Chat",
        disabled=why_no_chat is not None,
        help=why_no_chat or "ModelQueue are laid out by the checkpoint's own template.",
        **kept("chat", False),
    )
    if why_no_chat is not None:
        st.caption(plain(why_no_chat))
    if not chat or why_no_chat is not None:
        text = st.text_area("Prompt", height=90, **kept("prompt", "My favourite hobby is"))
        return text, None
    return "", _turns()


def _turns() -> list[dict[str, str]]:
    """User and model in turn; the last word is the user's."""
    exchanges = st.session_state.setdefault("steer exchanges", 1)
    turns = []
    for i in range(exchanges):
        if i:
            said = st.text_area("Model", height=70, **kept(f"said {i}", ""))
            turns.append({"role": "assistant", "content": said})
        asked = st.text_area("User", height=70, **kept(f"asked {i}", "What is your favourite hobby?" if not i else ""))
        turns.append({"role": "user", "content": asked})
    with st.container(horizontal=True):
        st.button("Add a turn", icon=":material/add:", type="tertiary", on_click=_exchanges, args=(1,))
        if exchanges > 1:
            st.button("Remove the last", icon=":material/remove:", type="tertiary", on_click=_exchanges, args=(-1,))
    return turns


def _exchanges(more: int) -> None:
    st.session_state["steer exchanges"] = max(1, st.session_state.get("steer exchanges", 1) + more)


def sampling(several: bool = True) -> tuple[SamplingConfig, int]:
    """How tokens are drawn, and how many texts there are for each arm, where `several` is asked for."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        length = st.number_input("New tokens", 1, LONGEST_TEXT, step=8, width=110, **kept("tokens", 64))
        temperature = st.number_input("Temperature", 0.0, 10.0, step=0.1, width=110, **kept("temperature", 0.7))
        top_k = st.number_input(
            "Top k", 1, MOST_TOKENS, value=None, step=1, width=100, placeholder="all", **kept("top k", None)
        )
        top_p = st.number_input("Top p", 0.01, 1.0, step=0.05, width=100, **kept("top p", 0.95))
        penalty = st.number_input("Repetition penalty", 0.1, 10.0, step=0.1, width=150, **kept("penalty", 1.1))
        seed = st.number_input("Seed", 0, 2**53 - 1, step=1, width=110, **kept("seed", 0))
        n = 1
        if several:
            n = st.number_input("Texts", 1, 16, step=1, width=100, help="For each arm, each with its own noise", **kept("n", 1))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        stops = st.text_area(
            "Stop strings, one a line",
            height=68,
            width=268,
            placeholder="none",
            help=r"A text ends where one of them appears. `\n` is a line break, `\t` a tab, `\s` a space, `\\` a backslash.",
            **kept("stops", ""),
        )
        ends = st.checkbox(
            "End tokens end a text",
            help="If not, they are written like any other, and the text goes on.",
            **kept("at eos", True),
        )
    config = SamplingConfig(
        max_new_tokens=int(length),
        temperature=float(temperature),
        top_k=None if top_k is None else int(top_k),
        top_p=None if top_p >= 1 else float(top_p),
        repetition_penalty=float(penalty),
        seed=int(seed),
        stop=read_stops(stops),
        stop_at_eos=ends,
    )
    return config, int(n)


def read_stops(text: str) -> tuple[str, ...]:
    """Stop strings as they are written, one a line, with what a line cannot hold spelled out; empty lines are none."""
    lines = [line for line in text.split("\n") if line.strip()]
    return tuple(re.sub(r"\\([nrts\\])", lambda found: _SPELLED[found[1]], line) for line in dict.fromkeys(lines))


def write_stops(stops: Sequence[str]) -> str:
    """As `read_stops` reads them back."""
    spelled = {char: f"\\{letter}" for letter, char in _SPELLED.items() if char != " "}
    lines = ["".join(spelled.get(char, char) for char in stop) for stop in stops]
    return "\n".join(line if line.strip() else line.replace(" ", r"\s") for line in lines)


def arms() -> tuple[tuple[str, ...], str | None]:
    """Which arms are written, and what the arm that only asks begins with (None: what the latents promote)."""
    with st.container(horizontal=True, vertical_alignment="center"):
        chosen = []
        for name, meaning in CONDITIONS.items():
            always = name == "steered"
            control = kept(f"arm {name}", name in FIRST_ARMS)
            on = st.checkbox(ARM_NAMES[name], disabled=always, help=meaning[0].upper() + meaning[1:] + ".", **control)
            if on or always:
                chosen.append(name)
    instruction = None
    if "prompt" in chosen:
        written = st.text_input(
            "What the prompt begins with where nothing is edited", placeholder="Talk about what it promotes", **kept("ask", "")
        )
        instruction = written if written.strip() else None
    return tuple(chosen), instruction


def put(prompt: str, config: SamplingConfig, n: int, names: list[str], instruction: str | None) -> None:
    """Set the controls to those of a saved run."""
    values = {
        "chat": False,
        "prompt": prompt,
        "tokens": min(config.max_new_tokens, LONGEST_TEXT),
        "temperature": min(max(float(config.temperature), 0.0), 10.0),
        "top k": None if config.top_k is None else min(config.top_k, MOST_TOKENS),
        "stops": write_stops(config.stop),
        "at eos": config.stop_at_eos,
        "top p": 1.0 if config.top_p is None else max(float(config.top_p), 0.01),
        "penalty": min(max(float(config.repetition_penalty), 0.1), 10.0),
        "seed": min(max(int(config.seed), 0), 2**53 - 1),
        "n": min(n, 16),
        "ask": instruction or "",
    }
    values |= {f"arm {name}": name in names for name in CONDITIONS}
    for name, value in values.items():
        st.session_state[f"steer {name}"] = value
