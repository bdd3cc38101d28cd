"""Splits the logit that a SigLIP gives a picture and a text: a sum over latents of the picture's side.

    logit = exp(logit_scale) * (image / |image|) . (text / |text|) + logit_bias

An SAE of the pooled vector (`vision.hook_pooled`): image = sum of f_i d_i + b_dec + error, so that the logit is a sum exactly,
with the length |image| held at its value. An SAE of the tower's patches: the same pairs of patch and latent, and the same check
by ablation, as in `scope.circuits.picture_attribution`, through the rest of the tower, its head and the normalisation.

Compared with another text, the difference of the two logits is split.
"""

from typing import Any

import torch
from torch import Tensor

from scope.circuits.attribution import Parts, described, linear_rows, wide
from scope.circuits.attribution_result import Row
from scope.circuits.picture_attribution import PatchRest, split
from scope.circuits.picture_attribution_result import MatchAttribution
from scope.errors import ConfigError, EditError
from scope.fit import check_fit
from scope.models.pictures.copies import copy_of, pixels_sha256
from scope.models.pictures.read import read_picture
from scope.models.siglip.model import Siglip
from scope.sae.base import SAE
from scope.shapes import Embeddings

POOLED = "vision.hook_pooled"


def attribute_match(
    model: Any,
    sae: SAE,
    picture: Any,
    text: str,
    other: str | None = None,
    *,
    method: str | None = None,
    steps: int | None = None,
    n_patches: int | None = None,
    draws: int = 20,
    pack: Any = None,
    any_model: bool = False,
    seed: int = 0,
) -> MatchAttribution:
    """The logit of a picture and a text, or its difference from another text's, as a sum over latents.

    Args:
        model: a SigLIP with both towers.
        sae: an SAE of `vision.hook_pooled`, or of the patches of a site under `vision.`.
        method: of patches, "integrated" (the default) or "gradient"; the pooled vector's sum is exact and needs none.

    Raises:
        ConfigError: no SigLIP, or one tower alone.
        EditError: an SAE of a site that is no part of the picture's side, an empty text, an unknown method.
        PictureError, TokensError: a picture or a text that cannot be read. DictionaryError: an SAE of another model.
    """
    if not isinstance(model, Siglip) or model.vision is None or model.text is None or model.vision.head is None:
        name = getattr(model.cfg, "family_name", type(model).__name__)
        raise ConfigError(f"A {name} gives no logit of a picture and a text. Give a SigLIP with both towers and its head.")
    check_fit(model, sae, any_model, reconstructs=True)
    texts = [text] if other is None else [text, other]
    if not all(t.strip() for t in texts):
        raise EditError("A text is empty. Give what the picture may show, such as 'a red circle'.")
    if not sae.site.startswith("vision."):
        raise EditError(f"{sae.site} is no site of the picture's side. Take an SAE of {POOLED}, or of the tower's patches.")
    rest = MatchRest(model, sae, picture, texts)
    with torch.no_grad():
        logits = rest.logits(rest.x[None])[0]
    probability = torch.sigmoid(logits).tolist()
    named = {
        "prompt": "",
        "answer": "",
        "token": text,
        "other": other or "",
        "p_token": probability[0],
        "p_other": probability[1] if other is not None else float("nan"),
    }
    if sae.site != POOLED:
        method = "integrated" if method is None else method
        if method not in ("integrated", "gradient"):
            raise EditError(f"Patches are told apart by the methods integrated and gradient, not {method!r}.")
        return MatchAttribution(**named, **split(rest, sae, 0, 1, method, steps, n_patches, draws, pack, seed))
    if method not in (None, "direct"):
        raise EditError(f"The pooled vector's sum is exact, by the method direct; there is nothing to {method}.")
    return MatchAttribution(**named, **_exact(rest, sae, float(logits[0] - logits[1]), pack))


def _exact(rest: "MatchRest", sae: SAE, difference: float, pack: Any) -> dict[str, Any]:
    """The fields of the sum over latents of the pooled vector, whose length is held at its value."""
    parts = Parts(sae, rest)
    texts = rest.texts[0] - rest.texts[1] if len(rest.texts) > 1 else rest.texts[0]
    grad = (rest.model.logit_scale.exp() * texts / parts.x.norm()).detach()[None].to(parts.x)
    rows = [*linear_rows(parts, grad), Row(name="bias", value=float((grad * parts.bias()).sum()))]
    if len(rest.texts) == 1:
        rows.append(Row(name="logit_bias", value=float(rest.model.logit_bias)))
    effects = parts.values * (grad @ parts.rows.T)
    return {
        "pieces": rest.pieces,
        "method": "direct",
        "site": sae.site,
        "logit_difference": difference,
        "whole": difference,
        "whole_is": "the logit" if len(rest.texts) == 1 else "the logit difference",
        "gap": difference - sum(row.value for row in rows),
        "rows": tuple(described(row, parts, rest, pack) for row in rows),
        "picture": rest.picture,
        "picture_copy": copy_of(rest.picture, rest.model.cfg.pictures),
        "grid": tuple(rest.model.patch_grid()),
        "boxes": tuple(rest.boxes),
        "latents": tuple(parts.ids.tolist()),
        "patch_rows": (),
        "effects": effects.detach().cpu().numpy(),
        "activations": parts.values.detach().cpu().numpy(),
        "nulls": (parts.values * parts.rows.norm(dim=1) * grad.norm() / grad.shape[1] ** 0.5).detach().cpu().numpy(),
        "errors": (grad * parts.error()).sum(1).detach().cpu().numpy(),
        "ablation": None,
        "provenance": {
            "model": rest.model.provenance,
            "dictionary": {name: sae.provenance.get(name) for name in ("path", "weights_sha256")},
            "picture_sha256": pixels_sha256(rest.picture),
        },
    }


class MatchRest(PatchRest):
    """The rest of a SigLIP's vision tower, as a function of the rows at a site; its logits are those of some texts."""

    def __init__(self, model: Siglip, sae: SAE, picture: Any, texts: list[str]):
        self.model, self.site = model, sae.site
        self.picture = read_picture(picture)
        self.boxes = model.patch_boxes(self.picture.size)
        self.pixels = model.to_pixels([self.picture])
        with torch.no_grad():
            self.texts: Embeddings = model.embed_texts(model.to_tokens(texts))
        self.x = model.record(self.pixels, [self.site])[self.site].reshape(-1, sae.d_in)
        if self.site == POOLED:
            self.pieces, self.patch_rows = ("the picture",), torch.zeros(0, dtype=torch.long)
            self.counted = torch.ones(1, dtype=torch.bool, device=self.x.device)
        else:
            self.take_patches()

    def logits(self, streams: Tensor) -> Tensor:
        """[batch text + 1]: the logit of each text for rows [batch row d], and 0, with which a logit alone is compared."""
        n = len(streams)

        def replaced(x: Tensor, hook: Any) -> Tensor:
            return streams.reshape(x.shape).to(x.dtype)

        with self.model.hooks([(self.site, replaced)]):
            images = self.model.embed_images(self.pixels.expand(n, *self.pixels.shape[1:]))
        logits = wide(self.model.logits_of(images, self.texts))
        return torch.cat([logits, logits.new_zeros(n, 1)], 1)
