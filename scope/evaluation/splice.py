"""Putting a reconstruction where the activation was, and letting the model go on from there."""

from collections.abc import Callable, Collection
from contextlib import contextmanager

import torch
from torch import Tensor

from scope.fit import check_fit
from scope.models.hooks import HookedModule, HookPoint
from scope.sae.base import SAE

Replace = Callable[[Tensor], Tensor]


def kept_mask(tokens: Tensor, positions: Tensor | None, excluded: Collection[int]) -> Tensor:
    """[batch pos] True where a dictionary applies: not at position 0 and not on a special token.

    Dictionaries are trained without these; on <bos>, whose norm can be a hundred times the others', their output means nothing.
    """
    where = positions if positions is not None else torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    special = torch.tensor(sorted(excluded), dtype=tokens.dtype, device=tokens.device)
    return (where > 0) & ~torch.isin(tokens, special)


def replacing(replace: Replace, excluded: Collection[int]) -> Callable[[Tensor, HookPoint], Tensor]:
    """A hook that puts replace(x [tok d_in]) in place of x at every kept position and leaves the others as they are."""

    def hook(x: Tensor, point: HookPoint) -> Tensor:
        kept = kept_mask(point.run.tokens, point.run.positions, excluded)
        if point.run.real is not None:
            kept = kept & point.run.real
        flat = x.flatten(2)
        new = flat.clone()
        new[kept] = replace(flat[kept].float()).to(x.dtype)
        return new.view_as(x)

    return hook


def specials(model) -> frozenset[int]:
    """Ids that no dictionary is asked about: the tokenizer's special tokens, or what the config names without a tokenizer."""
    if getattr(model, "tokenizer", None) is not None:
        return frozenset(model.tokenizer.special_ids)
    return frozenset({model.cfg.bos, model.cfg.pad, *model.cfg.eos})


@contextmanager
def splice(model: HookedModule, sae: SAE):
    """Within the block, sae(x) stands in for x at the dictionary's site, except at position 0 and on special tokens.

    Raises:
        DictionaryError: the dictionary was made for another model or site.
    """
    site = check_fit(model, sae, reconstructs=True)
    with model.hooks([(site, replacing(sae, specials(model)))]):
        yield model
