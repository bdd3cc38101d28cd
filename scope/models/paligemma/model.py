"""PaliGemma 1 and 2: a SigLIP tower, a projector, and a Gemma that reads the projected patches among its tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from scope.activations.pictures.patches import Box
from scope.errors import ConfigError, PictureError, TokensError
from scope.models.gemma.model import Gemma
from scope.models.hooks import HookPoint
from scope.models.paligemma.config import PaliGemmaConfig
from scope.models.paligemma.inputs import PromptMaker
from scope.models.paligemma.layout import add_locations, lay_out, stacked
from scope.models.paligemma.prefix import PrefixPositions
from scope.models.paligemma.weights import canonical_name, tensor_names
from scope.models.parts.cache import ModelCache
from scope.models.parts.embedding import next_token_loss
from scope.models.parts.mask import as_mask
from scope.models.pictures.inputs import InputOptions, PatchMaker, PictureMaker, other_rows
from scope.models.pictures.processor import PictureProcessor
from scope.models.siglip.towers import VisionTower
from scope.models.text.tokenizer_names import Side
from scope.shapes import Logits, Mask, PatchRows, Pixels, Positions, Resid, Tokens

Projected = Float[Tensor, "image patch d_out"]
_INPUTS = ("attention_mask", "token_type_ids", "pixel_values")
_SEES = ("vision.", "projector.")


class Projector(nn.Linear):
    """From the tower's rows to the language model's stream."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__(d_in, d_out)
        self.hook_out = HookPoint(d_out)

    def forward(self, rows: PatchRows) -> Projected:
        return self.hook_out(super().forward(rows))


class PaliGemma(Gemma):
    """`model(tokens, pixel_values=..., token_type_ids=...)` gives logits. Sites of the language model are named as in a Gemma;
    those of the tower stand under `vision.`, and `projector.hook_out` sees what takes the place of the image tokens.

    Token types are always given: without them, transformers computes one of two functions, depending on how it attends.
    Projected patches are not multiplied by sqrt(d_model), as embeddings are.

    Source: PaliGemma, arXiv:2407.07726; PaliGemma 2, arXiv:2412.03555.
    """

    config_from_hf, tensor_names = PaliGemmaConfig.from_hf, staticmethod(tensor_names)
    canonical_name = staticmethod(canonical_name)
    streams = False

    def __init__(self, config: PaliGemmaConfig, tokenizer=None):
        super().__init__(config, tokenizer)
        self.vision = VisionTower(config.vision)
        self.projector = Projector(config.vision.d_model, config.d_model)
        self.patches: Projected | None = None
        """Projected patches while they flow, one row of them for each picture."""

        self.setup_hooks(self.block_parts)

    @classmethod
    def read_folder(cls, config: PaliGemmaConfig, folder: Path, adapter: Path | None = None) -> tuple[PaliGemmaConfig, Any]:
        """(the config with end tokens and the checkpoint's way to prepare pictures, its tokenizer)."""
        config, tokenizer = super().read_folder(config, folder, adapter)
        add_locations(tokenizer.backend, config.d_vocab)
        return config.with_pictures(PictureProcessor.from_folder(folder, config.vision.image_size)), tokenizer

    def setup_hooks(self, flow: Sequence[str] = ()) -> None:
        """As every model's; the tower and the projector, which run first, stand first."""
        super().setup_hooks(flow)
        first = {name: point for name, point in self.hook_dict.items() if name.startswith(_SEES)}
        self.hook_dict = first | self.hook_dict

    def forward(
        self,
        input: Any,
        return_type: str | None = "logits",
        *,
        pixel_values: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: ModelCache | None = None,
        start_at_layer: int | None = None,
        **options: Any,
    ) -> Any:
        """As a Gemma's forward. `input` is tokens [batch pos], or a mapping with `input_ids` and the rest, such as `prepare`
        or transformers' processor returns.

        `token_type_ids` is 0 for the picture and the prompt, 1 for the answer; tokens that continue a cache are of type 1.
        `pixel_values` [image channel height width] are read where image tokens stand, in their order.

        Raises:
            TokensError: no token types, or tokens that the model cannot take.
            PictureError: pixels of another shape, or other than as many patches as image tokens.
        """
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "pixel_values": pixel_values}
        tokens, given = self.read_call(input, given)
        mask = None if given["attention_mask"] is None else as_mask(given["attention_mask"])
        mask = None if mask is None or (cache is None and bool(mask.all())) else mask
        types = self.read_types(tokens, given["token_type_ids"], cache)
        pixels = given["pixel_values"]
        if start_at_layer is None:
            self.check(tokens, cache)
            self.check_pictures(tokens, pixels, mask)
        elif pixels is not None:
            raise ConfigError("A run that starts at a stream reads no pictures: their patches are in it already.")
        self.run.token_types = types
        self.patches = None if pixels is None else self.projector(self.vision(pixels))
        try:
            return super().forward(
                tokens, return_type, attention_mask=mask, cache=cache, start_at_layer=start_at_layer, **options
            )
        finally:
            self.patches = None

    def read_call(self, input: Any, arguments: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """(tokens, or a stream; mask, token types and pixels by name) of whatever a call was given.

        Raises:
            TokensError: text, which has no place for a picture.
        """
        if isinstance(input, str) or (isinstance(input, list | tuple) and input and isinstance(input[0], str)):
            raise TokensError(
                "Text alone does not say where a picture stands and what is the answer.\n"
                "  Give model(model.prepare(texts, pictures)), or tokens with token_type_ids."
            )
        tokens, found = input, {}
        if isinstance(input, Mapping):
            if input.get("input_ids") is None:
                raise TokensError(f"These are no tokens: a mapping with {', '.join(map(str, input)) or 'nothing'}.")
            tokens, found = input["input_ids"], input
        elif isinstance(beside := getattr(input, "arguments", None), Mapping):  # a batch of a recording
            tokens, found = input.tokens, beside
        tokens = torch.as_tensor(tokens)
        tokens = tokens[None] if tokens.dim() == 1 else tokens
        taken = {name: found.get(name) if arguments[name] is None else arguments[name] for name in _INPUTS}
        for name in ("attention_mask", "token_type_ids"):
            if taken[name] is not None:
                value = torch.as_tensor(taken[name]).to(self.device)
                taken[name] = value[None] if value.dim() == 1 else value
        return tokens.to(self.device), taken

    def read_types(self, tokens: Tensor, types: Tensor | None, cache: ModelCache | None) -> Tensor:
        """Token types [batch pos].

        Raises:
            TokensError: none are given where a run begins, or other numbers than 0 and 1, or a prefix that goes on.
        """
        shape = tuple(tokens.shape[:2])
        goes_on = cache is not None and cache.n_tokens > 0
        if types is None and not goes_on:
            raise TokensError(
                "token_type_ids are missing: 0 for the picture and the prompt, which see each other, 1 for the answer.\n"
                "  Give torch.zeros_like(tokens) where there is no answer yet, or what model.prepare(texts, pictures) returns."
            )
        if types is None:
            return torch.ones(shape, dtype=torch.long, device=tokens.device)
        if tuple(types.shape) != shape:
            raise TokensError(f"token_type_ids are {tuple(types.shape)}; the tokens are {shape}.")
        if types.is_floating_point() or not bool(((types == 0) | (types == 1)).all()):
            raise TokensError("token_type_ids hold other numbers than 0 (picture and prompt) and 1 (answer).")
        if goes_on and not bool((types == 1).all()):
            raise TokensError(
                "Tokens that continue a cache are an answer, of type 1. A prefix sees itself in both directions, so it is read "
                "at once."
            )
        return types.long()

    def check(self, tokens: Tensor, cache: ModelCache | None = None) -> None:
        """As a Gemma's; the image token may lie beyond the vocabulary."""
        super().check(self._readable(tokens), cache)

    def check_pictures(self, tokens: Tokens, pixels: Any, mask: Mask | None = None) -> None:
        """Raises PictureError where pictures and image tokens do not fit each other."""
        image = tokens == self.cfg.image_token
        if mask is not None and bool((image & ~mask).any()):
            raise PictureError("attention_mask hides image tokens, and a picture is read as a whole.")
        n, each = int(image.sum()), self.cfg.n_image_tokens
        if pixels is None:
            if n:
                raise PictureError(
                    f"{n} image tokens ({self.cfg.image_token}) stand for patches, and no pixel_values are given.\n"
                    "  Give model.to_pixels(pictures), or tokens without them."
                )
            return
        self.vision.check(pixels)
        if n != len(pixels) * each:
            raise PictureError(
                f"{len(pixels)} pictures have {len(pixels) * each} patches, {each} each, and {n} image tokens "
                f"({self.cfg.image_token}) stand for them. model.prepare(texts, pictures) writes as many as fit."
            )
        if bool((image.sum(1) % each).any()):
            raise PictureError(f"A row holds part of a picture: its image tokens are no multiple of {each}.")

    def _readable(self, tokens: Tensor) -> Tensor:
        """Tokens that all have a row in the embedding."""
        if self.cfg.image_token < self.cfg.d_vocab or tokens.is_floating_point():
            return tokens
        return tokens.masked_fill(tokens == self.cfg.image_token, 0)

    def embed_tokens(self, tokens: Tokens) -> Resid:
        """Embeddings times sqrt(d_model), and projected patches, as they are, where image tokens stand."""
        embedded = super().embed_tokens(self._readable(tokens))
        if self.patches is None:
            return embedded
        return embedded.masked_scatter((tokens == self.cfg.image_token)[..., None], self.patches.to(embedded.dtype))

    def run_positions(
        self, positions: Positions, real: Mask | None, cache: ModelCache | None, dtype: torch.dtype
    ) -> PrefixPositions:
        """Positions from 1, with the mask that follows from the token types of this run."""
        types = self.run.token_types
        prefix = None if cache is not None and cache.n_tokens > positions.shape[1] else types == 0
        return PrefixPositions(positions, real, cache, dtype, prefix)

    def logits_from(
        self,
        layer: int,
        resid: Resid,
        tokens: Tokens,
        attention_mask: Mask | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Logits:
        """The logits of a run in which `resid` is the stream before block `layer`. The blocks before it do not run."""
        self.run.token_types = self.read_types(tokens, token_type_ids, None)
        return super().logits_from(layer, resid, tokens, attention_mask)

    def loss_fn(self, logits: Logits, tokens: Tokens, attention_mask: Tensor | None = None, per_token: bool = False) -> Tensor:
        """The loss in nats of the tokens of the answer: the prefix sees itself, so nothing of it is predicted.

        Raises:
            TokensError: no token is of type 1.
        """
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else as_mask(attention_mask)
        answer = (self.run.token_types[:, 1:] == 1) & real[:, 1:] & real[:, :-1]
        if not bool(answer.any()):
            raise TokensError("There is no answer to take a loss of: no token is of type 1. Give answers to model.prepare.")
        losses = next_token_loss(logits, tokens, real, per_token=True) * answer
        return losses if per_token else losses.sum() / answer.sum()

    def generate(self, input: Any = "", max_new_tokens: int = 10, **options: Any) -> Any:
        """As a Gemma's. `input` is what `prepare` returns, or tokens with `pixel_values`; all of it is prefix unless
        `token_type_ids` say that an answer has begun. New tokens are of type 1."""
        given = {name: options.pop(name, None) for name in _INPUTS}
        tokens, given = self.read_call(input, given)
        mask = torch.ones_like(tokens) if given["attention_mask"] is None else given["attention_mask"]
        types = torch.zeros_like(tokens) if given["token_type_ids"] is None else given["token_type_ids"]
        pixels, mask = given["pixel_values"], as_mask(mask)
        self.check_pictures(tokens, pixels)
        rows = [row[keep] for row, keep in zip(types, mask, strict=True)]
        longest = max(map(len, rows))
        prompt = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])

        def beside(new: Tensor, step: int) -> dict[str, Tensor]:
            if step and new.shape[1] == 1:
                return {}
            kinds = torch.nn.functional.pad(prompt, (0, new.shape[1] - longest), value=1)
            return {"token_type_ids": kinds} | ({} if pixels is None else {"pixel_values": pixels})

        encoding = {"input_ids": tokens, "attention_mask": mask}
        return super().generate(encoding, max_new_tokens, beside=beside, **options)

    def prepare(
        self,
        texts: str | Sequence[str],
        pictures: Any = None,
        answers: str | Sequence[str] | None = None,
        padding_side: Side | None = None,
    ) -> dict[str, Tensor]:
        """What the model takes, of texts and their pictures, as transformers' PaliGemmaProcessor makes it: `input_ids`,
        `attention_mask`, `token_type_ids` and `pixel_values`.

        Each text has one picture, or a list of them; `answers` follow the texts and end with <eos>. A text may place its
        pictures with <image>; they stand before it otherwise.

        Raises:
            PictureError: a picture cannot be read, or there are other than as many as the texts need.
            TokensError: a text is none, or there is no tokenizer.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        answers = [answers] if isinstance(answers, str) else None if answers is None else list(answers)
        if pictures is None:
            lists = [[] for _ in texts]
        else:
            pictures = list(pictures) if isinstance(pictures, list | tuple) else [pictures]
            if len(texts) == 1 and not (pictures and isinstance(pictures[0], list | tuple)):
                pictures = [pictures]
            lists = [list(p) if isinstance(p, list | tuple) else [p] for p in pictures]
        if len(lists) != len(texts) or (answers is not None and len(answers) != len(texts)):
            raise PictureError(
                f"{len(texts)} texts have {len(lists)} pictures or lists of pictures"
                + ("" if answers is None else f" and {len(answers)} answers")
                + "; give one for each."
            )
        flat = [picture for some in lists for picture in some]
        counts = [len(some) for some in lists]
        rows = lay_out(self.words, texts, counts, answers, self.cfg.image_token, self.cfg.n_image_tokens)
        ids, mask, types = (t.to(self.device) for t in stacked(rows, self.cfg.pad, self.side_of(padding_side)))
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return inputs | ({"pixel_values": self.to_pixels(flat)} if flat else {})

    def reached(self, name: str, stop_at_layer: int) -> bool:
        """Whether a run that stops before block `stop_at_layer` passes this hook point."""
        return name.startswith(_SEES) or super().reached(name, stop_at_layer)

    def inputs_for(self, sites: Sequence[str], options: InputOptions = InputOptions()) -> PictureMaker:
        """What makes the inputs of a recording at some sites: the patches alone for the tower and the projector, all that the
        language model reads for its own.

        Raises:
            ConfigError: sites of several kinds of rows.
        """
        names = self.rows_at(sites)
        if options.queries:
            return self.query_maker(options, names)
        seeing = [name for name in names if name.startswith(_SEES)]
        if not seeing:
            return self.prompt_maker(options)
        if len(seeing) < len(names):
            raise other_rows([seeing[0], next(name for name in names if name not in seeing)])
        n = self.cfg.n_image_tokens
        types = {"token_type_ids": np.zeros(n, np.int64)}
        return PatchMaker(options, self.cfg.pictures, self.cfg.vision.patch_size, token=self.cfg.image_token, arguments=types)

    def query_maker(self, options: InputOptions, sites: Sequence[str]) -> PictureMaker:
        """Raises ConfigError: only a ColPali reads queries."""
        raise ConfigError(f"A {self.cfg.family_name} reads no queries. Leave --queries out.")

    def prompt_maker(self, options: InputOptions) -> PictureMaker:
        """What makes inputs of all that the language model reads."""
        return PromptMaker(options, self.cfg, self.words, self.special_ids)

    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches, in the order in which image tokens count them."""
        return (self.cfg.vision.grid,) * 2

    def patch_boxes(self, picture_size: Sequence[int]) -> list[Box]:
        """(left, top, right, bottom) of each patch in the pixels of a picture of (width, height)."""
        return self.cfg.pictures.patch_boxes(self.cfg.vision.patch_size, picture_size)

    def to_pixels(self, images: Any) -> Pixels:
        """Pictures (files, bytes, PIL images, arrays), resized and scaled as the model was trained, on its device."""
        return self.cfg.pictures.to_pixels(images).to(self.device)
