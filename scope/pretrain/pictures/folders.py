"""Writes a model of pictures as a folder that `load_model` reads, without the weights of another shipped model."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from scope.errors import CheckpointError
from scope.models.checkpoints import LANGUAGE_MODEL, OWN_ADAPTER, SINGLE
from scope.models.paligemma.model import PaliGemma
from scope.models.siglip.model import Siglip
from scope.pretrain.organisms.lora import Lora, LoraConfig, write_adapter
from scope.pretrain.tokenizer import save_tokenizer
from scope.whole_files import whole_folder

_OTHER_PARTS = ("vision.", "projector.", "proj.")


def write_siglip(model: Siglip, out: Path, card: str) -> Path:
    """Both towers in bfloat16 with the names of the hub, the words, the processor and the card.

    Raises:
        CheckpointError: weights that are not finite.
    """
    with whole_folder(out) as aside:
        _write_weights(model, tuple(model.tensor_names(model.cfg)), aside)
        _write_json(aside / "config.json", model.cfg.to_hf() | {"dtype": "bfloat16"})
        _write_json(aside / "preprocessor_config.json", model.cfg.pictures.to_hf())
        model.words.backend.save(str(aside / "tokenizer.json"))
        names = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": model.cfg.text.n_ctx}
        _write_json(aside / "tokenizer_config.json", kind | names)
        _finish(aside, card)
    return out


def write_paligemma(model: PaliGemma, lora: Lora, config: LoraConfig, out: Path, card: str) -> Path:
    """Tower, projector and a ColPali's head in bfloat16, and in the folder `adapter` what is added to the weights of the
    bundled model, which are not stored again.

    Raises:
        CheckpointError: weights that are not finite.
    """
    with whole_folder(out) as aside:
        names = tuple(name for name in model.tensor_names(model.cfg) if name.startswith(_OTHER_PARTS))
        _write_weights(model, names, aside)
        _write_json(aside / "config.json", model.cfg.to_hf() | {LANGUAGE_MODEL: "bundled", "dtype": "bfloat16"})
        _write_processor(model, aside)
        note = "What is added to the language model of the folder above; `load_model` applies it.\n"
        write_adapter(lora, model, config, "bundled", aside / OWN_ADAPTER, note)
        _finish(aside, card)
    return out


def write_whole(model: PaliGemma, out: Path) -> Path:
    """A PaliGemma or ColPali with all its weights in float32, as a checkpoint that transformers reads.

    Raises:
        CheckpointError: weights that are not finite.
    """
    theirs, parameters = model.tensor_names(model.cfg), dict(model.named_parameters())
    retrieval = model.cfg.d_embed is not None
    with whole_folder(out) as aside:
        tensors = {_released_name(theirs[name], retrieval): p.detach().float().contiguous() for name, p in parameters.items()}
        _save(tensors, aside)
        _write_json(aside / "config.json", model.cfg.to_hf() | {"dtype": "float32"})
        _write_processor(model, aside)
        _finish(aside, "")
    return out


def _released_name(name: str, retrieval: bool) -> str:
    """The name of a tensor in released checkpoints, from that in `tensor_names`."""
    if name.startswith("embedding_proj_layer."):
        return name
    if name.startswith("vision_tower."):
        name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    elif name.startswith("model."):
        name = f"language_model.{name}"
    return f"vlm.{name}" if retrieval else name


def _write_processor(model: PaliGemma, folder: Path) -> None:
    """The tokenizer's files and the processor's config."""
    kind = "ColPaliProcessor" if model.cfg.d_embed is not None else "PaliGemmaProcessor"
    processor = {"image_seq_length": model.cfg.n_image_tokens, "processor_class": kind}
    _write_json(folder / "preprocessor_config.json", model.cfg.pictures.to_hf() | processor)
    save_tokenizer(model.words.backend, folder, model.cfg.n_ctx)


def _write_weights(model: Any, names: tuple[str, ...], folder: Path) -> None:
    theirs, parameters = model.tensor_names(model.cfg), dict(model.named_parameters())
    _save({theirs[name]: parameters[name].detach().to("cpu", torch.bfloat16).contiguous() for name in names}, folder)


def _save(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    if broken := next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None):
        raise CheckpointError(f"{broken} holds NaN or infinite values; there is nothing worth writing.")
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _finish(folder: Path, card: str) -> None:
    (folder / "README.md").write_text(card, encoding="utf-8")
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)  # safetensors writes for the owner alone
