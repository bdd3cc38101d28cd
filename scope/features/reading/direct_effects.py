"""What the model says after a text, and what each latent there does to it by the direct path alone."""

import numpy as np
import pandas as pd
import torch

from scope.errors import PackError
from scope.features.reading.unembedding import token_logits
from scope.features.reading.view import TokenView
from scope.models.face import LanguageModel
from scope.sae.base import SAE


@torch.no_grad()
def next_tokens(view: TokenView, model: LanguageModel, position: int | None = None, k: int = 8) -> pd.DataFrame:
    """The k likeliest tokens after a token of the text, by default its last: token, id, p."""
    at = len(view.ids) - 1 if position is None else position
    p = model(torch.tensor([view.ids[: at + 1]], device=model.W_U.device))[0, -1].float().softmax(-1)
    best = p.topk(min(k, len(p)))
    ids = best.indices.tolist()
    return pd.DataFrame({"token": view.pack.pieces(ids), "id": ids, "p": best.values.cpu().numpy()})


@torch.no_grad()
def direct_effects(view: TokenView, model: LanguageModel, sae: SAE, position: int | None = None) -> tuple[int, np.ndarray]:
    """(id of the likeliest next token, [d_sae] what each latent at this position adds to its logit by the direct path).

    value . d through the gain of the final norm, over the norm's scale at this position, centred over the vocabulary; before
    the soft cap. Later layers see the latent too, and what they make of it is not in here: for that, ablate it.

    Raises:
        PackError: a model whose final norm takes a mean away, or a dictionary that does not lie in the stream.
    """
    if model.cfg.normalization_type != "RMS" or sae.W_dec.shape[1] != model.W_U.shape[0]:
        raise PackError(
            "The direct path is read from dictionaries in the residual stream of a model with an RMS norm at its end."
        )
    at = len(view.ids) - 1 if position is None else position
    tokens = torch.tensor([view.ids[: at + 1]], device=model.W_U.device)
    stream = model(tokens, stop_at_layer=model.cfg.n_layers)[:, -1:]
    token = int(model.logits_of(stream)[0, -1].argmax())
    scale = float((stream.float().square().mean() + model.cfg.eps).sqrt())
    norms = sae.W_dec.detach().float().norm(dim=1).cpu().numpy()
    logits = token_logits(model, sae.W_dec.detach(), np.array([token]))[:, 0]
    return token, view.latents[at] * norms * logits / scale
