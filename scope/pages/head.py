"""The way from a site near the end of a ColPali to its vectors, in float64, with every division held at its value.

    vector = scale * (x @ matrix) + offset        for each position

    hook_embeddings                  matrix is the identity
    proj.hook_out                    the same, divided by the length of x
    unembed.hook_in                  the projection, divided by the length of what it gives
    blocks.LAST.hook_resid_post      the gain of the final norm before that, divided by the norm of x too

`scale` and `offset` belong to the position: they follow from x as it is, and stay while parts of x are taken apart, as the
norms of an attribution graph do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scope.fit import check_fit
from scope.pages.errors import PagesError
from scope.sae.base import SAE
from scope.shapes import Acts, PerToken

Matrix = Float[Tensor, "_ _"]
_NO_LENGTH = 1e-30


@dataclass(frozen=True, eq=False)
class Parts:
    """The vectors of some positions as sums: `acts @ directions` times the scale of a position, its `bias` and its `error`."""

    acts: Matrix
    directions: Matrix
    scale: PerToken
    bias: Matrix
    error: Matrix
    vectors: Matrix
    """What the model's head makes of the activations, in float64."""

    def of(self, position: int) -> tuple[Tensor, Matrix]:
        """(the latents that fire at a position, what each adds to the vector) with bias and error as the last two rows."""
        latents = self.acts[position].nonzero()[:, 0]
        rows = self.acts[position, latents, None] * self.directions[latents] * self.scale[position]
        return latents, torch.cat([rows, self.bias[position, None], self.error[position, None]])


class Head:
    """The map from a site to the vectors of a ColPali."""

    def __init__(self, model: Any, site: str):
        width = model.cfg.d_embed
        self.site, last = site, f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
        if site not in (known := ("hook_embeddings", "proj.hook_out", "unembed.hook_in", last)):
            raise PagesError(
                f"The SAE reads {site}, and only what follows it linearly is taken apart.\n  Give an SAE of {', '.join(known)}."
            )
        weight, bias = (p.detach().cpu().double() for p in (model.proj.weight, model.proj.bias))
        self.normed, self.unit = site == last, site != "hook_embeddings"
        self.eps = float(model.ln_final.eps)
        if site in ("unembed.hook_in", last):
            self.matrix, self.constant = weight.T.contiguous(), bias
        else:
            self.matrix, self.constant = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
        if self.normed:
            self.matrix = model.through_final_norm(self.matrix.T).cpu().T.contiguous()

    def scales(self, x: Matrix) -> tuple[PerToken, PerToken, Matrix]:
        """(what x @ matrix is multiplied by, what the constant is multiplied by, the vectors) of rows in float64."""
        before = (x.square().mean(1) + self.eps).rsqrt() if self.normed else x.new_ones(len(x))
        raw = before[:, None] * (x @ self.matrix) + self.constant
        after = raw.norm(dim=1).clamp_min(_NO_LENGTH).reciprocal() if self.unit else x.new_ones(len(x))
        return before * after, after, raw * after[:, None]

    def vectors(self, x: Matrix) -> Matrix:
        """The vectors of rows of the site, of length 1. Those of hook_embeddings are brought to length 1 too."""
        vectors = self.scales(x)[2]
        return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(_NO_LENGTH)

    def directions(self, sae: SAE) -> Matrix:
        """What a unit of each latent adds to x @ matrix: [d_sae d_embed]."""
        return sae.W_dec.detach().cpu().double() @ self.matrix

    def parts(self, sae: SAE, x: Acts, directions: Matrix | None = None) -> Parts:
        """The vectors of rows as sums over latents. The error is what the SAE misses of x, carried through the head."""
        acts = encode(sae, x)
        x = x.cpu().double()
        scale, of_constant, vectors = self.scales(x)
        b_dec = sae.b_dec.detach().cpu().double()
        missed = x - (acts @ sae.W_dec.detach().cpu().double() + b_dec)
        bias = scale[:, None] * (b_dec @ self.matrix) + of_constant[:, None] * self.constant
        error = scale[:, None] * (missed @ self.matrix)
        return Parts(acts, self.directions(sae) if directions is None else directions, scale, bias, error, vectors)


@torch.no_grad()
def encode(sae: SAE, x: Acts) -> Matrix:
    """The latents of rows, in float64 on the CPU."""
    return sae.encode(x.to(sae.device, sae.dtype)).cpu().double()


def check_sae(index: Any, sae: SAE, any_model: bool = False) -> Head:
    """The head from the site of an SAE.

    Raises:
        DictionaryError: it belongs to another model or site, or is a transcoder.
        PagesError: what follows its site is not linear.
    """
    check_fit(index.model, sae, any_model, reconstructs=True)
    return Head(index.model, sae.site)


@torch.no_grad()
def query_rows(index: Any, query: str, site: str) -> Acts:
    """The activations of a query at a site, without padding."""
    inputs = index.model.prepare_queries([query])
    return index.model.record(inputs, [site])[site][0].float().cpu()


def page_rows(index: Any, page: int, site: str) -> Acts:
    """The activations of a page at a site: from the index for the last two sites, else by the model from the page's picture."""
    return next(rows_of_pages(index, site, [page]))[1]


@torch.no_grad()
def rows_of_pages(index: Any, site: str, pages: list[int] | None = None, batch: int = 4) -> Iterator[tuple[int, Acts]]:
    """(number, activations at a site) of pages, by default of all."""
    numbers = list(range(len(index))) if pages is None else pages
    if site in ("hook_embeddings", "proj.hook_out"):
        for number in numbers:
            vectors, norms = index.stored(number)
            yield number, vectors if site == "hook_embeddings" else vectors * norms[:, None]
        return
    for first in range(0, len(numbers), batch):
        some = numbers[first : first + batch]
        inputs = index.model.prepare_pages([index.picture(number) for number in some])
        yield from zip(some, index.model.record(inputs, [site])[site].float().cpu(), strict=True)
