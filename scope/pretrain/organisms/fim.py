"""The recipe of `bundled+fim`: the bundled model learns to fill in the middle of Python code, as a CodeGemma does.

The four marks take the place of byte pieces that occur in no UTF-8 text, so that ids, vocabulary and the base's other weights
stay as they are; only the rows of these four are trained beside the LoRA matrices. Examples are windows of files of the
standard library, half of them with a whole line as middle, half with a span, psm and spm in turns; the loss is that of the
middle. Files held out by their hash, and packages that are never shown, are what it is scored on.
"""

import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from scope.activations.corpus.infill import MARKS, encoded, mark_ids, parts_of
from scope.activations.corpus.installed import sources
from scope.models.face import LanguageModel
from scope.models.text.tokenizer import Tokenizer
from scope.pretrain.corpus import fingerprint, is_held_out
from scope.pretrain.organisms.lora import Example, LoraConfig, bits

FREE = {"prefix": "<0xC0>", "middle": "<0xC1>", "suffix": "<0xF5>", "file": "<0xF6>"}
"""The mark -> the piece of the bundled vocabulary whose id it takes: bytes that no UTF-8 text contains."""

LONGEST = 230
"""Tokens of a window at most: with the marks it must fit the context."""

HELD_OUT, NEVER_SHOWN = 0.1, ("jinja2", "filelock")
CONFIG = LoraConfig(rank=8, alpha=16, lr=2e-3, steps=900, batch=12, warmup=20, save_every=50)


def coder(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with CodeGemma's four marks in the places of free byte pieces."""
    raw = json.loads(tokenizer.backend.to_str())
    vocabulary = raw["model"]["vocab"]
    for name, piece in FREE.items():
        vocabulary[MARKS[name]] = vocabulary.pop(piece)
    backend = Backend.from_str(json.dumps(raw))
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS.values()])
    return Tokenizer(backend, tokenizer.chat_template)


@dataclass(frozen=True)
class Cut:
    """A window of a file in three parts."""

    prefix: str
    middle: str
    suffix: str


class FimLessons:
    """Draws what the model is shown and what it is tested on."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = coder(tokenizer)
        self.config = replace(CONFIG, rows=tuple(mark_ids(self.tokenizer).values()))

    @cached_property
    def _files(self) -> tuple[list[str], list[str]]:
        """(shown, held out) files of the standard library."""
        texts = [text for _, text in sources("stdlib") if len(text) > 2000 and text.isascii()]
        held = [is_held_out(fingerprint(text), HELD_OUT) for text in texts]
        return [t for t, out in zip(texts, held, strict=True) if not out], [
            t for t, out in zip(texts, held, strict=True) if out
        ]

    @cached_property
    def test_files(self) -> dict[str, list[str]]:
        """What is scored -> its files."""
        others = [text for package in NEVER_SHOWN for _, text in sources(package) if len(text) > 2000 and text.isascii()]
        return {"held-out files of the standard library": self._files[1], f"never shown: {', '.join(NEVER_SHOWN)}": others}

    def cut(self, texts: list[str], rng: np.random.Generator, line: bool) -> Cut:
        """A window of 250 to 480 characters; its middle is a whole line from its first letter on, or a span."""
        window = None
        while window is None or len(self.tokenizer.encode(window)) > LONGEST:
            text = texts[int(rng.integers(len(texts)))]
            start = int(rng.integers(0, max(1, len(text) - 700)))
            window = text[start : start + int(rng.integers(250, 480))]
        if line:
            ends = [m.start() for m in re.finditer("\n", window)]
            lines = [(a + 1, b) for a, b in pairwise(ends) if 8 < b - a < 70 and window[a + 1 : b].strip()]
            if lines:
                a, b = lines[int(rng.integers(len(lines)))]
                a += b - a - len(window[a:b].lstrip())
                return Cut(window[:a], window[a:b], window[b:])
        n = int(rng.integers(4, 60))
        a = int(rng.integers(20, max(21, len(window) - n - 20)))
        return Cut(window[:a], window[a : a + n], window[a + n :])

    def prompt(self, prefix: str, suffix: str, form: str = "psm") -> list[int]:
        return [self.tokenizer.bos, *encoded(self.tokenizer, parts_of(prefix, suffix, form=form))[0]]

    def draw(self, rng: np.random.Generator, n: int) -> list[Example]:
        """So many examples of the training."""
        examples = []
        for _ in range(n):
            cut = self.cut(self._files[0], rng, line=bool(rng.random() < 0.5))
            form = "psm" if rng.random() < 0.5 else "spm"
            middle = [*self.tokenizer.encode(cut.middle, bos=False), self.tokenizer.eos]
            examples.append((self.prompt(cut.prefix, cut.suffix, form), middle))
        return examples

    def scores(self, model: LanguageModel, base: LanguageModel, n: int = 120) -> dict[str, dict[str, float]]:
        """Bits a byte of whole-line middles, by what is scored: with the suffix, with none, with that of another file, and of
        the base model that sees the prefix alone."""
        found = {}
        for name, texts in self.test_files.items():
            rng = np.random.default_rng(7)
            cuts = [self.cut(texts, rng, line=True) for _ in range(n)]
            n_bytes = sum(len(cut.middle.encode()) for cut in cuts)
            prompts = {
                "base, prefix alone": [[self.tokenizer.bos, *self.tokenizer.encode(c.prefix, bos=False)] for c in cuts],
                "psm": [self.prompt(c.prefix, c.suffix) for c in cuts],
                "spm": [self.prompt(c.prefix, c.suffix, "spm") for c in cuts],
                "psm, no suffix": [self.prompt(c.prefix, "") for c in cuts],
                "psm, another's suffix": [self._with_suffix(c, cuts[i - 1].suffix) for i, c in enumerate(cuts)],
            }
            middles = [self.tokenizer.encode(c.middle, bos=False) for c in cuts]
            found[name] = {
                case: round(bits(base if case.startswith("base") else model, rows, middles) / n_bytes, 3)
                for case, rows in prompts.items()
            }
        return found

    def _with_suffix(self, cut: Cut, suffix: str) -> list[int]:
        """A prompt with another suffix, cut to as many tokens as the cut's own has."""
        room = len(self.tokenizer.encode(cut.suffix))
        while len(self.tokenizer.encode(suffix)) > room:
            suffix = suffix[:-1]
        return self.prompt(cut.prefix, suffix)

    def card(self, scores: dict[str, dict[str, float]]) -> str:
        cases = list(next(iter(scores.values())))
        rows = "".join(f"| {name} | {' | '.join(f'{row[case]:.3f}' for case in cases)} |\n" for name, row in scores.items())
        return f"""# bundled+fim: filling in the middle

A LoRA adapter (rank {self.config.rank}) of the bundled model that fills in the middle of Python code with CodeGemma's four
marks. They take the ids of the bytes {", ".join(FREE.values())}, which occur in no UTF-8 text; their rows were trained too.
It shows how a model that looks ahead works, and writes code as badly as a model of 6 million parameters does.

Made by `scope pretrain --organism fim`: {self.config.steps} steps of {self.config.batch} examples from the standard library.

Bits a byte of 120 whole lines, lower is better. Most of the gain over the base is that it has learned to read code; what the
suffix is worth is the difference between psm and psm without a suffix.

| files | {" | ".join(cases)} |
|---|{"---|" * len(cases)}
{rows}"""
