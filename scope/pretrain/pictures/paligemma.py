"""The recipe of `bundled-paligemma`: the bundled Gemma 2 learns to answer questions about synthetic scenes that the tower of
`bundled-siglip` sees.

The tower and the Gemma stay as they are. Trained are the projector, a LoRA adapter of the Gemma, and the rows of the new tokens
(<loc0000> ..., <seg000> ..., <image>). The projector starts so that a projected patch is as long as a word's embedding. The
first third shows one object, the rest up to three.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from torch import nn
from torch.nn.functional import cross_entropy

from scope.activations.scenes.scene import Scene, scene, scenes
from scope.activations.scenes.words import KINDS, Question
from scope.models.gemma.config import GemmaConfig
from scope.models.gemma.model import Gemma
from scope.models.load import load_model
from scope.models.paligemma.config import PaliGemmaConfig
from scope.models.paligemma.layout import IMAGE, add_locations, lay_out, stacked
from scope.models.paligemma.model import PaliGemma
from scope.models.siglip.model import Siglip
from scope.models.siglip.towers import VisionTower
from scope.models.text.tokenizer import Tokenizer
from scope.null_seeds import generator
from scope.pretrain.organisms.lora import Lora, LoraConfig
from scope.pretrain.pictures.loop import LoopConfig, optimizers
from scope.pretrain.pictures.siglip import pixels
from scope.shapes import Scalar

N_NEW = 1216
"""New rows of the embedding: 1,024 <loc>, 128 <seg>, <image>, and as many as make a multiple of 64."""

LONG = ("detect", "caption")
"""Kinds of questions whose answer is more than a word or two."""


@dataclass(frozen=True, kw_only=True)
class PaliGemmaRecipe(LoopConfig):
    """How projector and adapter are trained: `other_lr` is that of the projector and the rows, `fast_lr` the adapter's."""

    steps: int = 750
    batch: int = 16
    fast_lr: float = 3e-3
    warmup: int = 20
    decay: float = 0.5

    alone: float = 1 / 3
    """Share of the steps, at the beginning, on scenes of one object."""

    rank: int = 8
    """Rank of the adapter."""

    alpha: int = 16
    """What the adapter adds is multiplied by alpha / rank."""

    kinds: tuple[float, ...] = (1.0, 1.5, 1.0, 1.5, 0.7, 0.8, 1.0, 1.0)
    """How often each kind of question is asked, in the order of `KINDS`, among those of a step."""

    long_every: int = 8
    """One step of so many asks for captions and boxes, whose answers are long; the others ask for a word."""


def with_new_tokens(words: Tokenizer, n_rows: int) -> Tokenizer:
    """The tokenizer with PaliGemma's tokens: <loc> and <seg> where the embedding has rows for them, and <image>."""
    backend = Backend.from_str(words.backend.to_str())
    add_locations(backend, n_rows)
    backend.add_special_tokens([AddedToken(IMAGE, special=True, normalized=False)])
    return Tokenizer(backend, words.chat_template, n_rows)


def assemble(base: Gemma, tower: VisionTower, n_new: int, seed: int) -> PaliGemma:
    """A PaliGemma of a Gemma and a tower, with `n_new` rows drawn like those of the embedding, and a projector whose rows are
    as long as a word's embedding."""
    draw = generator("new rows of an embedding and a projector", seed)  # an SAE of the same seed starts with the other numbers
    n_rows = base.cfg.d_vocab + n_new
    words = with_new_tokens(base.tokenizer, n_rows)
    shared = {field.name: getattr(base.cfg, field.name) for field in fields(GemmaConfig)} | {"d_vocab": n_rows}
    vision = replace(tower.cfg, use_head=False)
    model = PaliGemma(PaliGemmaConfig(**shared, vision=vision, image_token=words.backend.token_to_id(IMAGE)), words)
    state = base.state_dict()
    embedding = state["embed.weight"]
    drawn = torch.randn(n_new, embedding.shape[1], generator=draw)
    state["embed.weight"] = torch.cat([embedding, embedding.mean(0) + embedding.std(0) * drawn])
    state |= {f"vision.{name}": p for name, p in tower.state_dict().items() if not name.startswith("head.")}
    projection = model.projector.weight
    with torch.no_grad():
        rows = tower(pixels(list(scenes(seed, 64))))
        nn.init.normal_(projection, std=projection.shape[1] ** -0.5, generator=draw)
        length = (embedding[_PLAIN_WORDS:].norm(dim=1).mean() * embedding.shape[1] ** 0.5).item()
        projection *= length / (rows @ projection.T).norm(dim=-1).mean()
    state |= {"projector.weight": projection, "projector.bias": torch.zeros(len(projection))}
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()


_PLAIN_WORDS = 300
"""Rows of the bundled embedding before this one are control tokens and bytes."""


class PaliGemmaLessons:
    """Draws the scenes and questions of a step, and computes its loss."""

    def __init__(self, recipe: PaliGemmaRecipe, tower: Siglip | None = None, base: Gemma | None = None):
        self.recipe = recipe
        base = load_model("bundled") if base is None else base
        self.n_words = base.cfg.d_vocab
        self.model = assemble(base, (load_model("bundled-siglip") if tower is None else tower).vision, N_NEW, recipe.seed)
        self.lora_config = LoraConfig(
            rank=recipe.rank, alpha=recipe.alpha, rows=tuple(range(self.n_words, self.n_words + N_NEW)), seed=recipe.seed
        )
        self.lora = Lora(self.model, self.lora_config)
        self.trained = nn.ModuleDict({"projector": self.model.projector.requires_grad_(True), "lora": self.lora})

    def optimizers(self) -> list[torch.optim.Optimizer]:
        rest = [*self.model.projector.parameters(), self.lora.rows]
        return optimizers(self.recipe, [], rest, [*self.lora.A, *self.lora.B])

    def loss_at(self, step: int) -> Scalar:
        """The loss of the answers of a step in nats: mean over the tokens of each, then over questions."""
        n, seed = self.recipe.batch, self.recipe.seed
        rng = np.random.default_rng([seed, step])
        counts = (1,) if step < self.recipe.alone * self.recipe.steps else (1, 1, 2, 3)
        batch = [scene(seed, step * n + i, counts) for i in range(n)]
        long = step % self.recipe.long_every == self.recipe.long_every - 1
        kinds = [w * ((kind in LONG) == long) for kind, w in zip(KINDS, self.recipe.kinds, strict=True)]
        queries = [draw_question(s, rng, kinds) for s in batch]
        with self.lora.applied(self.model) as model:
            return question_loss(model, batch, queries)


def draw_question(s: Scene, rng: np.random.Generator, kinds: Sequence[float]) -> Question:
    """A question about a scene: first its kind, by weight, of those that have an answer, then one of them."""
    there = s.questions()
    weights = np.array([w if any(q.kind == kind for q in there) else 0.0 for kind, w in zip(KINDS, kinds, strict=True)])
    kind = KINDS[rng.choice(len(KINDS), p=weights / weights.sum())]
    some = [q for q in there if q.kind == kind]
    return some[rng.integers(len(some))]


def answer_text(question: Question) -> str:
    """The answer as the model writes it: a space comes first, with which most answers are one token."""
    return question.answer if question.answer.startswith("<") else f" {question.answer}"


def question_loss(model: PaliGemma, batch: Sequence[Scene], queries: Sequence[Question]) -> Scalar:
    """The loss of the answers in nats: mean over the tokens of each, then over questions."""
    prompts, answers = [q.prompt for q in queries], [answer_text(q) for q in queries]
    rows = lay_out(model.words, prompts, [1] * len(queries), answers, model.cfg.image_token, model.cfg.n_image_tokens)
    ids, mask, types = stacked(rows, model.cfg.pad, "right")
    inputs = {"token_type_ids": types[:, :-1], "attention_mask": mask[:, :-1], "pixel_values": pixels(batch)}
    stream = model(ids[:, :-1], **inputs, stop_at_layer=model.cfg.n_layers)
    wanted = types[:, 1:] == 1
    logits = model.logits_of(stream[wanted][None])[0]
    losses = cross_entropy(logits, ids[:, 1:][wanted], reduction="none")
    return (losses / wanted.sum(1, keepdim=True).expand_as(wanted)[wanted]).sum() / len(queries)
