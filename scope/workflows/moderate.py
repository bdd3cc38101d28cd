"""`scope.moderate`: texts and policies in, P(Yes) of each by a ShieldGemma or another moderator out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scope.progress import OnProgress
from scope.workflows.settings import ModelSettings, resolve


@dataclass(frozen=True, kw_only=True)
class Moderate(ModelSettings):
    """What to judge, and by what. Each field is also a flag of `scope moderate`."""

    text: tuple[str, ...] = ()
    """Texts to judge; with --mode response, the prompts that the responses answer."""

    policy: tuple[str, ...] = ()
    """Policies, with commas between: dangerous, harassment, hate, sexual; of bundled+shield food, weather, animals, music, sea,
    family; those of --policies; or, with --guideline, the name of one of your own."""

    guideline: str | None = None
    """The text of a policy of your own, word for word as the model shall read it."""

    policies: Path | None = None
    """JSON file of policies of your own: {"name": "guideline"} or {"name": {"prompt": "...", "response": "..."}}."""

    mode: Literal["prompt", "response"] | None = None
    """Judge a prompt alone, or a chatbot's response to it; by default the one that the texts are."""

    response: str | None = None
    """What the chatbot answered to the text."""

    file: Path | None = None
    """More texts: JSON lines of {"text": "...", "response": "..."}, response left out for prompts, or of bare strings."""

    model: str = "google/shieldgemma-2b"
    """Moderator: a ShieldGemma by folder or hub id, or bundled+shield."""

    template: str | None = None
    """Chat template instead of the checkpoint's own: shieldgemma (the wording of its model card) or a .jinja file."""

    sae: Path | None = None
    """SAE of the moderator at a site of its residual stream: also say which latents make it answer Yes, for each text."""

    pack: Path | None = None
    """Feature pack of the SAE, for labels; by default the folder pack/ beside the SAE, if it is there."""

    top: int = 12
    """With --sae, latents to show for each text."""

    batch: int = 8
    """Prompts that run at once."""

    any_model: bool = False
    """Allow an SAE that was trained on other weights than the moderator's, such as those of its base."""


def moderate(config: Any = None, *, on_progress: OnProgress | None = None, **settings: Any) -> Any:
    """Judge texts by policies; returns a `Moderation`, or with `sae` a list of `Contributions`, one a text.

    `scope.moderate("You are a fool.", policy="harassment")` says what `scope moderate` says with flags.

    Raises:
        ModerationError: no texts, an unknown policy, an empty text, a text too long, a model that is no moderator.
        CheckpointError: the model is missing.
    """
    job = resolve(Moderate, config, settings, first="text")
    from scope.moderation.moderator import Moderator

    items, policies = _items(job), _policies(job)
    template = _template(job)
    model = job.load_model()
    if job.sae is None:
        return Moderator(model, template).judge(items, policies, job.batch, on_progress)
    from scope.features.pack.data import pack_beside
    from scope.moderation.contributions import contributions
    from scope.sae.files import read_sae

    sae = read_sae(job.sae, job.device)
    pack = pack_beside(job.sae, sae.site, sae.d_sae, job.pack)
    moderator, settings = Moderator(model, template), {"any_model": job.any_model, "pack": pack}
    return [contributions(moderator, sae, item, policies, **settings) for item in items]


def _items(job: Moderate) -> list[Any]:
    """The texts of the command line and of the file.

    Raises:
        ModerationError: none, a mode that they are not of, a response to several texts, or a damaged file.
    """
    from scope.moderation.policies import ModerationError
    from scope.moderation.prompt import Item
    from scope.typed_json import json_lines, read_bytes, typed

    if job.response is not None and len(job.text) != 1:
        raise ModerationError(
            f"--response answers one text, and {len(job.text)} were given.\n"
            '  Give more pairs in a file of JSON lines: --file pairs.jsonl with {"text": "...", "response": "..."}.'
        )
    items = [Item(text, job.response) for text in job.text]
    if job.file is not None:
        way_out = 'Write a line for each text: {"text": "..."}, or {"text": "...", "response": "..."}.'
        for line in json_lines(read_bytes(job.file, ModerationError, way_out), job.file, ModerationError, way_out):
            items.append(Item(line) if isinstance(line, str) else typed(line, Item, job.file, ModerationError, way_out))
    if not items:
        raise ModerationError("There is nothing to judge. Give texts, or --file texts.jsonl.")
    for item in items:
        if job.mode == "response" and item.mode == "prompt":
            raise ModerationError(
                f"--mode response judges what a chatbot answered, and {item.text[:40]!r} has no response.\n"
                "  Give it with --response or in --file; or judge the text itself: --mode prompt."
            )
        if job.mode == "prompt" and item.mode == "response":
            raise ModerationError(
                f"--mode prompt judges a prompt alone, and {item.text[:40]!r} comes with a response, which would not be read.\n"
                "  Use --mode response, or leave the response out."
            )
    return items


def _policies(job: Moderate) -> list[Any]:
    """
    Raises:
        ModerationError: an unknown name, several names for one guideline, or a policy without text.
    """
    from scope.moderation.policies import POLICIES, ModerationError, Policy, find_policies, read_policies

    if job.guideline is not None:
        if len(job.policy) != 1:
            raise ModerationError(f"One --guideline is one policy, and {len(job.policy)} are named: {', '.join(job.policy)}.")
        return [Policy(job.policy[0], job.guideline, job.guideline)]
    return find_policies(job.policy, POLICIES if job.policies is None else {**POLICIES, **read_policies(job.policies)})


def _template(job: Moderate) -> str | None:
    """
    Raises:
        ModerationError: a template file that cannot be read.
    """
    from scope.moderation.policies import ModerationError
    from scope.moderation.prompt import SHIELDGEMMA_TEMPLATE
    from scope.typed_json import read_bytes

    if job.template in (None, "shieldgemma"):
        return None if job.template is None else SHIELDGEMMA_TEMPLATE
    way_out = "Give --template shieldgemma, or a .jinja file."
    return read_bytes(Path(job.template), ModerationError, way_out).decode(errors="replace")
