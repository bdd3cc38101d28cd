"""A whole lab on disk, of a tiny random model or of the bundled one. For tests of what stands on model, dictionary and pack."""

import json
from pathlib import Path

import torch
from scope.activations.config import HarvestConfig
from scope.activations.corpus.sources import open_corpus
from scope.activations.harvest.harvest import harvest

from scope.features.collect.collect_pack import CollectConfig, collect
from scope.features.compare.decay import decay
from scope.features.pack.decay import FILE
from scope.features.pack.write import add_file
from scope.models.griffin.shares import layer_of
from scope.models.load import load_model
from scope.sae.files import save_sae
from scope.sae.jumprelu import JumpReLUConfig
from scope.sae.kinds import make_sae
from scope.training.config import TrainConfig
from scope.training.trainer import train
from scope.workflows.harvest import middle_residual
from scope.workflows.training_source import recorded_provenance
from tests.steering.conftest import SITE, random_sae


def save_checkpoint(model, folder: Path) -> Path:
    """The model as a Hugging Face checkpoint in float32."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    parameters = dict(model.named_parameters())
    tensors = {theirs: parameters[ours].detach().contiguous() for ours, theirs in model.tensor_names(model.cfg).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.cfg.to_hf()))
    (folder / "tokenizer.json").write_text(model.tokenizer.backend.to_str())
    return folder


def make_lab(folder: Path, tiny_model, texts: list[str], site: str = SITE) -> Path:
    """Checkpoint in checkpoint/, and dictionary/ and pack/ as `scope demo` lays them out; of a state with decay profiles."""
    model = load_model(str(save_checkpoint(tiny_model, folder / "checkpoint")))
    sae = random_sae(model.sites()[site], 48, site)
    sae.provenance = {"model": dict(model.provenance), "site": sae.site}
    save_sae(sae, folder / "dictionary")
    ids = [i for text in texts for i in model.tokenizer.encode(text, bos=False)]
    width = model.cfg.n_ctx - 1
    rows = [[model.cfg.bos, *ids[i : i + width]] for i in range(0, min(len(ids) - width, 40 * width), width)]
    config = CollectConfig(score_prompts=2, score_null=4)
    collect(model, sae, torch.tensor(rows), config, folder / "pack", dictionary=str(folder / "dictionary"))
    if layer_of(site) is not None:
        add_file(folder / "pack", FILE, decay(model, sae, torch.tensor(rows)).to_json().encode(), {})
    return folder


def make_bundled_lab(folder: Path) -> Path:
    """recording/, dictionary/ and pack/ of the bundled model, as `scope demo` makes them but in seconds."""
    model, corpus = load_model("bundled"), open_corpus("bundled")
    site = middle_residual(model.sites())
    harvested = HarvestConfig(sites=(site,), tokens=6144, context=128)
    store = harvest(model, model.tokenizer, corpus, harvested, folder / "recording", model.provenance)
    sae = make_sae(JumpReLUConfig(d_in=store.sites[site], d_sae=96, target_l0=8.0), site)
    sae.provenance = recorded_provenance(store, site)
    config = TrainConfig(steps=60, batch_size=512)
    sae = train(sae, store.shuffled(site, config.batch_size, config.seed), config, folder / "dictionary")
    scores = CollectConfig(score_prompts=2, score_null=4)
    collect(model, sae, store, scores, folder / "pack", dictionary=str(folder / "dictionary"))
    return folder
