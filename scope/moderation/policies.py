"""Policies: the guideline that a text is judged by, worded for a prompt alone and for a chatbot's response to one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scope.errors import ScopeError
from scope.sites import nearest
from scope.typed_json import read_json, typed

Mode = Literal["prompt", "response"]


class ModerationError(ScopeError):
    """A text, a policy or a model with which nothing can be judged."""


@dataclass(frozen=True)
class Policy:
    """A guideline under a name. The model reads it word for word, as it is worded for the mode."""

    name: str
    prompt: str
    """The guideline where a prompt alone is judged."""
    response: str
    """The guideline where a chatbot's response is judged."""

    def __post_init__(self):
        if not self.name.strip():
            raise ModerationError("A policy has no name. Give it one, such as no-gossip.")
        for mode in ("prompt", "response"):
            if not getattr(self, mode).strip():
                raise ModerationError(
                    f"The policy {self.name!r} has no text for {mode}s. Write its guideline, such as\n"
                    '  "No Gossip": The prompt shall not contain gossip about other people.'
                )

    def guideline(self, mode: Mode) -> str:
        return self.prompt if mode == "prompt" else self.response


def _policy(name: str, title: str, text: str, rest: str = "") -> Policy:
    """Both wordings of ShieldGemma's own policies."""
    return Policy(
        name,
        f'"No {title}": The prompt shall not contain or seek generation of content that {text}.{rest}',
        f'"No {title}": The chatbot shall not generate content that {text}.{rest}',
    )


SHIELDGEMMA = (
    _policy(
        "dangerous",
        "Dangerous Content",
        "harming oneself and/or others (e.g., accessing or building firearms and explosive devices, promotion of terrorism, "
        "instructions for suicide)",
    ),
    _policy(
        "harassment",
        "Harassment",
        "is malicious, intimidating, bullying, or abusive content targeting another individual (e.g., physical threats, denial "
        "of tragic events, disparaging victims of violence)",
    ),
    _policy(
        "hate",
        "Hate Speech",
        "targeting identity and/or protected attributes (e.g., racial slurs, promotion of discrimination, calls to violence "
        "against protected groups) or dehumanizing/belittling/vilifying on the bases of race, ethnicity, religion, disability, "
        "age, nationality, veteran status, sexual orientation, gender, gender identity, caste, or any other protected status",
        " We do allow content that includes a reference to a protected individual or group in a positive manner.",
    ),
    _policy(
        "sexual",
        "Sexually Explicit Information",
        "contains references to sexual acts or other lewd content (e.g., sexually graphic descriptions, content aimed at "
        "causing arousal)",
        " Medical or scientific terms related to human anatomy or sex education are permitted.",
    ),
)
"""ShieldGemma's four, word for word as it was trained on them (their grammar is theirs). Source: its model card."""

TOPICS = {
    "food": "food or drink",
    "weather": "weather or the seasons",
    "animals": "animals",
    "music": "music or dancing",
    "sea": "the sea or ships",
    "family": "family or relatives",
}

THEMES = tuple(
    Policy(
        name,
        f'"No {name.capitalize()}": The prompt shall not speak of {topic}.',
        f'"No {name.capitalize()}": The chatbot shall not speak of {topic}.',
    )
    for name, topic in TOPICS.items()
)
"""The harmless, invented policies of the small trained model `bundled+shield`."""

POLICIES: Mapping[str, Policy] = {policy.name: policy for policy in (*SHIELDGEMMA, *THEMES)}


@dataclass(frozen=True)
class _Wordings:
    prompt: str
    response: str = ""


def read_policies(file: Path) -> dict[str, Policy]:
    """Policies of one's own from a JSON file: {"name": "guideline"}, or {"name": {"prompt": "...", "response": "..."}}.

    Raises:
        ModerationError: the file is missing or damaged, or a policy has no text.
    """
    way_out = 'Write {"name": "guideline", ...}, or {"name": {"prompt": "...", "response": "..."}, ...}.'
    raw = typed(read_json(file, ModerationError, way_out), dict[str, str | dict[str, Any]], file, ModerationError, way_out)
    if not raw:
        raise ModerationError(f"{file} holds no policies.\n  {way_out}")
    policies = {}
    for name, text in raw.items():
        wordings = _Wordings(text) if isinstance(text, str) else typed(text, _Wordings, file, ModerationError, way_out)
        policies[name] = Policy(name, wordings.prompt, wordings.response or wordings.prompt)
    return policies


def find_policies(names: str | Policy | Sequence[str | Policy], known: Mapping[str, Policy] = POLICIES) -> list[Policy]:
    """The policies of these names.

    Raises:
        ModerationError: none is named, or a name is unknown; the message says which there are.
    """
    names = [names] if isinstance(names, str | Policy) else list(names)
    there = f"\n  There are {', '.join(known)}.\n  For one of your own: --policy NAME --guideline TEXT, or --policies FILE."
    if not names:
        raise ModerationError(f"No policy is named.{there}")
    for name in names:
        if isinstance(name, str) and name not in known:
            raise ModerationError(f"There is no policy {name!r}.{nearest(name, list(known))}{there}")
    return [known[name] if isinstance(name, str) else name for name in names]
