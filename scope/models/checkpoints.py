"""Finds a checkpoint (the bundled one, a folder, or a hub id) and reads its config and its list of tensors."""

import json
import os
from pathlib import Path

from scope.errors import CheckpointError
from scope.models.stored import read_header

BUNDLED = Path(__file__).parent / "bundled"
FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja")


ADAPTER_CONFIG = "adapter_config.json"


def find_folder(name: str, revision: str | None = None) -> Path:
    """The folder of "bundled", a path, or a hub id such as google/gemma-2-2b (fetched through huggingface_hub).

    Raises:
        CheckpointError: no such folder, a hub that cannot be reached, a gated repository without a token.
    """
    if name == "bundled":
        folder = BUNDLED
        if not (folder / "config.json").exists():
            raise CheckpointError("This installation lacks the bundled model. Reinstall scope, or give --model a checkpoint.")
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder that holds config.json and *.safetensors.")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"There is no folder {path}.\n  Give a checkpoint's folder, a hub id (owner/name), or bundled.")
    return _from_hub(name, revision)


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


def _from_hub(name: str, revision: str | None) -> Path:
    """Raises CheckpointError for whatever the hub, or the way to it, answers but the files."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    way_out = "  Check the network (HF_ENDPOINT names a mirror), give a local folder, or use --model bundled."
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES), endpoint=hub))
    except GatedRepoError:
        raise CheckpointError(
            f"{name} is gated: accept its licence on {hub}/{name}, then run `hf auth login` or set HF_TOKEN."
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{name} has no branch, tag or commit {revision!r} on {hub}.") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"There is no folder {name} here, and no such repository on {hub}, or it is private and HF_TOKEN is not set."
        ) from None
    except HFValidationError as error:
        raise CheckpointError(f"There is no folder {name} here, and the hub takes no such name: {error}") from None
    except OfflineModeIsEnabled:
        raise CheckpointError(f"{name} is no folder here and the hub is switched off (HF_HUB_OFFLINE).\n{way_out}") from None
    except LocalEntryNotFoundError:
        raise CheckpointError(f"{name} is no folder here, and {hub} cannot be reached.\n{way_out}") from None
    except (HfHubHTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name} is no folder here and cannot be fetched from {hub}: {reason}\n{way_out}") from None
    return folder


def read_config(folder: Path) -> dict:
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{folder / 'config.json'} is not a JSON object.")
    return raw


def weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file it lies in, from the index of a sharded checkpoint or the single file.

    Raises:
        CheckpointError: a shard that is missing or cut short, by name.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            if not weight_map or not all(isinstance(file, str) for file in weight_map.values()):
                raise ValueError("its weight_map names no files")
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(f"{index} cannot be read as an index of shards: {error!r}. Fetch it again.") from None
        missing = sorted({f for f in weight_map.values() if not (folder / f).exists()})
        if missing:
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}, which its index names. Fetch the checkpoint again.")
        files = {name: folder / file for name, file in weight_map.items()}
        held = {file: set(_names(file)) for file in set(files.values())}
        lost = sorted(name for name, file in files.items() if name not in held[file])
        if lost:
            raise CheckpointError(
                f"{files[lost[0]]} lacks {lost[0]}, which the index says it holds. Fetch the checkpoint again."
            )
    else:
        file = folder / "model.safetensors"
        if not file.exists():
            there = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
            raise CheckpointError(f"{folder} has no model.safetensors; it holds {there}.\n  Pickled weights are not read.")
        files = dict.fromkeys(_names(file), file)
    return files


def _names(file: Path) -> list[str]:
    return list(read_header(file)[1])
