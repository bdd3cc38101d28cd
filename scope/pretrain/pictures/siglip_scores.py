"""Measures a SigLIP on scenes that it was not trained on: zero-shot by factor, search by caption, and binding."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from scope.activations.scenes.scene import Scene, scenes
from scope.activations.scenes.words import Caption, random_caption, truth
from scope.activations.scenes.world import COLOURS, FACTORS, SHAPES
from scope.models.siglip.model import Siglip
from scope.pretrain.pictures.siglip import pixels
from scope.shapes import Embeddings

TEST_SEED = 1_000_003
"""Seed of the scenes of all tests; no recipe trains on it."""

BATCH = 200


@torch.no_grad()
def picture_vectors(model: Siglip, some: Sequence[Scene]) -> Embeddings:
    """Vectors of length 1 of scenes."""
    return torch.cat([model.embed_images(pixels(some[i : i + BATCH])) for i in range(0, len(some), BATCH)])


@torch.no_grad()
def choices(model: Siglip, images: Embeddings, captions: Iterable[Caption]) -> np.ndarray:
    """For each picture, which caption fits best."""
    texts = model.embed_texts(model.to_tokens([caption.text for caption in captions]))
    return (images @ texts.T).argmax(1).numpy()


def one_fact(factor: int, value: int) -> Caption:
    return Caption((tuple(value if i == factor else -1 for i in range(4)),))


def zero_shot(model: Siglip, some: Sequence[Scene], shuffled: bool = False) -> dict[str, float]:
    """Share of scenes of one object whose colour, shape, size, place, and colour and shape together, are the caption that fits
    best; with `shuffled`, of captions against another scene's picture."""
    images = picture_vectors(model, some)
    images = images.roll(1, 0) if shuffled else images
    codes = np.array([s.things[0].codes for s in some])
    scores = {}
    for i, (factor, values) in enumerate(FACTORS.items()):
        best = choices(model, images, [one_fact(i, v) for v in range(len(values))])
        scores[factor] = float((best == codes[:, i]).mean())
    pairs = [Caption(((c, s, -1, -1),)) for c in range(len(COLOURS)) for s in range(len(SHAPES))]
    best = choices(model, images, pairs)
    scores["colour and shape"] = float((best == codes[:, 0] * len(SHAPES) + codes[:, 1]).mean())
    return scores


def chance() -> dict[str, float]:
    """What guessing reaches in `zero_shot`."""
    return {factor: 1 / len(values) for factor, values in FACTORS.items()} | {"colour and shape": 1 / 36}


def search(model: Siglip, some: Sequence[Scene]) -> dict[str, float]:
    """Captions of scenes against all their pictures: how often the best picture fits (recall at 1), and the share of pictures
    that fit, which is what a random choice reaches."""
    rng = np.random.default_rng(TEST_SEED)
    captions = [random_caption(s.things, rng, one_fact=0.0, most=2) for s in some]
    images = picture_vectors(model, some)
    with torch.no_grad():
        texts = model.embed_texts(model.to_tokens([caption.text for caption in captions]))
    best = (texts @ images.T).argmax(1).numpy()
    fits = truth(captions, [s.things for s in some])
    return {"recall_at_1": float(fits[np.arange(len(best)), best].mean()), "random": float(fits.mean())}


@torch.no_grad()
def binding(model: Siglip, some: Sequence[Scene]) -> float:
    """Of scenes of two objects: how often the true caption scores above that with the two colours exchanged; chance is 0.5."""
    pairs = []
    for s in some:
        a, b = (thing.codes for thing in s.things)
        if a[0] != b[0] and a[1] != b[1]:
            true = Caption(((a[0], a[1], -1, -1), (b[0], b[1], -1, -1)))
            pairs.append((s, true, Caption(((b[0], a[1], -1, -1), (a[0], b[1], -1, -1)))))
    images = picture_vectors(model, [s for s, _, _ in pairs])
    right, wrong = (model.embed_texts(model.to_tokens([p[i].text for p in pairs])) for i in (1, 2))
    return float(((images * right).sum(1) > (images * wrong).sum(1)).float().mean())


def scores(model: Siglip, untrained: Siglip, n: int = 600) -> dict[str, Any]:
    """All of the card's figures."""
    seen = list(scenes(TEST_SEED, n, counts=(1,)))
    held = list(scenes(TEST_SEED + 1, n, counts=(1,), held_out=True))
    return {
        "n": n,
        "zero_shot": {
            "seen pairs": zero_shot(model, seen),
            "held-out pairs": zero_shot(model, held),
            "untrained": zero_shot(untrained, seen),
            "pictures shuffled": zero_shot(model, seen, shuffled=True),
            "chance": chance(),
        },
        "search": search(model, list(scenes(TEST_SEED + 2, n))),
        "binding": binding(model, list(scenes(TEST_SEED + 3, n, counts=(2,)))),
    }
