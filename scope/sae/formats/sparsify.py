"""sparsify's folder: cfg.json beside sae.safetensors, named after the module whose output is read ("layers.12").

Always TopK. W_dec has a row per latent, the encoder is a linear layer [d_sae d_in]; b_dec is subtracted before encoding, but
not in a transcoder.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scope.errors import DictionaryError
from scope.sae.base import SAE
from scope.sae.formats.arrays import build, need, renamed, subtract_b_dec
from scope.sae.formats.files import read_config, read_safetensors

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"

_SITES = {"": "hook_resid_post", ".mlp": "mlp.hook_out", ".self_attn": "attn.hook_out", ".attn": "attn.hook_out"}
_PREFIXES = "model|language_model|text_model|base_model|transformer|gpt_neox"
_NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """cfg.json."""

    activation: str = "topk"
    k: int | None = None
    signed: bool = False
    transcode: bool = False
    d_in: int | None = None
    num_latents: int | None = None
    """0: as many as `expansion_factor` makes of d_in."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The run's config.json."""

    model: str | None = None


def read(folder: Path, named: str | None = None) -> SAE:
    """The dictionary in such a folder. `named` is the hook point where the folder's name does not say it.

    Raises:
        DictionaryError: damaged files, groupmax or signed latents, a coder without decoder.
    """
    config, where = read_config(folder / CONFIG, Config), str(folder)
    if config.activation != "topk" or config.signed:
        what = f"activation {config.activation!r}" if config.activation != "topk" else "signed latents"
        raise DictionaryError(f"{folder} has {what}; of sparsify's dictionaries those with topk are read.")
    if config.k is None:
        raise DictionaryError(f"{folder / CONFIG} does not say k, how many latents fire on each token.")
    stored = read_safetensors(folder / WEIGHTS)
    arrays = renamed(stored, _NAMES, folder / WEIGHTS)
    if "encoder.weight" in stored and stored["encoder.weight"].dim() == 2:
        arrays["W_enc"] = stored["encoder.weight"].T
    _refuse_sizes(config, arrays, folder)
    hook = (named or str(folder.resolve())).rstrip("/").rsplit("/", 1)[-1]
    site = site_of(hook)
    settings: dict[str, Any] = {"k": config.k}
    if config.transcode:
        arrays["threshold"] = torch.zeros(arrays["b_enc"].shape) if "b_enc" in arrays else torch.zeros(0)
        # What goes into a module is no site of ours: into the MLP it is its norm's output, gain included.
        sae = build("transcoder", arrays, where, "", site_out=site, **settings)
        sae.provenance["reads"] = f"the input of {hook}"
    else:
        if "W_skip" in stored:
            raise DictionaryError(f"{folder} adds a linear map of its input to what it reconstructs, which is no dictionary.")
        sae = build("topk", arrays, where, site, **settings)
        subtract_b_dec(sae)
    sae.provenance |= {
        "model": {"model": _model(folder)},
        "site": sae.site,
        "format": "sparsify",
        "source": where,
        "declared": {"l0": float(config.k), "from": "its k"},
    }
    return sae


def _refuse_sizes(config: Config, arrays: dict[str, Tensor], folder: Path) -> None:
    """Raises: DictionaryError: cfg.json gives other sizes than the arrays have."""
    need(arrays, ("W_enc", "b_enc"), str(folder))
    W_enc = arrays["W_enc"]
    sizes = (("num_latents", config.num_latents or None, W_enc.shape[-1]), ("d_in", config.d_in, len(W_enc)))
    for name, described, stored in sizes:
        if described not in (None, stored):
            raise DictionaryError(
                f"{folder / CONFIG} says {name} = {described}; the arrays beside it say {stored}.\n"
                "  One of the two is of another dictionary. Copy or fetch the whole folder."
            )


def site_of(hook: str) -> str:
    """Our site for the output of a module of transformers, named with or without its prefix; empty where there is none."""
    if re.fullmatch(rf"(?:(?:{_PREFIXES})\.)*embed_tokens", hook):
        return "hook_embed"
    found = re.fullmatch(rf"(?:(?:{_PREFIXES})\.)*(?:layers|h)[._](\d+)(\.\w+)?", hook)
    return f"blocks.{found[1]}.{_SITES[found[2] or '']}" if found and (found[2] or "") in _SITES else ""


def _model(folder: Path) -> str:
    """The model that the run's config.json, beside the hook points' folders, names."""
    above = folder.resolve().parent / "config.json"
    return (read_config(above, Run).model or "") if above.exists() else ""
