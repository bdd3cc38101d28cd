"""The effect of a decoder direction on the next token: read from the weights, and measured by adding it.

Both are kept because they disagree: the weights see only the direct path through the final norm's gain, the measurement
every layer above the site, at one strength and on a few prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scope.models.face import LanguageModel
from scope.models.parts.cache import ModelCache
from scope.progress import OnProgress

N_LOGIT_BINS = 40


@dataclass(frozen=True, eq=False)
class TokenEffects:
    """Per direction: the k most promoted and suppressed tokens with their logits, and the shape of all logits."""

    promoted_id: np.ndarray
    promoted_logit: np.ndarray
    suppressed_id: np.ndarray
    suppressed_logit: np.ndarray
    deviation: np.ndarray
    """Standard deviation over the vocabulary."""
    skew: np.ndarray
    kurtosis: np.ndarray
    """Excess kurtosis."""
    histogram: np.ndarray
    """[n N_LOGIT_BINS] how many tokens, in bins of equal width from the smallest logit to the largest."""
    ends: np.ndarray
    """[n 2] the smallest and the largest logit."""


@torch.no_grad()
def token_effects(model: LanguageModel, directions: Tensor, k: int = 10, memory: int = 1 << 26) -> TokenEffects:
    """Logits of unit directions through the final norm's gain, centred over the vocabulary (softmax sees no constant).

    `directions` are [n d_model] in the residual stream; control tokens are left out. Blocks of about `memory` bytes.
    """
    special, d_vocab = _special(model), model.cfg.d_vocab
    k = min(k, d_vocab - len(special))
    block = max(1, memory // (4 * d_vocab))
    parts: list[list[np.ndarray]] = [[] for _ in range(9)]
    for some in directions.float().split(block):
        unit = some / some.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        logits = model.direct_logits(unit)
        square = logits.square()
        variance = square.mean(-1)
        skew = (square * logits).mean(-1) / variance.pow(1.5).clamp(min=1e-30)
        kurtosis = square.square_().mean(-1) / variance.square().clamp(min=1e-30) - 3
        histogram, ends = _histogram(logits)
        up, down = logits.clone(), logits
        up[:, special], down[:, special] = -torch.inf, torch.inf
        top, bottom = up.topk(k), down.topk(k, largest=False)
        shape = (variance.sqrt(), skew, kurtosis, histogram, ends)
        for part, found in zip(parts, (top.indices, top.values, bottom.indices, bottom.values, *shape), strict=True):
            part.append(found.cpu().numpy())
    return TokenEffects(*(np.concatenate(part) for part in parts))


def _histogram(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(counts [n N_LOGIT_BINS], smallest and largest [n 2]) of each row."""
    low, high = logits.amin(-1, keepdim=True), logits.amax(-1, keepdim=True)
    at = ((logits - low) * (N_LOGIT_BINS / (high - low).clamp(min=1e-30))).long().clamp_(max=N_LOGIT_BINS - 1)
    counts = torch.zeros(len(logits), N_LOGIT_BINS, dtype=torch.int32, device=logits.device)
    counts.scatter_add_(1, at, torch.ones_like(at, dtype=torch.int32))
    return counts, torch.cat([low, high], -1)


def _special(model: LanguageModel) -> list[int]:
    return sorted(i for i in model.special_ids if i < model.cfg.d_vocab)


@dataclass(frozen=True, eq=False)
class OutputScores:
    """What adding a direction did at the last position of the prompts, mean over prompts; NaN or -1 where not measured."""

    score: np.ndarray
    """Rise of the summed probability of the direction's promoted tokens."""
    kl: np.ndarray
    """KL(steered || plain) of the next token, nats."""
    measured_id: np.ndarray
    """The tokens whose probability rose most."""
    measured_rise: np.ndarray


@torch.no_grad()
def output_scores(
    model: LanguageModel,
    site: str,
    directions: Tensor,
    promoted: np.ndarray,
    length: float,
    prompts: Sequence[Sequence[int]],
    *,
    k: int = 10,
    memory: int = 1 << 25,
    on_progress: OnProgress | None = None,
) -> OutputScores:
    """Add each unit direction times `length` at `site`, at the last token of each prompt, and read the next token.

    The prompt's other tokens are run once: the edit lies behind them and cannot change them. Each direction then costs one
    token a prompt, batched, about `memory` bytes of logits at a time.
    """
    n, k = len(directions), min(k, model.cfg.d_vocab)
    block = max(1, min(1024, memory // (4 * model.cfg.d_vocab)))
    score, kl = np.zeros(n), np.zeros(n)
    ids, rises = np.full((n, k), -1, np.int32), np.zeros((n, k), np.float32)
    unit = directions.float() / directions.float().norm(dim=-1, keepdim=True).clamp(min=1e-12)
    starts = [_prefill(model, ids_of, site) for ids_of in prompts]
    for a in range(0, n, block):
        edit = (unit[a : a + block] * length).to(model.device, model.dtype)
        target = torch.as_tensor(promoted[a : a + block], device=model.device, dtype=torch.long)
        rise = torch.zeros(len(edit), model.cfg.d_vocab, device=model.device)
        for last, cache, plain in starts:
            steered = _next_token(model, site, edit, last, cache)
            probability = steered.exp()
            kl[a : a + block] += (probability * (steered - plain)).sum(-1).cpu().numpy() / len(starts)
            rise += (probability - plain.exp()) / len(starts)
        score[a : a + block] = rise.gather(1, target).sum(-1).cpu().numpy()
        top = rise.topk(k)
        ids[a : a + block], rises[a : a + block] = top.indices.cpu().numpy(), top.values.cpu().numpy()
        if on_progress:
            on_progress(min(a + block, n), n, {})
    return OutputScores(score, kl, ids, rises)


def _prefill(model: LanguageModel, ids: Sequence[int], site: str) -> tuple[int, ModelCache, Tensor]:
    """(last token, the cache before it, plain log probabilities of the next token)."""
    cache = model.new_cache()
    if len(ids) > 1:
        model(torch.tensor([ids[:-1]], device=model.device), cache=cache, return_type=None)
    none = torch.zeros(1, model.sites()[site], device=model.device, dtype=model.dtype)
    return ids[-1], cache, _next_token(model, site, none, ids[-1], cache)


def _next_token(model: LanguageModel, site: str, edit: Tensor, last: int, cache: ModelCache) -> Tensor:
    """Log probabilities [rows d_vocab] after `last`, with a row's edit added at the site."""
    rows = len(edit)
    tokens = torch.full((rows, 1), last, device=model.device)
    logits = model.run_with_hooks(tokens, cache=cache.repeated(rows), fwd_hooks=[(site, lambda x, hook: x + edit[:, None])])
    return logits[:, -1].float().log_softmax(-1)


@torch.no_grad()
def neighbours(directions: Tensor, k: int = 20, k_opposite: int = 10, memory: int = 1 << 26) -> dict[str, np.ndarray]:
    """ "neighbour_id" and "neighbour_cos" [n k] of the nearest other directions, nearest first, and "opposite_id" and
    "opposite_cos" [n k_opposite] of those of the most negative cosine, the most opposite first.

    -1 and 0 fill up when there are fewer, or no further one has a negative cosine.
    """
    n = len(directions)
    unit = directions.float() / directions.float().norm(dim=-1, keepdim=True).clamp(min=1e-12)
    near, far = min(k, n - 1), min(k_opposite, n - 1)
    found = {"neighbour_id": np.full((n, k), -1, np.int32), "neighbour_cos": np.zeros((n, k), np.float32)}
    found |= {"opposite_id": np.full((n, k_opposite), -1, np.int32), "opposite_cos": np.zeros((n, k_opposite), np.float32)}
    block = max(1, memory // (4 * n))
    for a in range(0, n, block) if near else ():
        cosine, here = unit[a : a + block] @ unit.T, slice(a, a + block)
        rows = torch.arange(len(cosine))
        cosine[rows, rows + a] = -torch.inf
        top = cosine.topk(near)
        found["neighbour_id"][here, :near], found["neighbour_cos"][here, :near] = _arrays(top.indices, top.values)
        cosine[rows, rows + a] = torch.inf
        low = cosine.topk(far, largest=False)
        ids, values = torch.where(low.values < 0, low.indices, -1), low.values.clamp(max=0)
        found["opposite_id"][here, :far], found["opposite_cos"][here, :far] = _arrays(ids, values)
    return found


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.cpu().numpy() for tensor in tensors]
