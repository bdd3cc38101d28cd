"""Controls: the same amounts along a random direction, or along another latent that fires about as often."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from scope.errors import EditError
from scope.null_seeds import generator
from scope.sae.base import SAE
from scope.steering.apply.resolve import Resolved
from scope.steering.apply.strength_units import StrengthUnits


def random_frame(rows: Tensor, seed: int, site: str = "") -> Tensor:
    """Random directions with the lengths and mutual angles of `rows` [k d]: the same frame, turned at random."""
    draw = generator(f"random frame at {site}", seed)  # saved runs are replayed with this name: it must not change
    noise = torch.randn(rows.shape[1], rows.shape[0], generator=draw, dtype=torch.float64)
    basis = torch.linalg.qr(noise).Q
    triangle = torch.linalg.qr(rows.T.double().cpu()).R
    return (basis @ triangle).T.float().to(rows.device)


def other_latents(
    edits: Sequence[Resolved],
    saes: Mapping[str, SAE],
    strength_units: Mapping[str, StrengthUnits],
    seed: int = 0,
    recorded: Sequence[int] | None = None,
) -> tuple[list[int], bool]:
    """One other latent for each edit, and whether all of them fire about as often as the edited ones.

    They come from the list of latents of similar density; without one (no pack, or a direction is edited) they are drawn from
    the whole dictionary. `recorded` are the latents of a saved run: its replay takes those, however they were drawn.

    Raises:
        EditError: there is no dictionary at an edit's site, or no latent to take.
    """
    if recorded is not None and len(recorded) != len(edits):
        raise EditError(f"{len(recorded)} other latents for {len(edits)} edits: give one for each.")
    latents: list[int] = []
    matched = True
    taken = {(e.site, e.edit.latent) for e in edits if e.edit.on_latent}
    for place, edit in enumerate(edits):
        if edit.site not in saes:
            raise EditError(
                f'The condition "other" puts another latent in the place of {edit.edit.target}, and no dictionary was given at '
                f'{edit.site}. Use the condition "random", or give a dictionary.'
            )
        similar = () if not edit.edit.on_latent else strength_units[edit.site].similar.get(edit.edit.latent, ())
        matched &= bool(similar)
        sae = saes[edit.site]
        if recorded is not None:
            order = [recorded[place]]
        elif similar:
            order = [similar[(seed + i) % len(similar)] for i in range(len(similar))]
        else:
            order = torch.randperm(sae.d_sae, generator=generator(f"other latent {place} at {edit.site}", seed)).tolist()
        free = (
            i for i in order if 0 <= i < sae.d_sae and (edit.site, i) not in taken and float(sae.W_dec[i].detach().norm()) > 0
        )
        chosen = next(free, None)
        if chosen is None:
            raise EditError(
                f'The dictionary at {edit.site} has no other latent for the condition "other". Use the condition "random".'
            )
        taken.add((edit.site, chosen))
        latents.append(chosen)
    return latents, matched


def rows_in_place(edits: Sequence[Resolved], latents: Sequence[int], saes: Mapping[str, SAE]) -> list[Tensor]:
    """The decoder rows of `latents`, each as long as the row of the edit whose place it takes."""
    pairs = [(e, saes[e.site].W_dec[i].detach().float()) for e, i in zip(edits, latents, strict=True)]
    return [row * (edit.row.norm().to(row.device) / row.norm()) for edit, row in pairs]
