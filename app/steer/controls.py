"""The controls of a comparison: the prompt or a chat, the sampling settings, and the conditions."""

import re
from collections.abc import Sequence

import streamlit as st
from scope.app.kit.messages import show_turning_marks
from scope.app.kit.plain import plain
from scope.app.steer.state import CONDITION_NAMES, remembered

from scope.models.text.sampling_config import SamplingConfig
from scope.steering.compare.steer import CONDITIONS

PROMPT = "In the morning"
LONGEST_TEXT = 4096
MOST_TOKENS = 1_000_000
_SPELLED = {"n": "\n", "r": "\r", "t": "\t", "s": " ", "\\": "\\"}
FIRST_CONDITIONS = {"plain", "steered", "random"}


def chats(why_no_chat: str | None) -> bool:
    """The switch between a text and a chat. `why_no_chat` is the reason why chat is disabled, if it is."""
    chat = st.toggle(
        "Chat",
        disabled=why_no_chat is not None,
        help=why_no_chat or "Turns are formatted by the checkpoint's chat template.",
        **remembered("chat", False),
    )
    if why_no_chat is not None:
        st.caption(plain(why_no_chat))
    return chat and why_no_chat is None


def prompt(chat: bool, question: bool = False) -> tuple[str, list[dict[str, str]] | None]:
    """(the text to continue, None) or ("", turns). `question`: the text is asked about a picture."""
    if chat:
        return "", _turns()
    text = st.text_area("Question about the picture" if question else "Prompt", height=90, **remembered("prompt", PROMPT))
    show_turning_marks(text)
    return text, None


def _turns() -> list[dict[str, str]]:
    """The turns of a chat, user and model in alternation, the user last."""
    exchanges = st.session_state.setdefault("steer exchanges", 1)
    turns = []
    for i in range(exchanges):
        if i:
            reply = st.text_area("Model", height=70, **remembered(f"reply {i}", ""))
            turns.append({"role": "assistant", "content": reply})
        message = st.text_area(
            "User", height=70, **remembered(f"message {i}", "What is your favourite hobby?" if not i else "")
        )
        show_turning_marks(message)
        turns.append({"role": "user", "content": message})
    with st.container(horizontal=True):
        st.button("Add a turn", icon=":material/add:", type="tertiary", on_click=_exchanges, args=(1,))
        if exchanges > 1:
            st.button("Remove the last turn", icon=":material/remove:", type="tertiary", on_click=_exchanges, args=(-1,))
    return turns


def _exchanges(more: int) -> None:
    st.session_state["steer exchanges"] = max(1, st.session_state.get("steer exchanges", 1) + more)


def set_turns(turns: Sequence[dict[str, str]]) -> None:
    """Set the chat to these turns."""
    st.session_state["steer chat"] = True
    st.session_state["steer exchanges"] = (len(turns) + 1) // 2
    for i, turn in enumerate(turns):
        name = f"reply {(i + 1) // 2}" if i % 2 else f"message {i // 2}"
        st.session_state[f"steer {name}"] = turn["content"]


def sampling(several: bool = True) -> tuple[SamplingConfig, int]:
    """The sampling settings, and the number of texts per condition if `several` can be set."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        length = st.number_input("New tokens", 1, LONGEST_TEXT, step=8, width=110, **remembered("tokens", 64))
        temperature = st.number_input("Temperature", 0.0, 10.0, step=0.1, width=110, **remembered("temperature", 0.7))
        top_k = st.number_input(
            "Top k", 1, MOST_TOKENS, value=None, step=1, width=100, placeholder="all", **remembered("top k", None)
        )
        top_p = st.number_input("Top p", 0.01, 1.0, step=0.05, width=100, **remembered("top p", 0.95))
        penalty = st.number_input("Repetition penalty", 0.1, 10.0, step=0.1, width=150, **remembered("penalty", 1.1))
        seed = st.number_input("Seed", 0, 2**53 - 1, step=1, width=110, **remembered("seed", 0))
        n = 1
        if several:
            n = st.number_input(
                "Texts", 1, 16, step=1, width=100, help="Per condition, each with its own random numbers", **remembered("n", 1)
            )
    with st.container(horizontal=True, vertical_alignment="bottom"):
        stops = st.text_area(
            "Stop strings, one per line",
            height=68,
            width=268,
            placeholder="none",
            help=r"A text ends at the first of them. `\n` is a line break, `\t` a tab, `\s` a space, `\\` a backslash.",
            **remembered("stops", ""),
        )
        ends = st.checkbox(
            "Stop at end tokens",
            help="Otherwise an end token is written like any other, and the text continues.",
            **remembered("at eos", True),
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
    """Stop strings from a text with one per line; escapes stand for line breaks, tabs and outer spaces."""
    lines = [line for line in text.split("\n") if line.strip()]
    return tuple(re.sub(r"\\([nrts\\])", lambda match: _SPELLED[match[1]], line) for line in dict.fromkeys(lines))


def write_stops(stops: Sequence[str]) -> str:
    """The text from which `read_stops` reads these stop strings."""
    spelled = {char: f"\\{letter}" for letter, char in _SPELLED.items() if char != " "}
    lines = ["".join(spelled.get(char, char) for char in stop) for stop in stops]
    return "\n".join(line if line.strip() else line.replace(" ", r"\s") for line in lines)


def conditions() -> tuple[tuple[str, ...], str | None]:
    """The chosen conditions, and the instruction of the condition "prompt" (None: from what the latents promote)."""
    with st.container(horizontal=True, vertical_alignment="center"):
        chosen = []
        for name, meaning in CONDITIONS.items():
            always = name == "steered"
            control = remembered(f"condition {name}", name in FIRST_CONDITIONS)
            on = st.checkbox(CONDITION_NAMES[name], disabled=always, help=meaning[0].upper() + meaning[1:] + ".", **control)
            if on or always:
                chosen.append(name)
    instruction = None
    if "prompt" in chosen:
        written = st.text_input(
            "Instruction before the unedited prompt", placeholder="Talk about what the latent promotes", **remembered("ask", "")
        )
        instruction = written if written.strip() else None
    return tuple(chosen), instruction


def set_controls(prompt: str, config: SamplingConfig, n: int, names: list[str], instruction: str | None) -> None:
    """Set the controls to the settings of a saved run."""
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
    values |= {f"condition {name}": name in names for name in CONDITIONS}
    for name, value in values.items():
        st.session_state[f"steer {name}"] = value
