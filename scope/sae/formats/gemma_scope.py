"""Gemma Scope's releases for Gemma 2: one params.npz per dictionary, and a path that says what it is.

    layer_12/width_16k/average_l0_82/params.npz      in google/gemma-scope-2b-pt-res, -mlp, -att, -transcoders
    embedding/width_4k/average_l0_21/params.npz      in google/gemma-scope-2b-pt-res

Encoding is x @ W_enc + b_enc: their scale and pre-encoder bias are folded in already (arXiv:2408.05147, appendix B). Only the
embedding's dictionaries read embeddings before their factor sqrt(d_in), which is folded in here.
"""

import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from scope.errors import DictionaryError
from scope.provenance import ModelId
from scope.sae.base import SAE
from scope.sae.configs.jumprelu import JumpReLUConfig
from scope.sae.formats.arrays import build, from_numpy
from scope.sae.gated import GatedSAE
from scope.sae.jumprelu import JumpReLUSAE
from scope.sae.topk import BatchTopKSAE
from scope.sae.transcoder import Transcoder
from scope.whole_files import whole_file

FILE = "params.npz"
SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
_KEYS = {"w_enc": "W_enc", "w_dec": "W_dec"}
_ARRAYS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def read(file: Path, named: str | None = None) -> SAE:
    """The dictionary in a params.npz. The site is read from the path (`named`, where it is known better than `file`).

    Raises:
        DictionaryError: not an npz, one that holds pickles, or arrays that do not fit together.
    """
    try:
        with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as archive:
            arrays = {_KEYS.get(name, name): from_numpy(archive[name]) for name in archive.files}
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise DictionaryError(f"{file} holds pickled objects, which could run code when read. They are refused.") from None
        raise DictionaryError(f"{file} cannot be read as an npz archive: {error}") from None
    except (zipfile.BadZipFile, EOFError, OSError, AttributeError, TypeError) as error:
        raise DictionaryError(f"{file} is damaged or not an npz archive ({error}). Fetch it again.") from None
    path = named or str(file)
    site = site_of(path)
    if "-transcoders" in path:
        sae = build("transcoder", arrays, str(file), site, site_out=site.replace("ln2.hook_normalized", "hook_mlp_out"))
    else:
        sae = build("jumprelu", arrays, str(file), site)
    if site == "hook_embed":
        _scale(sae, sae.d_in**0.5)
    sae.provenance |= {"model": {"model": model_of(path)}, "site": site, "format": "gemma_scope", "source": path}
    l0 = re.search(r"average_l0_(\d+)", path)
    if l0:
        sae.provenance["declared"] = {"l0": float(l0[1]), "from": "the folder's name"}
    return sae


def write(sae: SAE, folder: Path) -> list[str]:
    """Write params.npz, and return a list of what it has no place for.

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
    if sae.site == "hook_embed":
        root = np.float32(sae.d_in**0.5)
        arrays |= {"W_enc": arrays["W_enc"] * root, "W_dec": arrays["W_dec"] / root, "b_dec": arrays["b_dec"] / root}
    with whole_file(folder / FILE) as file:
        np.savez(file, **{name: arrays[name] for name in _ARRAYS})
    lost = ["model, site and training are not in the file; model and site are part of the path " + suggested_path(sae)]
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
    l0 = (sae.provenance.get("declared") or sae.provenance.get("training") or {}).get("l0")
    ends = f"average_l0_{round(l0)}" if isinstance(l0, int | float) else "average_l0_N"
    return f"{repo}/layer_{layer[1] if layer else 'L'}/width_{round(sae.d_sae / 1024)}k/{ends}/{FILE}"


@torch.no_grad()
def _scale(sae: SAE, factor: float) -> None:
    """Make a dictionary of x / factor into one of x, whose latents stay as they were."""
    sae.W_enc.div_(factor)
    sae.W_dec.mul_(factor)
    sae.b_dec.mul_(factor)


def site_of(path: str) -> str:
    """blocks.12.hook_resid_post, from a path of Gemma Scope's form; empty where the path says too little."""
    layer = re.search(r"layer_(\d+)", path)
    part = re.search(r"gemma-scope-[^/]*?-(res|mlp|att|transcoders)\b", path)
    if part and part[1] == "res" and "/embedding/" in path:
        return "hook_embed"
    if not layer or not part:
        return ""
    return f"blocks.{layer[1]}.{SITES.get(part[1], 'ln2.hook_normalized')}"


def model_of(path: str) -> str:
    """google/gemma-2-2b, from a path of Gemma Scope's form; empty where the path says too little."""
    found = re.search(r"gemma-scope-(2b|9b|27b)-(pt|it)", path)
    return f"google/gemma-2-{found[1]}{'-it' if found[2] == 'it' else ''}" if found else ""


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
