"""SigLIP: a picture and a text each become one vector, and their product says how well they fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scope.activations.pictures.patches import Box
from scope.errors import ConfigError, PictureError, TokensError
from scope.models.pictures.inputs import InputOptions, PatchMaker, PictureMaker, other_rows
from scope.models.pictures.processor import PictureProcessor
from scope.models.siglip.config import SiglipConfig
from scope.models.siglip.inputs import TextTowerMaker
from scope.models.siglip.towers import TextTower, VisionTower
from scope.models.siglip.weights import canonical_name, tensor_names
from scope.models.siglip.words import TextTowerTokenizer
from scope.models.transformer_lens.hook_api import HookApi
from scope.shapes import Embeddings, Pixels, Tokens


class Siglip(HookApi):
    """`embed_images(pixel_values)` and `embed_texts(tokens)` give vectors of length 1, `model(tokens, pixel_values=...)` the
    logits of every picture with every text. Sites are named as in TransformerLens, under `vision.` and `text.`.

    Source: SigLIP, arXiv:2303.15343.
    """

    config_from_hf, tensor_names = SiglipConfig.from_hf, staticmethod(tensor_names)
    streams = has_unembedding = False
    streamed = False
    adapter = None

    def __init__(self, config: SiglipConfig, tokenizer: TextTowerTokenizer | None = None):
        super().__init__()
        self.cfg, self.tokenizer = config, tokenizer
        self.provenance: dict[str, Any] = {}
        self.vision = None if config.vision is None else VisionTower(config.vision)
        self.text = None if config.text is None else TextTower(config.text)
        if self.vision is not None and self.text is not None:
            self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.setup_hooks()

    @classmethod
    def read_folder(cls, config: SiglipConfig, folder: Path, adapter: Path | None = None) -> tuple[SiglipConfig, Any]:
        """(the config with the checkpoint's way to prepare pictures, its tokenizer if it has one)."""
        if config.vision is not None:
            config = config.with_pictures(PictureProcessor.from_folder(folder, config.vision.image_size))
        return config, None if config.text is None else TextTowerTokenizer.from_folder(folder, config.text)

    def canonical_name(self, name: str) -> str | None:
        return canonical_name(name, self.cfg)

    def on_placed(self) -> None:
        """Nothing depends on where the weights are."""

    device = property(lambda self: next(self.parameters()).device)
    dtype = property(lambda self: next(self.parameters()).dtype)

    def forward(
        self,
        input: Any = None,
        pixel_values: Any = None,
        *,
        stop_at_layer: int | None = None,
        return_type: str | None = "logits",
    ) -> Tensor | None:
        """Logits [image text] of pictures and texts; of one kind alone, its vectors; with `stop_at_layer` or without a
        `return_type` nothing, for hooks alone.

        `input` is tokens [text pos], or pixels [image channel height width], or a mapping such as transformers' processor
        returns. An attention mask in it is left out: SigLIP was trained without one.

        Raises:
            TokensError, PictureError: tokens or pixels that the model cannot take, or none at all.
        """
        tokens, pixels = self.read_input(input, pixel_values)
        if return_type not in ("logits", None):
            raise ConfigError(f'return_type is {return_type!r}; it can be "logits" or None.')
        sides = []
        for tower, given in ((self.vision, pixels), (self.text, tokens)):
            if given is not None:
                rows = tower(given, stop_at_layer)
                headless = stop_at_layer is not None or (return_type is None and tower.head is None)
                sides.append(None if headless else tower.pool(rows))
        if return_type is None or stop_at_layer is not None:
            return None
        unit = [side / side.norm(p=2, dim=-1, keepdim=True) for side in sides]
        return unit[0] if len(unit) == 1 else self.logits_of(*unit)

    def read_input(self, input: Any, pixel_values: Any = None) -> tuple[Tensor | None, Any]:
        """(tokens, pixels, not yet checked) of whatever a call was given."""
        tokens = input
        if isinstance(input, Mapping):
            tokens, pixel_values = input.get("input_ids"), input.get("pixel_values", pixel_values)
        elif isinstance(arguments := getattr(input, "arguments", None), Mapping):  # a batch of a recording
            pixel_values, tokens = arguments.get("pixel_values"), arguments.get("input_ids")
        elif isinstance(input, Tensor) and input.is_floating_point():
            if pixel_values is not None:
                raise TokensError("The first argument holds pixels, where tokens belong beside pixel_values.")
            tokens, pixel_values = None, input
        if isinstance(tokens, str | list | tuple) and tokens and not isinstance(tokens[0], list | int):
            tokens = self.to_tokens(tokens)
        if tokens is None and pixel_values is None:
            raise TokensError("Neither tokens nor pixel_values are given.")
        if tokens is not None and self.text is None:
            raise TokensError("This checkpoint holds the vision tower alone; it takes no text. Give pixel_values.")
        if pixel_values is not None and self.vision is None:
            raise PictureError("This checkpoint holds the text tower alone; it takes no pictures.")
        return None if tokens is None else torch.as_tensor(tokens), pixel_values

    def embed_images(self, pixel_values: Pixels) -> Embeddings:
        """One vector of length 1 for each picture."""
        return self(None, pixel_values)

    def embed_texts(self, tokens: Tokens) -> Embeddings:
        """One vector of length 1 for each text."""
        return self(tokens)

    def logits_of(self, images: Embeddings, texts: Embeddings) -> Tensor:
        """exp(logit_scale) * image . text + logit_bias, [image text]. The probability that a pair fits is sigmoid(logit)."""
        return ((texts @ images.t()) * self.logit_scale.exp() + self.logit_bias).t()

    def loss_of(self, logits: Tensor) -> Tensor:
        """SigLIP's loss of [n n] logits whose diagonal fits: the sum over texts of -log sigmoid(±logit), mean over pictures."""
        labels = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
        return -torch.nn.functional.logsigmoid(labels * logits).sum() / len(logits)

    @torch.no_grad()
    def record(self, tokens: Any, sites: Sequence[str]) -> dict[str, Tensor]:
        """The activations at `sites`, each [batch row width]: patches of pictures, tokens of texts, or one row for what is
        pooled. `tokens` is what the model takes: pixels, tokens, or a mapping of both. Runs only the towers that are asked."""
        text, pixels = self.read_input(tokens)
        names = self.rows_at(sites)
        asked = {name.split(".")[0] for name in names}
        for tower, given, what in (("vision", pixels, "pixel_values"), ("text", text, "tokens")):
            if tower in asked and given is None:
                first = next(name for name in names if name.startswith(tower))
                raise ConfigError(f"{first} lies in the {tower} tower, which needs {what}; none are given.")
        wanted = {"input_ids": text if "text" in asked else None, "pixel_values": pixels if "vision" in asked else None}
        rows = super().record(wanted, names)
        return {site: rows[site] for site in ([sites] if isinstance(sites, str) else sites)}

    def layers_for(self, names: Sequence[str]) -> int | None:
        """How many blocks of its tower must run so that all names are passed; None means all, and what follows them."""
        layers = []
        for name in names:
            parts = name.split(".")
            if parts[1] == "blocks":
                layers.append(int(parts[2]) + 1)
            elif parts[1] not in ("hook_patches", "hook_pos", "hook_embed"):
                return None
        towers = {name.split(".")[0] for name in names}
        return max(layers, default=0) if len(towers) < 2 else None

    def reached(self, name: str, stop_at_layer: int) -> bool:
        """Whether a run that stops before block `stop_at_layer` passes this hook point."""
        needed = self.layers_for([name])
        return needed is not None and needed <= stop_at_layer

    def sites(self) -> dict[str, int]:
        """Every site that can be recorded, with its width (heads concatenated), in the order in which they are passed."""
        widths = {name: self.hook_dict[name].width for name in self.match(None)}
        return {name: width for name, width in widths.items() if width}

    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches, in the order in which positions count them."""
        return (self._seeing().cfg.grid,) * 2

    def patch_boxes(self, picture_size: Sequence[int]) -> list[Box]:
        """(left, top, right, bottom) of each patch in the pixels of a picture of (width, height)."""
        return self.cfg.pictures.patch_boxes(self._seeing().cfg.patch_size, picture_size)

    def to_pixels(self, images: Any) -> Pixels:
        """Pictures (files, bytes, PIL images, arrays), resized and scaled as the model was trained, on its device."""
        self._seeing()
        return self.cfg.pictures.to_pixels(images).to(self.device)

    def to_tokens(self, texts: str | Sequence[str], truncate: bool = False) -> Tokens:
        """Ids of texts, padded to the tower's length as it was trained.

        Raises:
            TokensError: the checkpoint has no tokenizer, or a text does not fit.
        """
        return self.words.to_tokens(texts, truncate).to(self.device)

    @property
    def words(self) -> TextTowerTokenizer:
        if self.tokenizer is None:
            raise TokensError(
                "This checkpoint has no tokenizer.json, so text cannot be read; give token ids.\n"
                "  transformers writes one: AutoTokenizer.from_pretrained(NAME, use_fast=True).save_pretrained(FOLDER)."
            )
        return self.tokenizer

    def inputs_for(self, sites: Sequence[str], options: InputOptions = InputOptions()) -> PictureMaker:
        """What makes the inputs of a recording at some sites: of pictures or of texts, with a row for each patch or token, or
        one for the whole.

        Raises:
            ConfigError: sites of several kinds of rows.
        """
        if options.queries:
            raise ConfigError("A SigLIP reads no queries; its text tower reads texts, at sites of text. Leave --queries out.")
        kinds: dict[tuple[str, bool], str] = {}
        for site in self.rows_at(sites):
            tower = site.split(".")[0]
            kinds.setdefault((tower, self._rows_of(site) == 1), site)
        if len(kinds) > 1:
            raise other_rows(list(kinds.values()))
        (tower, pooled), _ = next(iter(kinds.items()))
        if tower == "text":
            return TextTowerMaker(options, self.words, pooled)
        return PatchMaker(options, self.cfg.pictures, self._seeing().cfg.patch_size, pooled)

    @torch.no_grad()
    def _rows_of(self, site: str) -> int:
        """How many rows a site has for one picture or one text."""
        if site.startswith("text."):
            tokens = torch.zeros(1, self.cfg.text.n_ctx, dtype=torch.long, device=self.device)
            return self.record({"input_ids": tokens}, [site])[site].shape[1]
        c = self._seeing().cfg
        pixels = torch.zeros(1, c.n_channels, c.image_size, c.image_size, device=self.device)
        return self.record({"pixel_values": pixels}, [site])[site].shape[1]

    def _seeing(self) -> VisionTower:
        if self.vision is None:
            raise PictureError("This checkpoint holds the text tower alone; it takes no pictures.")
        return self.vision
