"""Logits by the direct path: the next tokens of the model, and what each latent adds to a token's logit."""

import numpy as np
import pandas as pd
import torch

from scope.errors import PackError
from scope.features.pack.data import PackData
from scope.features.pack.search import token_ids
from scope.features.reading.read_text import check_same
from scope.features.reading.view import TokenView
from scope.models.face import LanguageModel
from scope.sae.base import SAE
from scope.sites import in_stream_space


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
    in_stream = sae.W_dec.shape[1] == model.W_U.shape[0] and in_stream_space(next(iter(sae.writes), sae.site))
    if model.cfg.normalization_type != "RMS" or not in_stream:
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


@torch.no_grad()
def token_logits(model: LanguageModel, directions: torch.Tensor, ids: np.ndarray, memory: int = 1 << 26) -> np.ndarray:
    """[n ids] logits of unit directions [n d_model] on some tokens, through the final norm's gain, centred over the vocabulary.

    The same figures as `scope.features.collect.token_effects.token_effects` gives for the ten most promoted tokens.
    """
    block = max(1, memory // (4 * directions.shape[1]))
    units = (some.float() / some.float().norm(dim=-1, keepdim=True).clamp(min=1e-12) for some in directions.split(block))
    return torch.cat([model.direct_logits(unit, torch.as_tensor(ids)) for unit in units]).cpu().numpy()


def promotes_by_weights(pack: PackData, token: str, model: LanguageModel, sae: SAE) -> pd.DataFrame:
    """All latents, those first whose direction raises the token's logit most; of several ids the one it raises most.

    Raises:
        PackError: model or dictionary are not the pack's, no such token, or a dictionary that does not lie in the stream.
    """
    check_same(pack, model, sae)
    if sae.W_dec.shape[1] != model.W_U.shape[0]:
        raise PackError(f"{pack.site} does not lie in the residual stream, so its directions have no logits.")
    logits = token_logits(model, sae.W_dec.detach(), token_ids(pack, token)).max(1)
    order = np.argsort(-logits, kind="stable")
    return pd.DataFrame({"logit": logits[order]}, index=pd.Index(order, name="id"))
