"""Gemma Scope's releases for Gemma 2: one params.npz per dictionary, and a place in the release that says what it is.

    layer_12/width_16k/average_l0_82/params.npz      in google/gemma-scope-2b-pt-res, -mlp, -att, -transcoders
    embedding/width_4k/average_l0_21/params.npz      in google/gemma-scope-2b-pt-res

A config.json beside it, as `write` leaves one, says so first; folders of the same names elsewhere say nothing.

Encoding is x @ W_enc + b_enc: their scale and pre-encoder bias are folded in already (arXiv:2408.05147, appendix B). Only the
embedding's dictionaries read embeddings before their factor sqrt(d_in), which is folded in here.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from scope.errors import DictionaryError
from scope.provenance import ModelId
from scope.sae.base import SAE
from scope.sae.claims import claims_of
from scope.sae.configs.jumprelu import JumpReLUConfig
from scope.sae.formats import gemma_scope_2
from scope.sae.formats.arrays import build, renamed
from scope.sae.formats.files import read_config, read_npz
from scope.sae.gated import GatedSAE
from scope.sae.jumprelu import JumpReLUSAE
from scope.sae.topk import BatchTopKSAE
from scope.sae.transcoder import Transcoder
from scope.whole_files import whole_file, write_json

FILE, CONFIG = "params.npz", "config.json"
SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z", "transcoders": "ln2.hook_normalized"}
_ARRAYS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec"}
_RELEASE = re.compile(
    r"(?:.*/)?(?:models--google--)?gemma-scope-(?P<size>2b|9b|27b)-(?P<tuned>pt|it)-(?P<part>res|mlp|att|transcoders)"
    r"(?:/snapshots/\w+)?/(?:layer_(?P<layer>\d+)|embedding)/width_\w+/average_l0_\d+"
)


@dataclass(frozen=True, kw_only=True)
class Config(gemma_scope_2.Config):
    """config.json beside a params.npz: what `write` says, or Gemma Scope 2's fields."""

    kind: Literal["jumprelu", "transcoder"] | None = None
    site: str | None = None
    site_out: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What a params.npz is, by its config.json or by its place in the release."""

    site: str = ""
    site_out: str | None = None
    """None: it is no transcoder."""

    model: str = ""


def read(file: Path, named: str | None = None) -> SAE:
    """The dictionary in a params.npz. `named` is where it was fetched from, if that says more than where `file` lies.

    Raises:
        DictionaryError: not an npz, one that holds pickles, arrays that do not fit together, a config.json of another format.
    """
    paths = [named] if named else [str(file.absolute().parent), str(file.resolve().parent)]
    place = _by_config(file.with_name(CONFIG)) or _by_release(paths)
    arrays = renamed(read_npz(file, (*_ARRAYS, *_NAMES)), _NAMES, file)
    if place.site_out is not None:
        sae = build("transcoder", arrays, str(file), place.site, site_out=place.site_out)
    else:
        sae = build("jumprelu", arrays, str(file), place.site)
    if _unscaled(sae):
        _scale(sae, sae.d_in**0.5)
    source = named or (paths[0] if file.name == FILE else str(file))
    sae.provenance |= {"model": {"model": place.model}, "site": place.site, "format": "gemma_scope", "source": source}
    l0 = re.search(r"(?:^|/)average_l0_(\d+)$", paths[0])
    if l0:
        sae.provenance["declared"] = {"l0": float(l0[1]), "from": "the folder's name"}
    return sae


def _by_config(file: Path) -> _Place | None:
    """None without such a file, or where it names no site."""
    if not file.exists():
        return None
    config = read_config(file, Config)
    gemma_scope_2.refuse_other_architecture(config, file)
    if config.kind is None and config.site is None and config.hf_hook_point_in is None:
        return None
    if config.hf_hook_point_in is not None:
        site, out = config.sites()
    else:
        site, out = config.site or "", (config.site_out or "") if config.kind == "transcoder" else None
    return _Place(site=site, site_out=out, model=config.model_name or "")


def _by_release(paths: list[str]) -> _Place:
    """What the release's layout says, relative to its root; nothing elsewhere."""
    found = next((match for path in paths if (match := _RELEASE.fullmatch(path.rstrip("/")))), None)
    if not found:
        return _Place()
    model = f"google/gemma-2-{found['size']}{'-it' if found['tuned'] == 'it' else ''}"
    if found["layer"] is None:
        return _Place(site="hook_embed" if found["part"] == "res" else "", model=model)
    site = f"blocks.{found['layer']}.{SITES[found['part']]}"
    out = f"blocks.{found['layer']}.hook_mlp_out" if found["part"] == "transcoders" else None
    return _Place(site=site, site_out=out, model=model)


def sites_by_name(place: str) -> tuple[str, str | None]:
    """(site, what a transcoder predicts, else None) of a place in a release of Gemma Scope or Gemma Scope 2; "" elsewhere."""
    found = _by_release([place])
    return (found.site, found.site_out) if found.model else gemma_scope_2.sites_by_release([place])


def write(sae: SAE, folder: Path) -> list[str]:
    """Write params.npz and a config.json that says what it is, and return a list of what they have no place for.

    Raises:
        DictionaryError: a dictionary that five arrays with thresholds cannot express.
    """
    if isinstance(sae, Transcoder):
        if sae.config.k or sae.config.skip:
            what = "a TopK transcoder" if sae.config.k else "a transcoder with an affine skip"
            raise DictionaryError(f"Gemma Scope's params.npz has no place for {what}. Keep it as --to scope.")
        jumprelu: SAE = sae
    else:
        jumprelu = as_jumprelu(sae)
    arrays = {name: p.detach().to("cpu", torch.float32).numpy() for name, p in jumprelu.named_parameters()}
    if _unscaled(jumprelu):
        root = np.float32(sae.d_in**0.5)
        arrays |= {"W_enc": arrays["W_enc"] * root, "W_dec": arrays["W_dec"] / root, "b_dec": arrays["b_dec"] / root}
    with whole_file(folder / FILE) as file:
        np.savez(file, **{name: arrays[name] for name in _ARRAYS})
    config: dict[str, Any] = {"architecture": "jump_relu", "kind": jumprelu.kind, "site": sae.site}
    config |= {"site_out": sae.site_out} if isinstance(sae, Transcoder) else {}
    write_json(folder / CONFIG, config | {"model_name": ModelId.of(sae.provenance.get("model")).name or ""})
    lost = ["its training. Other readers take model and site from the path " + suggested_path(sae)]
    if not isinstance(sae, JumpReLUSAE | Transcoder):
        lost.append(f"that it was trained as {sae.kind}; it is written with the threshold that stands for it")
    if sae.config.nested:
        lost.append(f"the nested widths {', '.join(map(str, sae.config.nested))}")
    return lost


def suggested_path(sae: SAE) -> str:
    """Where Gemma Scope would lay this dictionary, as far as that is known."""
    layer = re.search(r"blocks\.(\d+)\.", sae.site)
    part = next((short for short, site in SITES.items() if sae.site.endswith(site)), "PART")
    model = re.search(r"gemma-2-(\d+b)(-it)?", str(ModelId.of(sae.provenance.get("model")).name))
    repo = f"gemma-scope-{model[1]}-{'it' if model[2] else 'pt'}-{part}" if model else f"gemma-scope-MODEL-pt-{part}"
    l0 = claims_of(sae.provenance).get("l0")
    ends = f"average_l0_{round(l0)}" if isinstance(l0, int | float) else "average_l0_N"
    return f"{repo}/layer_{layer[1] if layer else 'L'}/width_{round(sae.d_sae / 1024)}k/{ends}/{FILE}"


def _unscaled(sae: SAE) -> bool:
    """Whether its file holds a dictionary of embeddings before their factor."""
    return sae.site == "hook_embed" and sae.autoencodes


@torch.no_grad()
def _scale(sae: SAE, factor: float) -> None:
    """Make a dictionary of x / factor into one of x, whose latents stay as they were."""
    sae.W_enc.div_(factor)
    sae.W_dec.mul_(factor)
    sae.b_dec.mul_(factor)


@torch.no_grad()
def as_jumprelu(sae: SAE) -> JumpReLUSAE:
    """The same dictionary as five JumpReLU arrays: a BatchTopK by its threshold; a Gated exactly, since its gate opens where
    its magnitude exceeds b_mag - exp(r_mag) b_enc.

    Raises:
        DictionaryError: a TopK, whose latents compete, so that no threshold stands for them; a transcoder.
    """
    if isinstance(sae, JumpReLUSAE):
        return sae
    if not isinstance(sae, BatchTopKSAE | GatedSAE):
        raise DictionaryError(
            f"A dictionary of kind {sae.kind} cannot be converted to JumpReLU: no thresholds reproduce which latents fire.\n"
            "  Write it as SAELens' folder (--to sae_lens), or train a batch_topk, which has a threshold."
        )
    c = sae.config
    config = JumpReLUConfig(d_in=c.d_in, d_sae=c.d_sae, nested=c.nested, target_l0=getattr(c, "target_l0", None) or c.k)
    jumprelu = JumpReLUSAE(config, sae.site).to(sae.W_enc.device)
    jumprelu.provenance = dict(sae.provenance)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        getattr(jumprelu, name).copy_(getattr(sae, name))
    if isinstance(sae, BatchTopKSAE):
        jumprelu.threshold.copy_(sae.threshold)
    else:
        gain = sae.r_mag.exp()
        jumprelu.W_enc.copy_(sae.W_enc * gain)
        jumprelu.b_enc.copy_(sae.b_mag)
        jumprelu.threshold.copy_((sae.b_mag - gain * sae.b_enc).clamp_min(0.0))
    return jumprelu.eval()
