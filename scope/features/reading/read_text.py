"""Latents on a text of yours: this needs the model and the dictionary."""

import math
import re
from collections.abc import Iterable

import numpy as np
import torch

from scope.activations.corpus.inputs import counted_tokens
from scope.errors import PackError, TokensError
from scope.evaluation import metrics
from scope.features.pack.data import PackData
from scope.features.reading.view import TokenView
from scope.models.face import LanguageModel, Model, VisionModel
from scope.provenance import DictionaryId, ModelId
from scope.sae.base import SAE
from scope.sae.files import parameters_sha256
from scope.shapes import Tokens
from scope.texts import for_each_text

_TUNINGS = re.compile(r"[-_](it|pt|base|chat|instruct)$")


def other_tuning(pack: PackData, model: Model, sae: SAE) -> str:
    """Whether the pack or the dictionary is of another tuning of this model, by their names, in a sentence; "" if of none."""
    given, trained = ModelId.of(model.provenance).name or "", DictionaryId.of(sae.provenance).model.name or ""
    for what, name in (("The pack was made with", pack.model_name), ("The dictionary was trained on", trained)):
        a, b = (each.rstrip("/").rsplit("/", 1)[-1].lower() for each in (name, given))
        if a != b and _TUNINGS.sub("", a) == _TUNINGS.sub("", b):
            return f"{what} {name}, and the text was read by {given}, another tuning of it."
    return ""


def check_same(pack: PackData, model: Model, sae: SAE, tuning: bool = False) -> None:
    """Refuse a model or a dictionary other than the pack's; with `tuning`, not another tuning of the model with its tokenizer.
    A dictionary that names no site, as a params.npz, gets the pack's.

    Raises:
        PackError: with what is expected and what was found.
    """
    given = ModelId.of(model.provenance)
    same = pack.model.weights_sha256 if pack.model.same_weights(given) else None
    pairs = [
        ("model weights", pack.model.weights_sha256, same or given.weights_sha256),
        ("tokenizer", pack.model.tokenizer_sha256, given.tokenizer_sha256),
        ("site", pack.site, sae.site or pack.site),
        ("dictionary parameters", pack.dictionary.parameters_sha256, parameters_sha256(sae)),
    ]
    wrong = [
        f"  {what}: this pack's {str(want)[:20]}, given {str(have)[:20]}" for what, want, have in pairs if want and want != have
    ]
    if tuning and len(wrong) == 1 and wrong[0].startswith("  model weights") and other_tuning(pack, model, sae):
        return
    if wrong:
        raise PackError("\n".join(["The pack was made with something else:", *wrong, f"  Give {pack.title}."]))
    sae.site = sae.site or pack.site


@torch.no_grad()
def read(pack: PackData, text: str | Iterable[str], model: Model, sae: SAE) -> TokenView | list[TokenView]:
    """Encode a text as the pack's text was encoded, or each of several, which gives a list.

    Another tuning of the pack's model is accepted, and `TokenView.tuning` says so.

    Raises:
        PackError: model or dictionary are not the pack's.
        TokensError: no text, or more than the context holds.
    """
    if isinstance(model, VisionModel):
        raise PackError(f"A {model.cfg.family_name} reads pictures: pack.read_picture(picture, model, sae, text).")
    check_same(pack, model, sae, tuning=True)

    def view(one: str) -> TokenView:
        if not one:
            raise TokensError("There is no text to read: it is empty. Give at least a word.")
        return _view(pack, model.to_tokens(one), model, sae)

    return for_each_text(text, view, TokensError)


@torch.no_grad()
def read_context(pack: PackData, context: int, model: Model, sae: SAE) -> TokenView:
    """One of the pack's own contexts read again: who fires on each of its tokens. The values are those in the pack but for the
    rounding of a recording.

    Raises:
        PackError: no such context, one that is not text alone, or model or dictionary are not the pack's.
    """
    if not 0 <= context < len(pack.contexts):
        raise PackError(f"There is no context {context}; this pack has contexts 0 to {len(pack.contexts) - 1}.")
    check_same(pack, model, sae)
    ids = np.asarray(pack.contexts[context]).astype(np.int64)
    if ids.max() >= getattr(model.cfg, "d_vocab", 0) or isinstance(model, VisionModel):
        raise PackError(f"Context {context} holds more than tokens, such as patches of an image, which a pack does not hold.")
    pads = np.flatnonzero(ids == pack.pad)
    return _view(pack, torch.from_numpy(ids[: pads[0] if len(pads) else None])[None].to(model.device), model, sae)


def _view(pack: PackData, tokens: Tokens, model: LanguageModel, sae: SAE) -> TokenView:
    written = next(iter(sae.writes))
    recorded = model.record(tokens, list({pack.site, written}))
    acts = recorded[pack.site][0].float()
    latents = sae.encode(acts)
    counted = counted_tokens(tokens, model.special_ids)[0].to(latents.device)
    x = recorded[written][0].float()[counted]  # of a transcoder, what it predicts
    x_hat = sae.decode(latents[counted]) if sae.autoencodes else sae(acts[counted])
    fvu, fvu_at = math.nan, torch.full(counted.shape, math.nan, dtype=torch.float64, device=x.device)
    if (x != x[:1]).any():
        fvu, fvu_at[counted] = float(metrics.fvu(x, x_hat)), metrics.fvu_at_tokens(x, x_hat)
    latents = torch.where(counted[:, None], latents, 0.0)
    return TokenView(
        pack,
        tokens[0].tolist(),
        model.to_str_tokens(tokens[0]),
        latents.float().cpu().numpy(),
        fvu,
        counted.cpu().numpy(),
        fvu_at.cpu().numpy(),
        other_tuning(pack, model, sae),
    )
