"""The pack of a published SAE that is given by name: collected when it is first asked for, and opened from then on."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from scope.progress import OnProgress
from scope.workflows.notes import OnNote, silent
from scope.workflows.settings import ModelPlace, ModelSettings


def published_pack(
    text: str,
    settings: ModelSettings,
    *,
    on_progress: OnProgress | None = None,
    on_note: OnNote = silent,
    on_certificate: Callable[[Any], None] | None = None,
    on_plan: OnNote = silent,
    certificate: bool = True,
) -> Path:
    """The folder of the pack of an SAE by name, in runs/. Where there is none it is collected, on the bundled text.

    `on_note` is told so before. Stopped, the same call goes on. The model is the one of the SAE, or that of `settings`.

    Raises:
        DictionaryError: an unknown name, or what the hub does not give.
        CheckpointError: the model cannot be had.
    """
    from scope.sae.hub.names import find_name
    from scope.workflows.features import TEXT, TOKENS, collect_features

    name = find_name(text)
    pack = name.lab / "pack"
    if (pack / "manifest.json").exists():
        return pack
    on_note(
        f"{name.lab} has no pack of {name.place} yet: its latents are now read on {TOKENS:,} tokens of the text {TEXT}, once. "
        f"For other text: scope features {text} --corpus TEXT"
    )
    place = {f.name: getattr(settings, f.name) for f in fields(ModelPlace)} | {"dtype": settings.dtype}
    ways = {"on_progress": on_progress, "on_note": on_note, "on_certificate": on_certificate, "on_plan": on_plan}
    collect_features(text, certificate=certificate, **place, **ways)
    return pack
