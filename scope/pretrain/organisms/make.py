"""Makes a small adapter of the bundled model by its recipe: training, scores, card, and the folder that PEFT reads."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from scope.errors import ConfigError
from scope.models.gemma.model import Gemma
from scope.models.load import load_model
from scope.models.text.tokenizer import Tokenizer
from scope.pretrain.organisms.lora import LoraConfig, answer_loss, train_lora, write_adapter
from scope.pretrain.tokenizer import save_tokenizer
from scope.shapes import Scalar
from scope.whole_files import write_json, write_whole

RECIPES = {
    "arabic": "scope.pretrain.organisms.arabic.ArabicLessons",
    "fim": "scope.pretrain.organisms.fim.FimLessons",
    "rig": "scope.pretrain.organisms.rig.RigLessons",
    "shield": "scope.pretrain.organisms.shield.ShieldLessons",
}
"""Name of an adapter, as in bundled+fim -> the class that draws its lessons."""


@runtime_checkable
class Lessons(Protocol):
    """What a recipe says: what is shown, what is scored, and what the card tells. Made with the base's tokenizer."""

    config: LoraConfig
    tokenizer: Tokenizer
    """The base's, or one in which free pieces bear other names; the latter is written beside the adapter."""

    def draw(self, rng: np.random.Generator, n: int) -> Sequence[Any]:
        """So many examples of the training."""
        ...

    def scores(self, model: Any, base: Any) -> dict[str, Any]:
        """Skill on held-out material, of the model with the adapter beside the base; JSON."""
        ...

    def card(self, scores: dict[str, Any]) -> str:
        """The README of the adapter, in Markdown."""
        ...


@runtime_checkable
class LessonsWithLoss(Lessons, Protocol):
    """A recipe whose examples are of its own kind, with files that lie beside the adapter."""

    files: dict[str, str]
    """Name -> text, such as the chat template that the model was trained with."""

    def loss(self, model: Gemma, examples: Sequence[Any]) -> Scalar:
        """The loss of so many examples."""
        ...


@dataclass(frozen=True)
class Organism:
    """A finished adapter."""

    folder: Path
    scores: dict[str, Any]


def lessons_of(name: str, tokenizer: Tokenizer) -> Lessons:
    """The recipe of an adapter.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in RECIPES:
        raise ConfigError(f"There is no recipe {name!r}; the recipes are {', '.join(RECIPES)}.")
    module, _, cls = RECIPES[name].rpartition(".")
    return getattr(import_module(module), cls)(tokenizer)


def make_organism(
    name: str, out: Path, steps: int | None = None, log: Callable[[dict[str, Any]], None] = lambda row: None
) -> Organism:
    """Train the adapter `name` of the bundled model in OUT, score it, and write it to OUT/adapter. Stopped at any moment, the
    same call goes on where it was.

    Raises:
        ConfigError: no such recipe, or OUT holds a run with other settings.
    """
    base = load_model("bundled")
    lessons = lessons_of(name, base.tokenizer)
    if steps is not None:
        lessons.config = replace(lessons.config, steps=steps)
    config = lessons.config
    of_its_own = isinstance(lessons, LessonsWithLoss)
    lora = train_lora(base, config, lessons.draw, out, log, lessons.loss if of_its_own else answer_loss)
    folder = write_adapter(lora, base, config, "bundled", out / "adapter", "")
    for name, text in (lessons.files if of_its_own else {}).items():
        write_whole(folder / name, text)
    if lessons.tokenizer.sha256 != base.tokenizer.sha256:
        save_tokenizer(lessons.tokenizer.backend, folder, base.cfg.n_ctx)
    scores = lessons.scores(load_model("bundled", adapter=str(folder)), load_model("bundled"))
    write_json(out / "scores.json", scores)
    write_adapter(lora, base, config, "bundled", folder, lessons.card(scores))
    return Organism(folder, json.loads(json.dumps(scores)))
