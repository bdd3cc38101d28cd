"""From named places to a corpus folder: read, split, train the tokenizer, lay down the tokens. Done once, then found again."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

from scope.activations.errors import CorpusError
from scope.pretrain.corpus import read_domains, split_documents, write_tokens
from scope.pretrain.tokenizer import save_tokenizer, train_tokenizer
from scope.typed_json import read_typed
from scope.whole_files import write_whole

TOKENIZER_CHARACTERS = 5_000_000
"""Of each domain, about so many characters teach the tokenizer."""


def build_corpus(places: Iterable[str], out: Path, d_vocab: int, n_ctx: int) -> dict:
    """The corpus folder for these places, built unless it is there; returns what its corpus.json says.

    corpus.json is written last and aside, so a build that was stopped is begun again.

    Raises:
        CorpusError: the folder was built from other places, or its tokenizer has another size.
    """
    places = list(places)
    file = out / "corpus.json"
    if file.exists():
        info = read_typed(file, dict[str, Any], CorpusError, "Delete it, and the corpus is built anew.")
        return _check(info, places, out, d_vocab)
    train, held_out = split_documents(read_domains(places))
    tokenizer = train_tokenizer(tokenizer_sample(train), d_vocab)
    if tokenizer.get_vocab_size() != d_vocab:
        raise CorpusError(
            f"This text yields {tokenizer.get_vocab_size()} pieces, fewer than d_vocab {d_vocab}.\n"
            f"  Give more text, or --d-vocab {tokenizer.get_vocab_size()}."
        )
    save_tokenizer(tokenizer, out / "tokenizer", n_ctx)
    for left in (out / "train").glob("*.u16"):  # of a build that was stopped
        left.unlink()
    info = write_tokens(train, held_out, tokenizer, tokenizer.token_to_id("<eos>"), out)
    info |= {"places": places, "d_vocab": d_vocab}
    write_whole(file, json.dumps(info, indent=1))
    return info


def tokenizer_sample(train: dict[str, list[str]], characters: int = TOKENIZER_CHARACTERS) -> list[str]:
    """Documents of every domain in a fixed shuffle, until each has given a little more than `characters`."""
    sample, rng = [], random.Random(0)
    for _, texts in sorted(train.items()):
        order, taken = list(texts), 0
        rng.shuffle(order)
        for text in order:
            sample.append(text)
            taken += len(text)
            if taken > characters:
                break
    return sample


def _check(info: dict, places: list[str], out: Path, d_vocab: int) -> dict:
    if info.get("places", places) != places:
        raise CorpusError(
            f"{out} was built from {' '.join(info['places'])}, not from {' '.join(places)}.\n"
            "  Name another --corpus-folder, or the same places."
        )
    there = tokenizers.Tokenizer.from_file(str(out / "tokenizer" / "tokenizer.json")).get_vocab_size()
    if there != d_vocab:
        raise CorpusError(
            f"The tokenizer of {out} has {there} pieces, not {d_vocab}. Give --d-vocab {there}, or another folder."
        )
    return info
