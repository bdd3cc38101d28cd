"""A PaliGemma with one picture before every prompt: a language model to all that works on text.

Steering, sweeps, attribution and generation give a model text and token ids. Here a text stands after the picture's image
tokens and <bos> and ends with a newline, as the checkpoint was trained; everything up to that newline is the prefix, and what
follows is the answer.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scope.errors import ConfigError, TokensError
from scope.models.paligemma.layout import IMAGE
from scope.models.paligemma.model import PaliGemma
from scope.models.parts.cache import ModelCache
from scope.models.pictures.copies import pixels_sha256
from scope.models.pictures.read import read_picture
from scope.models.text.tokenizer import Tokenizer
from scope.shapes import Tokens

_NEWLINE = {"\n", "<0x0A>"}
"""A newline within the text of a token, or as the token of its byte."""


def with_picture(model: Any, picture: Any) -> "PicturedPaliGemma":
    """The model, of the same weights and hooks, that reads every prompt after this picture.

    Args:
        picture: a file, its bytes, a PIL image or an array.

    Raises:
        ConfigError: the model is no PaliGemma.
        PictureError: the picture cannot be read.
    """
    check_says_words(model)
    pictured = PicturedPaliGemma.__new__(PicturedPaliGemma)
    pictured.__dict__ = dict(model.__dict__)
    pictured.picture = read_picture(picture)
    pictured.pixels = model.to_pixels([pictured.picture])
    pictured.tokenizer = _after_picture(model.words, model.cfg.image_token, model.cfg.n_image_tokens)
    pictured.provenance = {**model.provenance, "picture_sha256": pixels_sha256(pictured.picture)}
    return pictured


def check_says_words(model: Any) -> None:
    """
    Raises:
        ConfigError: the model says no words about a picture.
    """
    if not isinstance(model, PaliGemma) or not model.has_unembedding:
        name = getattr(model.cfg, "family_name", type(model).__name__)
        raise ConfigError(f"A {name} says no word about a picture. Give a PaliGemma.")


class PicturedPaliGemma(PaliGemma):
    """`model(tokens)` gives logits after the picture; `model.words.encode(text)` puts its image tokens before the text."""

    picture: Any
    """The picture, upright, as a PIL image in RGB."""
    pixels: Tensor
    """What the tower reads of it, [1 channel height width]."""

    def forward(self, input: Any, return_type: str | None = "logits", **options: Any) -> Any:
        """As a PaliGemma's forward; of token ids alone, the picture and the token types follow."""
        pictured = isinstance(input, Mapping) or isinstance(getattr(input, "arguments", None), Mapping)
        if pictured or options.get("pixel_values") is not None or options.get("start_at_layer") is not None:
            return super().forward(input, return_type, **options)
        tokens = self.to_tokens(input) if isinstance(input, str | list) else torch.as_tensor(input).to(self.device)
        tokens = tokens[None] if tokens.dim() == 1 else tokens
        cache = options.get("cache")
        if options.get("token_type_ids") is None and not _goes_on(cache):
            options["token_type_ids"] = self.types_of(tokens)
        n = int((tokens == self.cfg.image_token).sum()) // self.cfg.n_image_tokens
        pixels = self.pixels.expand(n, *self.pixels.shape[1:]) if n else None
        return super().forward(tokens, return_type, pixel_values=pixels, **options)

    def types_of(self, tokens: Tokens) -> Tokens:
        """Token types: 0 up to the newline that ends the prompt, 1 after it. Without a picture, all but <bos> is answer."""
        image = tokens == self.cfg.image_token
        where = torch.arange(tokens.shape[1], device=tokens.device)
        last_patch = torch.where(image, where, -1).amax(1, keepdim=True)
        ends = torch.isin(tokens, self._newlines(tokens)) & (where > last_patch)
        prompt_end = torch.where(ends.any(1, keepdim=True), ends.long().argmax(1, keepdim=True), tokens.shape[1])
        bos = torch.where(tokens == self.cfg.bos, where, tokens.shape[1]).amin(1, keepdim=True)
        return (where > torch.where(last_patch >= 0, prompt_end, bos)).long()

    def _newlines(self, tokens: Tokens) -> Tensor:
        """Ids among `tokens` whose text has a newline."""
        ids = [i for i in tokens.unique().tolist() if i != self.cfg.image_token]
        return tokens.new_tensor(
            [i for i, piece in zip(ids, self.words.pieces(ids), strict=True) if _NEWLINE & {*piece, piece}]
        )

    def generate(self, input: Any = "", max_new_tokens: int = 10, **options: Any) -> Any:
        """As a Gemma's, of text or token ids; as a PaliGemma's, of what `prepare` returns."""
        if isinstance(input, Mapping) or options.get("pixel_values") is not None:
            return super().generate(input, max_new_tokens, **options)
        return super(PaliGemma, self).generate(input, max_new_tokens, **options)


def _goes_on(cache: ModelCache | None) -> bool:
    return cache is not None and cache.n_tokens > 0


class _PicturedTokenizer(Tokenizer):
    """A text begins with the image tokens and <bos>, and ends with a newline."""

    image_tokens: list[int]

    def encode(
        self, text: str, bos: bool = True, *, add_special_tokens: bool | None = None, return_tensors: str | None = None
    ) -> Any:
        """As every tokenizer's; with `bos`, the whole prompt of a PaliGemma.

        Raises:
            TokensError: the prompt holds a newline, which would end it, or says itself where its picture stands.
        """
        if not (bos if add_special_tokens is None else add_special_tokens):
            return super().encode(text, False, return_tensors=return_tensors)
        if "\n" in text or IMAGE in text:
            raise TokensError(
                "A prompt about a picture is one line without <image>: the newline after it begins the answer.\n"
                "  For several pictures or lines use model.prepare(texts, pictures)."
            )
        ids = [*self.image_tokens, self.bos, *self.encode_batch([f"{text}\n"])[0]]
        return ids if return_tensors is None else torch.tensor([ids])

    def pieces(self, ids: Any) -> list[str]:
        """The text of each token; <image> for an image token, which may lie beyond the vocabulary."""
        ids = [int(i) for i in ids]
        words = iter(super().pieces([i for i in ids if i != self.image_tokens[0]]))
        return [IMAGE if i == self.image_tokens[0] else next(words) for i in ids]


def _after_picture(words: Any, image_token: int, n: int) -> _PicturedTokenizer:
    pictured = copy.copy(words)
    pictured.__class__ = _PicturedTokenizer
    pictured.image_tokens = [image_token] * n
    return pictured
