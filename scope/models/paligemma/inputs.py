"""Documents become inputs of a PaliGemma: a picture, what is asked of it, and the answer."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from scope.activations.corpus.document import Document
from scope.activations.corpus.roles import QUERIES, Role
from scope.errors import TokensError
from scope.models.paligemma.config import PaliGemmaConfig
from scope.models.paligemma.layout import IMAGE, lay_out
from scope.models.pictures.inputs import Example, InputOptions, PictureMaker, picture_in, processor_identity

_ROOM = 64
"""Rows of text beside a picture where nothing else is asked."""


class PromptMaker(PictureMaker):
    """Rows are the patches of a picture, <bos>, the prompt with its newline, then the answer.

    A document's question is the prompt; one without is asked `options.prompt`, and its text is the answer. `page_text` is what
    a ColPali writes beside every page, and nothing else.
    """

    rows = "patches, prompt and answer"

    def __init__(
        self,
        options: InputOptions,
        config: PaliGemmaConfig,
        words: Any,
        special_ids: Collection[int],
        page_text: str | None = None,
    ):
        self.cfg, self.words, self.special_ids, self.page_text = config, words, sorted(special_ids), page_text
        room = _ROOM if page_text is None else len(words.encode(page_text, bos=False)) + 2
        least = config.n_image_tokens + 3
        super().__init__(options, max(least, min(config.n_ctx, config.n_image_tokens + room)), least)
        if page_text is not None:
            self.rows = "patches of pages"

    @property
    def identity(self) -> dict[str, Any]:
        asked = self.options.prompt if self.page_text is None else self.page_text
        words = {"sha256": self.words.sha256, "bos": self.words.bos, "eos": self.words.eos, "pad": self.words.pad}
        places = processor_identity(self.cfg.pictures, self.cfg.vision.patch_size)
        return super().identity | words | {"image_token": self.cfg.image_token, "prompt": asked} | places

    def example(self, document: Document, context: int) -> Example:
        picture = picture_in(document)
        prompt, answer = self.texts_of(document)
        row = lay_out(
            self.words,
            [prompt.replace(IMAGE, "")],
            [1],
            [answer.replace(IMAGE, "")] if answer else None,
            self.cfg.image_token,
            self.cfg.n_image_tokens,
        )[0]
        n = len(row.ids)
        if n > context:
            raise TokensError(f"{document.name} has {n} rows with its text, and contexts have {context}. Give --context {n}.")
        padded = {"ids": np.full(context, self.cfg.pad, np.int32), "types": np.zeros(context, np.int64)}
        padded["ids"][:n], padded["types"][:n] = row.ids, row.types
        roles = np.full(context, int(Role.PADDING), np.uint8)
        roles[:n] = self.roles_of(row.ids, row.types)
        pixels = self.cfg.pictures.row(picture)
        mask = np.arange(context) < n
        arguments = {"pixel_values": pixels, "token_type_ids": padded["types"], "attention_mask": mask}
        return Example(tokens=padded["ids"], roles=roles, arguments=arguments, picture=picture)

    def texts_of(self, document: Document) -> tuple[str, str]:
        """(prompt, answer) of a document."""
        if self.page_text is not None:
            return self.page_text, ""
        return document.question or self.options.prompt, document.answer or document.text

    def roles_of(self, ids: Sequence[int], types: Sequence[int]) -> np.ndarray:
        """The role of each token, none of which is padding."""
        tokens = np.asarray(ids)
        roles = np.where(np.asarray(types) == 1, int(Role.ANSWER), int(Role.PROMPT)).astype(np.uint8)
        roles[np.isin(tokens, self.special_ids)] = Role.SPECIAL
        roles[tokens == self.words.bos] = Role.BOS
        roles[tokens == self.cfg.image_token] = Role.IMAGE
        return roles


class QueryMaker(PictureMaker):
    """Rows are the tokens of a query, as `prepare_queries` makes them: a document is a text, and its picture is not looked at.

    `encode` gives the ids of a text with all that is written around it. The pad tokens among them count: they are read as text.
    """

    rows, reads_pictures = QUERIES, False

    def __init__(self, options: InputOptions, config: PaliGemmaConfig, words: Any, encode: Callable[[str], list[int]]):
        self.cfg, self.words, self.encode = config, words, encode
        super().__init__(options, min(config.n_ctx, _ROOM), len(encode("")) + 1)

    @property
    def identity(self) -> dict[str, Any]:
        words = {"sha256": self.words.sha256, "bos": self.words.bos, "eos": self.words.eos, "pad": self.words.pad}
        return super().identity | words | {"prompt": "".join(self.words.pieces(self.encode("")))}

    def example(self, document: Document, context: int) -> Example:
        text = (document.text or document.question).strip()
        if not text:
            raise TokensError(f"{document.name} has no text.")
        ids = self.encode(text)
        n = len(ids)
        if n > context:
            raise TokensError(f"{document.name} has {n} tokens as a query, and contexts have {context}. Give --context {n}.")
        tokens, roles = np.full(context, self.cfg.pad, np.int32), np.full(context, int(Role.PADDING), np.uint8)
        tokens[:n], roles[:n] = ids, int(Role.PROMPT)
        roles[0] = int(Role.BOS)
        arguments = {"token_type_ids": np.zeros(context, np.int64), "attention_mask": np.arange(context) < n}
        return Example(tokens=tokens, roles=roles, arguments=arguments)
