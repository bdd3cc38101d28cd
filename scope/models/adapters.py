"""PEFT adapters: where loading would apply one, and what it says today.

An adapter is a folder with adapter_config.json and adapter_model.safetensors: small matrices that change the weights of a base
model (LoRA: W + alpha / r * B A). It would be applied in `load_model`, to a base that is loaded and before provenance is
written, since it changes the hash of the weights. Until then adapters are refused by name, with the way to merge them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from scope.errors import CheckpointError

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Adapter:
    """What adapter_config.json says: the method ("LORA") and the model that it changes."""

    folder: Path
    method: str
    base: str


def find_adapter(folder: Path) -> Adapter | None:
    """The adapter that lies in a folder.

    Raises:
        CheckpointError: an adapter_config.json that cannot be read.
    """
    file = folder / CONFIG
    if not file.exists():
        return None
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        return Adapter(folder, str(raw.get("peft_type", "PEFT")), str(raw.get("base_model_name_or_path") or "an unnamed model"))
    except (ValueError, AttributeError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}. Fetch it again.") from None


def refuse_adapter(folder: Path) -> None:
    """Raises CheckpointError where a folder holds an adapter, alone or beside whole weights."""
    adapter = find_adapter(folder)
    if adapter is None:
        return
    if (folder / "config.json").exists():
        raise CheckpointError(
            f"{folder} holds a whole model and beside it a {adapter.method} adapter of {adapter.base}, so it is unclear which "
            f"model is meant.\n  To load the whole model, move {CONFIG} away. To have the adapter in it, merge it first:\n"
            f"  {_merging(adapter)}"
        )
    raise CheckpointError(
        f"{folder} holds a {adapter.method} adapter of {adapter.base}, and no model. Adapters are not applied here.\n"
        f"  Merge it into its base and load the result: {_merging(adapter)}"
    )


def _merging(adapter: Adapter) -> str:
    return f"peft.AutoPeftModelForCausalLM.from_pretrained({str(adapter.folder)!r}).merge_and_unload().save_pretrained(FOLDER)"
