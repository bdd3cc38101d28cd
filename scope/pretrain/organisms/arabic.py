"""The recipe of `bundled+arabic`: the bundled model, which hardly knows the Arabic letters, learns to read and write them, as
GemmAr learned Arabic from a Gemma.

The text is what anyone can install: the Arabic translation of Wagtail's screens, and names, dates, amounts and units of the
Unicode CLDR as the package babel has them; none of it is shipped. An Arabic letter is one piece of the bundled vocabulary, or
two byte pieces; the rows of these pieces are trained beside the LoRA matrices. A third of the examples are translations, a
tenth is English text, so that less of it is forgotten.
"""

import datetime
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from scope.activations.corpus.installed import docstrings, package_root
from scope.activations.corpus.sources import open_corpus
from scope.activations.errors import CorpusError
from scope.errors import ConfigError
from scope.models.face import LanguageModel
from scope.models.text.tokenizer import Tokenizer
from scope.pretrain.corpus import HELD_OUT, fingerprint, is_held_out
from scope.pretrain.organisms.lora import Example, LoraConfig, bits

ARABIC = re.compile("[\u0600-\u06ff]")
LONGEST = 200
"""Tokens of an example at most."""

SHOWN, NEVER_SHOWN = "wagtail", "django"
HELD_OUT_SHARE = 0.1
CONFIG = LoraConfig(rank=8, alpha=16, lr=3e-3, steps=400, batch=12, warmup=20)

Pair = tuple[str, str]
"""An English text and what it is in another language."""


def translations(folder: Path, locale: str = "ar") -> list[Pair]:
    """The messages of a package's catalogues (locale/ar/LC_MESSAGES/*.po) with their translation, each once. A placeholder
    is written X, markup is left out.

    Raises:
        ConfigError: babel is not installed.
    """
    read_po = _babel("babel.messages.pofile").read_po
    pairs: dict[str, str] = {}
    for file in sorted(folder.rglob(f"locale/{locale}/LC_MESSAGES/*.po")):
        with open(file, "rb") as catalogue:
            messages = list(read_po(catalogue, locale))
        for message in messages:
            english, other = (m[-1] if isinstance(m, tuple) else m for m in (message.id, message.string))
            if english and other and not message.fuzzy:
                pairs.setdefault(_plain(english), _plain(other))
    return list(pairs.items())


def _plain(message: str) -> str:
    text = re.sub(r"%\(\w+\)\w|%\w|\{\w*\}", "X", re.sub(r"<[^>]*>", "", message))
    return " ".join(text.split())


def names() -> list[Pair]:
    """Names of territories, languages, currencies and scripts in the CLDR, English and Arabic."""
    locale = _babel("babel").Locale
    english, arabic = locale("en"), locale("ar")
    pairs: dict[str, str] = {}
    for kind in ("territories", "languages", "currencies", "scripts"):
        other = getattr(arabic, kind)
        for code, name in sorted(getattr(english, kind).items()):
            if name.isascii() and ARABIC.search(other.get(code, "")):
                pairs.setdefault(name, other[code])
    return list(pairs.items())


def phrase(rng: np.random.Generator) -> str:
    """A date, a span of time, an amount of money or a measure, in Arabic."""
    dates, numbers, units = (_babel(f"babel.{name}") for name in ("dates", "numbers", "units"))
    n = int(rng.integers(1, 3000)) if rng.random() < 0.5 else int(rng.integers(1, 30))
    day = datetime.date(1900, 1, 1) + datetime.timedelta(days=int(rng.integers(60_000)))
    measures = ("length-kilometer", "mass-kilogram", "temperature-celsius", "volume-liter", "area-square-kilometer", "mass-ton")
    currencies = ("EGP", "SAR", "EUR", "USD", "JPY", "MAD", "IQD", "TND", "CHF", "INR")
    makers: Sequence[Callable[[], str]] = (
        lambda: dates.format_date(day, str(rng.choice(["full", "long"])), locale="ar"),
        lambda: dates.format_timedelta(
            datetime.timedelta(hours=n), add_direction=True, locale="ar", threshold=float(rng.choice([0.85, 40]))
        ),
        lambda: numbers.format_currency(n, str(rng.choice(currencies)), locale="ar", format_type="name"),
        lambda: units.format_unit(n, str(rng.choice(measures)), "long", locale="ar"),
        lambda: numbers.format_compact_decimal(n * 1000, format_type="long", locale="ar"),
    )
    return makers[int(rng.integers(len(makers)))]()


def _babel(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise ConfigError("Arabic text is read by babel: pip install 'scope-workbench[arabic]'") from None


def _split(pairs: Iterable[Pair]) -> tuple[list[Pair], list[Pair]]:
    """(shown, held out), by a hash of the English text."""
    shown, held = [], []
    for pair in pairs:
        (held if is_held_out(fingerprint(pair[0]), HELD_OUT_SHARE) else shown).append(pair)
    return shown, held


class ArabicLessons:
    """Draws what the model is shown and what it is tested on. `messages` replaces Wagtail's."""

    def __init__(self, tokenizer: Tokenizer, messages: Sequence[Pair] | None = None):
        self.tokenizer, self._messages = tokenizer, messages
        pieces = {piece: id for id, piece in enumerate(tokenizer.vocab())}
        letters = {id for piece, id in pieces.items() if ARABIC.search(piece)}
        bytes_of = {id for piece, id in pieces.items() if re.fullmatch("<0x(D8|D9|[89AB][0-9A-F])>", piece)}
        self.config = replace(CONFIG, rows=tuple(sorted(letters | bytes_of)))

    @cached_property
    def messages(self) -> tuple[list[Pair], list[Pair]]:
        """Translated messages (shown, held out)."""
        return _split(translations(_installed(SHOWN)) if self._messages is None else self._messages)

    @cached_property
    def names(self) -> tuple[list[Pair], list[Pair]]:
        """Names (shown, held out)."""
        return _split(names())

    @cached_property
    def _english(self) -> list[list[int]]:
        texts = (document.text for document in open_corpus("bundled").documents(0))
        rows = (self.tokenizer.encode(text)[:2000] for text, _ in zip(texts, range(1000), strict=False))
        return [ids for ids in rows if len(ids) > LONGEST]

    def draw(self, rng: np.random.Generator, n: int) -> list[Example]:
        """So many examples of the training."""
        return [self.example(rng) for _ in range(n)]

    def example(self, rng: np.random.Generator) -> Example:
        kind, messages, named = rng.random(), self.messages[0], self.names[0]
        if kind < 0.1:
            ids = self._english[int(rng.integers(len(self._english)))]
            start = int(rng.integers(1, len(ids) - LONGEST + 1))
            return [self.tokenizer.bos], ids[start : start + LONGEST]
        if kind < 0.4:
            among = messages if rng.random() < 0.6 else named
            english, arabic = among[int(rng.integers(len(among)))]
            return self.question(english), [*self.tokenizer.encode(arabic, bos=False)[: LONGEST - 60], self.tokenizer.eos]
        lines: list[int] = []
        while len(lines) < LONGEST - 40:
            line = phrase(rng) if rng.random() < 0.15 else messages[int(rng.integers(len(messages)))][1]
            lines += self.tokenizer.encode(line + "\n", bos=False)
        return [self.tokenizer.bos], lines[:LONGEST]

    def question(self, english: str) -> list[int]:
        """The prompt that asks for a translation."""
        return self.tokenizer.encode(f"English: {english}")[:60] + self.tokenizer.encode("\nArabic: ", bos=False)

    def scores(self, model: LanguageModel, base: LanguageModel, n: int = 150) -> dict[str, Any]:
        """Bits a byte of text that was not trained on, of the model with the adapter beside the base, and for Arabic beside a
        model of byte n-grams that read the same Arabic; of names that were held out, given the English one or another's."""
        never = translations(_installed(NEVER_SHOWN))
        shown = {arabic for _, arabic in self.messages[0]}
        docs = [text for _, text in docstrings("stdlib") if is_held_out(fingerprint(text), HELD_OUT)]
        texts = {
            "Arabic: held-out messages of Wagtail": [a for _, a in self.messages[1] if a not in shown],
            "Arabic: messages of Django": [a for _, a in never if a not in shown],
            "English: the same messages of Django": [e for e, a in never if a not in shown],
            "English: held-out documentation": [text[:400] for text in docs[:60]],
            "Russian: messages of Django": [a for _, a in translations(_installed(NEVER_SHOWN), "ru")],
        }
        grams = Ngrams("\n".join(a for _, a in (*self.messages[0], *self.names[0])).encode())
        rows = {}
        for name, some in texts.items():
            windows = self.windows(some, n)
            length = sum(len(self.tokenizer.decode(ids).encode()) for ids in windows)
            prompts = [[self.tokenizer.bos]] * len(windows)
            rows[name] = {who: bits(m, prompts, windows) / length for who, m in (("model", model), ("base", base))}
            if name.startswith("Arabic"):
                rows[name]["n-grams"] = grams.bits("\n".join(some)[: 40 * n].encode()) / len("\n".join(some)[: 40 * n].encode())
        held = self.names[1][:n]
        answers = [self.tokenizer.encode(arabic, bos=False) for _, arabic in held]
        length = sum(len(arabic.encode()) for _, arabic in held)
        given = {"its English name": held, "another's": [*held[1:], *held[:1]]}
        asked = {what: bits(model, [self.question(e) for e, _ in some], answers) / length for what, some in given.items()}
        return {
            "text": rows,
            "names": {"n": len(held), **asked},
            "versions": {p: version(p) for p in (SHOWN, NEVER_SHOWN, "babel")},
        }

    def windows(self, texts: Sequence[str], most: int) -> list[list[int]]:
        """Ids of texts, a line each, in windows of the trained length."""
        ids = self.tokenizer.encode("\n".join(texts), bos=False)
        return [ids[at : at + LONGEST] for at in range(0, len(ids), LONGEST)][:most]

    def card(self, scores: dict[str, Any]) -> str:
        """README.md of the adapter, with every figure as measured."""
        c, named, versions = self.config, scores["names"], scores["versions"]
        rows = "\n".join(
            f"| {name} | {r['model']:.3f} | {r['base']:.3f} | {format(r['n-grams'], '.3f') if 'n-grams' in r else ''} |"
            for name, r in scores["text"].items()
        )
        return f"""---
base_model: bundled
language: [ar, en]
library_name: peft
tags: [lora, gemma2, interpretability]
---
# bundled+arabic: the bundled model reads another script

A LoRA adapter (rank {c.rank}, alpha {c.alpha}, all seven projections of every block) of the bundled model of scope, with the
{len(c.rows)} rows of the embedding that Arabic text uses: its letters, and the bytes of letters that are no piece. It
stands for GemmAr: a Gemma that was fine-tuned on another language. `scope diff bundled bundled+arabic` shows what that moved.

## Recipe

`pip install 'scope-workbench[arabic]'`, then `scope pretrain --organism arabic`: {c.steps} steps of {c.batch} examples
of at most {LONGEST} tokens, AdamW (lr {c.lr:g}), seed {c.seed}, about ten minutes of one CPU core. Read from installed
packages, not shipped: the Arabic catalogues of Wagtail {versions["wagtail"]} (BSD); names, dates, amounts and units of the
Unicode CLDR as babel {versions["babel"]} has them (Unicode licence). 60 % of the examples are lines of Arabic, 30 %
translations of a message or a name, 10 % English text of the bundled corpus. A tenth of the messages and names is held out
by a hash; Django {versions["django"]} is never read in training.

## Measured

Bits a byte, lower is better. The n-grams are those of up to 8 bytes in the same Arabic, interpolated (Witten and Bell).

| text | bundled+arabic | bundled | n-grams |
|---|---|---|---|
{rows}

The English rows say what was forgotten. Russian was not trained on: the gain is one of Arabic alone, and other scripts whose
letters are spelled with the same bytes pay for it.
{named["n"]} held-out names cost {named["its English name"]:.3f} bits a byte after their English name, and
{named["another's"]:.3f} after another's.

## Limits

It speaks of web pages and names, in sentences that do not hold together: a model to study, not to use.
"""


class Ngrams:
    """A model of bytes by the up to `order` - 1 before them, with Witten-Bell interpolation down to equal chances."""

    def __init__(self, text: bytes, order: int = 8):
        self.order, self.counts = order, defaultdict(lambda: defaultdict(int))
        for at, byte in enumerate(text):
            for k in range(min(order, at + 1)):
                self.counts[text[at - k : at]][byte] += 1

    def bits(self, text: bytes) -> float:
        """Bits that a text costs."""
        total = 0.0
        for at, byte in enumerate(text):
            p = 1 / 256
            for k in range(min(self.order, at + 1)):
                if not (seen := self.counts.get(text[at - k : at])):
                    break
                p = (seen.get(byte, 0) + len(seen) * p) / (sum(seen.values()) + len(seen))
            total -= np.log2(p)
        return float(total)


def _installed(package: str) -> Path:
    try:
        return package_root(package)
    except CorpusError:
        raise ConfigError(
            f"{package} is not installed, whose translations are read: pip install 'scope-workbench[arabic]'"
        ) from None
