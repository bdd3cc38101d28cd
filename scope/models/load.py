"""`load_model`: from a name, a folder or a hub id to a model in evaluation mode."""

import hashlib
import json
from pathlib import Path

import torch

from scope.errors import ConfigError
from scope.models.checkpoints import find_checkpoint, read_config, weight_files
from scope.models.face import LanguageModel
from scope.models.families import family_of
from scope.models.streamed import streamed_class
from scope.models.text.tokenizer import Tokenizer
from scope.models.weights import load_weights
from scope.models.weights_hash import hash_files, sampled_hash

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    model: str = "bundled",
    *,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    streamed: bool = False,
) -> LanguageModel:
    """A Gemma in evaluation mode: "bundled", a checkpoint's folder, or a hub id. "lens:gpt2", or "lens:" and a folder, is
    whatever TransformerLens loads under that name, with the same face (scope/models/transformer_lens/bridge.py).

    Weights are read and converted tensor by tensor, each into its place: at no time are there two copies. Norms, softmax
    and rotary angles are computed in float32 whatever the dtype. With `streamed` they stay on disk, and each block is read
    when a run comes to it: for models larger than memory (scope/models/streamed.py).

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another architecture.
        ConfigError: an unknown dtype, or a device that this machine does not have.
    """
    dtype = _dtype(dtype)
    device = _device(device)
    if str(model).startswith("lens:"):
        if streamed:
            raise ConfigError("TransformerLens keeps all weights in memory; only a checkpoint can be streamed.")
        from scope.models.transformer_lens.bridge import load

        return load(str(model).removeprefix("lens:"), dtype, device, revision)
    folder = find_checkpoint(str(model), revision)
    fetched = folder.parent.name == "snapshots"
    if revision is not None and not fetched:
        raise ConfigError(f"revision is {revision!r}, but {model} is no hub id: what lies in a folder has no revision.")
    raw = read_config(folder)
    family = family_of(raw, str(model))
    config = family.config_from_hf(raw, str(model))
    tokenizer = Tokenizer.from_folder(folder)
    files = weight_files(folder)
    if streamed:
        loaded = streamed_class(family)(config, tokenizer, files, dtype, device)
    else:
        with torch.device("meta"):
            loaded = family(config, tokenizer)
        load_weights(loaded, files, dtype, device)
    loaded.provenance = {
        "model": _name(str(model)),
        "revision": revision or (folder.name if fetched else None),
        "weights_sha256": hash_files(files.values()),
        "config_sha256": hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest(),
        "tokenizer_sha256": tokenizer.sha256,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if sampled := sampled_hash(files.values()):
        loaded.provenance["weights_sampled"] = sampled
    return loaded.eval()


def _name(model: str) -> str:
    """What finds the model again from any directory: a folder's whole path; "bundled" and hub ids as they are."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if model != "bundled" and folder.is_dir() else model


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    resolved = dtype if isinstance(dtype, torch.dtype) else _DTYPES.get(dtype)
    if resolved not in (*_DTYPES.values(), torch.float64):
        raise ConfigError(f"dtype is {dtype!r}; a model can be loaded as {', '.join(_DTYPES)}.")
    return resolved


def _device(device: str | torch.device) -> torch.device:
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"Device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    if resolved.type == "meta":
        raise ConfigError("Device 'meta' holds no numbers, so no weights; give cpu, cuda or mps.")
    return resolved
