"""Latents on a picture of yours, and on the text beside it: this needs the model and the dictionary."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scope.activations.corpus.document import Document
from scope.activations.corpus.inputs import Inputs, counted, record
from scope.activations.corpus.roles import Role
from scope.activations.pictures.patches import Box
from scope.errors import PackError
from scope.evaluation import metrics
from scope.features.pack.data import PackData
from scope.features.reading.read_text import check_same, other_tuning
from scope.features.reading.view import TokenView
from scope.models.face import VisionModel
from scope.models.pictures.draw import img_tag, overlay, png
from scope.models.pictures.inputs import InputOptions
from scope.models.pictures.read import read_picture as decoded
from scope.models.text.tokenizer import check_text
from scope.sae.base import SAE


@dataclass(frozen=True, eq=False)
class PictureView(TokenView):
    """Which latents fire where in a picture and in the text beside it: a row of `latents` is a patch or a token, patches first.

    Everything of a `TokenView` is there too: `top(10)` ranks latents, `top(10, position=3)` those on the fourth patch.
    """

    picture: Any = None
    """The picture as a PIL image in RGB, upright; None where the text was read alone."""
    boxes: tuple[Box, ...] = ()
    """The box of each patch in the picture's pixels, row by row; of a site with one row for all of it, the whole."""
    roles: tuple[str, ...] = ()
    """The role of each row: image, prompt, answer, bos, special or text."""

    @property
    def n_patches(self) -> int:
        return len(self.boxes)

    def patches(self, latent: int) -> np.ndarray:
        """float32 [patches]: a latent's activation at each patch, row by row."""
        return self.values(latent)[: self.n_patches]

    def map(self, latent: int) -> np.ndarray:
        """float32 [rows columns] of a latent."""
        side = math.isqrt(self.n_patches)
        return self.patches(latent).reshape(side, side)

    def image(self, latent: int) -> Any:
        """A PIL image: the picture in grey under a latent's activations, the strongest colour at its maximum in the pack.

        Raises:
            PackError: there is no picture.
        """
        if self.picture is None:
            raise PackError("The text was read alone, so there is no picture to draw on.")
        values = self.patches(latent)
        largest = max(float(self.pack.table["max"].iloc[latent]), float(values.max(initial=0)), 1e-12)
        return overlay(self.picture, self.boxes, values, largest)

    def png(self, latent: int) -> bytes:
        """The image of a latent as the bytes of a PNG."""
        return png(self.image(latent))

    def strip(self, latent: int) -> str:
        """The picture and the text beside it as HTML, coloured by one latent."""
        if self.picture is None:
            return super().strip(latent)
        return img_tag(self.image(latent), f"heat map of latent {latent}") + self._beside(latent)

    def _beside(self, latent: int) -> str:
        from scope.features.exports.strip import strip_html

        n, values = self.n_patches, self.values(latent)
        largest = max(float(self.pack.table["max"].iloc[latent]), float(values.max()))
        return strip_html(self.pieces[n:], values[n:], largest) if len(self.pieces) > n else ""


@torch.no_grad()
def read_picture(
    pack: PackData, picture: Any, model: VisionModel, sae: SAE, text: str | None = None, answer: str | None = None
) -> PictureView:
    """Encode a picture (a file, its bytes, a PIL image or an array) as the pack's pictures were encoded; for a PaliGemma `text`
    is the prompt, by default the recording's, and `answer` follows it. `picture` None reads the text of a text tower alone.

    Raises:
        PackError: model or dictionary are not the pack's, or the model reads no pictures.
        PictureError, TokensError: a picture or a text that cannot be read.
    """
    if not isinstance(model, VisionModel):
        raise PackError("This model reads text: pack.read(text, model, sae).")
    for given in (text, answer):
        if given is not None:
            check_text(given)
    check_same(pack, model, sae, tuning=True)
    recording = pack.manifest.text.get("recording") or {}
    prompt = (recording.get("tokenizer") or {}).get("prompt") or ""
    maker = model.inputs_for([pack.site], InputOptions(prompt=str(prompt)))
    image = None if picture is None else decoded(picture)
    file = None if image is None else png(image)
    document = Document("The picture", "" if image else text or "", picture=file, question=text or "", answer=answer or "")
    longest = maker.context if maker.least == maker.context else model.cfg.n_ctx
    example = maker.example(document, longest)
    rows = {"tokens": example.tokens[None], "roles": example.roles[None], "documents": np.zeros_like(example.tokens)[None]}
    inputs = Inputs(**rows, arguments={name: value[None] for name, value in example.arguments.items()})
    n = int(np.flatnonzero(example.roles != Role.PADDING).max()) + 1
    acts = record(model, inputs, [pack.site])[pack.site][:n].float()
    latents, roles = sae.encode(acts), torch.as_tensor(example.roles[:n])
    wanted = counted(roles[None])[0].to(latents.device)
    x, x_hat = acts[wanted], sae.decode(latents[wanted])
    fvu, fvu_at = math.nan, torch.full(wanted.shape, math.nan, dtype=torch.float64, device=x.device)
    if (x != x[:1]).any():
        fvu, fvu_at[wanted] = float(metrics.fvu(x, x_hat)), metrics.fvu_at_tokens(x, x_hat)
    is_patch = example.roles[:n] == Role.IMAGE
    ids = _ids(pack, example.tokens[:n], example.roles[:n])
    boxes = () if image is None else tuple(model.patch_boxes(image.size))
    if image is not None and is_patch.sum() == 1 < len(boxes):
        boxes = ((0.0, 0.0, float(image.width), float(image.height)),)
    return PictureView(
        pack,
        ids,
        pack.pieces(ids),
        torch.where(wanted[:, None], latents, 0.0).float().cpu().numpy(),
        fvu,
        wanted.cpu().numpy(),
        fvu_at.cpu().numpy(),
        other_tuning(pack, model, sae),
        picture=image,
        boxes=boxes,
        roles=tuple(Role(role).name.lower() for role in example.roles[:n].tolist()),
    )


def _ids(pack: PackData, tokens: np.ndarray, roles: np.ndarray) -> list[int]:
    """Ids in the pack's vocabulary, in which rows that are no token stand behind all tokens, by their roles."""
    first = len(pack.vocab) - len(Role)
    no_token = (tokens < 0) | (roles == Role.IMAGE)
    return np.where(no_token, first + roles.astype(np.int64), tokens).tolist()
