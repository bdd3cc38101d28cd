"""A whole lab of a tiny random model on disk: checkpoint, dictionary, pack. For tests of what stands on all three."""

import json
from pathlib import Path

import torch

from scope.features.collect import CollectConfig, collect
from scope.models.gemma.weights import hf_names
from scope.models.load import load_model
from scope.sae.files import save_sae
from tests.steering.conftest import random_sae


def save_checkpoint(model, folder: Path) -> Path:
    """The model as a Hugging Face checkpoint in float32."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    parameters = dict(model.named_parameters())
    tensors = {theirs: parameters[ours].detach().contiguous() for ours, theirs in hf_names(model.cfg.n_layers).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.cfg.to_hf()))
    (folder / "tokenizer.json").write_text(model.tokenizer.backend.to_str())
    return folder


def make_lab(folder: Path, tiny_model, texts: list[str]) -> Path:
    """Checkpoint in checkpoint/, and dictionary/ and pack/ as `scope demo` lays them out."""
    model = load_model(str(save_checkpoint(tiny_model, folder / "checkpoint")))
    sae = random_sae(model.cfg.d_model, 48)
    sae.provenance = {"model": dict(model.provenance), "site": sae.site}
    save_sae(sae, folder / "dictionary")
    ids = [i for text in texts for i in model.tokenizer.encode(text, bos=False)]
    width = model.cfg.n_ctx - 1
    rows = [[model.cfg.bos, *ids[i : i + width]] for i in range(0, min(len(ids) - width, 40 * width), width)]
    config = CollectConfig(score_prompts=2, score_null=4)
    collect(model, sae, torch.tensor(rows), config, folder / "pack", dictionary=str(folder / "dictionary"))
    return folder
