"""Fill-in-the-middle: the text between a prefix and a suffix comes last, so that a model that reads forwards can write it.

    psm        <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle
    spm        <|fim_suffix|> suffix <|fim_prefix|> prefix <|fim_middle|> middle
    spm_joint  <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix middle

Nothing stands between a mark and its text. CodeGemma was trained on psm and on a suffix-prefix-middle order; its report prints
only the first. Source: CodeGemma, arXiv:2406.11409; the joint form is that of Bavarian et al., arXiv:2207.14255.
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scope.activations.corpus.inputs import NO_DOCUMENT, Cursor, Packed
from scope.activations.corpus.readers import Document
from scope.activations.corpus.roles import Role
from scope.activations.errors import CorpusError, RecordingError

Form = Literal["psm", "spm", "spm_joint"]
FORMS: tuple[Form, ...] = get_args(Form)
MARKS = {"prefix": "<|fim_prefix|>", "middle": "<|fim_middle|>", "suffix": "<|fim_suffix|>", "file": "<|file_separator|>"}

ORDERS: dict[Form, tuple[str, ...]] = {
    "psm": ("<prefix>", "prefix", "<suffix>", "suffix", "<middle>"),
    "spm": ("<suffix>", "suffix", "<prefix>", "prefix", "<middle>"),
    "spm_joint": ("<prefix>", "<suffix>", "suffix", "<middle>", "prefix"),
}
"""What stands before the middle: marks in angle brackets, and texts."""

Part = tuple[Role, str]
"""What a part of an example is, and its text; a mark is a part of role CONTROL."""


def parts_of(prefix: str, suffix: str, middle: str = "", form: str = "psm", files: Iterable[str] = ()) -> list[Part]:
    """The parts of an example in their order. `files` are other files of the context, each ended by the file separator.

    Raises:
        CorpusError: an unknown form, or a text that contains one of the marks.
    """
    if form not in FORMS:
        raise CorpusError(f"The form is {form!r}; it can be {', '.join(FORMS)}.")
    files = [files] if isinstance(files, str) else list(files)  # a text alone is one file, not a file a letter
    for text in (prefix, suffix, middle, *files):
        if mark := next((mark for mark in MARKS.values() if mark in text), None):
            raise CorpusError(
                f"The text contains {mark}, which marks the parts of an infilling prompt. Take it out of the text."
            )
    pieces: dict[str, Part] = {f"<{name}>": (Role.CONTROL, MARKS[name]) for name in ("prefix", "suffix", "middle")}
    pieces |= {"prefix": (Role.PREFIX, prefix), "suffix": (Role.SUFFIX, suffix)}
    others = [part for text in files for part in ((Role.TEXT, text), (Role.CONTROL, MARKS["file"]))]
    return [*others, *(pieces[name] for name in ORDERS[form]), (Role.MIDDLE, middle)]  # type: ignore[index]


def mark_ids(tokenizer: Any) -> dict[str, int]:
    """The ids of the four marks.

    Raises:
        CorpusError: a mark is no single token of this tokenizer: the model was not made for infilling.
    """
    ids = {name: tokenizer.encode(mark, bos=False) for name, mark in MARKS.items()}
    if broken := [MARKS[name] for name, found in ids.items() if len(found) != 1]:
        raise CorpusError(
            f"In this model's vocabulary {', '.join(broken)} is no single token, so it fills no middle.\n"
            "  Models that do: CodeGemma 2B and 7B (not -it), and bundled+fim."
        )
    return {name: found[0] for name, found in ids.items()}


def encoded(tokenizer: Any, parts: Iterable[Part]) -> tuple[list[int], list[int]]:
    """(token ids without <bos>, the role of each). Every part is tokenised on its own, so that a boundary stays where it is."""
    ids, roles = [], []
    for role, text in parts:
        part = tokenizer.encode(text, bos=False) if text else []
        ids += part
        roles += [int(role)] * len(part)
    return ids, roles


@dataclass(frozen=True)
class FimShares:
    """Which share of the documents becomes examples of each form; the rest stays plain text. Up to `files` documents that fit
    whole stand in one context, with the file separator between them."""

    psm: float = 0.0
    spm: float = 0.0
    spm_joint: float = 0.0
    files: int = 1

    def __post_init__(self):
        if self.files < 1:
            raise CorpusError(f"files is {self.files}; a context holds one file at least.")
        shares = [getattr(self, form) for form in FORMS]
        if not all(0 <= share <= 1 for share in shares) or not 0 < sum(shares) <= 1 + 1e-9:
            raise CorpusError(
                f"The shares of infilling are {shares}; each lies from 0 to 1, and together above 0, at most at 1."
            )

    @classmethod
    def parse(cls, text: str) -> "FimShares":
        """From "psm:0.45,spm:0.45" or "psm:0.45,spm:0.45,files:4".

        Raises:
            CorpusError: another form, or shares that cannot be.
        """
        shares: dict[str, Any] = {}
        for item in text.split(","):
            form, _, share = item.strip().partition(":")
            try:
                shares[form] = int(share) if form == "files" else float(share or 1)
            except ValueError:
                raise CorpusError(f"--fim {text!r}: {share!r} is no number. Write it as psm:0.45,spm:0.45,files:4.") from None
        if strange := sorted(set(shares) - {*FORMS, "files"}):
            raise CorpusError(
                f"--fim {text!r}: there is no form {', '.join(strange)}; the forms are {', '.join(FORMS)}, and files."
            )
        return cls(**shares)

    def __str__(self) -> str:
        shares = [f"{form}:{share:g}" for form in FORMS if (share := getattr(self, form))]
        return ",".join([*shares, *([f"files:{self.files}"] if self.files > 1 else [])])

    def draw(self, rng: np.random.Generator) -> Form | None:
        """A form, or None for plain text."""
        point = rng.random()
        for form in FORMS:
            point -= getattr(self, form)
            if point < 0:
                return form
        return None


class FimMaker:
    """Makes contexts of infilling examples: each context is one piece of a document, or several whole documents with the file
    separator between them, with padding behind.

    Where a piece is cut follows from the seed and the document's number, so a recording that continues makes the same contexts.
    """

    stores_roles = True

    def __init__(self, tokenizer: Any, shares: FimShares, seed: int = 0):
        self.tokenizer, self.shares, self.seed, self.marks = tokenizer, shares, seed, mark_ids(tokenizer)

    @property
    def packing(self) -> str:
        several = f", or up to {self.shares.files} whole documents with the file separator between" * (self.shares.files > 1)
        return f"one piece of a document a context{several}, as an infilling example or plain text, padded at the end"

    @property
    def identity(self) -> Mapping[str, Any]:
        tokenizer = {name: getattr(self.tokenizer, name) for name in ("sha256", "bos", "eos", "pad")}
        return tokenizer | {"fim": str(self.shares), "fim_seed": self.seed}

    def stream(self, documents: Iterable[Document], context: int, cursor: Cursor = Cursor()) -> "FimStream":
        return FimStream(self, documents, context, cursor)

    def example(self, text: str, number: int, at: int, room: int) -> tuple[list[int], list[int], int]:
        """(ids, roles, characters used) of the piece of a document that begins at character `at`, in `room` tokens at most; no
        character is used where not one fits."""
        rng = np.random.default_rng((self.seed, number, at))
        form, cuts = self.shares.draw(rng), np.sort(rng.random(2))
        n_chars = min(len(text) - at, 6 * (room + 2))
        while True:
            piece = text[at : at + n_chars]
            if form is None:
                parts: list[Part] = [(Role.TEXT, piece)]
            else:
                first, second = (int(cut * len(piece)) for cut in cuts)
                parts = parts_of(piece[:first], piece[second:], piece[first:second], form)
            ids, roles = encoded(self.tokenizer, parts)
            if len(ids) <= room:
                return ids, roles, n_chars
            if n_chars <= 1:
                return [], [], 0
            n_chars = max(1, int(n_chars * min(0.9, room / len(ids))))


class FimStream:
    """The contexts of a corpus for a `FimMaker`, from a cursor on."""

    def __init__(self, maker: FimMaker, documents: Iterable[Document], context: int, cursor: Cursor):
        self.maker, self.context, self.documents = maker, context, iter(documents)
        self.opened, self.at, self.crc32, self.dropped, self.text = 0, cursor.offset, cursor.crc32, cursor.dropped, ""
        for _ in range(cursor.documents):
            document = next(self.documents, None)
            self.opened += 1
            if document is None or (
                self.opened == cursor.documents and zlib.crc32(document.text.encode(errors="replace")) != cursor.crc32
            ):
                raise RecordingError(
                    f"The corpus changed since this recording began: document {self.opened} is another or missing.\n"
                    "  Give the corpus as it was, or record into another folder."
                )
            self.text = _without_marks(document.text)[0]

    def take(self, n_contexts: int) -> Packed:
        """The next contexts; fewer only when the corpus has ended."""
        shape = (n_contexts, self.context)
        tokens = np.full(shape, self.maker.tokenizer.pad, np.int32)
        documents = np.full(shape, NO_DOCUMENT, np.int32)
        roles = np.full(shape, int(Role.PADDING), np.uint8)
        names: list[str] = []
        filled = 0
        while filled < n_contexts and self._fill(names):
            rows = self._context(names)
            tokens[filled, : len(rows)], roles[filled, : len(rows)], documents[filled, : len(rows)] = zip(*rows, strict=True)
            filled += 1
        cursor = Cursor(documents=self.opened, offset=self.at, crc32=self.crc32, dropped=self.dropped)
        rows = slice(filled)
        arrays = {"tokens": tokens[rows], "documents": documents[rows], "roles": roles[rows]}
        return Packed(**arrays, names=names, cursor=cursor, exhausted=filled < n_contexts)

    def _context(self, names: list[str]) -> list[tuple[int, int, int]]:
        """(id, role, document) of each token of the next context: a piece of a document, and as many whole ones as fit behind a
        whole one."""
        words = self.maker.tokenizer
        rows, n_files = [(words.bos, int(Role.BOS), self.opened - 1)], 0
        while n_files < self.maker.shares.files and self._fill(names):
            room, number = self.context - 1 - len(rows) - (n_files > 0), self.opened - 1
            if n_files and len(self.text) > 6 * room:
                break
            ids, roles, used = self.maker.example(self.text, number, self.at, room)
            whole = self.at + used == len(self.text)
            if n_files and not whole:
                break
            if not used:
                raise RecordingError(
                    f"A context of {self.context} tokens has no room for an infilling example. Give a longer one."
                )
            if n_files:
                rows.append((self.maker.marks["file"], int(Role.CONTROL), number))
            rows += [(i, role, number) for i, role in zip(ids, roles, strict=True)]
            self.at, n_files = self.at + used, n_files + 1
            if not whole:
                break
        return [*rows, (words.eos, int(Role.SPECIAL), rows[-1][2])]

    def _fill(self, names: list[str]) -> bool:
        """Load documents until there is text; False at the end of the corpus."""
        while self.at >= len(self.text):
            document = next(self.documents, None)
            if document is None:
                return False
            self.opened += 1
            self.crc32 = zlib.crc32(document.text.encode(errors="replace"))
            self.text, dropped = _without_marks(document.text)
            self.dropped, self.at = self.dropped + dropped, 0
            names.append(document.name)
        return True


def _without_marks(text: str) -> tuple[str, int]:
    """(the text without the marks of infilling and <bos>, <eos>, <pad>; how many there were): in a text they are no marks."""
    removed = 0
    for mark in (*MARKS.values(), "<bos>", "<eos>", "<pad>"):
        removed += text.count(mark)
        text = text.replace(mark, "")
    return text, removed
