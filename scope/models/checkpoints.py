"""Finds a checkpoint (the bundled one, a folder, or a hub id) and reads its config and its list of tensors."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.errors import CheckpointError
from scope.hub_files import fetch
from scope.models.stored import AGAIN, read_header
from scope.typed_json import plain_name, read_json, read_typed

BUNDLED = Path(__file__).parent / "bundled"
PICTURES = BUNDLED.with_name("bundled_pictures")
SHIPPED = {"bundled": BUNDLED, "bundled-recurrent": BUNDLED.with_name("bundled_recurrent")} | {
    f"bundled-{name}": PICTURES / name for name in ("siglip", "paligemma", "colpali")
}
"""The models that come with scope, by name."""

LANGUAGE_MODEL = "language_model_of"
"""A field of config.json of our own: the name of a shipped model whose weights the language model has. Only the other parts lie
in the folder, and in its `OWN_ADAPTER` what is added to those weights."""

OWN_ADAPTER = "adapter"

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja")
ADAPTER_CONFIG = "adapter_config.json"


def find_folder(name: str, revision: str | None = None) -> Path:
    """The folder of a shipped model, a path, or a hub id such as google/gemma-2-2b (fetched through huggingface_hub).

    Raises:
        CheckpointError: no such folder, a hub that cannot be reached, a gated repository without a token.
    """
    if name in SHIPPED:
        folder = SHIPPED[name]
        if not (folder / "config.json").exists():
            raise CheckpointError(f"This installation lacks the model {name}. Reinstall scope, or give --model a checkpoint.")
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder that holds config.json and *.safetensors.")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f"There is no folder {path}.\n  Give a checkpoint's folder, a hub id (owner/name), or {' or '.join(SHIPPED)}."
        )
    return fetch(name, FILES, CheckpointError, "give a local folder, or use --model bundled", revision=revision)


def find_checkpoint(name: str, revision: str | None = None) -> Path:
    """The folder of a whole checkpoint; see `find_folder`.

    Raises:
        CheckpointError: the folder is missing, holds an adapter, or holds no config.json.
    """
    folder = find_folder(name, revision)
    whole, adapter = (folder / "config.json").exists(), (folder / ADAPTER_CONFIG).exists()
    if whole and adapter:
        raise CheckpointError(
            f"{folder} holds a whole model and beside it an adapter, so it is unclear which model is meant.\n"
            f"  To load the whole model, move {ADAPTER_CONFIG} away. To apply the adapter, move it and its weights into a\n"
            "  folder of their own and give BASE+ADAPTER."
        )
    if adapter:
        raise CheckpointError(f"{folder} holds an adapter, and a whole model is meant here. Give its base, or BASE+{name}.")
    if not whole:
        raise CheckpointError(
            f"{folder} has no config.json, so it is no checkpoint. A checkpoint holds config.json, "
            "tokenizer.json and *.safetensors."
        )
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says.

    Raises:
        CheckpointError: it cannot be read, or names a file of weights that is not read here.
    """
    raw = read_json(folder / "config.json", CheckpointError, AGAIN)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{folder / 'config.json'} is no JSON object. {AGAIN}")
    if raw.get("transformers_weights") not in (None, SINGLE, INDEX):
        raise CheckpointError(
            f"{folder / 'config.json'} says that the weights are in {raw['transformers_weights']!r} (transformers_weights); "
            f"only {SINGLE} and {INDEX} are read.\n  Rename the file, and remove that line."
        )
    return raw


def end_tokens(folder: Path) -> tuple[int, ...]:
    """The end tokens that generation_config.json names: an instruction-tuned model often names the end of a turn there alone.

    Raises:
        CheckpointError: the file is there and cannot be read, or its eos_token_id is neither an id nor a list of ids.
    """
    file = folder / "generation_config.json"
    if not file.exists():
        return ()
    named = read_typed(file, GenerationSettings, CheckpointError, AGAIN).eos_token_id
    return (named,) if isinstance(named, int) else tuple(named or ())


@dataclass(frozen=True)
class GenerationSettings:
    """What is read of generation_config.json."""

    eos_token_id: int | list[int] | None = None


def weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file it lies in, from the index of a sharded checkpoint or the single file.

    Raises:
        CheckpointError: no weights, two sets of them, an index that does not say what its shards hold, or a shard that is
            missing or cut short, by name.
    """
    single, index = folder / SINGLE, folder / INDEX
    placed = _indexed(index) if index.exists() else {}
    if single.exists() and set(placed.values()) - {SINGLE}:
        raise CheckpointError(
            f"{folder} holds two sets of weights: {SINGLE}, and the {len(set(placed.values()))} shards that {INDEX} names "
            f"(such as {min(placed.values())}).\n  transformers would load {SINGLE}. Move away what is not meant: that file, "
            "or the index with its shards."
        )
    if not placed:
        if not single.exists():
            raise CheckpointError(f"{folder} has no {SINGLE}; {_contents(folder)}")
        return dict.fromkeys(read_header(single)[1], single)
    missing = sorted({f for f in placed.values() if not (folder / f).exists()})
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which its index names. Fetch the checkpoint again.")
    for file in sorted(set(placed.values())):
        inside, named = set(read_header(folder / file)[1]), {name for name, of in placed.items() if of == file}
        if lost := sorted(named - inside):
            raise CheckpointError(f"{folder / file} lacks {lost[0]}, which {INDEX} places there. {AGAIN}")
        if more := sorted(inside - named):
            there = f"places in {placed[more[0]]}" if more[0] in placed else "does not name"
            raise CheckpointError(
                f"{folder / file} holds {more[0]}, which {INDEX} {there}: the index is of other shards.\n"
                "  Fetch the checkpoint again into an empty folder."
            )
    return {name: folder / file for name, file in placed.items()}


def language_files(raw: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Tensor name -> file, of a language model whose weights are a shipped model's (`LANGUAGE_MODEL`); empty for a checkpoint
    that holds its weights itself.

    Raises:
        CheckpointError: the model that is named does not come with scope.
    """
    name = raw.get(LANGUAGE_MODEL)
    if name is None:
        return {}
    if name not in ("bundled", "bundled-recurrent"):
        raise CheckpointError(
            f"config.json of {folder} takes its language model from {str(name)[:100]!r} ({LANGUAGE_MODEL}); only that of a "
            f"shipped model is taken: bundled, bundled-recurrent.\n  {AGAIN}"
        )
    return weight_files(SHIPPED[name])


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]


def _indexed(index: Path) -> dict[str, str]:
    """Tensor name -> file name, of an index of shards."""
    placed = read_typed(index, _Index, CheckpointError, AGAIN).weight_map
    if not placed:
        raise CheckpointError(f"{index} is damaged: its weight_map names no file. {AGAIN}")
    return {name: plain_name(file, index, CheckpointError, AGAIN) for name, file in placed.items()}


def _contents(folder: Path) -> str:
    """What a folder without weights that can be read holds, and the way out."""
    names = sorted(p.name for p in folder.iterdir())
    there = f"it holds {', '.join(names[:20]) or 'nothing'}{' and more' if len(names) > 20 else ''}."
    if any(re.fullmatch(r"model-\d+-of-\d+\.safetensors", name) for name in names):
        return f"{there}\n  These are shards without {INDEX}. {AGAIN}"
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return (
            f"{there}\n  Pickled weights are not read. Save them as safetensors: model.save_pretrained(FOLDER) of transformers."
        )
    return f"{there}\n  Weights are read from {SINGLE}, or from shards and their {INDEX}."
