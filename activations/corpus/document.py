"""A document: a text, a chat, token ids of a set that was tokenised elsewhere, or a picture with the text beside it."""

import re
import zlib
from array import array
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from scope.activations.errors import CorpusError

from scope.errors import ScopeError
from scope.typed_json import read_bytes

REPLACEMENT = "\ufffd"
"""What stands for bytes that are no UTF-8, and for halves of characters."""

_LONGEST = 2**20  # characters that are tokenised at once
_HALVES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Turn:
    """What one side of a chat says."""

    role: str
    content: str


@dataclass(frozen=True)
class Document:
    """A text and its name; of a chat also its turns, which the model's chat template lays out; or token ids without a text; or
    a picture with the text that stands beside it."""

    name: str
    text: str
    turns: tuple[Turn, ...] = ()
    ids: tuple[int, ...] | None = None
    picture: bytes | str | None = None
    """The bytes of a picture's file, or the file's path, which is read when the picture is needed."""
    question: str = ""
    """The question about the picture, if there is one."""
    answer: str = ""

    @property
    def crc32(self) -> int:
        """Checksum by which a changed corpus is noticed."""
        roles = "".join(f"\0{turn.role}" for turn in self.turns)
        crc = zlib.crc32(array("q", self.ids or ()).tobytes(), zlib.crc32((self.text + roles).encode(errors="replace")))
        if self.picture is None:
            return crc
        asked = f"\0{self.question}\0{self.answer}".encode(errors="replace")
        return zlib.crc32(_content(self.picture), zlib.crc32(asked, crc))

    def __len__(self) -> int:
        held = len(self.picture) if isinstance(self.picture, bytes) else 0
        return len(self.text) + len(self.ids or ()) + held


def _content(picture: bytes | str) -> bytes:
    """The bytes of a picture's file; of one that cannot be read, its name."""
    if isinstance(picture, bytes):
        return picture
    try:
        return read_bytes(Path(picture))
    except ScopeError:
        return picture.encode(errors="replace")


@runtime_checkable
class TextTokenizer(Protocol):
    """The part of a tokenizer that packing uses. One of a chat model also has `chat(messages, add_generation_prompt)`."""

    bos: int
    eos: int
    pad: int
    special_ids: frozenset[int]
    sha256: str

    def encode(self, text: str, bos: bool = True) -> list[int]: ...


def clean(text: str) -> str:
    """A text without lone surrogates, which no tokenizer takes: JSON may hold half of a character as \\ud83d."""
    return text if text.isascii() else _HALVES.sub(REPLACEMENT, text)


def token_ids(document: Document, tokenizer: TextTokenizer) -> list[int]:
    """The tokens of a document without <bos>.

    Raises:
        CorpusError: its ids are not of this vocabulary, or it is a chat and the model has no chat template for it.
    """
    if document.ids is not None:
        return _without_bos(_checked(document, tokenizer), tokenizer)
    if document.turns:
        return _without_bos(
            [i for piece in _pieces(_laid_out(document, tokenizer)) for i in tokenizer.encode(piece, bos=False)], tokenizer
        )
    return [i for piece in _pieces(document.text) for i in tokenizer.encode(piece, bos=False)]


def _pieces(text: str) -> Iterator[str]:
    """A text in parts, each cut before white space if there is any: tokenizers need some 200 bytes a character."""
    at = 0
    while len(text) - at > _LONGEST:
        cut = max(text.rfind(mark, at + _LONGEST // 2, at + _LONGEST) for mark in " \n")
        cut = at + _LONGEST if cut < 0 else cut
        yield text[at:cut]
        at = cut
    yield text[at:]


def _without_bos(ids: list[int], tokenizer: TextTokenizer) -> list[int]:
    return ids[1:] if ids[:1] == [tokenizer.bos] else ids


def _checked(document: Document, tokenizer: TextTokenizer) -> list[int]:
    ids, size = list(document.ids or ()), len(tokenizer) if isinstance(tokenizer, Sized) else None
    if ids and (min(ids) < 0 or (size is not None and max(ids) >= size)):
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise CorpusError(
            f"{document.name} holds token id {wrong}; the vocabulary of this model has ids 0 to {(size or 0) - 1}.\n"
            "  The set was tokenised for another model: give its text instead."
        )
    return ids


def _laid_out(document: Document, tokenizer: TextTokenizer) -> str:
    """The turns as the model's template lays them out. Where it takes no system turn, that goes before the first user's."""
    chat = getattr(tokenizer, "chat", None)
    if chat is None:
        raise CorpusError(f"{document.name} is a chat, and this model has no chat template. Give a corpus of text.")
    turns: Sequence[Turn] = document.turns
    ways = [turns]
    if len(turns) > 1 and turns[0].role == "system":
        ways.append([Turn(turns[1].role, f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:]])
    for way in ways:
        try:
            return chat([{"role": turn.role, "content": turn.content} for turn in way], add_generation_prompt=False)
        except ScopeError as error:
            problem = error
    raise CorpusError(f"{document.name} is a chat that this model's template does not take.\n  {problem}")
