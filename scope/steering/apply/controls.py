"""Where a control arm's amounts go: along a random direction, or along another latent that is as frequent."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from scope.errors import EditError
from scope.null_seeds import generator
from scope.sae.base import SAE
from scope.steering.apply.gauge import Gauge
from scope.steering.apply.resolve import Resolved
from scope.steering.edits.interventions import Direction


def random_frame(rows: Tensor, seed: int, site: str = "") -> Tensor:
    """Random directions with the lengths and mutual angles of `rows` [k d]: the same frame, turned at random."""
    chance = generator(f"random frame at {site}", seed)
    noise = torch.randn(rows.shape[1], rows.shape[0], generator=chance, dtype=torch.float64)
    basis = torch.linalg.qr(noise).Q
    triangle = torch.linalg.qr(rows.T.double().cpu()).R
    return (basis @ triangle).T.float().to(rows.device)


def other_latents(
    edits: Sequence[Resolved], saes: Mapping[str, SAE], gauges: Mapping[str, Gauge], seed: int = 0
) -> tuple[list[int], bool]:
    """One other latent for each edit, and whether all of them fire about as often as the edited ones.

    They come from the gauge's list of latents of like density; without one (no pack, or a direction is edited) they are drawn
    from the whole dictionary.

    Raises:
        EditError: there is no dictionary at an edit's site.
    """
    found: list[int] = []
    matched = True
    taken = {(e.site, e.edit.latent) for e in edits if not isinstance(e.edit.latent, Direction)}
    for place, edit in enumerate(edits):
        if edit.site not in saes:
            raise EditError(
                f'The arm "other" puts another latent in the place of {edit.edit.target}, and no dictionary was given at '
                f'{edit.site}. Use the arm "random", or give a dictionary.'
            )
        latent = edit.edit.latent
        like = () if isinstance(latent, Direction) else gauges[edit.site].like.get(latent, ())
        matched &= bool(like)
        sae = saes[edit.site]
        if like:
            order = [like[(seed + i) % len(like)] for i in range(len(like))]
        else:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
            order = torch.randperm(sae.d_sae, generator=generator).tolist()
        free = (i for i in order if (edit.site, i) not in taken and float(sae.W_dec[i].detach().norm()) > 0)
        chosen = next(free, None)
        if chosen is None:
            raise EditError(f'The dictionary at {edit.site} has no other latent for the arm "other". Use the arm "random".')
        taken.add((edit.site, chosen))
        found.append(chosen)
    return found, matched


def rows_in_place(edits: Sequence[Resolved], latents: Sequence[int], saes: Mapping[str, SAE]) -> list[Tensor]:
    """The decoder rows of `latents`, each as long as the row of the edit whose place it takes."""
    pairs = [(e, saes[e.site].W_dec[i].detach().float()) for e, i in zip(edits, latents, strict=True)]
    return [row * (edit.row.norm().to(row.device) / row.norm()) for edit, row in pairs]
