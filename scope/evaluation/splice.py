"""Putting a reconstruction where the activation was, and letting the model go on from there."""

from collections.abc import Callable, Collection
from contextlib import contextmanager

import torch
from torch import Tensor

from scope.errors import DictionaryError
from scope.models.hooks import HookedModule, HookPoint, nearest
from scope.sae.base import SAE

Replace = Callable[[Tensor], Tensor]


def check_fits(model, sae: SAE) -> str:
    """The dictionary's site, once it is known to exist in this model and to have its width, and to be reconstructed by it.

    Raises:
        DictionaryError: the dictionary names no site, one that this model lacks, another width, or another model's weights; or
            it is a transcoder, which reconstructs nothing that it reads.
    """
    if not sae.autoencodes:
        raise DictionaryError(
            f"This is a transcoder: it reads {sae.site or 'one site'} and predicts {sae.site_out or 'another'}, so it cannot "
            "stand in for what it reads.\n  Its encode and decode can be used; splicing, scores and steering need a dictionary."
        )
    return check_site(model, sae)


def check_site(model, sae: SAE, any_model: bool = False) -> str:
    """The dictionary's site, once it is known to exist in this model and to have its width.

    Raises:
        DictionaryError: the dictionary names no site, one that this model lacks, another width, or another model's weights
            (`any_model` allows these).
    """
    sites = model.sites()
    for site, width, what in ((sae.site, sae.d_in, "reads"), *_predicted(sae)):
        if not site:
            reads = sae.provenance.get("reads")
            raise DictionaryError(
                f"This dictionary does not say which site it {what}{f', only: {reads}' if reads else ''}. "
                "Set sae.site, e.g. blocks.2.hook_resid_post,\n"
                "  or write it so: scope convert DICTIONARY OUT --to scope --site blocks.2.hook_resid_post"
            )
        if site not in sites:
            raise DictionaryError(f"This dictionary {what} {site}, which this model does not have.{nearest(site, list(sites))}")
        if sites[site] != width:
            raise DictionaryError(
                f"This dictionary {what} width {width}, and {site} of this model is {sites[site]} wide: "
                "it was made for another model or site."
            )
    made = (sae.provenance.get("model") or {}).get("weights_sha256")
    have = (getattr(model, "provenance", None) or {}).get("weights_sha256")
    if made and have and made != have and not any_model:
        raise DictionaryError(
            f"This dictionary was made for {sae.provenance['model'].get('model')} (weights {made[:12]}); "
            f"this model is {model.provenance.get('model')} (weights {have[:12]}).\n"
            "  Load the model it was made for. To look at another one's activations on purpose, remove sae.provenance['model']."
        )
    return sae.site


def _predicted(sae: SAE) -> list[tuple[str, int, str]]:
    return [] if sae.autoencodes else [(sae.site_out, sae.d_out, "predicts")]


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
    site = check_fits(model, sae)
    with model.hooks([(site, replacing(sae, specials(model)))]):
        yield model
