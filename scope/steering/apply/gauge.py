"""What a strength is measured against: the typical residual norm of a site, and the strongest a latent was seen to fire."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from scope.errors import EditError

_ALIKE, _KEPT = 40, 8  # of the latents nearest in density, how many are drawn from, and how many are kept


@dataclass(frozen=True)
class Gauge:
    """`rho` is the median norm at the site over tokens other than <bos>; `source` says on what it was measured.

    A strength of 0.5 then means half of what is usually there, for any latent, layer and model.
    """

    rho: float
    source: str
    maximum: dict[int, float] = field(default_factory=dict)
    p99: dict[int, float] = field(default_factory=dict)
    """Of the activations of a latent where it fires; concept scores are shares of it."""
    like: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """For a latent, others drawn among those that fire about as often: what takes its place in the arm "other"."""

    def __post_init__(self):
        if not 0 < self.rho < float("inf"):
            raise EditError(f"The typical residual norm is {self.rho}, which no strength can be measured against.")

    @classmethod
    def measured(cls, model, site: str, prompts: Sequence[str]) -> "Gauge":
        """From the prompts themselves, where no recording is at hand: a rough figure, and it says so."""
        norms = [model.record(model.to_tokens(prompt), [site])[site][0, 1:].float().norm(dim=-1) for prompt in prompts]
        norms = torch.cat(norms)
        if not len(norms):
            raise EditError(
                "The prompts hold nothing but <bos>, so the site's typical residual norm cannot be measured on them."
            )
        return cls(float(norms.median()), f"measured on the {len(norms)} prompt tokens only")

    @classmethod
    def on_contexts(cls, model, site: str, contexts: Any) -> "Gauge":
        """From whole contexts of token ids [n context] that begin with <bos>, such as the first of a pack's."""
        tokens = torch.as_tensor(np.asarray(contexts, dtype=np.int64), device=model.device)
        special = torch.tensor(sorted({model.cfg.bos, model.cfg.pad, *model.cfg.eos}), device=model.device)
        norms = model.record(tokens, [site])[site].float().norm(dim=-1)[~torch.isin(tokens, special)]
        return cls(float(norms.median()), f"measured on {len(norms):,} tokens of the pack")

    @classmethod
    def of_pack(cls, pack: Any, latents: Iterable[int]) -> "Gauge":
        """From a feature pack (anything with `norm_median`, `n_tokens`, `d_sae` and a `table`), for the latents to be edited.

        Latents that the pack does not have are left out; resolving the edit refuses them with the range there is.
        """
        known = sorted({i for i in latents if 0 <= i < pack.d_sae and pack.table["max"].iloc[i] > 0})
        columns = {name: pack.table[name] for name in ("max", "p99")}
        maximum, p99 = ({i: float(column.iloc[i]) for i in known} for column in columns.values())
        density = pack.table["density"].to_numpy(dtype=float)
        like = {i: _alike(density, i) for i in known}
        return cls(float(pack.norm_median), f"feature pack, {pack.n_tokens:,} tokens", maximum, p99, like)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Gauge":
        by_latent = {name: {int(k): float(v) for k, v in raw.get(name, {}).items()} for name in ("maximum", "p99")}
        like = {int(k): tuple(int(i) for i in v) for k, v in raw.get("like", {}).items()}
        return cls(float(raw["rho"]), str(raw["source"]), **by_latent, like=like)


def _alike(density: np.ndarray, latent: int) -> tuple[int, ...]:
    """Some of the latents whose density is nearest in ratio; which, follows from the latent's number alone."""
    living = np.flatnonzero((density > 0) & (np.arange(len(density)) != latent))
    distance = np.abs(np.log(density[living] / density[latent]))
    near = living[np.argsort(distance, kind="stable")[:_ALIKE]]
    return tuple(int(i) for i in np.random.default_rng(latent).permutation(near)[:_KEPT])
