"""Attributes a word that a PaliGemma says to patches of the picture: a logit difference as a sum over (patch, latent) pairs.

The stream at the SAE's site is, at each row, x = sum of f_i d_i + b_dec + error; a row is a patch or a token of the text. With
g the gradient of the logit difference, or its mean on the line from b_dec to x (the default), the pair of patch p and latent i
has the effect f_i(p) (g(p) . d_i). Pairs, errors and what the difference is at b_dec alone add up to it; what the numerical
integral misses is `gap`. See `scope.circuits.attribution`, which has the same two methods for text.

Beside the sum stands a check by intervention: the patches with the largest effects are replaced, at the site, by the mean of
all patches of the picture, and so are random sets of as many. In a trunk's late layers other rows have already read the
patches, so that replacing them there may do less than the sum says; then the check says so.
Source: integrated gradients, arXiv:1703.01365; of dictionaries, with the error as a node of its own, arXiv:2403.19647.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope.circuits.attribution import WHOLE, Parts, Rest, described, linear_rows, mean_gradient, token_pair, wide
from scope.circuits.attribution_result import Row
from scope.circuits.picture_attribution_result import PatchAblation, PictureAttribution
from scope.errors import EditError
from scope.fit import check_fit
from scope.models.paligemma.pictured import check_says_words
from scope.models.pictures.copies import copy_of, pixels_sha256
from scope.models.pictures.processor import Box
from scope.models.pictures.read import read_picture
from scope.null_seeds import null_seed
from scope.sae.base import SAE


def attribute_picture(
    model: Any,
    sae: SAE,
    picture: Any,
    prompt: str,
    token: str | int | None = None,
    other: str | int | None = None,
    *,
    answer: str = "",
    method: str = "integrated",
    steps: int | None = None,
    rows: str | None = None,
    n_patches: int | None = None,
    draws: int = 20,
    pack: Any = None,
    any_model: bool = False,
    seed: int = 0,
) -> PictureAttribution:
    """The (patch, latent) pairs of logit(token) - logit(other) after a picture, a prompt and the beginning of an `answer`.

    Args:
        model: a PaliGemma.
        sae: an SAE of a site of its trunk, of `projector.hook_out`, or of its tower (`vision.`).
        picture: a file, its bytes, a PIL image or an array.
        token, other: the likeliest next token and the likeliest besides, where they are not given.
        method: "integrated" adds up to the logit difference; "gradient" is one backward pass and adds up to a linear reading.
        steps: points of the integral, by default 32, or up to 256 where the rows would not add up with fewer.
        rows: which rows of a trunk the SAE reads; by default those that it was trained on. The others are one part.
        n_patches: how many patches are ablated together, by default a ninth of them; `draws` random sets of as many are too.

    Raises:
        ConfigError: a model that reads no pictures or says nothing.
        EditError: an empty prompt, an unknown method, more patches than there are.
        PictureError, TokensError: a picture or a token that cannot be read.
        DictionaryError: an SAE of another model or site.
    """
    if method not in ("integrated", "gradient"):
        raise EditError(f"Patches are told apart by the methods integrated and gradient, not {method!r}.")
    check_says_words(model)
    check_fit(model, sae, any_model, reconstructs=True)
    if not prompt.strip():
        raise EditError("The prompt is empty. Give a question or a task, such as 'caption en'.")
    rest = PictureRest(model, sae, picture, prompt, answer, rows)
    log_p = rest.log_p(rest.x[None])[0]
    wanted, against = token_pair(model, log_p, log_p, token, other)
    fields = split(rest, sae, wanted, against, method, steps, n_patches, draws, pack, seed)
    fields["provenance"]["settings"] |= {"token": wanted, "other": against, "rows": rows}
    return PictureAttribution(
        prompt=prompt,
        answer=answer,
        token=model.words.pieces([wanted])[0],
        other=model.words.pieces([against])[0],
        p_token=float(log_p[wanted].exp()),
        p_other=float(log_p[against].exp()),
        **fields,
    )


def split(
    rest: "PatchRest",
    sae: SAE,
    wanted: int,
    against: int,
    method: str,
    steps: int | None,
    n_patches: int | None,
    draws: int,
    pack: Any,
    seed: int,
) -> dict[str, Any]:
    """The fields of an attribution that are sums over rows and latents, by name.

    Raises:
        EditError: more patches than there are.
    """
    n_all = len(rest.boxes)
    n_patches = max(1, n_all // 9) if n_patches is None else n_patches
    if not 0 < n_patches < n_all:
        raise EditError(f"{n_patches} patches cannot be ablated beside others: the picture has {n_all}.")
    parts = Parts(sae, rest)
    difference = float(rest.difference(rest.x[None], wanted, against)[0])
    if method == "gradient":
        grad = rest.gradient(rest.x, wanted, against)
        whole = float((grad * wide(rest.x)).sum())
        others = [
            Row(name="bias", value=float((grad * parts.bias()).sum())),
            Row(name=rest.unread, value=float((grad * parts.special()).sum())),
        ]
    else:
        whole, start = difference, float(rest.difference(parts.baseline()[None], wanted, against)[0])
        grad = mean_gradient(rest, parts.baseline(), wanted, against, difference - start, steps)
        others = [Row(name="at b_dec alone", value=start)]
    table = [*linear_rows(parts, grad), *others]
    effects = parts.values * (grad @ parts.rows.T)
    by_patch = effects.sum(1)[rest.patch_rows]
    return {
        "pieces": rest.pieces,
        "method": method,
        "site": sae.site,
        "logit_difference": difference,
        "whole": whole,
        "whole_is": WHOLE[method],
        "gap": whole - sum(row.value for row in table),
        "rows": tuple(described(row, parts, rest, pack) for row in table),
        "picture": rest.picture,
        "picture_copy": copy_of(rest.picture, rest.model.cfg.pictures),
        "grid": tuple(rest.model.patch_grid()),
        "boxes": tuple(rest.boxes),
        "latents": tuple(parts.ids.tolist()),
        "patch_rows": tuple(rest.patch_rows.tolist()),
        "effects": _array(effects),
        "activations": _array(parts.values),
        "nulls": _array(parts.values * parts.rows.norm(dim=1) * grad.norm(dim=1)[:, None] / grad.shape[1] ** 0.5),
        "errors": _array((grad * parts.error()).sum(1)),
        "ablation": _ablation(rest, by_patch, wanted, against, difference, n_patches, draws, seed),
        "provenance": {
            "model": rest.model.provenance,
            "dictionary": {name: sae.provenance.get(name) for name in ("path", "weights_sha256")},
            "picture_sha256": pixels_sha256(rest.picture),
            "rows": rest.rows,
            "seed": seed,
            "settings": {"steps": steps, "n_patches": n_patches, "draws": draws, "seed": seed},
        },
    }


class PatchRest(Rest):
    """The rest of a model that reads one picture, of which some rows are patches."""

    picture: Any
    boxes: list[Box]
    patch_rows: Tensor
    unread, rows = "rows that the SAE does not read", "image"

    def take_patches(self) -> None:
        """Every row of the site is a patch.

        Raises:
            EditError: there are other than as many rows as patches.
        """
        columns = self.model.patch_grid()[1]
        if len(self.x) != len(self.boxes):
            raise EditError(f"{self.site} has {len(self.x)} rows for {len(self.boxes)} patches: it has none of single patches.")
        self.pieces = tuple(f"patch {i // columns},{i % columns}" for i in range(len(self.boxes)))
        self.patch_rows = torch.arange(len(self.boxes))
        self.counted = torch.ones(len(self.boxes), dtype=torch.bool, device=self.x.device)


class PictureRest(PatchRest):
    """The rest of a PaliGemma: from a site on, as a function of the rows there, for one picture and its text."""

    def __init__(self, model: Any, sae: SAE, picture: Any, prompt: str, answer: str = "", rows: str | None = None):
        self.model, self.site = model, sae.site
        self.picture = read_picture(picture)
        self.boxes = model.patch_boxes(self.picture.size)
        inputs = model.prepare([prompt], [self.picture], [answer] if answer else None)
        if answer:  # prepare ends an answer with <eos>, and this one goes on
            inputs = {name: x if name == "pixel_values" else x[:, :-1] for name, x in inputs.items()}
        self.batch, self.types, self.pixels = inputs["input_ids"], inputs["token_type_ids"], inputs["pixel_values"]
        self.x = model.record(inputs, [self.site])[self.site][0]
        self.in_trunk = not self.site.startswith(("vision.", "projector."))
        if not self.in_trunk:
            self.take_patches()
            return
        columns = self.model.patch_grid()[1]
        names = [f"patch {i // columns},{i % columns}" for i in range(len(self.boxes))]
        ids = self.batch[0]
        image = ids == model.cfg.image_token
        self.patch_rows = image.nonzero().flatten().cpu()
        words = iter(model.words.pieces(ids[~image].tolist()))
        patches = iter(names)
        self.pieces = tuple(next(patches) if is_patch else next(words) for is_patch in image.tolist())
        special = torch.tensor(sorted(model.special_ids - {model.cfg.image_token}), device=ids.device)
        text = ~image & ~torch.isin(ids, special)
        self.rows = rows or rows_of(sae)
        if self.rows not in ("all", "image", "text"):
            raise EditError(f"rows is {self.rows!r}; an SAE of a trunk reads all, image or text rows.")
        self.counted = {"all": image | text, "image": image, "text": text}[self.rows]

    def logits(self, streams: Tensor) -> Tensor:
        """[batch vocab] after the last token, for rows [batch row d]."""
        n, n_layers = len(streams), self.model.cfg.n_layers
        types = self.types.expand(n, -1)
        if self.in_trunk and self.site.endswith("hook_resid_post"):  # neither tower nor earlier blocks need to run again
            layer = int(self.site.split(".")[1]) + 1
            resid = streams.to(self.model.dtype)
            stream = self.model(resid, token_type_ids=types, start_at_layer=layer, stop_at_layer=n_layers)
        else:
            pixels = self.pixels.expand(n, *self.pixels.shape[1:]) if len(self.pixels) == 1 else self.pixels.repeat(n, 1, 1, 1)
            with self.model.hooks([(self.site, lambda x, hook: streams.to(x.dtype))]):
                stream = self.model(self.batch.expand(n, -1), token_type_ids=types, pixel_values=pixels, stop_at_layer=n_layers)
        return wide(self.model.logits_of(stream[:, -1:])[:, 0])


def rows_of(sae: SAE) -> str:
    """Which rows of a trunk an SAE was trained on: "all", "image" or "text"."""
    return str((sae.provenance.get("recording") or {}).get("rows") or "all")


def _ablation(
    rest: PatchRest, by_patch: Tensor, token: int, other: int, difference: float, n: int, draws: int, seed: int
) -> PatchAblation:
    """The largest patches replaced by the mean patch, beside random sets of as many."""
    strongest = by_patch.topk(n).indices.tolist()
    state = np.random.default_rng(null_seed("sets of patches", seed))
    sets = [strongest, *(sorted(state.permutation(len(by_patch))[:n].tolist()) for _ in range(draws))]
    mean = rest.x[rest.patch_rows].mean(0)
    changes = [
        difference - value for value in rest.difference([_replaced(rest, some, mean) for some in sets], token, other).tolist()
    ]
    return PatchAblation(
        patches=tuple(strongest), change=changes[0], expected=float(by_patch[strongest].sum()), random=tuple(changes[1:])
    )


def _replaced(rest: PatchRest, patches: Sequence[int], value: Tensor) -> Tensor:
    x = rest.x.clone()
    x[rest.patch_rows[list(patches)]] = value
    return x


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()
