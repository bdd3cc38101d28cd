"""A lab on disk of a tiny model that reads pictures, whose files have hostile names. For tests of what stands on it."""

from pathlib import Path

from PIL import Image
from scope.activations.config import HarvestConfig
from scope.activations.harvest.harvest import harvest
from scope.activations.pictures.sources import open_pictures
from scope.activations.scenes.scene import scene

from scope.features.collect.collect_pack import CollectConfig, collect
from scope.models.load import load_model
from scope.models.pictures.inputs import InputOptions
from scope.pretrain.pictures.folders import write_siglip
from scope.pretrain.pictures.siglip import SiglipRecipe, build
from scope.sae.files import save_sae
from tests.models.vision_twins import save_with_words
from tests.steering.conftest import random_sae

SITES = {"siglip": "vision.blocks.1.hook_resid_post", "paligemma": "blocks.1.hook_resid_post"}
HOSTILE = "<img src=x onerror=alert(1)>"


def scene_pictures(folder: Path, n: int) -> Path:
    """Scenes as PNG files whose names and EXIF are hostile, each with a hostile caption beside it."""
    folder.mkdir(parents=True)
    for i in range(n):
        exif = Image.Exif()
        exif[0x010E] = "<script>alert(1)</script>"
        shown = scene(0, i)
        Image.fromarray(shown.picture).save(folder / f"<b>p{i:02d}.png", exif=exif)
        thing = shown.things[0]
        (folder / f"<b>p{i:02d}.txt").write_text(f"a {thing.colour} {thing.shape} {HOSTILE if i % 5 == 0 else ''}")
    return folder


def make_picture_lab(folder: Path, kind: str = "siglip", site: str | None = None, n: int = 40) -> Path:
    """checkpoint/, pictures/, recording/, dictionary/ and pack/ of a random SigLIP or PaliGemma."""
    site = site or SITES[kind]
    pictures = scene_pictures(folder / "pictures", n)
    if kind == "siglip":
        write_siglip(build(SiglipRecipe(width=16, text_width=16)), folder / "checkpoint", "")
    else:
        save_with_words(folder / "checkpoint", ["a red circle", "a blue square", "caption en what is it"] * 40)
    model = load_model(str(folder / "checkpoint"))
    maker = model.inputs_for([site], InputOptions(prompt="caption en"))
    config = HarvestConfig(sites=(site,), context=maker.context_for(None), dtype="float32", tokens=10**6)
    store = harvest(model, maker, open_pictures(str(pictures)), config, folder / "recording", model.provenance)
    sae = random_sae(model.sites()[site], 40, site)
    sae.provenance = {"model": dict(model.provenance), "site": site}
    save_sae(sae, folder / "dictionary")
    collect(model, sae, store, CollectConfig(score_prompts=0), folder / "pack", dictionary=str(folder / "dictionary"))
    return folder
