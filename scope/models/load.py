"""`load_model`: from a name, a folder or a hub id to a model in evaluation mode."""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from scope.device import find_device, find_dtype
from scope.errors import CheckpointError, ConfigError
from scope.free_memory import free_memory
from scope.models.adapters import Adapter, find_model
from scope.models.checkpoints import OWN_ADAPTER, SHIPPED, language_files, read_config, weight_files
from scope.models.face import Model
from scope.models.families import family_of
from scope.models.stored import stored_tensors
from scope.models.streamed import streamed_class
from scope.models.weights import load_weights
from scope.models.weights_hash import hash_files, sampled_hash


def load_model(
    model: str = "bundled",
    *,
    adapter: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    streamed: bool = False,
    window_convention: str | None = None,
) -> Model:
    """A model in evaluation mode: "bundled" or another shipped one (scope/models/checkpoints.py), a checkpoint's folder, or a
    hub id: a Gemma, RecurrentGemma, SigLIP, PaliGemma or ColPali. "lens:gpt2", or "lens:" and a folder, is whatever
    TransformerLens loads under that name, with the same face (scope/models/transformer_lens/bridge.py).

    A PEFT adapter (LoRA, DoRA) is applied where it is given: `load_model(BASE, adapter=A)`, `load_model("BASE+A")`, or
    `load_model(A)`, whose base is named in it; `model.adapter.updates` keeps its matrices (scope/models/adapters.py).

    Weights are read and converted tensor by tensor, each into its place: at no time are there two copies. Norms, softmax
    and rotary angles are computed in float32 whatever the dtype. With `streamed` they stay on disk, and each block is read
    when a run comes to it: for models larger than memory (scope/models/streamed.py).

    `device` may be "auto" (cuda, else mps, else cpu), and `dtype` too (bfloat16 on cuda, else float32). `window_convention` is
    for RecurrentGemma, whose window of W has two readings: "deepmind" (the default: a token sees W + 1 keys, as the published
    weights were trained) and "hf" (W keys, as transformers computes them).

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another architecture; an adapter for another base.
        ConfigError: an unknown dtype, or a device that this machine does not have.
    """
    device = find_device(device)
    dtype = find_dtype(dtype, device)
    if str(model).startswith("lens:"):
        if adapter is not None:
            raise ConfigError("An adapter is applied to a checkpoint; TransformerLens' models take none.")
        if streamed:
            raise ConfigError("TransformerLens keeps all weights in memory; only a checkpoint can be streamed.")
        if window_convention is not None:
            raise ConfigError("TransformerLens' models take no window_convention. Leave it out.")
        from scope.models.transformer_lens.bridge import load

        return load(str(model).removeprefix("lens:"), dtype, device, revision)
    found = find_model(str(model), adapter, revision)
    folder, change = found.base, Adapter.read(found.adapter) if found.adapter else None
    raw = read_config(folder)
    taken = language_files(raw, folder)
    if taken and change is not None:
        raise ConfigError(
            f"{found.base_name} has an adapter of its own in {folder / OWN_ADAPTER}, and no second is applied.\n"
            "  Write it whole (scope.pretrain.pictures.folders.write_whole), and apply the adapter to that."
        )
    change = Adapter.read(folder / OWN_ADAPTER) if taken else change
    fetched = folder.parent.name == "snapshots"
    if revision is not None and not fetched:
        raise ConfigError(f"revision is {revision!r}, but {model} is no hub id: what lies in a folder has no revision.")
    family = family_of(raw, str(model))
    config = family.config_from_hf(raw, str(model))
    if streamed and not family.streams:
        raise ConfigError(f"A {config.family_name} reads pictures, and such a model is not streamed. Load it into memory.")
    another_window = None
    if window_convention is not None and (with_window := _with_window(config, window_convention)) != config:
        config, another_window = with_window, window_convention
        raw = raw | {"window_convention": window_convention}  # it decides outputs, so the hash of the config has it
    config, tokenizer = family.read_folder(config, folder, found.adapter)
    files = weight_files(folder) | taken
    untied = raw.get("tie_word_embeddings") is False and family.has_unembedding
    if untied and not any(name.endswith("lm_head.weight") for name in files):
        raise CheckpointError(
            f"{folder} is incomplete: config.json says that the unembedding is not the embedding (tie_word_embeddings), and no "
            "file holds lm_head.weight. Fetch the checkpoint again."
        )
    with torch.device("meta"):
        loaded = family(config, tokenizer)
    if change is not None:
        shapes = {name: tuple(p.shape) for name, p in loaded.named_parameters()}
        change.fit(loaded.tensor_names(config), shapes, found.base_name, loaded.canonical_name)
        if not taken:
            change.warn_of_another_base(found.base_name, raw)
    with _memory_for(files, dtype, device):
        if streamed:
            loaded = streamed_class(family)(config, tokenizer, files, dtype, device, change)
        else:
            load_weights(loaded, files, dtype, device, rows_follow=bool(taken))
            if change is not None:
                change.apply(loaded)
                loaded.on_placed()
    loaded.adapter = change
    loaded.provenance = {
        "model": _name(found.base_name),
        "revision": revision or (folder.name if fetched else None),
        "weights_sha256": hash_files(files.values()),
        "config_sha256": hashlib.sha256(json.dumps(raw | _pictures(config), sort_keys=True).encode()).hexdigest(),
        "tokenizer_sha256": "none" if tokenizer is None else tokenizer.sha256,
        "dtype": str(dtype).removeprefix("torch."),
    }
    if another_window:
        loaded.provenance["window_convention"] = another_window
    if change is not None:
        both = f"{loaded.provenance['weights_sha256']} {change.sha256}".encode()
        loaded.provenance["weights_sha256"] = hashlib.sha256(both).hexdigest()
    if found.adapter is not None:
        adapter_name = found.adapter_name if found.base_name == "bundled" else _name(found.adapter_name)
        loaded.provenance |= {"model": f"{_name(found.base_name)}+{adapter_name}", "adapter": adapter_name}
    if change is None and (sampled := sampled_hash(files.values())):
        loaded.provenance["weights_sampled"] = sampled
    return loaded.eval()


def _with_window(config: Any, window_convention: str) -> Any:
    if not hasattr(config, "window_convention"):
        raise ConfigError(
            f"window_convention is {window_convention!r}, and the window of a {config.family_name} has one reading.\n"
            "  Leave it out."
        )
    return replace(config, window_convention=window_convention)


def _pictures(config: Any) -> dict[str, Any]:
    """How pictures are prepared, which is part of what a model with a tower computes; nothing for a model of text."""
    processor = getattr(config, "pictures", None)
    return {} if processor is None else {"pictures": asdict(processor)}


@contextmanager
def _memory_for(files: dict[str, Path], dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Raises ConfigError where the memory ends while weights are loaded, with what they need and what there is."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        numbers, free = sum(math.prod(t.shape) for t in stored_tensors(files).values()), free_memory(device)
        raise ConfigError(
            f"The weights do not fit into memory: {numbers:,} numbers take {numbers * dtype.itemsize / 1e9:.1f} GB in "
            f"{str(dtype).removeprefix('torch.')}" + (f", and {free / 1e9:.1f} GB are free on {device}" if free else "") + ".\n"
            "  Load them in bfloat16 (2 bytes a number), or leave them on disk: streamed=True, --streamed of harvest."
        ) from None


def _name(model: str) -> str:
    """What finds the model again from any directory: a folder's whole path; shipped models and hub ids as they are."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if model not in SHIPPED and folder.is_dir() else model
