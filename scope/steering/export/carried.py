"""Edits that need no SAE: each latent is replaced by its own rows, which read and write the same."""

from collections.abc import Mapping
from dataclasses import replace

from scope.errors import EditError
from scope.sae.base import SAE
from scope.sae.gated import GatedSAE
from scope.sae.jumprelu import JumpReLUSAE
from scope.sae.topk import BatchTopKSAE
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.edits.encoders import LatentEncoder
from scope.steering.edits.interventions import Direction, Edit, Edits, When


def carried(edits: Edits, saes: Mapping[str, SAE], strength_units: Mapping[str, StrengthUnits]) -> Edits:
    """The edits with every latent as a direction that knows its decoder row, encoder row, bias and threshold.

    Raises:
        EditError: an edit of a state, or one that reads a latent that cannot be read alone.
    """
    return Edits(_carried(edit, saes, strength_units) for edit in edits)


def _carried(edit: Edit, saes: Mapping[str, SAE], strength_units: Mapping[str, StrengthUnits]) -> Edit:
    if edit.on_tokens or edit.kind == "hold":
        raise EditError(
            f"[{edit}] acts on the state of a recurrence, step by step, and what is exported acts on a stream.\n"
            "  To hand it over, save the run with --json: scope steer --replay makes it again."
        )
    site = edit.site or next(iter(saes), None)
    when = edit.when
    if when and isinstance(when.latent, int):
        when = When(_of_latent(when.latent, saes[site], strength_units[site], reads=f"[{edit}]"), when.above)
    if edit.on_direction:
        return edit if when is edit.when else replace(edit, when=when)
    reads = f"[{edit}]" if edit.reads == "activation" else None
    return replace(edit, latent=_of_latent(edit.latent, saes[site], strength_units[site], reads), site=site, when=when)


def _of_latent(number: int, sae: SAE, units: StrengthUnits, reads: str | None) -> Direction:
    """A latent with its rows. `reads` names the edit that reads it, if one does."""
    encoder = LatentEncoder(number, *_encoder(sae, number, reads), maximum=units.maximum.get(number))
    row = sae.W_dec[number].detach().float().tolist()
    return Direction(tuple(row), sae.site, f"latent {number}", encoder=encoder)


def _encoder(sae: SAE, number: int, reads: str | None) -> tuple[tuple[float, ...] | None, float, float]:
    """Weights, bias and threshold with which relu(pre) where pre exceeds the threshold is the latent's activation.

    Raises:
        EditError: the latents of this kind of SAE compete, and `reads` needs one alone.
    """
    if isinstance(sae, GatedSAE):
        gain, magnitude, gate = (p.detach()[number].float() for p in (sae.r_mag, sae.b_mag, sae.b_enc))
        weights, bias = sae.W_enc.detach()[:, number].float() * gain.exp(), magnitude
        return tuple(weights.tolist()), float(bias), float(magnitude - gain.exp() * gate)
    if isinstance(sae, JumpReLUSAE | BatchTopKSAE):
        weights, bias, threshold = (p.detach()[..., number].float() for p in (sae.W_enc, sae.b_enc, sae.threshold))
        return tuple(weights.tolist()), float(bias), float(threshold)
    if reads is None:
        return None, 0.0, 0.0
    raise EditError(
        f"{reads} reads a latent of a {sae.kind} SAE, whose latents compete: none can be read without all the others.\n"
        "  Add needs no reading, and project-out reads the direction alone: --edit add, --edit project-out."
    )
