"""The settings of the Steer page in its address, so that a reload or a restart of the server in mid-work loses none of them.

They stand there while they differ from what the rest of the address gives: a fresh page, or the saved run that it opens.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import streamlit as st
from scope.app.steer import controls, edit_list

from scope.errors import EditError, ScopeError
from scope.features.face import Pack
from scope.models.text.sampling_config import SamplingConfig
from scope.steering.compare.steer import USUAL
from scope.steering.edits.interventions import Edits, edit_from
from scope.typed_json import parse_json, typed

PARAMETER = "draft"
LONGEST = 6000
"""Most characters that an address carries; browsers and proxies take 8,000."""


@dataclass(frozen=True)
class Draft:
    """What a reader has set. Directions are left out: their vectors are too long for an address."""

    view: Literal["Compare", "Sweep"] = "Compare"
    """Also in the address on its own; here for addresses of earlier versions."""
    prompt: str = ""
    turns: list[dict[str, str]] | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    """Where it differs from the usual."""
    n: int = 1
    conditions: tuple[str, ...] = ()
    instruction: str | None = None
    edits: list[dict[str, Any]] = field(default_factory=list)
    sweep: tuple[str, str] | None = None
    """Prompts and strengths of a sweep, as they were typed."""


def as_sampling(config: SamplingConfig) -> dict[str, Any]:
    """The settings that differ from the usual."""
    usual = asdict(SamplingConfig())
    return {name: value for name, value in asdict(config).items() if value != usual[name]}


def as_edits(edits: Edits | None) -> list[dict[str, Any]]:
    """The edits of latents and of tokens as JSON."""
    return [edit.to_dict() for edit in edits or () if not edit.on_direction]


def keep(draft: Draft, pristine: Draft | None) -> None:
    """Write the draft into the address; remove it where it says nothing new, or is too long."""
    usual = asdict(Draft())
    content = {name: value for name, value in asdict(draft).items() if value != usual[name]}
    text = json.dumps(content, separators=(",", ":"))
    if draft == pristine or len(text) > LONGEST:
        st.query_params.pop(PARAMETER, None)
    elif st.query_params.get(PARAMETER) != text:
        st.query_params[PARAMETER] = text


def read(text: str, store: Pack) -> Draft:
    """The draft in an address.

    Raises:
        EditError: it is none.
    """
    try:
        draft = typed(parse_json(text, "It", EditError), Draft, "It", EditError)
        typed(asdict(SamplingConfig()) | draft.sampling, SamplingConfig, "Its sampling", EditError)
        for edit in map(edit_from, draft.edits):
            _ = store[edit.latent] if edit.on_latent else None
        for turn in draft.turns or ():
            _ = turn["role"], turn["content"]
    except (ScopeError, KeyError) as problem:
        raise EditError(f"The settings in this address cannot be read, so they were not set: {problem}") from None
    return draft


def restore(draft: Draft, slug: str) -> None:
    """Set the controls to a draft."""
    sampling = typed(asdict(SamplingConfig()) | draft.sampling, SamplingConfig, "Its sampling", EditError)
    names, n = list(draft.conditions) or list(USUAL), max(1, draft.n)
    controls.set_controls(draft.prompt or controls.PROMPT, sampling, n, names, draft.instruction)
    if draft.turns:
        controls.set_turns(draft.turns)
    if draft.edits:
        edit_list.set_rows(slug, Edits([edit_from(edit) for edit in draft.edits]))
    if draft.sweep is not None:
        st.session_state["steer sweep prompts"], st.session_state["steer sweep strengths"] = draft.sweep
