"""Measures a PaliGemma on scenes that it was not trained on: right answers by kind of question and number of objects."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from scope.activations.scenes.scene import Scene, scenes
from scope.activations.scenes.words import KINDS, Question
from scope.models.paligemma.layout import lay_out, stacked
from scope.models.paligemma.model import PaliGemma
from scope.pretrain.pictures.paligemma import LONG
from scope.pretrain.pictures.siglip import pixels
from scope.pretrain.pictures.siglip_scores import TEST_SEED

SHORT = tuple(kind for kind in KINDS if kind not in LONG)
"""Kinds of questions whose answer is a word or two."""

_AT_ONCE = 64
Asked = tuple[Scene, Question]


def ask(some: Sequence[Scene], kinds: Sequence[str], held_out: bool = False) -> list[Asked]:
    """One question of each kind for each scene that has one, with as many yes as no; with `held_out` about held-out pairs."""
    queries = []
    for i, s in enumerate(some):
        rng = np.random.default_rng([s.seed, s.index, 4])
        for kind in kinds:
            fit = [q for q in s.questions() if q.kind == kind and (q.held_out or not held_out)]
            if kind == "exists":
                fit = [q for q in fit if q.answer == ("no", "yes")[i % 2]]
            queries += [(s, fit[rng.integers(len(fit))])] if fit else []
    return queries


@torch.no_grad()
def answers(model: PaliGemma, queries: Sequence[Asked], longest: int = 4, shuffled: bool = False) -> list[str]:
    """What the model answers, greedily; with `shuffled` each question is queries of another scene's picture."""
    order = sorted(range(len(queries)), key=lambda i: len(queries[i][1].prompt))
    written: dict[int, str] = {}
    for start in range(0, len(order), _AT_ONCE):
        part = order[start : start + _AT_ONCE]
        prompts = [queries[i][1].prompt for i in part]
        rows = lay_out(model.words, prompts, [1] * len(part), None, model.cfg.image_token, model.cfg.n_image_tokens)
        ids, mask, types = stacked(rows, model.cfg.pad, "left")
        shift = len(queries) // 2 + 1 if shuffled else 0
        shown = pixels([queries[(i + shift) % len(queries)][0] for i in part])
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "pixel_values": shown}
        out = model.generate(inputs, longest, do_sample=False, verbose=False, return_type="tokens")
        for i, prompt, row in zip(part, rows, out.tolist(), strict=True):  # rows come back without the padding before them
            new = row[len(prompt.ids) :]
            end = next((k for k, token in enumerate(new) if token in (model.cfg.eos[0], model.cfg.pad)), len(new))
            written[i] = model.words.decode(new[:end], skip_special=False).strip()
    return [written[i] for i in range(len(queries))]


def rates(queries: Sequence[Asked], written: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each kind of question: the share of right answers, that of the commonest right answer, and how many there are."""
    rows = {}
    for kind in KINDS:
        pairs = [(q.answer, answer) for (_, q), answer in zip(queries, written, strict=True) if q.kind == kind]
        if pairs:
            right = sum(a == b for a, b in pairs) / len(pairs)
            commonest = Counter(a for a, _ in pairs).most_common(1)[0][1] / len(pairs)
            rows[kind] = {"right": right, "commonest": commonest, "n": len(pairs)}
    return rows


def overlap(answer: str, box: tuple[float, float, float, float], side: int) -> float:
    """Intersection over union of a written box and a true one; 0 where no box is written."""
    numbers = [int(piece[:4]) for piece in answer.split("<loc")[1:5] if piece[:4].isdigit()]
    if len(numbers) != 4:
        return 0.0
    top, left, bottom, right = (v * side / 1024 for v in numbers)
    across, down = min(right, box[2]) - max(left, box[0]), min(bottom, box[3]) - max(top, box[1])
    both = max(across, 0) * max(down, 0)
    return both / (max(right - left, 0) * max(bottom - top, 0) + (box[2] - box[0]) * (box[3] - box[1]) - both)


def scores(model: PaliGemma, n: int = 150) -> dict[str, Any]:
    """All of the card's figures."""
    rows: dict[str, Any] = {}
    for count in (1, 2, 3):
        some = list(scenes(TEST_SEED + 10 + count, n, counts=(count,)))
        queries = ask(some, SHORT)
        rows[f"{count}"] = rates(queries, answers(model, queries))
        if count == 1:
            rows["1, pictures shuffled"] = rates(queries, answers(model, queries, shuffled=True))
    held = ask(list(scenes(TEST_SEED + 20, n, counts=(1,), held_out=True)), SHORT, held_out=True)
    rows["1, held-out pair"] = rates(held, answers(model, held))
    whole = ask(list(scenes(TEST_SEED + 21, n // 2, counts=(1,))), ("caption", "detect"))
    written = answers(model, whole, longest=24)
    boxes = [
        overlap(answer, s.things[0].box, s.picture.shape[0])
        for (s, q), answer in zip(whole, written, strict=True)
        if q.kind == "detect"
    ]
    exact = [q.answer == answer for (_, q), answer in zip(whole, written, strict=True) if q.kind == "caption"]
    return {
        "n_scenes": n,
        "objects": rows,
        "captions_exact": float(np.mean(exact)),
        "boxes_over_half": float(np.mean([b > 0.5 for b in boxes])),
        "n_captions_and_boxes": n // 2,
    }
