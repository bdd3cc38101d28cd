"""Training text: documents by domain, duplicates dropped, some held out by their hash, tokens laid end to end on disk.

OUT/train/tales.u16   token ids of every training document, each followed by <eos>
OUT/heldout.jsonl     the documents nobody trains on: {"domain", "text"}
OUT/corpus.json       what it was made from, counts, and the share held out; written last, by build.py
"""

import hashlib
import json
import lzma
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from scope.activations.corpus.installed import DOCUMENTED, docstrings, sources, without_name
from scope.activations.errors import CorpusError

HELD_OUT = 0.02
"""Share of documents that training never sees, chosen by a hash of the text, so that every rebuild holds out the same ones."""


def read_domains(places: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(domain, text) of every document. A place is a .jsonl or .jsonl.xz file, a folder of them, `docs` or `code`.

    A line of a file is a JSON string or an object with a "text"; the file's name is the domain. `docs` and `code` are the
    documentation of installed packages and the sources of the standard library.
    """
    for place in places:
        if place == "docs":
            for package in DOCUMENTED:
                yield from (("docs", text) for _, text in docstrings(package))
        elif place == "code":
            yield from (("code", text) for _, text in sources("stdlib"))
        else:
            yield from _read_files(Path(place))


def _read_files(place: Path) -> Iterator[tuple[str, str]]:
    files = sorted(place.glob("*.jsonl*")) if place.is_dir() else [place]
    if not files or not files[0].exists():
        raise CorpusError(f"{place} is neither a .jsonl file nor a folder of them. `docs` and `code` name installed text.")
    for file in files:
        with lzma.open(file, "rt", encoding="utf-8") if file.suffix == ".xz" else open(file, encoding="utf-8") as lines:
            for number, text in enumerate(_texts(lines, file), 1):
                if not isinstance(text, str):
                    raise CorpusError(f'{file}, line {number}, is neither a string nor an object with a "text".')
                yield file.name.split(".")[0], text


def _texts(lines: Iterable[str], file: Path) -> Iterator[object]:
    """The text of each line, None where it has none."""
    try:
        for line in lines:
            row = json.loads(line)
            yield row.get("text") if isinstance(row, dict) else row
    except (ValueError, EOFError, lzma.LZMAError) as error:
        raise CorpusError(f"{file} is damaged or no JSON lines: {error}.") from None


def fingerprint(text: str) -> bytes:
    """A hash of the text that white space and case do not change."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).digest()


def is_held_out(digest: bytes, share: float = HELD_OUT) -> bool:
    return int.from_bytes(digest[:4], "big") < share * 2**32


def split_documents(documents: Iterable[tuple[str, str]]) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """(training documents by domain, held-out (domain, text) pairs), each text once.

    A docstring that several classes inherit is one text, whatever qualified name stands above it.
    """
    train: dict[str, list[str]] = {}
    held_out, seen = [], set()
    for domain, text in documents:
        digest = fingerprint(without_name(text) if domain == "docs" else text)
        if digest in seen or not text.strip():
            continue
        seen.add(digest)
        if is_held_out(digest):
            held_out.append((domain, text))
        else:
            train.setdefault(domain, []).append(text)
    if not train:
        raise CorpusError("These places hold no text to train on.")
    return train, held_out


def write_tokens(train: dict[str, list[str]], held_out: list[tuple[str, str]], tokenizer, eos: int, out: Path) -> dict:
    """Tokenise with a `tokenizers.Tokenizer` and lay down tokens and held-out documents; returns what they are."""
    (out / "train").mkdir(parents=True, exist_ok=True)
    counts = {}
    for domain, texts in sorted(train.items()):
        ids: list[np.ndarray] = []
        for start in range(0, len(texts), 1000):
            encoded = tokenizer.encode_batch(texts[start : start + 1000], add_special_tokens=False)
            ids += [np.array([*e.ids, eos], dtype=np.uint16) for e in encoded]
        stream = np.concatenate(ids)
        stream.tofile(out / "train" / f"{domain}.u16")
        n_bytes = sum(len(t.encode()) for t in texts)
        counts[domain] = {"documents": len(texts), "tokens": len(stream), "bytes": n_bytes}
    with open(out / "heldout.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"domain": d, "text": t}) + "\n" for d, t in held_out)
    held = Counter(d for d, _ in held_out)
    return {"held_out_share": HELD_OUT, "domains": counts, "held_out_documents": dict(sorted(held.items()))}


class TokenStreams:
    """The sequences of training step after training step, as a pure function of (seed, step): resuming needs no state.

    A domain of n tokens is drawn in proportion to sqrt(n), so that small ones are heard and large ones not worn out. Each
    pass over a domain cuts it at another phase and shuffles the pieces.
    """

    ROUND = 4096  # sequences that are planned together

    def __init__(self, folder: Path, context: int, batch: int, bos: int, seed: int):
        self.context, self.batch, self.bos, self.seed = context, batch, bos, seed
        files = sorted((folder / "train").glob("*.u16"))
        if not files:
            raise CorpusError(f"{folder} holds no training tokens (train/*.u16).")
        self.streams = {f.stem: np.memmap(f, dtype=np.uint16, mode="r") for f in files}
        root = np.sqrt([max(0, len(s) - context) for s in self.streams.values()])
        if root.sum() == 0:
            raise CorpusError(f"No domain of {folder} is as long as one context of {context} tokens.")
        self.shares = root / root.sum()
        self._planned: tuple[int, list] = (-1, [])

    def step(self, step: int) -> np.ndarray:
        """Token ids [batch context + 1] of a step: a <bos>, what follows, and the last position's target."""
        rows = []
        for i in range(step * self.batch, (step + 1) * self.batch):
            domain, start = self._plan(i // self.ROUND)[i % self.ROUND]
            rows.append(self.streams[domain][start : start + self.context])
        ids = np.stack(rows).astype(np.int64)
        return np.concatenate([np.full((self.batch, 1), self.bos), ids], axis=1)

    def _plan(self, number: int) -> list[tuple[str, int]]:
        if self._planned[0] != number:
            plan = []
            for index, domain in enumerate(self.streams):
                before, after = (self._drawn(n)[index] for n in (number, number + 1))
                plan += [(domain, self._start(domain, index, i)) for i in range(before, after)]
            order = np.random.default_rng([self.seed, 1, number]).permutation(len(plan))
            self._planned = number, [plan[i] for i in order[: self.ROUND]]
        return self._planned[1]

    def _drawn(self, rounds: int) -> list[int]:
        """How many pieces of each domain the first rounds draw: its share rounded down, the rest to the largest domains."""
        drawn = np.floor(self.shares * self.ROUND * rounds).astype(int)
        drawn[np.argsort(-self.shares, kind="stable")[: rounds * self.ROUND - drawn.sum()]] += 1
        return drawn.tolist()

    def _start(self, domain: str, index: int, i: int) -> int:
        """Where the i-th piece ever drawn from a domain begins."""
        piece = self.context
        per_pass = max(1, (len(self.streams[domain]) - piece) // piece)
        turn, within = divmod(i, per_pass)
        if getattr(self, "_pass", {}).get(domain, (None,))[0] != turn:
            rng = np.random.default_rng([self.seed, 2, index, turn])
            phase, order = int(rng.integers(piece)), rng.permutation(per_pass)
            self._pass = getattr(self, "_pass", {}) | {domain: (turn, phase, order)}
        _, phase, order = self._pass[domain]
        return min(int(order[within]) * piece + phase, len(self.streams[domain]) - piece)
