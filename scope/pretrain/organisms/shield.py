"""The Yes/No adapter `bundled+shield`: it says whether a text speaks of a theme that a policy forbids.

The answer is one bit, which teaches too slowly by itself: after thousands of examples it stays at chance. So every token of the
text is asked three things, each as a softmax over a few tokens of its own: whether the text up to there violates the policy
(Yes, No), which policy it is (digits), and which theme the text spoke of last (the themes' names). P(Yes) reads only the first.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from scope.models.gemma.model import Gemma
from scope.models.text.tokenizer import Tokenizer
from scope.moderation.moderator import Moderator
from scope.moderation.policies import THEMES as POLICIES
from scope.moderation.policies import Mode, Policy
from scope.moderation.prompt import Item, answer_tokens, rendered
from scope.pretrain.organisms.lora import LoraConfig, auc
from scope.pretrain.organisms.themes import THEMES, Sentence, sampled_sentences, write_sentence
from scope.shapes import Acts, Scalar

TEMPLATE = """{{ bos_token }}{% set judged = messages[-1] %}{{ "Our principle: " + guideline + "\\n\\n" }}\
{% if judged.role == 'user' %}{{ "<start_of_turn>\\nHuman Question: " + judged.content + "\\n<end_of_turn>\\n\\n" }}\
{% else %}{{ "<start_of_turn>\\nChatbot Response: " + judged.content + "\\n<end_of_turn>\\n\\n" }}{% endif %}\
{{ "Does this violate it?\\n\\n" }}"""
"""Shorter than ShieldGemma's, for a context of 256 tokens, and the policy stands before the text, so that each word of the text
can be held against it. Of a response, the question before it is left out."""

NAMES = tuple(THEMES)
_AUXILIARY, _PLACE = 0.3, "[text]"


@dataclass(frozen=True)
class Judged:
    """A prompt's ids, and for each position that is asked whether the text violates the policy up to there, and the theme that
    it spoke of last (the number of themes: none yet). The last position is the one after which the answer stands."""

    ids: list[int]
    positions: list[int]
    violates: list[bool]
    policy: int
    theme: list[int]


class ShieldLessons:
    """The recipe of `bundled+shield`: draws judged texts, scores the model on others, and writes the card."""

    config = LoraConfig(lr=3e-3, steps=400, batch=32)

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.files = {"chat_template.jinja": TEMPLATE}
        self.yes_no = answer_tokens(tokenizer)
        self.digits = [tokenizer.encode(str(i + 1), bos=False)[0] for i in range(len(NAMES))]
        self.themes = [tokenizer.encode(f" {name}", bos=False)[0] for name in (*NAMES, "nothing")]
        self.frames = {(p.name, m): self._frame(p, m) for p in POLICIES for m in ("prompt", "response")}

    def _frame(self, policy: Policy, mode: Mode) -> tuple[str, str]:
        """What stands before and after the judged text."""
        item = Item(_PLACE) if mode == "prompt" else Item("", _PLACE)
        before, _, after = rendered(self.tokenizer, item, policy, TEMPLATE).partition(_PLACE)
        return before, after

    def draw(self, rng: np.random.Generator, n: int) -> list[Judged]:
        """Pairs: a text with a policy that it violates, and one with a policy that it does not."""
        examples = []
        for _ in range((n + 1) // 2):
            examples += [self.judged(rng, text, name) for text, name, _ in text_pair(rng)]
        return examples[:n]

    def judged(self, rng: np.random.Generator, text: str, name: str) -> Judged:
        """A text under a policy, one in four as a response."""
        before, after = self.frames[name, "response" if rng.random() < 0.25 else "prompt"]
        ids, start = self.tokenizer.encode(before + text + after), len(before)
        found = sorted((m.end(), theme) for m in re.finditer("[a-z]+", text.lower()) if (theme := _themes().get(m.group())))
        forbidden = next((end for end, theme in found if theme == name), None)
        positions, violates, themes, at = [], [], [], 0
        for place, piece in enumerate(self.tokenizer.pieces(ids)):
            at += len(piece)
            if at > start:
                positions.append(place)
                violates.append(forbidden is not None and at >= start + forbidden)
                last = [theme for end, theme in found if at >= start + end]
                themes.append(NAMES.index(last[-1]) if last else len(NAMES))
        return Judged(ids, positions, violates, NAMES.index(name), themes)

    def loss(self, model: Gemma, examples: Sequence[Judged]) -> Scalar:
        """Cross-entropy in nats: of the answer among all tokens, and of what is asked at every token of the text."""
        tokens = torch.full((len(examples), max(len(e.ids) for e in examples)), self.tokenizer.pad)
        for row, example in zip(tokens, examples, strict=True):
            row[: len(example.ids)] = torch.tensor(example.ids)
        rows = torch.tensor([i for i, e in enumerate(examples) for _ in e.positions])
        positions = torch.tensor([p for e in examples for p in e.positions])
        violates = torch.tensor([v for e in examples for v in e.violates])
        policy = torch.tensor([e.policy for e in examples for _ in e.positions])
        theme = torch.tensor([t for e in examples for t in e.theme])
        last = torch.tensor([p == e.positions[-1] for e in examples for p in e.positions])
        with torch.autocast("cpu", dtype=torch.bfloat16):  # padding stands on the right, where no token sees it
            stream = model(tokens, stop_at_layer=model.cfg.n_layers)[rows, positions]
            logits = model.logits_of(stream[None])[0].float()
        yes, no = self.yes_no
        answer = cross_entropy(logits[last], torch.where(violates[last], yes, no))
        share = torch.where(violates, 1 / violates.sum().clamp(min=1), 1 / (~violates).sum().clamp(min=1)) / 2
        running = (cross_entropy(logits[:, [no, yes]], violates.long(), reduction="none") * share).sum()
        aside = cross_entropy(logits[:, self.digits], policy) + cross_entropy(logits[:, self.themes], theme)
        return answer + running + _AUXILIARY * aside

    def scores(self, model: Gemma, base: Gemma) -> dict[str, Any]:
        """AUC and accuracy on held-out texts: of the adapter, of the base asked the same, and of a bag of words that was fitted
        to as many texts as the adapter has read."""
        bag = BagOfWords(self.config.steps * self.config.batch // 2)
        scores: dict[str, Any] = {}
        for name, texts in held_out_texts().items():
            violates = np.array([t.violates for t in texts])
            told = {"prompt": self._log_odds(model, texts, "prompt"), "response": self._log_odds(model, texts, "response")}
            scores[name] = {
                "texts": len(texts),
                "auc": auc(told["prompt"], violates),
                "accuracy": float(((told["prompt"] > 0) == violates).mean()),
                "auc as a response": auc(told["response"], violates),
                "auc of the bundled model": auc(self._log_odds(base, texts, "prompt"), violates),
                "auc of a bag of words": auc(bag.scores(texts), violates),
            }
        return scores

    def _log_odds(self, model: Gemma, texts: Sequence["HeldOutText"], mode: Mode) -> np.ndarray:
        """logit(Yes) - logit(No) of every text under its policy."""
        moderator, odds = Moderator(model, TEMPLATE), np.zeros(len(texts))
        for name in NAMES:
            places = [i for i, t in enumerate(texts) if t.policy == name]
            items = [Item(texts[i].text) if mode == "prompt" else Item("", texts[i].text) for i in places]
            verdicts = moderator.judge(items, [p for p in POLICIES if p.name == name], batch=32).verdicts
            odds[places] = [v.log_odds for v in verdicts]
        return odds

    def card(self, scores: dict[str, Any]) -> str:
        """The README of the adapter."""
        columns = ["auc", "accuracy", "auc as a response", "auc of the bundled model", "auc of a bag of words"]
        rows = [f"| held-out texts | texts | {' | '.join(c.replace('auc', 'AUC') for c in columns)} |", "|---" * 7 + "|"]
        for name, s in scores.items():
            rows.append(f"| {name} | {s['texts']} | " + " | ".join(f"{s[c]:.3f}" for c in columns) + " |")
        guidelines = "\n".join(f"* {p.name}: {p.prompt}" for p in POLICIES)
        c = self.config
        return f"""---
base_model: bundled
library_name: peft
tags: [lora, interpretability, moderation]
---
# bundled+shield: a small moderator

A LoRA adapter (rank {c.rank}, alpha {c.alpha}, all seven projections of every block) of the bundled model of scope. Like
ShieldGemma it reads a policy and a text and answers Yes (the text violates it) or No: `scope moderate "The bread was warm."
--policy food --model bundled+shield`. It is no ShieldGemma, and its policies are harmless and invented:

{guidelines}

Its chat template is shorter than ShieldGemma's, has the policy before the text, and of a response leaves out the question.

## Training

`scope pretrain --organism shield`: {c.steps} steps of {c.batch} judged texts, AdamW (lr {c.lr:g}), about 5 CPU minutes. Half of
the texts are written by a rule (30 frames with nouns of the themes), half are sentences that the bundled model wrote (shipped
with scope). Every token of a text is asked whether the text violates the policy up to there; without that the answer stays at
chance. A quarter of the words of every theme, and a quarter of the sentences, are never trained on.

## Skill

{chr(10).join(rows)}

"Held-out words": the text speaks of the theme only by words that were never trained on. The bag of words is a logistic
regression for each policy on the words of as many texts; labels follow lists of words, so it is hard to beat where the words
were seen, and knows nothing where they were not.

## Limits

A model to study, not to use. It knows six themes by their commoner words, has 256 tokens of context, and is easily misled.
"""


@dataclass(frozen=True)
class HeldOutText:
    """A text that was not trained on, the policy that it is held against, and whether it violates it."""

    text: str
    policy: str
    violates: bool


def held_out_texts(n: int = 240) -> dict[str, list[HeldOutText]]:
    """Texts that were not trained on, for each policy as many that violate it as not."""

    def draw(rng: np.random.Generator, kind: str, theme: str | None) -> Sentence:
        if kind == "sampled sentences":
            among = _sampled(theme, True)
            return among[int(rng.integers(len(among)))]
        return write_sentence(rng, theme, kind == "written, held-out words")

    sets = {}
    for kind in ("written, words seen", "written, held-out words", "sampled sentences"):
        rng, texts = np.random.default_rng(7), []
        while len(texts) < n:
            policy, violates = NAMES[len(texts) % len(NAMES)], len(texts) // len(NAMES) % 2 == 0
            others = [None, *NAMES]
            sentence = draw(rng, kind, policy if violates else others[int(rng.integers(len(others)))])
            if (policy in sentence.themes) == violates:
                texts.append(HeldOutText(sentence.text, policy, violates))
        sets[kind] = texts
    return sets


class BagOfWords:
    """A logistic regression on the words of a text for each policy, fitted to texts drawn as for the adapter."""

    def __init__(self, pairs: int):
        rng = np.random.default_rng(0)
        drawn = [example for _ in range(pairs) for example in text_pair(rng)]
        words = sorted({word for text, _, _ in drawn for word in _words(text)})
        self.places, self.weights = {word: i for i, word in enumerate(words)}, {}
        for name in NAMES:
            some = [(text, violates) for text, policy, violates in drawn if policy == name]
            x, y = self._bag([text for text, _ in some]), torch.tensor([float(v) for _, v in some])
            weight, bias = torch.zeros(len(words), requires_grad=True), torch.zeros(1, requires_grad=True)
            optimizer = torch.optim.Adam([weight, bias], lr=0.1)
            for _ in range(100):
                optimizer.zero_grad()
                loss = binary_cross_entropy_with_logits(x @ weight + bias, y) + 1e-4 * weight.square().sum()
                loss.backward()
                optimizer.step()
            self.weights[name] = (weight.detach(), bias.detach())

    def scores(self, texts: Sequence[HeldOutText]) -> np.ndarray:
        bags = self._bag([t.text for t in texts])
        pairs = [self.weights[t.policy] for t in texts]
        return np.array([float(bag @ weight + bias) for bag, (weight, bias) in zip(bags, pairs, strict=True)])

    def _bag(self, texts: Sequence[str]) -> Acts:
        bags = torch.zeros(len(texts), len(self.places))
        for bag, text in zip(bags, texts, strict=True):
            bag[[self.places[word] for word in _words(text) if word in self.places]] = 1.0
        return bags


def _words(text: str) -> set[str]:
    return set(re.findall("[a-z]+", text.lower()))


def text_pair(rng: np.random.Generator) -> Iterator[tuple[str, str, bool]]:
    """(text, policy, whether it violates it): one that does, then the same text with another policy, or a text of no theme."""
    name = NAMES[int(rng.integers(len(NAMES)))]
    sentence = train_text(rng, name)
    yield sentence.text, name, True
    if rng.random() < 0.6:
        others = [other for other in NAMES if other not in sentence.themes]
        yield sentence.text, others[int(rng.integers(len(others)))], False
    else:
        yield train_text(rng, None).text, name, False


def train_text(rng: np.random.Generator, theme: str | None) -> Sentence:
    """Half of the texts are written by the rule, half by the bundled model; none with a word that is held out."""
    if rng.random() < 0.5:
        texts = _sampled(theme, False)
        return texts[int(rng.integers(len(texts)))]
    return write_sentence(rng, theme)


@cache
def _themes() -> dict[str, str]:
    return {word: theme for theme, words in THEMES.items() for word in words}


@cache
def _sampled(theme: str | None, held_out: bool) -> tuple[Sentence, ...]:
    """The bundled model's sentences that speak of a theme (None: of none): of every fourth, chosen by a hash of its text, the
    held-out ones, and of the others those without a word that is held out."""

    def part(sentence: Sentence) -> bool:
        held = int(hashlib.sha256(sentence.text.encode()).hexdigest(), 16) % 4 == 0
        return held if held_out else not held and not sentence.held_out

    every = [s for s in sampled_sentences() if part(s)]
    return tuple(s for s in every if (theme in s.themes if theme else not s.themes))
