"""Lessons in reading, before a ColPali is trained: tower and projector learn to tell printed words and icons apart.

The loss makes a cell's rows, averaged behind the projector, point where the language model's embedding of its word points, or
of its icon's colour and shape. First each cell is read alone, as a picture of 8 patches, then within its page: what is learned
on cells alone hardly carries over, since every patch of a page sees all others. MaxSim alone teaches words too slowly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from scope.activations.scenes.pages import COLUMNS, HEIGHT, PAGE, ROWS, WIDTH, WORDS, Item, Page, page
from scope.activations.scenes.world import COLOURS, PATCH, SHAPES
from scope.models.paligemma.colpali import ColPali
from scope.pretrain.pictures.loop import LoopConfig, optimizers
from scope.pretrain.pictures.siglip import pixels
from scope.shapes import PatchRows, Scalar

_NAMES = (*WORDS, *COLOURS, *SHAPES)


@dataclass(frozen=True, kw_only=True)
class ReadingRecipe(LoopConfig):
    """How a lesson in reading goes; `fast_lr` is that of the scale of the logits."""

    steps: int = 800
    batch: int = 24
    warmup: int = 20

    alone: bool = True
    """Read each cell alone; with False, within its page."""

    first_page: int = 10_000_000
    """Number of the first page of the lesson: no lesson sees the pages of another."""


class ReadingLessons:
    """Draws the pages of a step, and computes how well their cells are read."""

    def __init__(self, model: ColPali, recipe: ReadingRecipe):
        self.recipe, self.model = recipe, model
        self.parts = {name: getattr(model, name).requires_grad_(True) for name in ("vision", "projector")}
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.trained = nn.ModuleDict(self.parts)
        self.trained.register_parameter("scale", self.scale)
        ids = model.words.encode_batch([f" {name}" for name in _NAMES])
        table = model.embed.W_E.detach()
        means = torch.stack([table[torch.tensor(row)].mean(0) for row in ids])
        self.directions = normalize(means - means.mean(0), dim=-1)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the tower's matrices; its pooling head, which a ColPali does not read, has no gradient."""
        vision, projector = self.parts["vision"], self.parts["projector"]
        named = [(n, p) for n, p in vision.named_parameters() if not n.startswith("head")]
        matrices = [p for n, p in named if p.dim() == 2 and n != "W_pos"]
        rest = [p for n, p in named if p.dim() != 2 or n == "W_pos"]
        return optimizers(self.recipe, matrices, [*rest, *projector.parameters()], [self.scale])

    def loss_at(self, step: int) -> Scalar:
        """Cross-entropy of each cell's word, or of its icon's colour and shape, in nats; empty cells are left out."""
        r = self.recipe
        batch = [page(r.seed, r.first_page + step * r.batch + i) for i in range(r.batch)]
        items = [item for p in batch for item in p.items]
        rows = self._rows_alone(batch) if r.alone else self.model.vision(pixels(batch))[:, CELLS].flatten(0, 1)
        rows = self.model.projector(rows[torch.tensor([item is not None for item in items])]).mean(1)
        logits = normalize(rows, dim=-1) @ self.directions.T * self.scale.exp()
        return reading_loss(logits, [item for item in items if item is not None])

    def _rows_alone(self, batch: Sequence[Page]) -> PatchRows:
        """Rows of each cell of each page, computed as if it were a picture of its own, at its place."""
        vision = self.model.vision
        patches = vision.patches(pixels(batch)).flatten(2).transpose(1, 2) + vision.W_pos
        return vision.run_blocks(patches[:, CELLS].flatten(0, 1), None)


def reading_loss(logits: Tensor, items: Sequence[Item]) -> Scalar:
    """Mean cross-entropy [item] of logits [item name]: a word among words, colours and shapes; an icon's colour among words and
    colours, its shape among words and shapes, half of the weight each."""
    n, m = len(WORDS), len(COLOURS)
    of_words = torch.tensor([isinstance(item, str) for item in items])
    losses = []
    if words := [item for item in items if isinstance(item, str)]:
        losses.append(cross_entropy(logits[of_words], torch.tensor([WORDS.index(word) for word in words]), reduction="sum"))
    if icons := [item for item in items if not isinstance(item, str)]:
        of_icons = logits[~of_words]
        colours, shapes = of_icons[:, : n + m], torch.cat([of_icons[:, :n], of_icons[:, n + m :]], 1)
        for table, names, of in ((colours, COLOURS, 0), (shapes, SHAPES, 1)):
            target = torch.tensor([n + names.index(icon[of]) for icon in icons])
            losses.append(cross_entropy(table, target, reduction="sum") / 2)
    return torch.stack(losses).sum() / len(items)


def _cells() -> Tensor:
    """The patches of each cell of a page [cell patch], both row by row."""
    grid = torch.arange((PAGE // PATCH) ** 2).reshape(PAGE // PATCH, PAGE // PATCH)
    rows, columns = HEIGHT // PATCH, WIDTH // PATCH
    parts = [grid[rows * y : rows * (y + 1), columns * x : columns * (x + 1)] for y in range(ROWS) for x in range(COLUMNS)]
    return torch.stack([part.flatten() for part in parts])


CELLS = _cells()
