"""The fields of a record that hold its picture, the text beside it, a question and an answer."""

import base64
import binascii
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope.activations.corpus.document import Document, clean
from scope.activations.errors import CorpusError

PICTURES = ("image", "images", "picture", "pictures", "img", "file_name", "filename", "image_path", "image_file", "path")
QUESTIONS = ("question", "prompt", "prefix", "query", "instruction")
ANSWERS = ("answer", "answers", "suffix", "label", "response", "completion")
CAPTIONS = ("caption", "captions", "text", "texts", "description", "alt_text", "sentences")
TURNS = ("conversations", "messages")

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2", ".tga", ".ico")
"""Names of pictures end so."""

ADDRESSES = ("http://", "https://")
_NAME, _LONGEST_PATH = 1000, 4096  # characters
_MARKS = ("<image>\n", "\n<image>", "<image>")  # where a chat or a question says that its picture stands


class OutsideFolder(CorpusError):
    """The metadata of a folder of pictures names a file that is not below it."""


@dataclass(frozen=True, kw_only=True)
class PictureFields:
    """The fields of a corpus's records, by name; None: the first of the usual names that a record has. Relative paths of
    pictures are those below `base`; without one, paths name no files of this machine."""

    picture: str | None = None
    text: str | None = None
    question: str | None = None
    answer: str | None = None
    base: Path | None = Path()
    required: bool = True
    """Whether a record without a field for pictures is refused; otherwise its document has no picture."""
    confined: bool = False
    """Whether files outside `base` are refused."""

    @property
    def identity(self) -> dict[str, Any]:
        """The part of a corpus's identity that the fields add."""
        names = {"picture": self.picture, "text": self.text, "question": self.question, "answer": self.answer}
        return {f"{name}_field": field for name, field in names.items() if field is not None}

    def columns(self, there: Collection[str]) -> list[str] | None:
        """The columns of a table that have to be read; None if it has none that holds pictures."""
        picture = self._named(self.picture, PICTURES, there, "--picture-field")
        if picture is None:
            return None
        rest = {
            self._named(self.text, CAPTIONS, there, "--text-field"),
            self._named(self.question, QUESTIONS, there, "--question-field"),
            self._named(self.answer, ANSWERS, there, "--answer-field"),
            self._named(None, TURNS, there, ""),
        }
        return [picture, *(name for name in there if name in rest and name != picture)]

    def document(self, record: Mapping[str, Any], source: str, name: str) -> Document:
        """The document of a record. A picture that is missing or none is left for the reader of the picture to name.

        Raises:
            CorpusError: the record has no field that could hold a picture.
            OutsideFolder: it names a file outside `base`, and `confined`.
        """
        known = [key for key, value in record.items() if value is not None]
        field = self._named(self.picture, PICTURES, record, "--picture-field" if self.required else "")
        if field is None and self.required:
            there = ", ".join(map(str, record))[:500]
            raise CorpusError(f"{source}, has no field with a picture. It has: {there}. Name one with --picture-field.")
        text = _text(record.get(self._named(self.text, CAPTIONS, known, "")))
        question = _text(record.get(self._named(self.question, QUESTIONS, known, "")))
        answer = _text(record.get(self._named(self.answer, ANSWERS, known, "")))
        if not (question or answer) and (turns := self._named(None, TURNS, known, "")):
            question, answer = _first_turns(record[turns])
        title = next((record[key] for key in ("name", "id", "file_name") if isinstance(record.get(key), str | int)), None)
        title = clean(str(name if title is None or title == "" else title)[:_NAME])
        for mark in _MARKS:
            question, text = question.replace(mark, ""), text.replace(mark, "")
        picture = None if field is None else picture_of(record.get(field), self.base)
        if self.confined and isinstance(picture, str) and not _is_below(picture, self.base):
            raise OutsideFolder(
                f"{source}, names {str(record[field])[:200]!r}, which lies outside its folder. The metadata of a folder of "
                "pictures names files below it.\n  Move the picture there, or give the records another name than metadata."
            )
        return Document(title, text, picture=picture, question=question, answer=answer)

    @staticmethod
    def _named(stated: str | None, usual: tuple[str, ...], there: Collection[str], flag: str) -> str | None:
        if stated is None:
            return next((name for name in usual if name in there), None)
        if flag and stated not in there:
            raise CorpusError(f'There is no field "{stated}". There are: {", ".join(map(str, there))[:500]}. See {flag}.')
        return stated if stated in there else None


def _is_below(path: str, base: Path | None) -> bool:
    top = os.path.abspath(base or "")
    return path.startswith(ADDRESSES) or os.path.commonpath([top, os.path.abspath(path)]) == top


def picture_of(value: Any, base: Path | None) -> bytes | str | None:
    """The bytes of a picture's file, or the file's path: from bytes, {"bytes", "path"}, a path, a data URL or base64, or a list
    with one of these. None where it is none of them."""
    if isinstance(value, list | tuple):
        return picture_of(value[0], base) if len(value) == 1 else None
    if isinstance(value, Mapping):
        data = value.get("bytes")
        return picture_of(value.get("path") if data is None else data, base)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str) or not value:
        return None
    if value.startswith("data:"):
        return _decoded(value.partition(",")[2])
    if value.startswith(ADDRESSES):
        return value
    if len(value) > 64 and not value.lower().endswith(SUFFIXES) and (data := _decoded(value)) is not None:
        return data
    return str(base / value) if base is not None and len(value) < _LONGEST_PATH and "\0" not in value else None


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _text(value: Any) -> str:
    """A text, or the first of several; numbers of classes and other things are no text."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return clean(value).strip() if isinstance(value, str) else ""


def _first_turns(turns: Any) -> tuple[str, str]:
    """(what the first turn of a chat asks, what the next one answers)."""
    texts = []
    for turn in turns[:2] if isinstance(turns, list) else []:
        content = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        if isinstance(content, list):
            content = " ".join(str(part["text"]) for part in content if isinstance(part, Mapping) and part.get("text"))
        texts.append(_text(content))
    question, answer = (*texts, "", "")[:2]
    return question, answer
