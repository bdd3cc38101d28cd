"""The ways in which a dictionary can be read wrongly, each as a reading of its own: another site, a scale, a bias, thresholds.

A certificate tries them where the dictionary, read as it stands, does not do what it should; the one that does says what is
wrong.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu

from scope.sae.base import SAE
from scope.shapes import Acts

Apply = Callable[[Tensor], tuple[Tensor, Tensor]]


_IN_BLOCK = r"(?P<tower>vision\.|text\.|)blocks\.(?P<layer>\d+)\.(?P<end>.+)"
_APART = ("vision.", "text.", "projector.", "proj.", "hook_embeddings")


@dataclass(frozen=True)
class Reading:
    """`apply` takes the activations of `site` to (latents, what they reconstruct); `name` says what is wrong if it fits."""

    name: str
    site: str
    apply: Apply
    remedy: str = ""


def as_it_stands(sae: SAE) -> Reading:
    return Reading("as it stands", sae.site, _apply(sae))


def _apply(
    sae: SAE, before: Callable[[Tensor], Tensor] = lambda x: x, after: Callable[[Tensor], Tensor] = lambda x: x
) -> Apply:
    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        x = before(x)
        latents = sae.encode(x)
        # A transcoder may add a map of its input, which only its forward knows.
        return latents, after(sae.decode(latents) if sae.autoencodes else sae(x))

    return apply


def elsewhere(sae: SAE, sites: dict[str, int]) -> list[Reading]:
    """The same dictionary at each neighbouring site of equal width."""
    return _at(sae, [site for site in near(sae.site, sites) if site != sae.site and sites[site] == sae.d_in])


def farther(sae: SAE, sites: dict[str, int]) -> list[Reading]:
    """The same dictionary in all other blocks: at the like of its site, and at the stream after each."""
    found = re.fullmatch(_IN_BLOCK, sae.site)
    tower, end = (found["tower"], found["end"]) if found else ("", sae.site)
    end = end.replace("resid_pre", "resid_post")  # two names of one stream
    beside = {sae.site, *near(sae.site, sites)}
    of_tower = re.escape(tower)
    like = [site for site in sites if re.fullmatch(rf"{of_tower}blocks\.\d+\.({re.escape(end)}|hook_resid_post)", site)]
    return _at(sae, [site for site in like if site not in beside and sites[site] == sae.d_in])


def _at(sae: SAE, names: list[str]) -> list[Reading]:
    """As it stands, at each of these sites."""
    remedy = "sae.site = {0!r}, or write it so: scope convert DICTIONARY OUT --to scope --site {0}"
    return [
        Reading(f"it reads {site}, not {sae.site}{_why(site, sae.site)}", site, _apply(sae), remedy.format(site))
        for site in names
    ]


def near(site: str, sites: dict[str, int]) -> list[str]:
    """Sites that are easily taken for this one: what stands beside it in its block, and the like of the blocks around it."""
    found = re.fullmatch(_IN_BLOCK, site)
    if found is None and site.startswith(_APART):
        return []  # no block's rows are this site's
    tower, layer, end = (found["tower"], int(found["layer"]), found["end"]) if found else ("", 0, "")
    beside = (
        *("hook_resid_post", "hook_resid_mid", "hook_mlp_out", "mlp.hook_out", "hook_attn_out", "attn.hook_out"),
        *("attn.hook_z", "ln2.hook_normalized", "rec.hook_state", "rec.hook_write", "rec.hook_rec_out"),
    )
    wanted = [f"blocks.{layer}.{part}" for part in beside]
    wanted += [f"blocks.{layer + step}.{end}" for step in (-1, 1)] if end else []
    # The same stream has two names: after the last block and before this one. The first of a pair is tried.
    wanted += [f"blocks.{layer - 1}.hook_resid_post", "hook_embed", f"blocks.{layer}.hook_resid_pre"]
    return [name for name in dict.fromkeys(tower + name for name in wanted) if name in sites]


def _why(right: str, wrong: str) -> str:
    """Which norm lies between the two, where it is that."""
    ends = {site.split(".", 2)[-1] for site in (right, wrong)}
    between = {
        frozenset({"mlp.hook_out", "hook_mlp_out"}): "the MLP's post norm",
        frozenset({"attn.hook_out", "hook_attn_out"}): "the attention's post norm",
        frozenset({"hook_resid_mid", "ln2.hook_normalized"}): "the norm before the MLP",
    }.get(frozenset(ends))
    return f" (between them lies {between})" if between else ""


def otherwise(sae: SAE, x: Acts, l0: float | None) -> list[Reading]:
    """The same site, read as other conventions would have it. `x` tells its norms; `l0` is what was declared."""
    found = [
        Reading(
            f"its activations must be multiplied by {factor:.4g} first ({what}): a scale was not folded in",
            sae.site,
            _apply(sae, lambda x, s=factor: x * s, lambda x_hat, s=factor: x_hat / s),
            f"multiply W_enc by {factor:.4g} and divide W_dec and b_dec by it",
        )
        for what, factor in scales(x).items()
    ]
    if sae.autoencodes:
        bias = sae.b_dec.detach()
        found += [
            Reading(
                "b_dec must be subtracted before encoding",
                sae.site,
                _apply(sae, lambda x: x - bias),
                "b_enc -= b_dec @ W_enc; in a SAELens cfg.json: apply_b_dec_to_input true",
            ),
            Reading(
                "b_dec is subtracted before encoding, and must not be",
                sae.site,
                _apply(sae, lambda x: x + bias),
                "b_enc += b_dec @ W_enc; in a SAELens cfg.json: apply_b_dec_to_input false",
            ),
        ]
    if hasattr(sae, "threshold") and not getattr(sae.config, "k", 0):
        found += [
            _by_threshold(sae, sae.threshold.detach().exp(), "its thresholds are stored as logarithms", "store exp of them"),
            _by_threshold(sae, torch.zeros_like(sae.threshold), "it is a ReLU, without thresholds", "store thresholds of 0"),
        ]
        if l0:
            k = max(1, min(sae.d_sae, round(l0)))
            found.append(_by_rank(sae, k))
    if sae.autoencodes and sae.d_in == sae.d_sae:
        found.append(_turned(sae))
    return found


def scales(x: Acts) -> dict[str, float]:
    """Factors that peers put on activations, by what they are for."""
    d, x = x.shape[1], x.double()
    return {
        "mean square norm 1": 1.0 / x.square().sum(1).mean().sqrt().item(),
        "mean square distance 1 from the mean": 1.0 / (x - x.mean(0)).square().sum(1).mean().sqrt().item(),
        "mean norm sqrt(d_in)": d**0.5 / x.norm(dim=1).mean().item(),
        "1 / sqrt(d_in)": d**-0.5,
        "sqrt(d_in)": d**0.5,
    }


def _by_threshold(sae: SAE, threshold: Tensor, name: str, remedy: str) -> Reading:
    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = sae.pre_activations(x)
        latents = relu(pre) * (pre > threshold)
        return latents, sae.decode(latents)

    return Reading(name, sae.site, apply, remedy)


def _by_rank(sae: SAE, k: int) -> Reading:
    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        values, ids = sae.pre_activations(x).topk(k, dim=-1)
        latents = x.new_zeros(len(x), sae.d_sae).scatter(-1, ids, relu(values))
        return latents, sae.decode(latents)

    return Reading(f"it is a TopK of k = {k}, read without its k", sae.site, apply, "load it as the TopK that it is")


def _turned(sae: SAE) -> Reading:
    def apply(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = x @ sae.W_enc.T + sae.b_enc
        latents = relu(pre) * (pre > getattr(sae, "threshold", 0.0))
        return latents, latents @ sae.W_dec.T + sae.b_dec

    return Reading("W_enc and W_dec are both transposed", sae.site, apply, "turn both")
