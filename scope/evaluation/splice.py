"""Splice reconstructions into a running model: the activation at a site is replaced and the model goes on from there."""

from collections.abc import Callable, Collection
from contextlib import contextmanager

from torch import Tensor

from scope.activations.corpus.inputs import counted_tokens
from scope.fit import check_fit
from scope.models.face import LanguageModel
from scope.models.hooks import HookPoint
from scope.sae.base import SAE

Replace = Callable[[Tensor], Tensor]


def replacing(replace: Replace, special_ids: Collection[int]) -> Callable[[Tensor, HookPoint], Tensor]:
    """A hook that replaces x by replace(x [tok d_in]) at every counted position and leaves the others as they are.

    Dictionaries are trained without position 0 and special tokens; on <bos>, whose norm can be a hundred times the others',
    their output means nothing.
    """

    def hook(x: Tensor, point: HookPoint) -> Tensor:
        run = point.run
        counted = counted_tokens(run.tokens, special_ids, run.positions, run.real)
        flat = x.flatten(2)
        new = flat.clone()
        new[counted] = replace(flat[counted].float()).to(x.dtype)
        return new.view_as(x)

    return hook


@contextmanager
def splice(model: LanguageModel, sae: SAE):
    """Within the block, sae(x) replaces x at the SAE's site, except at position 0 and on special tokens.

    Raises:
        DictionaryError: the SAE was made for another model or site.
    """
    site = check_fit(model, sae, reconstructs=True)
    with model.hooks([(site, replacing(sae, model.special_ids))]):
        yield model
