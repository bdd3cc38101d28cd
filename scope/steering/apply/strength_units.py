"""Units of strengths: a site's typical residual norm, and the largest activations of its latents."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from scope.activations.corpus.inputs import counted_tokens
from scope.errors import EditError
from scope.models.face import LanguageModel
from scope.null_seeds import generator
from scope.renamed import warn
from scope.sae.base import SAE
from scope.shapes import Tokens
from scope.steering.edits.interventions import Direction, Edits
from scope.typed_json import typed

_NEAREST, _LISTED = 40, 8  # of the latents nearest in density, how many are drawn from, and how many are listed


@dataclass(frozen=True)
class StrengthUnits:
    """`typical_norm` is the median norm at the site over tokens other than <bos>; `source` says on what it was measured.

    A strength of 0.5 then means half of what is usually there, for any latent, layer and model.
    """

    typical_norm: float
    source: str
    maximum: dict[int, float] = field(default_factory=dict)
    """Largest activation per latent."""
    p99: dict[int, float] = field(default_factory=dict)
    """99th percentile of a latent's activations where it fires; concept scores are shares of it."""
    similar: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Per latent, others drawn among those that fire about as often: the condition "other" edits one of them instead."""

    def __post_init__(self):
        if not 0 < self.typical_norm < float("inf"):
            raise EditError(f"The typical residual norm is {self.typical_norm}, which no strength can be measured against.")

    @classmethod
    def on_prompts(cls, model: LanguageModel, site: str, prompts: Sequence[str], image: bool = False) -> "StrengthUnits":
        """From the prompts themselves, where no recording is available: a rough figure, and `source` says so. With `image`,
        from the patches of the picture before them."""
        norms = np.concatenate([_norms(model, site, model.to_tokens(prompt), image) for prompt in prompts])
        if not len(norms):
            raise EditError(
                "The prompts hold nothing but <bos>, so the site's typical residual norm cannot be measured on them."
            )
        return cls(float(np.median(norms)), f"measured on the {len(norms)} {'patches' if image else 'prompt tokens'} only")

    @classmethod
    def on_contexts(cls, model: LanguageModel, site: str, contexts: Any) -> "StrengthUnits":
        """From whole contexts of token ids [n context] that begin with <bos>, such as the first of a pack's: the pack's norm
        if it had only these contexts."""
        tokens = torch.as_tensor(np.asarray(contexts, dtype=np.int64), device=model.device)
        norms = _norms(model, site, tokens)
        return cls(float(np.median(norms)), f"measured on {len(norms):,} tokens of the pack")

    @classmethod
    def of_pack(cls, pack: Any, latents: Iterable[int]) -> "StrengthUnits":
        """From a feature pack (anything with `norm_median`, `n_tokens`, `d_sae` and a `table`), for the latents to be edited.

        Latents that the pack does not have are left out; resolving the edit refuses them with the range there is.
        """
        known = sorted({i for i in latents if 0 <= i < pack.d_sae and pack.table["max"].iloc[i] > 0})
        columns = {name: pack.table[name] for name in ("max", "p99")}
        maximum, p99 = ({i: float(column.iloc[i]) for i in known} for column in columns.values())
        density = pack.table["density"].to_numpy(dtype=float)
        similar = {i: _similar(density, i) for i in known}
        return cls(float(pack.norm_median), f"feature pack, {pack.n_tokens:,} tokens", maximum, p99, similar)

    def sizes(self, decoder_norm: float, maximum: float | None) -> dict[str, float | None]:
        """The length of an edit of strength 1 in each unit, as a fraction of the typical norm; None where it is not known."""
        raw = max(decoder_norm, 1e-12) / self.typical_norm
        return {"norm": 1.0, "raw": raw, "max": raw * maximum if maximum and maximum > 0 else None}

    def to_dict(self) -> dict[str, Any]:
        """For JSON, under the field names of saved runs."""
        names = {"rho": self.typical_norm, "source": self.source, "maximum": self.maximum, "p99": self.p99}
        return {**names, "like": self.similar}

    @classmethod
    def from_dict(cls, raw: Any) -> "StrengthUnits":
        """
        Raises:
            EditError: a field is missing or of another type, or a latent is no number.
        """
        stored = typed(raw, _Stored, "The strength units of the saved run", EditError)
        maximum, p99, similar = (_by_latent(part) for part in (stored.maximum, stored.p99, stored.like))
        return cls(stored.rho, stored.source, maximum, p99, similar)


@dataclass(frozen=True)
class _Stored:
    """The JSON of strength units."""

    rho: float
    source: str
    maximum: dict[str, float] = field(default_factory=dict)
    p99: dict[str, float] = field(default_factory=dict)
    like: dict[str, tuple[int, ...]] = field(default_factory=dict)


def _by_latent(values: dict[str, Any]) -> dict[int, Any]:
    try:
        return {int(latent): value for latent, value in values.items()}
    except ValueError as error:
        raise EditError(f"The strength units of the saved run are damaged: a latent is no number ({error}).") from None


def units_for(
    model: LanguageModel,
    saes: Mapping[str, SAE],
    edits: Edits,
    prompts: Sequence[str],
    known: StrengthUnits | Mapping[str, StrengthUnits] | None,
) -> dict[str, StrengthUnits]:
    """The known units by site, and for sites without any the typical norm measured on the prompts."""
    sites = dict.fromkeys([*saes, *(e.latent.site for e in edits if isinstance(e.latent, Direction))])
    sites |= dict.fromkeys(e.site for e in edits if e.on_tokens)
    by_site = dict.fromkeys(list(sites)[:1], known) if isinstance(known, StrengthUnits) else dict(known or {})
    return {
        site: by_site.get(site) or StrengthUnits.on_prompts(model, site, prompts, _at_patches(edits, site)) for site in sites
    }


def _at_patches(edits: Edits, site: str) -> bool:
    """Whether all edits of a site act at the patches of a picture."""
    rules = {edit.positions.kind for edit in edits if edit.site in (None, site)}
    return rules == {"image"}


def _norms(model: LanguageModel, site: str, tokens: Tokens, image: bool = False) -> np.ndarray:
    """Norms at the tokens that count, by the rule of the whole product: neither first, nor special, nor padding; or at the
    patches of a picture, whose norms are other ones."""
    norms = model.record(tokens, [site])[site].float().norm(dim=-1)
    patches = tokens == getattr(model.cfg, "image_token", -1)
    counted = patches if image else counted_tokens(tokens, model.special_ids) & ~patches
    return norms[counted].cpu().numpy()


def _similar(density: np.ndarray, latent: int) -> tuple[int, ...]:
    """Some of the latents whose density is nearest in ratio; which ones depends only on the latent's number."""
    living = np.flatnonzero((density > 0) & (np.arange(len(density)) != latent))
    distance = np.abs(np.log(density[living] / density[latent]))
    near = living[np.argsort(distance, kind="stable")[:_NEAREST]]
    order = torch.randperm(len(near), generator=generator("latents of similar density", latent))
    return tuple(int(i) for i in near[order.numpy()][:_LISTED])


def __getattr__(name: str) -> Any:
    if name == "Gauge":
        warn("Gauge", "StrengthUnits")
        return StrengthUnits
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
