"""Documents with pictures become model inputs: one document a context, with its facts and a small picture for later.

A model says with `inputs_for(sites)` which rows its sites have, and so which maker reads a corpus for them.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from scope.activations.corpus.document import Document
from scope.activations.corpus.inputs import NO_DOCUMENT, NO_TOKEN, Cursor, Packed
from scope.activations.corpus.roles import Role
from scope.activations.errors import CorpusError, RecordingError
from scope.errors import ConfigError, PictureError, TokensError
from scope.models.pictures.processor import PictureProcessor
from scope.models.pictures.read import read_picture

BadPictures = Literal["refuse", "skip"]
UNUSABLE = (PictureError, TokensError, CorpusError)
"""Errors that concern one document."""

THUMBNAIL = 224
"""Pixels of the longer side of a small picture."""

_QUALITY = 80
_TEXT = 500  # characters of the text beside a picture that its facts hold


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """How documents become inputs, as commands have it."""

    prompt: str = ""
    """What a model that answers is asked of pictures without a question."""

    queries: bool = False
    """Whether texts are read as queries, by a ColPali."""

    bad_pictures: BadPictures = "refuse"
    """Whether a document that cannot be used, such as a broken picture, ends the work or is skipped and counted."""

    def __post_init__(self):
        if self.bad_pictures not in get_args(BadPictures):
            raise ConfigError(f"bad_pictures is {self.bad_pictures!r}; it can be {' or '.join(get_args(BadPictures))}.")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One context: a token and a role for each row, what else the model takes, and the picture as it was decoded."""

    tokens: np.ndarray
    roles: np.ndarray
    arguments: Mapping[str, np.ndarray] = field(default_factory=dict)
    picture: Any = None


class PictureMaker:
    """Makes one context of each document. Kinds differ in `example`, the rows that they give, and their length."""

    stores_roles = True
    packing = "one document a context, padded at the end"
    rows = ""
    """What rows are, in a word."""
    reads_pictures = True

    def __init__(self, options: InputOptions, context: int, least: int | None = None):
        self.options, self.context, self.least = options, context, context if least is None else least
        """`context` rows where nothing else is asked; `least` of them are needed."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def context_for(self, wanted: int | None) -> int:
        """The rows of a context, where `wanted` are asked for.

        Raises:
            ConfigError: other than as many as these inputs have.
        """
        if wanted is None:
            return self.context
        if wanted < self.least or (self.least == self.context and wanted != self.context):
            exactly = "at least " if self.least < self.context else ""
            raise ConfigError(f"context is {wanted}; for these sites it is {exactly}{self.least}. Leave --context out.")
        return wanted

    def stream(self, documents: Iterator[Document], context: int, cursor: Cursor = Cursor()) -> "PictureStream":
        return PictureStream(self, documents, context, cursor)

    def example(self, document: Document, context: int) -> Example:
        """The rows of a document.

        Raises:
            PictureError, TokensError: it cannot be used.
        """
        raise NotImplementedError

    @property
    def skips(self) -> bool:
        """Whether documents that cannot be used are left out."""
        return self.options.bad_pictures == "skip"

    def problem_of(self, document: Document, context: int, whole: bool = True) -> str | None:
        """Why a document cannot be used, or None. Not `whole`: only whether its picture's header can be read."""
        try:
            if whole:
                self.example(document, context)
            elif self.reads_pictures:
                picture_in(document, whole=False)
        except UNUSABLE as error:
            return str(error)
        return None


class PictureStream:
    """The contexts of a corpus of pictures, from a cursor on.

    Raises:
        RecordingError: the corpus no longer has the document at the cursor.
    """

    def __init__(self, maker: PictureMaker, documents: Iterator[Document], context: int, cursor: Cursor):
        self.maker, self.context, self.documents = maker, context, iter(documents)
        self.opened, self.crc32, self.skipped = 0, cursor.crc32, cursor.skipped
        for _ in range(cursor.documents):
            document = next(self.documents, None)
            self.opened += 1
            if document is None or (self.opened == cursor.documents and document.crc32 != cursor.crc32):
                raise RecordingError(
                    f"The corpus changed since this recording began: document {self.opened} is another or missing.\n"
                    "  Give the corpus as it was, or record into another folder."
                )

    def take(self, n_contexts: int) -> Packed:
        """The next contexts; fewer only when the corpus has ended.

        Raises:
            CorpusError: a document cannot be used, and such are to be refused.
        """
        examples: list[tuple[int, Example]] = []
        names, facts, pictures = [], [], []
        while len(examples) < n_contexts and (document := next(self.documents, None)) is not None:
            self.opened += 1
            names.append(document.name)
            try:
                example = self.maker.example(document, self.context)
            except UNUSABLE as error:
                if not self.maker.skips:
                    raise CorpusError(self._refusal(document, error)) from None
                self.skipped += 1
                facts.append({"skipped": str(error).splitlines()[0]})
                pictures.append(b"")
            else:
                examples.append((self.opened - 1, example))
                facts.append(facts_of(document, example.picture))
                pictures.append(b"" if example.picture is None else thumbnail(example.picture))
            self.crc32 = document.crc32
        return self._packed(examples, n_contexts, names=names, facts=facts, pictures=pictures)

    def _refusal(self, document: Document, error: Exception) -> str:
        number = self.opened - 1
        return (
            f"Document {number:,} of the corpus, {document.name[:200]}, cannot be used: {error}\n"
            "  What is recorded so far is kept. To go on without such documents, give the same command with\n"
            "  --bad-pictures skip: they are counted and named in the recording."
        )

    def _packed(self, examples: list[tuple[int, Example]], n_contexts: int, **described: Any) -> Packed:
        n, shape = len(examples), (len(examples), self.context)
        tokens, documents = np.full(shape, NO_TOKEN, np.int32), np.full(shape, NO_DOCUMENT, np.int32)
        roles = np.full(shape, int(Role.PADDING), np.uint8)
        for i, (number, example) in enumerate(examples):
            tokens[i], roles[i] = example.tokens, example.roles
            documents[i, example.roles != Role.PADDING] = number
        names = examples[0][1].arguments if examples else {}
        cursor = Cursor(documents=self.opened, crc32=self.crc32, skipped=self.skipped)
        return Packed(
            tokens=tokens,
            documents=documents,
            roles=roles,
            arguments={name: np.stack([example.arguments[name] for _, example in examples]) for name in names},
            cursor=cursor,
            exhausted=n < n_contexts,
            **described,
        )


class PatchMaker(PictureMaker):
    """Rows are the patches of a picture, in the order in which the tower counts them, or one row for all of it."""

    def __init__(
        self,
        options: InputOptions,
        processor: PictureProcessor,
        patch_size: int,
        pooled: bool = False,
        token: int = NO_TOKEN,
        arguments: Mapping[str, np.ndarray] = {},
    ):
        self.processor, self.patch_size, self.token, self.more = processor, patch_size, token, arguments
        self.grid = 1 if pooled else processor.size // patch_size
        self.rows = "pictures" if pooled else "patches"
        super().__init__(options, self.grid**2)

    @property
    def identity(self) -> dict[str, Any]:
        patch = self.processor.size if self.grid == 1 else self.patch_size
        return super().identity | processor_identity(self.processor, patch)

    def example(self, document: Document, context: int) -> Example:
        picture = picture_in(document)
        return Example(
            tokens=np.full(context, self.token, np.int32),
            roles=np.full(context, int(Role.IMAGE), np.uint8),
            arguments={"pixel_values": self.processor.row(picture), **self.more},
            picture=picture,
        )


def other_rows(sites: list[str]) -> ConfigError:
    """The refusal of sites whose rows are different things."""
    return ConfigError(
        f"{' and '.join(sites)} have rows of different kinds: patches, tokens, or one row for the whole.\n"
        "  Record sites of one kind of rows at a time, each kind into its own --out."
    )


def processor_identity(processor: PictureProcessor, patch_size: int) -> dict[str, Any]:
    """How pictures were prepared, and what is needed to find the place of a patch in one."""
    values = {"resample": processor.resample, "scale": processor.scale, "mean": processor.mean, "std": processor.std}
    return {"picture_size": processor.size, "patch_size": patch_size, "processor": json.dumps(values)}


def picture_in(document: Document, whole: bool = True) -> Any:
    """The picture of a document, decoded; not `whole`: only its header is read.

    Raises:
        PictureError: it has none, or it cannot be read.
    """
    if document.picture is None:
        raise PictureError(f"{document.name} has no picture, or several where one is read.")
    if isinstance(document.picture, str) and document.picture.startswith(("http://", "https://")):
        raise PictureError(f"{document.name} is an address, and pictures are not fetched. Download it first.")
    return read_picture(document.picture, document.name, whole)


def facts_of(document: Document, picture: Any) -> dict[str, Any]:
    """What a recording says of a document: the size of its picture, upright, and the text beside it."""
    texts = {"text": document.text, "question": document.question, "answer": document.answer}
    facts: dict[str, Any] = {name: text[:_TEXT] for name, text in texts.items() if text}
    if picture is not None:
        facts |= {"width": picture.width, "height": picture.height, "crc32": zlib.crc32(picture.tobytes())}
    return facts


def thumbnail(picture: Any) -> bytes:
    """A small picture as a PNG or a JPEG, whichever is shorter, re-encoded from pixels: nothing else of the file is in it."""
    import io

    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    files = []
    for form, options in (("PNG", {"optimize": True}), ("JPEG", {"quality": _QUALITY})):
        buffer = io.BytesIO()
        small.save(buffer, form, **options)
        files.append(buffer.getvalue())
    lossless, lossy = files
    return lossless if len(lossless) <= 2 * len(lossy) else lossy
