"""An edit in numbers: which decoder row is added, how much of it in the latent's own units, or why it cannot be applied."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scope.errors import ConfigError, DictionaryError, EditError
from scope.models.face import LanguageModel
from scope.models.griffin.shares import layer_of, recurrent_layers, state_site
from scope.sae.base import SAE
from scope.steering.apply.strength_units import StrengthUnits
from scope.steering.edits.interventions import Edit, Edits
from scope.steering.edits.recurrent import OfState

STRONGEST = 1e6
"""The strongest edit that is accepted, in typical norms: far beyond any use, and far below where float32 overflows."""


@dataclass(frozen=True)
class Resolved:
    """An edit with its numbers: `row` is what is added, `amount` how much in the latent's own units."""

    edit: Edit
    site: str
    row: Tensor
    amount: float
    typical_norm: float
    maximum: float | None

    def sheet(self) -> dict[str, Any]:
        """Strength in the three units: fraction of the residual norm, raw coefficient, multiples of the maximum."""
        norm = float(self.row.norm())
        sheet: dict[str, Any] = {"edit": str(self.edit), "site": self.site, "decoder_norm": norm}
        if self.edit.has_amount and self.edit.unit == "part":
            sheet["part"] = self.amount
        elif self.edit.has_amount:
            sheet |= {"strength": self.amount * norm / self.typical_norm, "raw": self.amount}
            sheet["multiple_of_maximum"] = self.amount / self.maximum if self.maximum else None
        return sheet


def dictionaries(sae: SAE | Sequence[SAE] | None) -> dict[str, SAE]:
    """site -> dictionary, from one, several or none."""
    saes = [] if sae is None else [sae] if isinstance(sae, SAE) else list(sae)
    sites = [s.site for s in saes]
    if len(set(sites)) < len(sites):
        raise DictionaryError(f"Two dictionaries read the same site ({', '.join(sites)}). Give one for each site.")
    return dict(zip(sites, saes, strict=True))


def check_sites(model: LanguageModel, saes: Mapping[str, SAE], edits: Edits) -> None:
    """That every edit is as wide as the site that it acts on, and that there are tokens at the site.

    Raises:
        EditError: a direction or a dictionary of another width, or a site of a picture's tower.
        UnknownSite: the model has no such site.
    """
    sites = model.sites()
    for site in (*saes, *(edit.latent.site for edit in edits if edit.on_direction)):
        if site.startswith(("vision.", "projector.")):
            raise EditError(
                f"{site} has patches of a picture and no tokens, and edits act at tokens.\n"
                "  Edit the picture's patches in the language model: an SAE of blocks.N.hook_resid_post, positions image."
            )
    for edit in edits:
        if edit.positions.kind in ("image", "text") and not hasattr(model.cfg, "image_token"):
            raise EditError(f"There are no positions {edit.positions.kind!r} without a picture, and this model reads none.")
        if not edit.on_direction:
            continue
        width, site = len(edit.latent.vector), edit.latent.site
        model.match(site)
        if sites.get(site) != width:
            raise EditError(f"{edit.latent} is {width} wide; {site} is {sites.get(site)} wide. Give a direction of that width.")


def state_layer(site: str) -> int | None:
    """The layer whose state a site is; None for other sites."""
    return layer_of(site) if site.endswith("hook_state") else None


def at_each_layer(model: LanguageModel, edits: Edits) -> Edits:
    """The edits, one of tokens without a site as one for each recurrent layer.

    Raises:
        EditError: the model has no recurrent layer, or not this one.
    """
    if not any(edit.on_tokens for edit in edits):
        return edits
    try:
        layers = recurrent_layers(model)
    except ConfigError as error:
        raise EditError(str(error)) from None
    spread: list[Edit] = []
    for edit in edits:
        if edit.on_tokens and edit.site is not None and state_layer(edit.site) not in layers:
            there = ", ".join(map(state_site, layers))
            raise EditError(f"{edit.site} is no state of this model, and only states remember tokens. There are: {there}")
        sites = [state_site(layer) for layer in layers] if edit.on_tokens and edit.site is None else [edit.site]
        spread += [replace(edit, site=site) if site != edit.site else edit for site in sites]
    return Edits(spread)


def check_tokens(model: LanguageModel, edits: Edits, prompts: Iterable[str]) -> None:
    """That some prompt holds the tokens that are to be forgotten.

    Raises:
        EditError: none does.
    """
    spans = {edit.latent for edit in edits if edit.on_tokens}
    if not spans:
        return
    ids = [model.words.encode(prompt) for prompt in prompts]
    for span in spans:
        if not any(span.places(row, model.words) for row in ids):
            raise EditError(
                f"There is nothing to forget: no prompt holds the {span}. They have up to {max(map(len, ids))} tokens.\n"
                "  Give words as they stand in the prompt, or positions, such as 3:5 (<bos> is 0)."
            )


def resolve(edit: Edit, saes: Mapping[str, SAE], strength_units: Mapping[str, StrengthUnits]) -> Resolved:
    """The numbers of an edit.

    Raises:
        EditError: an unknown latent (with the nearest), no dictionary at its site, a unit without its measure.
    """
    site = _site(edit, saes)
    units = strength_units[site]
    if edit.on_tokens:
        row, maximum = torch.zeros(0), None
    elif edit.on_direction:
        row, maximum = edit.latent.row(), edit.latent.encoder and edit.latent.encoder.maximum
    else:
        row = saes[site].W_dec[_known(edit.latent, saes[site])].detach().float()
        maximum = units.maximum.get(edit.latent)
        if not row.norm() > 0:
            raise EditError(
                f"The decoder row of latent {edit.latent} is zero: adding it changes nothing. It is dead; take another."
            )
    if edit.when and isinstance(edit.when.latent, int):
        if site not in saes:
            raise EditError(f"{edit.when} needs a dictionary at {site}; none was given.")
        _known(edit.when.latent, saes[site])
    if isinstance(edit, OfState) and state_layer(site) is None:
        raise EditError(
            f"[{edit}] acts on the state of a recurrence, blocks.N.rec.hook_state, and {site} is none.\n"
            "  Train an SAE there: scope harvest --site blocks.0.rec.hook_state, then scope train"
        )
    amount = _amount(edit, row, units.typical_norm, maximum)
    times = abs(amount) * float(row.norm()) / units.typical_norm
    if times > STRONGEST:
        raise EditError(
            f"[{edit}] is {times:.3g} times the site's typical norm: such numbers are not finite for long. "
            "Lower its strength; 0.5 of the norm is a good place to start."
        )
    return Resolved(edit, site, row, amount, units.typical_norm, maximum)


def sheets(edits: Edits, resolved: Sequence[Resolved]) -> list[dict[str, Any]]:
    """A sheet for each edit; one that acts at several sites names them all."""
    rows, rest = [], list(resolved)
    for edit in edits:
        several = edit.on_tokens and edit.site is None
        own = [rest.pop(0)]
        while several and rest and replace(rest[0].edit, site=None) == edit and rest[0].site not in [r.site for r in own]:
            own.append(rest.pop(0))
        rows.append({**own[0].sheet(), "site": ", ".join(r.site for r in own), "edit": str(edit)})
    return rows


def _site(edit: Edit, saes: Mapping[str, SAE]) -> str:
    if edit.on_direction:
        return edit.latent.site
    if edit.on_tokens and edit.site is not None:
        return edit.site
    if edit.site is None and len(saes) == 1:
        return next(iter(saes))
    if edit.site in saes:
        return edit.site
    there = f"there are dictionaries for {', '.join(saes)}" if saes else "no dictionary was given"
    raise EditError(f"{edit.target} belongs to {f'a dictionary at {edit.site}' if edit.site else 'no site'}, but {there}.")


def _known(latent: int, sae: SAE) -> int:
    if not 0 <= latent < sae.d_sae:
        near = 0 if latent < 0 else sae.d_sae - 1
        raise EditError(f"There is no latent {latent}: this dictionary's run from 0 to {sae.d_sae - 1}. Nearest: {near}.")
    return latent


def _amount(edit: Edit, row: Tensor, typical_norm: float, maximum: float | None) -> float:
    if not edit.has_amount:
        return 0.0
    if edit.unit in ("raw", "part"):
        return edit.strength
    if edit.unit == "norm":
        return edit.strength * typical_norm / float(row.norm())
    if not maximum:
        raise EditError(
            f"The largest activation of {edit.target} is not known, so {edit.strength:g} times it is not either.\n"
            "  Give the feature pack (--pack), or a strength in fractions of the residual norm."
        )
    return edit.strength * maximum
