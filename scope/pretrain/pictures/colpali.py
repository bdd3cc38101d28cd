"""The recipe of `bundled-colpali`: `bundled-paligemma` learns to give pages and queries vectors, and finds pages by MaxSim.

As a ColPali is trained: tower, projector and adapter of a PaliGemma go on, behind them a linear layer to few numbers. Pages are
larger than scenes, so the tower's table of positions is stretched. Tower and projector first learn to read (reading.py). The
loss is a cross-entropy over the pages of a batch, other pages that answer a query too masked out, and one over their cells for
each of their words. Each page stands beside one with the same colours and shapes, exchanged: a query's two words, each matched
on an icon of its own, do not find the page. Without such pages, pairs are learned one by one, and held-out ones are missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, softplus

from scope.activations.scenes.pages import PAGE, Item, Page, page, query_text, with_colours_exchanged
from scope.models.adapters import LowRank
from scope.models.gemma.config import GemmaConfig
from scope.models.gemma.model import Gemma
from scope.models.load import load_model
from scope.models.paligemma.colpali import PAGE_TEXT, ColPali
from scope.models.paligemma.config import PaliGemmaConfig
from scope.models.paligemma.layout import IMAGE
from scope.models.paligemma.model import PaliGemma
from scope.null_seeds import generator
from scope.pretrain.organisms.lora import Lora, LoraConfig
from scope.pretrain.pictures.loop import LoopConfig, optimizers
from scope.pretrain.pictures.paligemma import with_new_tokens
from scope.pretrain.pictures.reading import CELLS, ReadingLessons, ReadingRecipe
from scope.pretrain.pictures.siglip import as_matrix, pixels
from scope.shapes import MultiVectors, Scalar


@dataclass(frozen=True, kw_only=True)
class ColPaliRecipe(LoopConfig):
    """How a PaliGemma becomes a ColPali: `matrix_lr` is that of the tower's matrices, `fast_lr` that of the temperature."""

    steps: int = 400
    batch: int = 24
    matrix_lr: float = 0.01
    warmup: int = 20
    decay: float = 0.5

    d_embed: int = 64
    """Numbers of a vector."""

    words: float = 0.3
    """Share of the items of queries that are words, where a page has both."""

    reading: int = 2
    """Steps of each of the two lessons in reading, for each step here."""

    rank: int = 8
    """Rank of the adapter."""

    alpha: int = 16
    """What the adapter adds is multiplied by alpha / rank."""


def assemble(start: PaliGemma, base: Gemma, recipe: ColPaliRecipe) -> ColPali:
    """A ColPali for pages of the bundled Gemma and a PaliGemma's tower and projector; its adapter is not in these weights."""
    draw = generator("head of a ColPali", recipe.seed)  # an SAE of the same seed starts with the other numbers
    words = with_new_tokens(base.tokenizer, base.cfg.d_vocab)
    shared = {field.name: getattr(base.cfg, field.name) for field in fields(GemmaConfig)}
    vision = replace(start.cfg.vision, image_size=PAGE)
    image_token = words.backend.token_to_id(IMAGE)
    config = PaliGemmaConfig(**shared, vision=vision, image_token=image_token, d_embed=recipe.d_embed)
    model = ColPali(config, words)
    state = base.state_dict()
    state |= {f"vision.{name}": p for name, p in start.vision.state_dict().items()}
    state |= {f"projector.{name}": p for name, p in start.projector.state_dict().items()}
    state["vision.W_pos"] = stretched(start.vision.W_pos.detach(), vision.grid)
    head = torch.randn(recipe.d_embed, config.d_model, generator=draw) * config.d_model**-0.5
    state |= {"proj.weight": head, "proj.bias": torch.zeros(recipe.d_embed)}
    model.load_state_dict({name: p for name, p in state.items() if name in model.state_dict()})
    return model.requires_grad_(False).eval()


def stretched(positions: Tensor, grid: int) -> Tensor:
    """A table of positions [patch d_model] for a grid of another size, bicubic."""
    n = round(len(positions) ** 0.5)
    table = positions.T.reshape(1, -1, n, n)
    return interpolate(table, size=(grid, grid), mode="bicubic", align_corners=False).reshape(len(table[0]), -1).T


class ColPaliLessons:
    """Draws the pages and queries of a step, and computes its loss."""

    def __init__(self, recipe: ColPaliRecipe, start: PaliGemma | None = None, base: Gemma | None = None):
        self.recipe = recipe
        start = load_model("bundled-paligemma") if start is None else start
        self.model = assemble(start, load_model("bundled") if base is None else base, recipe)
        self.lora_config = LoraConfig(rank=recipe.rank, alpha=recipe.alpha, seed=recipe.seed)
        self.lora = Lora(self.model, self.lora_config)
        for name, a, b in zip(self.lora.names, self.lora.A, self.lora.B, strict=True):
            update = start.adapter.updates[f"{name}.weight"] if start.adapter is not None else None
            if isinstance(update, LowRank):
                a.data.copy_(update.A)
                b.data.copy_(update.B)
        self.temperature = nn.Parameter(torch.tensor(10.0).log())
        parts = {name: getattr(self.model, name).requires_grad_(True) for name in ("vision", "projector", "proj")}
        self.trained = nn.ModuleDict({**parts, "lora": self.lora})
        self.trained.register_parameter("temperature", self.temperature)
        row = self.model.prepare([PAGE_TEXT], [np.zeros((PAGE, PAGE, 3), np.uint8)])
        self.page_tokens = row["input_ids"]

    def lessons_before(self) -> list[tuple[str, ReadingLessons]]:
        """The lessons in reading and the folders of their checkpoints: cells alone, then whole pages."""
        steps, seed = self.recipe.steps * self.recipe.reading, self.recipe.seed
        alone = ReadingRecipe(steps=steps, seed=seed)
        whole = replace(alone, alone=False, first_page=2 * alone.first_page)
        return [
            (name, ReadingLessons(self.model, r)) for name, r in (("reading cells", alone), ("reading pages", whole)) if steps
        ]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        vision = self.model.vision
        filters = vision.patches.weight
        matrices = [p for n, p in vision.named_parameters() if p.dim() == 2 and n != "W_pos"]
        rest = [p for p in self.trained.parameters() if p.requires_grad and p is not self.temperature]
        rest = [p for p in rest if not any(p is q for q in (*matrices, filters))]
        return optimizers(self.recipe, [*matrices, as_matrix(filters)], rest, [self.temperature])

    def loss_at(self, step: int) -> Scalar:
        """Cross-entropy of a query's page among those of the batch, and of a word's cells among all of theirs, in nats."""
        n, seed = self.recipe.batch, self.recipe.seed
        rng = np.random.default_rng([seed, step])
        batch = [page(seed, step * n + i) for i in range(n - n // 2)]
        batch += [other for each in batch[: n // 2] if (other := with_colours_exchanged(each)) is not None]
        queries = [draw_query(p, rng, self.recipe.words) for p in batch]
        words = sorted({item for p in batch for item in p.items if isinstance(item, str)})
        with self.lora.applied(self.model) as model:
            pages = self.embed_pages(batch)
            vectors = embed_queries(model, [*queries, *([word] for word in words)])
        of_queries, of_words = vectors.split([len(queries), len(words)])
        scores = max_sims(of_queries, pages) * self.temperature.exp()
        answered = torch.tensor([[p.answers(query) for p in batch] for query in queries])
        others = answered & ~torch.eye(len(batch), dtype=torch.bool)
        loss = cross_entropy(scores.masked_fill(others, -torch.inf), torch.arange(len(batch)))
        if not words:
            return loss
        cells = pages[:, CELLS].flatten(0, 1)
        holds = torch.tensor([[item == word for p in batch for item in p.items] for word in words])
        return loss + word_loss(max_sims(of_words, cells) * self.temperature.exp(), holds)

    def embed_pages(self, batch: Sequence[Page]) -> MultiVectors:
        """Vectors of pages, which have the size that the tower takes."""
        return self.model(self.page_tokens.expand(len(batch), -1), pixel_values=pixels(batch))


def word_loss(scores: Float[Tensor, "word cell"], holds: Bool[Tensor, "word cell"]) -> Scalar:
    """Cross-entropy of each cell that holds a word against all cells that do not, mean over its cells, then over words."""
    others = scores.masked_fill(holds, -torch.inf).logsumexp(1, keepdim=True)
    losses = softplus(others - scores) * holds
    return (losses.sum(1) / holds.sum(1)).mean()


def embed_queries(model: ColPali, queries: Sequence[Sequence[Item]]) -> MultiVectors:
    return model.embed_queries(model.prepare_queries([query_text(query) for query in queries], padding_side="right"))


def draw_query(p: Page, rng: np.random.Generator, words: float, n: int | None = None) -> list[Item]:
    """One or two different items of a page; `words` is the chance of each to be a word where there are both kinds."""
    by_kind = [sorted({item for item in p.items if isinstance(item, kind)}) for kind in (tuple, str)]
    query: list[Item] = []
    for _ in range(int(rng.integers(1, 3)) if n is None else n):
        kind = int(rng.random() < words)
        left = [item for item in by_kind[kind] or by_kind[1 - kind] if item not in query]
        query += [left[rng.integers(len(left))]] if left else []
    return query


def max_sims(
    queries: Float[Tensor, "query token d_out"], pages: Float[Tensor, "page patch d_out"]
) -> Float[Tensor, "query page"]:
    """MaxSim [query page] with its gradient; rows of zeros are padding and add nothing."""
    return torch.einsum("qid,pjd->qpij", queries, pages).amax(-1).sum(-1)
