"""What the Steer page keeps between its parts: what was asked for, names of conditions, and keys of controls."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from scope.errors import CheckpointError, EditError
from scope.models.checkpoints import find_checkpoint
from scope.models.text.sampling_config import SamplingConfig
from scope.models.text.tokenizer import Tokenizer

NO_TEMPLATE = "No chat: this checkpoint's tokenizer has no chat template, as base models have none. Prompts are continued."
ARM_NAMES = {
    "plain": "Plain",
    "steered": "Steered",
    "random": "Random direction",
    "other": "Other latent",
    "prompt": "Asked for",
}


@dataclass(frozen=True)
class Asked:
    """What the controls of a comparison say."""

    prompt: str
    turns: list[dict[str, str]] | None
    sampling: SamplingConfig
    n: int
    arms: tuple[str, ...]
    instruction: str | None


@dataclass(frozen=True)
class Grid:
    """What is to be tried."""

    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    n: int
    arms: tuple[str, ...]
    by: str

    @property
    def texts(self) -> int:
        return len(self.prompts) * len(self.strengths) * self.n * len(self.arms)


def arm_name(name: str) -> str:
    """As "Random direction 2" for random:1."""
    kind, _, more = name.partition(":")
    return f"{ARM_NAMES.get(kind, kind)} {int(more) + 1}" if more.isdecimal() else ARM_NAMES.get(kind, kind)


def kept(name: str, usual: Any) -> dict[str, Any]:
    """The key of a control whose value is kept while other pages are looked at, set once to what is usual."""
    key = f"steer {name}"
    st.session_state.setdefault(key, usual)
    return {"key": key, "persist_state": "session"}


def check_turns(turns: list[dict[str, str]]) -> None:
    """That somebody says something in every turn.

    Raises:
        EditError: a turn is empty.
    """
    empty = next((i for i, turn in enumerate(turns) if not turn["content"].strip()), None)
    if empty is not None:
        who = "model" if turns[empty]["role"] == "assistant" else "user"
        raise EditError(f"Turn {empty + 1}, of the {who}, is empty. Write something, or take it away.")


def chat_template(name: str) -> str | None:
    """Why a model cannot chat, "" if it can, None where that is known only once it is loaded."""
    if name != "bundled" and not Path(name).expanduser().is_dir():
        return None
    try:
        return "" if Tokenizer.from_folder(find_checkpoint(name)).chat_template else NO_TEMPLATE
    except CheckpointError as refusal:
        return f"No chat: {str(refusal).splitlines()[0]}"
