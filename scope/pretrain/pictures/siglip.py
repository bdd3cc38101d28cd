"""The recipe of `bundled-siglip`: two small towers learn which captions are true of which synthetic scenes.

The loss is SigLIP's sigmoid loss, with a label for every picture and caption of a batch from the world, not from the diagonal:
many captions are true of several pictures. First come crops of 3 x 3 patches with one object, a fourth of the work of a
picture, with the positions that they have in the whole, so that places are learned too: at the beginning with the object in
the middle of the crop, where shapes are learned in a hundred steps, then anywhere in it. Whole scenes follow, where half of
the captions stand there again with one fact changed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers
import torch
from jaxtyping import Float
from tokenizers import normalizers, pre_tokenizers, processors
from torch import nn
from torch.nn.functional import logsigmoid, normalize

from scope.activations.scenes.pages import Page
from scope.activations.scenes.scene import CROP, Scene, crop, scene
from scope.activations.scenes.words import Caption, random_caption, spoiled, truth
from scope.activations.scenes.world import COLOURS, GRID, PATCH, SHAPES, SIDE, SIZES
from scope.models.siglip.config import SiglipConfig, TextConfig, VisionConfig
from scope.models.siglip.model import Siglip
from scope.models.siglip.towers import VisionTower
from scope.models.siglip.words import TextTowerTokenizer
from scope.pretrain.pictures.loop import LoopConfig, optimizers
from scope.shapes import Embeddings, Pixels, Scalar

WORDS = ("a", "and", "at", "the", "in", "top", "bottom", "left", "right", "middle", "shape", *SIZES, *COLOURS, *SHAPES)
PAD, UNKNOWN = "</s>", "<unk>"
N_CTX = 20
"""Tokens of a caption of two objects with all their facts, and the end."""


@dataclass(frozen=True, kw_only=True)
class SiglipRecipe(LoopConfig):
    """How the towers are trained."""

    steps: int = 700
    batch: int = 96
    matrix_lr: float = 0.04

    aligned_steps: int = 150
    """Steps on crops with the object in the middle, at the beginning."""

    crop_steps: int = 300
    """Steps on crops, these included."""

    position_std: float = 0.2
    """Size of the waves with which the vision tower's table of positions starts."""

    stated: tuple[float, float, float, float] = (0.5, 0.9, 0.2, 0.7)
    """Chance that a caption names colour, shape, size and place of an object. Places must be named often: where few captions
    name them before shapes are learned, both towers settle on ignoring left and right for good."""

    one_fact: float = 0.35
    """Share of the captions that name one fact alone."""

    width: int = 128
    text_width: int = 64


def build(recipe: SiglipRecipe) -> Siglip:
    """The towers with start weights."""
    torch.manual_seed(recipe.seed)
    d, vocabulary = recipe.width, len(WORDS) + 3
    vision = VisionConfig(d_model=d, n_layers=4, n_heads=4, d_mlp=4 * d, image_size=SIDE, patch_size=PATCH)
    w = recipe.text_width
    text = TextConfig(d_model=w, n_layers=2, n_heads=4, d_mlp=4 * w, d_vocab=vocabulary, n_ctx=N_CTX, d_out=d, pad=1)
    config = SiglipConfig(vision=vision, text=text)
    model = Siglip(config, TextTowerTokenizer(tokenizer(), text, canonical=False))
    for name, p in model.named_parameters():
        if name == "vision.W_pos":
            p.data.copy_(recipe.position_std * waves(GRID, d))
        elif name.endswith(("W_pos", "embed.weight")):
            nn.init.normal_(p, std=0.02)
        elif name.endswith("probe"):
            nn.init.normal_(p, std=0.5)
        elif name.endswith("patches.weight"):
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
        elif p.dim() == 2:
            nn.init.xavier_uniform_(p)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
    nn.init.constant_(model.logit_scale, math.log(10))
    nn.init.constant_(model.logit_bias, -5.0)
    return model


def waves(grid: int, d: int) -> Float[torch.Tensor, "patch d_model"]:
    """Sines and cosines of rows and columns with lengths from two grids down to four patches, of mean square 1."""
    lengths = 2 * grid * (2 / grid) ** torch.linspace(0, 1, d // 4)
    angles = 2 * math.pi * torch.arange(grid)[:, None] / lengths
    one = torch.cat([angles.sin(), angles.cos()], 1)
    table = torch.cat([one[:, None].expand(grid, grid, -1), one[None].expand(grid, grid, -1)], -1)
    return table.reshape(grid**2, d) / table.square().mean().sqrt()


def tokenizer() -> tokenizers.Tokenizer:
    """A token for each word of the captions; letters become small, punctuation is left out, and an end token follows."""
    ids = {"<pad>": 0, PAD: 1, UNKNOWN: 2} | {word: 3 + i for i, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token=UNKNOWN))
    marks = tokenizers.Regex(r"[!-/:-;=?-@\[-`{-~]")  # ASCII punctuation but the brackets of <unk>
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(marks, "")])
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single=f"$A {PAD}", special_tokens=[(PAD, 1)])
    backend.add_special_tokens([PAD, UNKNOWN])
    return backend


class SiglipLessons:
    """Draws the pictures and captions of a step, and computes its loss."""

    def __init__(self, recipe: SiglipRecipe):
        self.recipe, self.model = recipe, build(recipe)
        self.trained = self.model

    def optimizers(self) -> list[torch.optim.Optimizer]:
        model = self.model
        matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and not n.endswith(("W_pos", "embed.weight"))]
        fast = [model.logit_scale, model.logit_bias, model.vision.W_pos]
        filters = model.vision.patches.weight
        rest = [p for p in model.parameters() if not any(p is q for q in (*matrices, *fast, filters))]
        return optimizers(self.recipe, [*matrices, as_matrix(filters)], rest, fast)

    def loss_at(self, step: int) -> Scalar:
        """The sigmoid loss of a step: the sum over the different captions, mean over pictures."""
        n, seed = self.recipe.batch, self.recipe.seed
        rng = np.random.default_rng([seed, step])
        if step < self.recipe.crop_steps:
            aligned = step < self.recipe.aligned_steps
            squares, corners = zip(*(crop(seed, step * n + i, aligned=aligned) for i in range(n)), strict=True)
            images = embed_crops(self.model.vision, pixels(squares), torch.tensor(corners))
        else:
            squares = [scene(seed, step * n + i) for i in range(n)]
            images = normalize(self.model.vision.pool(self.model.vision(pixels(squares))), dim=-1)
        captions = self._captions([square.things for square in squares], rng, hard=step >= self.recipe.crop_steps)
        texts = self.model.embed_texts(self.model.to_tokens([caption.text for caption in captions]))
        logits = self.model.logits_of(images, texts)
        labels = 2.0 * torch.from_numpy(truth(captions, [square.things for square in squares])).T - 1
        return -logsigmoid(labels * logits).sum() / n

    def _captions(self, worlds: Sequence[tuple], rng: np.random.Generator, hard: bool) -> list[Caption]:
        """The different captions of a batch; with `hard`, half of them again with one fact changed."""
        r = self.recipe
        captions = [random_caption(things, rng, r.stated, r.one_fact, most=2) for things in worlds]
        if hard:
            captions += [spoiled(captions[i], worlds[i], rng) for i in range(0, len(worlds), 2)]
        return list({caption.text: caption for caption in captions}.values())


def as_matrix(filters: nn.Parameter) -> nn.Parameter:
    """The filters of a convolution as the matrix [out, in height width] that they are, in the same memory, for an optimiser of
    matrices. The gradient of the filters goes there."""
    matrix = nn.Parameter(filters.detach().flatten(1))

    def hand_over(p: torch.Tensor) -> None:
        matrix.grad, p.grad = p.grad.flatten(1), None

    filters.register_post_accumulate_grad_hook(hand_over)
    return matrix


def pixels(squares: Sequence[Scene | Page]) -> Pixels:
    """pixel_values of pictures that have the size they are read in."""
    levels = torch.from_numpy(np.stack([square.picture for square in squares]))
    return levels.permute(0, 3, 1, 2).float() / 127.5 - 1


def embed_crops(tower: VisionTower, crops: Pixels, corners: torch.Tensor) -> Embeddings:
    """Vectors of length 1 of squares whose first patch has the row and column `corners` [image 2] in the whole picture."""
    steps = torch.arange(CROP // PATCH)
    rows, columns = (corners[:, i, None] + steps for i in range(2))
    patches = tower.patches(crops).flatten(2).transpose(1, 2)
    places = (rows[:, :, None] * GRID + columns[:, None]).flatten(1)
    return normalize(tower.pool(tower.run_blocks(patches + tower.W_pos[places], None)), dim=-1)
