"""A model that is arithmetic, a tokenizer that is bytes, a corpus that is numbers: what is recorded can be said beforehand."""

from pathlib import Path

import torch
from scope.activations.config import STAGING, HarvestConfig
from scope.activations.corpus.sources import Corpus, Document
from scope.activations.harvest.harvest import harvest

WIDTHS = {"a": 32, "b.x": 16, "b.y": 7}


class ByteTokenizer:
    bos, eos, pad, sha256 = 2, 1, 0, "bytes"
    special_ids = frozenset({0, 1, 2, 3})

    def encode(self, text: str, bos: bool = True) -> list[int]:
        ids = [{"\x02": 2, "\x00": 0}.get(c, 4 + ord(c) % 256) for c in text]
        return [2, *ids] if bos else ids


class Arithmetic:
    """At site s every value is token + position / 64 + column / 8 + the width of s: exact in float32."""

    def __init__(self, nan_after: int | None = None):
        self.nan_after, self.ran = nan_after, 0

    def sites(self) -> dict[str, int]:
        return dict(WIDTHS)

    def record(self, tokens, sites):
        self.ran += tokens.numel()
        position = torch.arange(tokens.shape[1]) / 64
        out = {}
        for site in sites:
            x = tokens[..., None] + position[:, None] + torch.arange(WIDTHS[site]) / 8 + WIDTHS[site]
            if self.nan_after is not None and self.ran > self.nan_after:
                x[0, 5, 3] = float("nan")
            out[site] = x
        return out


def numbers(n: int = 300) -> Corpus:
    """Documents of unequal length, some shorter than a context and some longer."""

    def source():
        for i in range(n):
            yield Document(f"d{i}", f"document {i} " * (1 + i * 7 % 13))

    return Corpus("numbers", {"kind": "numbers", "n": n}, source)


def config(**changes) -> HarvestConfig:
    small = {"sites": ("a", "b.x"), "tokens": 12_000, "context": 64, "batch_contexts": 4, "shard_rows": 2048}
    return HarvestConfig(**small | changes)


def record(
    out: Path | str, corpus: Corpus | None = None, model=None, provenance=None, on_progress=None, staging=STAGING, **changes
):
    return harvest(
        model or Arithmetic(),
        ByteTokenizer(),
        corpus or numbers(),
        config(**changes),
        out,
        provenance or {"model": "toy"},
        on_progress,
        staging=staging,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
