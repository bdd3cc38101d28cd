"""State that the parts of the Steer page share: the settings of a comparison and of a sweep, names, keys of controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from scope.errors import CheckpointError, EditError
from scope.models.adapters import find_model
from scope.models.checkpoints import SHIPPED, find_folder, read_config
from scope.models.text.sampling_config import SamplingConfig
from scope.models.text.tokenizer import Tokenizer

NO_TEMPLATE = "No chat: this checkpoint's tokenizer has no chat template, as base models have none. Prompts are continued."
CONDITION_NAMES = {
    "plain": "Plain",
    "steered": "Steered",
    "random": "Random direction",
    "other": "Other latent",
    "prompt": "Prompted instead",
}


@dataclass(frozen=True)
class Comparison:
    """The settings of a comparison."""

    prompt: str
    turns: list[dict[str, str]] | None
    sampling: SamplingConfig
    n: int
    conditions: tuple[str, ...]
    instruction: str | None


@dataclass(frozen=True)
class Grid:
    """The settings of a sweep."""

    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    n: int
    conditions: tuple[str, ...]
    by: str

    @property
    def texts(self) -> int:
        return len(self.prompts) * len(self.strengths) * self.n * len(self.conditions)


def condition_name(name: str) -> str:
    """A condition's name on the page, such as "Random direction 2" for random:1."""
    kind, _, more = name.partition(":")
    return f"{CONDITION_NAMES.get(kind, kind)} {int(more) + 1}" if more.isdecimal() else CONDITION_NAMES.get(kind, kind)


def remembered(name: str, default: Any) -> dict[str, Any]:
    """Arguments of a control whose value survives visits to other pages: its key, with a default, and that it persists."""
    key = f"steer {name}"
    st.session_state.setdefault(key, default)
    return {"key": key, "persist_state": "session"}


def check_turns(turns: list[dict[str, str]]) -> None:
    """Check that no turn of a chat is empty.

    Raises:
        EditError: a turn is empty.
    """
    empty = next((i for i, turn in enumerate(turns) if not turn["content"].strip()), None)
    if empty is not None:
        who = "model" if turns[empty]["role"] == "assistant" else "user"
        raise EditError(f"Turn {empty + 1}, of the {who}, is empty. Write something or remove it.")


def has_state(name: str) -> bool:
    """Whether a model has recurrent layers, as far as its config.json on this machine says so."""
    from huggingface_hub import try_to_load_from_cache

    base = name if Path(name).expanduser().is_dir() else name.partition("+")[0]
    try:
        if base in SHIPPED or Path(base).expanduser().is_dir():
            folder = find_folder(base)
        elif isinstance(file := try_to_load_from_cache(base, "config.json"), str):
            folder = Path(file).parent
        else:
            return False
        return read_config(folder).get("model_type") == "recurrent_gemma"
    except (CheckpointError, ValueError):  # no checkpoint, or no id of the hub
        return False


def chat_template(name: str) -> str | None:
    """Why a model cannot chat; "" if it can, None if that is known only once it is loaded."""
    if name not in SHIPPED and not Path(name).expanduser().is_dir():
        return None
    try:
        return "" if Tokenizer.from_folder(find_model(name).base).chat_template else NO_TEMPLATE
    except CheckpointError as refusal:
        return f"No chat: {str(refusal).splitlines()[0]}"


_VIEW, _DRAWER = "steer view", "steer drawer"


def choose_view(views: Sequence[str]) -> None:
    """The control of the view, which the address names."""
    st.segmented_control(
        "View",
        views,
        required=True,
        key=_VIEW,
        label_visibility="collapsed",
        persist_state="session",
        on_change=_write,
        width="content",
    )


def drawer() -> Any:
    """The drawer of all settings but prompt and strength. Whether it is open stands in the address."""
    return st.expander(
        "Settings: edits, sampling, conditions", icon=":material/tune:", key=_DRAWER, on_change=_write, expanded=False
    )


def follow_view(views: Sequence[str], follow: bool) -> None:
    """Set view and drawer as the address says, on arrival and after Back."""
    st.session_state.setdefault(_VIEW, views[0])
    if follow:
        st.session_state[_VIEW] = tab if (tab := st.query_params.get("tab")) in views else views[0]
        st.session_state[_DRAWER] = "drawer" in st.query_params


def in_address() -> dict[str, str]:
    """What the address says of view and drawer, where that is not the usual."""
    shown = {} if st.session_state.get(_VIEW, "Compare") == "Compare" else {"tab": st.session_state[_VIEW]}
    return shown | ({"drawer": "open"} if st.session_state.get(_DRAWER) else {})


def _write() -> None:
    now = in_address()
    rest = {name: value for name, value in st.query_params.to_dict().items() if name not in ("tab", "drawer")}
    st.query_params.from_dict(rest | now)
