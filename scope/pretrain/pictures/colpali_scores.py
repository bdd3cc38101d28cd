"""Measures a ColPali on pages that it was not trained on: nDCG@5 by kind of query, beside untrained and random."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from scope.activations.scenes.pages import Item, Page, pages
from scope.activations.scenes.world import HELD_OUT
from scope.models.paligemma.colpali import ColPali
from scope.pretrain.pictures.colpali import draw_query, embed_queries
from scope.pretrain.pictures.siglip import pixels
from scope.pretrain.pictures.siglip_scores import TEST_SEED
from scope.shapes import MultiVectors

_AT_ONCE = 50


def ndcg(scores: np.ndarray, answers: np.ndarray, k: int = 5) -> float:
    """Mean over queries of the discounted gain of the first k pages, as a share of the best possible."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gains = np.take_along_axis(answers, order, 1) @ discounts
    best = np.array([discounts[: min(k, int(n))].sum() for n in answers.sum(1)])
    return float((gains / best).mean())


@torch.no_grad()
def vectors_of_pages(model: ColPali, some: Sequence[Page]) -> MultiVectors:
    tokens = model.prepare_pages([some[0].picture])["input_ids"]
    parts = (some[i : i + _AT_ONCE] for i in range(0, len(some), _AT_ONCE))
    return torch.cat([model.embed_pages(tokens.expand(len(part), -1), pixels(part)) for part in parts])


@torch.no_grad()
def search(model: ColPali, some: Sequence[Page], queries: Sequence[Sequence[Item]]) -> dict[str, float]:
    """nDCG@5 and the share of queries whose first page answers, with the mean number of pages that do; `random` is the nDCG@5
    of pages in random order."""
    index = vectors_of_pages(model, some)
    parts = (queries[i : i + _AT_ONCE] for i in range(0, len(queries), _AT_ONCE))
    scores = torch.cat([model.scores(embed_queries(model, part), index) for part in parts]).numpy()
    answers = np.array([[p.answers(query) for p in some] for query in queries])
    shuffled = np.random.default_rng(0).random(scores.shape)
    first = scores.argmax(1)
    return {
        "ndcg5": ndcg(scores, answers),
        "first_answers": float(answers[np.arange(len(first)), first].mean()),
        "pages": float(answers.sum(1).mean()),
        "random": ndcg(shuffled, answers),
    }


def scores(model: ColPali, untrained: ColPali, n: int = 200) -> dict[str, Any]:
    """All of the card's figures."""
    some, held = list(pages(TEST_SEED, n)), list(pages(TEST_SEED + 1, n, held_out=True))
    rng = np.random.default_rng(TEST_SEED)
    icon, word = ([draw_query(p, rng, share, 1) for p in some] for share in (0.0, 1.0))
    kinds = {
        "one icon": (some, [q for q in icon if q and isinstance(q[0], tuple)]),
        "one icon, a held-out pair": (held, [[next(item for item in p.items if item in HELD_OUT)] for p in held]),
        "one word": (some, [q for q in word if q and isinstance(q[0], str)]),
        "two items": (some, [q for q in (draw_query(p, rng, 0.5, 2) for p in some) if len(q) == 2]),
    }
    rows: dict[str, Any] = {}
    for name, (among, queries) in kinds.items():
        rows[name] = search(model, among, queries) | {"n": len(queries)}
        rows[name]["untrained"] = search(untrained, among, queries)["ndcg5"]
    return {"n_pages": n, "queries": rows}
