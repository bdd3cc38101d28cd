"""Makes a small model of pictures by its recipe: training, the folder that `load_model` reads, its scores, its card."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scope.errors import ConfigError
from scope.models.load import load_model
from scope.pretrain.pictures import colpali_scores, paligemma_scores, siglip_scores
from scope.pretrain.pictures.cards import colpali_card, paligemma_card, siglip_card
from scope.pretrain.pictures.colpali import ColPaliLessons, ColPaliRecipe, assemble
from scope.pretrain.pictures.folders import write_paligemma, write_siglip
from scope.pretrain.pictures.loop import refuse_other_settings, train
from scope.pretrain.pictures.paligemma import PaliGemmaLessons, PaliGemmaRecipe
from scope.pretrain.pictures.siglip import SiglipLessons, SiglipRecipe, build
from scope.whole_files import write_json

RECIPES = {"siglip": SiglipRecipe, "paligemma": PaliGemmaRecipe, "colpali": ColPaliRecipe}
Lessons = SiglipLessons | PaliGemmaLessons | ColPaliLessons


@dataclass(frozen=True)
class PictureModel:
    """A finished model."""

    folder: Path
    scores: dict[str, Any]


def make_picture_model(
    name: str, out: Path, steps: int | None = None, log: Callable[[dict[str, Any]], None] = lambda row: None
) -> PictureModel:
    """Train `siglip`, `paligemma` (on the tower of bundled-siglip) or `colpali` (from bundled-paligemma) in OUT, write it to
    OUT/model and score what was written. Stopped at any moment, the same call goes on where it was.

    Raises:
        ConfigError: no such recipe, or OUT holds a run with other settings.
    """
    if name not in RECIPES:
        raise ConfigError(f"There is no recipe {name!r}; the recipes are {', '.join(RECIPES)}.")
    recipe = RECIPES[name]() if steps is None else replace(RECIPES[name](), steps=steps)
    lessons = {"siglip": SiglipLessons, "paligemma": PaliGemmaLessons, "colpali": ColPaliLessons}[name](recipe)
    refuse_other_settings(recipe, out)
    before = lessons.lessons_before() if isinstance(lessons, ColPaliLessons) else []
    parts = [(out / lesson, first) for lesson, first in before] + [(out, lessons)]
    done, whole = 0, sum(part.recipe.steps for _, part in parts)
    for place, part in parts:

        def log_of_all(row: dict[str, Any], done: int = done) -> None:
            log(row | {"step": done + row["step"], "steps": whole})

        train(part.trained, part.optimizers(), part.recipe, part.loss_at, place, log_of_all)
        done += part.recipe.steps
    folder = out / "model"
    _write(lessons, folder, "")
    scores = score(load_model(str(folder)), recipe)
    write_json(out / "scores.json", scores)
    cards = {"siglip": siglip_card, "paligemma": paligemma_card, "colpali": colpali_card}
    _write(lessons, folder, cards[name](recipe, scores))
    return PictureModel(folder, scores)


def score(model: Any, recipe: SiglipRecipe | PaliGemmaRecipe | ColPaliRecipe) -> dict[str, Any]:
    """The figures of the card of a model that was trained by a recipe."""
    if isinstance(recipe, SiglipRecipe):
        return siglip_scores.scores(model, build(recipe))
    if isinstance(recipe, PaliGemmaRecipe):
        return paligemma_scores.scores(model)
    untrained = assemble(load_model("bundled-paligemma"), load_model("bundled"), recipe)
    return colpali_scores.scores(model, untrained)


def _write(lessons: Lessons, folder: Path, card: str) -> None:
    if isinstance(lessons, SiglipLessons):
        write_siglip(lessons.model, folder, card)
    else:
        write_paligemma(lessons.model, lessons.lora, lessons.lora_config, folder, card)
