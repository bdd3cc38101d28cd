"""What the Steering page knows without running the model: whether it can chat, which dictionaries read later sites."""

from pathlib import Path

from scope.app import packs, session

from scope.circuits.effects import Effects
from scope.errors import CheckpointError, ScopeError
from scope.features.pack.store import FeatureStore
from scope.models.checkpoints import find_checkpoint
from scope.models.text.tokenizer import Tokenizer
from scope.steering.export.script import edit_code

NO_TEMPLATE = "No chat: this checkpoint's tokenizer has no chat template, as base models have none. Prompts are continued."


def chat_template(name: str) -> str | None:
    """Why a model cannot chat, "" if it can, None where that is known only once it is loaded."""
    if name != "bundled" and not Path(name).expanduser().is_dir():
        return None
    try:
        return "" if Tokenizer.from_folder(find_checkpoint(name)).chat_template else NO_TEMPLATE
    except CheckpointError as refusal:
        return f"No chat: {str(refusal).splitlines()[0]}"


def later(store: FeatureStore) -> list[str]:
    """Slugs of the other packs of the same model at later sites: their dictionaries can be asked what the edits do there."""
    found = []
    for slug in packs.registry():
        try:
            other = session.pack(slug)
        except ScopeError:
            continue
        same = other.manifest["model"].get("weights_sha256") == store.manifest["model"].get("weights_sha256")
        if same and _depth(other.site) > _depth(store.site):
            found.append(slug)
    return found


def _depth(site: str) -> int:
    """The block of a site, -1 where it is in none."""
    parts = site.split(".")
    return int(parts[1]) if len(parts) > 2 and parts[0] == "blocks" and parts[1].isdecimal() else -1


def effects_code(found: Effects) -> str:
    """The lines that measure the same."""
    edits = ", ".join(edit_code(edit) for edit in found.edits)
    names = sorted({type(edit).__name__ for edit in found.edits} | {"Direction", "When"})
    asked = f"{found.prompt!r}, token={found.token!r}, other={found.other!r}"
    return (
        f"import scope\nfrom scope.steering.edits.interventions import {', '.join(names)}\n\n"
        f"lab = scope.open(pack.folder.parent)\nlab.effects([{edits}], {asked})\n"
    )
