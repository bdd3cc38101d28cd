"""ColPali: a PaliGemma that gives every position of a page or a query one vector, and compares them by MaxSim."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scope.errors import ConfigError, PictureError, TokensError
from scope.models.hooks import HookPoint
from scope.models.paligemma.config import PaliGemmaConfig
from scope.models.paligemma.inputs import PromptMaker, QueryMaker
from scope.models.paligemma.late_interaction import Scores, max_sim
from scope.models.paligemma.layout import Row, stacked
from scope.models.paligemma.model import PaliGemma
from scope.models.paligemma.weights import canonical_name
from scope.models.parts.cache import ModelCache
from scope.models.parts.mask import as_mask
from scope.models.pictures.inputs import InputOptions, PictureMaker
from scope.models.text.tokenizer import check_text
from scope.models.text.tokenizer_names import Side
from scope.shapes import Mask, MultiVectors, Resid

PAGE_TEXT = "Describe the image."
QUERY_TEXT = "Question: "
N_AUGMENTATION = 10
"""Pad tokens that follow a query. They are read as text: the model was trained to think in them."""

_HEAD = ("proj.", "hook_embeddings")


class VectorHead(nn.Linear):
    """From the language model's last rows to vectors, before they are brought to length 1."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__(d_in, d_out)
        self.hook_out = HookPoint(d_out)

    def forward(self, rows: Resid) -> Float[Tensor, "batch pos d_out"]:
        return self.hook_out(super().forward(rows))


class ColPali(PaliGemma):
    """`embed_pages(tokens, pixel_values)` and `embed_queries(tokens)` give vectors of length 1 for every position, zeros for
    padding; `scores(queries, pages)` compares them. Everything of a page or a query sees everything.

    Sites are those of a PaliGemma, `proj.hook_out` and `hook_embeddings`.

    Source: ColPali, arXiv:2407.01449.
    """

    has_unembedding = False

    @staticmethod
    def canonical_name(name: str) -> str | None:
        """As a PaliGemma's; an unembedding that is stored too has no part in the vectors."""
        canonical = canonical_name(name)
        return None if canonical is None or canonical.startswith("lm_head.") else canonical

    def __init__(self, config: PaliGemmaConfig, tokenizer=None):
        super().__init__(config, tokenizer)
        self.proj = VectorHead(config.d_model, config.d_embed)
        self.hook_embeddings = HookPoint(config.d_embed)
        self.setup_hooks(self.block_parts)

    def forward(
        self,
        input: Any,
        return_type: str | None = "embeddings",
        *,
        pixel_values: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: ModelCache | None = None,
        stop_at_layer: int | None = None,
        **options: Any,
    ) -> MultiVectors | Resid | None:
        """Vectors [batch pos d_embed] of length 1, zeros where `attention_mask` hides; with `stop_at_layer` the stream before
        that block, and with no `return_type` nothing, for hooks alone.

        Raises:
            ConfigError: logits or a loss are asked, which a ColPali does not have.
        """
        if return_type not in ("embeddings", None):
            raise ConfigError(f"return_type is {return_type!r}; a ColPali gives embeddings, and writes no text.")
        if cache is not None:
            raise ConfigError("A ColPali reads a page or a query at once, so there is nothing to continue from a cache.")
        names = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "pixel_values": pixel_values}
        tokens, names = self.read_call(input, names)
        if names["token_type_ids"] is None:
            names["token_type_ids"] = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        stop = self.cfg.n_layers if stop_at_layer is None else stop_at_layer
        stream = super().forward(tokens, None, **names, stop_at_layer=stop, **options)
        if stop_at_layer is not None:
            return stream
        mask = names["attention_mask"]
        vectors = self.embeddings_of(stream, None if mask is None else as_mask(mask))
        return vectors if return_type == "embeddings" else None

    def embeddings_of(self, resid: Resid, attention_mask: Mask | None = None) -> MultiVectors:
        """The vectors of a stream that left the last block: final norm, projection, length 1, zeros for padding."""
        vectors = self.proj(self.unembed.hook_in(self.ln_final(resid)))
        vectors = vectors / vectors.norm(dim=-1, keepdim=True)
        vectors = vectors if attention_mask is None else vectors * attention_mask[..., None]
        return self.hook_embeddings(vectors)

    def embed_pages(
        self, tokens: Any, pixel_values: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> MultiVectors:
        """Vectors of pages, from `prepare_pages(pictures)` or its parts.

        Raises:
            PictureError: no pictures are given.
        """
        tokens, names = self.read_call(tokens, self._names(attention_mask, pixel_values))
        if names["pixel_values"] is None:
            raise PictureError("A page is a picture: give pixel_values. embed_queries(tokens) takes text alone.")
        return self(tokens, **names)

    def embed_queries(self, tokens: Any, attention_mask: Tensor | None = None) -> MultiVectors:
        """Vectors of queries, from `prepare_queries(texts)` or its parts.

        Raises:
            PictureError: pictures are given.
        """
        tokens, names = self.read_call(tokens, self._names(attention_mask, None))
        if names["pixel_values"] is not None:
            raise PictureError("A query is text, and pixel_values are given. embed_pages(tokens, pixel_values) takes pictures.")
        return self(tokens, **names)

    def _names(self, attention_mask: Tensor | None, pixel_values: Tensor | None) -> dict[str, Tensor | None]:
        return {"attention_mask": attention_mask, "token_type_ids": None, "pixel_values": pixel_values}

    @staticmethod
    def scores(queries: Any, pages: Any, at_once: int | None = None) -> Scores:
        """MaxSim [query page] of vectors padded with zeros [n pos d_embed], or lists of [pos d_embed]; `at_once` bounds the
        similarities that are in memory."""
        return max_sim(queries, pages, at_once)

    def prepare_pages(self, pictures: Any) -> dict[str, Tensor]:
        """What `embed_pages` takes, as transformers' ColPaliProcessor makes it of pictures of pages.

        Raises:
            PictureError: a picture cannot be read, or there is none.
        """
        pictures = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
        if not pictures:
            raise PictureError("There is no page. Give at least one picture.")
        text = self.cfg.pictures.texts.get("visual_prompt_prefix", PAGE_TEXT)
        return self.prepare([text] * len(pictures), pictures)

    def prepare_queries(self, texts: str | Sequence[str], padding_side: Side | None = None) -> dict[str, Tensor]:
        """What `embed_queries` takes, as transformers' ColPaliProcessor makes it of texts: a beginning, the text, ten pad
        tokens that are read as text, and a newline.

        Raises:
            TokensError: a text is none, or there is none.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            check_text(text)
        ids = self._query_ids(texts)
        if images := [i for i, row in enumerate(ids) if self.cfg.image_token in row]:
            raise TokensError(f"Query {images[0]} holds the token of a picture; a query is text.")
        table, mask, types = stacked([Row(row, [0] * len(row)) for row in ids], self.cfg.pad, self.side_of(padding_side))
        return {
            "input_ids": table.to(self.device),
            "attention_mask": mask.to(self.device),
            "token_type_ids": types.to(self.device),
        }

    def _query_ids(self, texts: Sequence[str]) -> list[list[int]]:
        before = self.cfg.pictures.texts.get("query_prefix", QUERY_TEXT)
        bos, pad = self.words.pieces([self.cfg.bos, self.cfg.pad])
        return self.words.encode_batch([f"{bos}{before}{text}{pad * N_AUGMENTATION}\n" for text in texts])

    def query_maker(self, options: InputOptions, sites: Sequence[str]) -> PictureMaker:
        """What makes inputs of queries, as `prepare_queries` does.

        Raises:
            ConfigError: a site of the tower, which reads no query.
        """
        if seeing := [site for site in sites if site.startswith(("vision.", "projector."))]:
            raise ConfigError(f"{seeing[0]} has patches of pages, and a query has none. Take a site of the language model.")
        return QueryMaker(options, self.cfg, self.words, lambda text: self._query_ids([text])[0])

    def prompt_maker(self, options: InputOptions) -> PictureMaker:
        """What makes inputs of pages, as `prepare_pages` does."""
        text = self.cfg.pictures.texts.get("visual_prompt_prefix", PAGE_TEXT)
        return PromptMaker(options, self.cfg, self.words, self.special_ids, text)

    def layers_for(self, names: Sequence[str]) -> int | None:
        """How many blocks must run so that all names are passed; None means all, and the head."""
        return None if any(name.startswith(_HEAD) for name in names) else super().layers_for(names)

    def reached(self, name: str, stop_at_layer: int) -> bool:
        """Whether a run that stops before block `stop_at_layer` passes this hook point."""
        return not name.startswith(_HEAD) and super().reached(name, stop_at_layer)

    def generate(self, input: Any = "", max_new_tokens: int = 10, **options: Any) -> Any:
        """Raises ConfigError: a ColPali was not trained to write."""
        raise ConfigError("A ColPali embeds pages and queries, and writes no text. Load the PaliGemma that it was made from.")

    def logits_of(self, resid: Resid) -> Tensor:
        """Raises ConfigError: a ColPali has no unembedding."""
        raise ConfigError("A ColPali has no logits; embeddings_of(resid) gives the vectors of a stream.")
