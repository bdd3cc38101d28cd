"""A trained model as an ordinary Hugging Face checkpoint: config.json, bf16 safetensors, tokenizer files, a model card."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from scope.errors import CheckpointError
from scope.models.parts.decoder import Decoder
from scope.whole_files import whole_folder

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def export(model: Decoder, tokenizer: Path, out: Path, card: str, shard_bytes: int = 15 * 2**20) -> Path:
    """Write the checkpoint to OUT: aside first, then renamed, so that it is whole or not there.

    Weights above `shard_bytes` are spread over several files with an index.

    Raises:
        CheckpointError: weights that are not finite, or a folder without tokenizer files.
    """
    missing = [name for name in TOKENIZER_FILES if not (tokenizer / name).exists()]
    if missing:
        raise CheckpointError(f"{tokenizer} lacks {', '.join(missing)}; a checkpoint needs its tokenizer.")
    parameters = dict(model.named_parameters())
    tensors = {
        theirs: parameters[ours].detach().to("cpu", torch.bfloat16).contiguous()
        for ours, theirs in model.tensor_names(model.cfg).items()
    }
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{broken[0]} holds NaN or infinite values; there is nothing worth exporting.")
    with whole_folder(out) as aside:
        _write_weights(tensors, aside, shard_bytes)
        (aside / "config.json").write_text(json.dumps(model.cfg.to_hf(), indent=1) + "\n")
        generation = {"bos_token_id": model.cfg.bos, "eos_token_id": list(model.cfg.eos), "pad_token_id": model.cfg.pad}
        (aside / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, aside / name)
        (aside / "README.md").write_text(card, encoding="utf-8")
        for file in aside.iterdir():
            file.chmod(0o644)  # safetensors writes for the owner alone
    return out


def _write_weights(tensors: dict[str, torch.Tensor], folder: Path, shard_bytes: int) -> None:
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and _size(shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": _size(tensors)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _size(tensors: dict[str, torch.Tensor]) -> int:
    return sum(t.nbytes for t in tensors.values())
