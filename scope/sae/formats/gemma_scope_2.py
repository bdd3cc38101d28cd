"""Gemma Scope 2 (Gemma 3): config.json beside params.safetensors with lower-case names.

    resid_post/layer_12_width_16k_l0_medium        in google/gemma-scope-2-{270m,1b,4b,12b,27b}-{pt,it}

config.json names what is read, and for a transcoder what is predicted, as modules of transformers. A transcoder's affine map
is stored [d_in d_out]. Cross-layer transcoders have one decoder per layer and are refused: added up, they predict no one site.
"""

import re
from pathlib import Path

from scope.errors import DictionaryError
from scope.sae.base import SAE
from scope.sae.formats.arrays import build
from scope.sae.formats.files import read_json, read_safetensors

CONFIG, WEIGHTS = "config.json", "params.safetensors"
L0S = {"small": (10.0, 20.0), "medium": (30.0, 60.0), "big": (90.0, 150.0)}
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
_SITES = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_attention_layernorm.output": "hook_attn_out",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}


def read(folder: Path, named: str | None = None) -> SAE:
    """The dictionary in such a folder; its sites by config.json, or by the folder's name (`named`) where there is none.

    Raises:
        DictionaryError: damaged files, an unknown architecture, a cross-layer transcoder.
    """
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    path = named or str(folder.resolve())
    if config.get("architecture", "jump_relu") not in ("jump_relu", "jumprelu"):
        raise DictionaryError(f"{folder} holds architecture {config['architecture']!r}; Gemma Scope 2's is jump_relu.")
    for name in ("hf_hook_point_in", "hf_hook_point_out"):
        if not isinstance(config.get(name) or "", str):
            raise DictionaryError(f"{folder / CONFIG} is damaged: its {name} is {config[name]!r}, no name. Fetch it again.")
    stored = read_safetensors(folder / WEIGHTS)
    if "w_dec" in stored and stored["w_dec"].dim() == 3:
        raise DictionaryError(
            f"{folder} is a cross-layer transcoder: its decoder has {stored['w_dec'].shape[1]} layers, one site each.\n"
            "  Give a dictionary or a transcoder of one layer."
        )
    arrays = {ours: stored[theirs] for theirs, ours in _NAMES.items() if theirs in stored}
    site, out = site_of(config.get("hf_hook_point_in"), path), site_of(config.get("hf_hook_point_out"), "")
    transcodes = bool(config.get("hf_hook_point_out")) or "transcoder" in path or "affine_skip_connection" in stored
    if transcodes:
        if "affine_skip_connection" in stored:
            arrays["W_skip"] = stored["affine_skip_connection"].T
        if not out:
            layer = _layer(path)
            out = f"blocks.{layer}.hook_mlp_out" if layer else ""
        sae = build("transcoder", arrays, str(folder), site, site_out=out)
        sae.provenance["reads"] = config.get("hf_hook_point_in", "the MLP's input, after its norm's gain")
    else:
        sae = build("jumprelu", arrays, str(folder), site)
    model = str(config.get("model_name", ""))
    sae.provenance |= {"model": {"model": model}, "site": sae.site, "format": "gemma_scope_2", "source": path}
    size = re.search(r"_l0_(small|medium|big)", path)
    if size:
        sae.provenance["declared"] = {"l0": list(L0S[size[1]]), "from": "the folder's name"}
    return sae


def site_of(hook: str | None, path: str) -> str:
    """Our site for a module of transformers ("model.layers.12.output"), or for a folder's name without one.

    Empty for the MLP's input after its norm's gain, which is no site: ours lies before the gain.
    """
    if hook:
        found = re.fullmatch(r"(?:.*\.)?layers\.(\d+)\.(.+)", hook)
        return f"blocks.{found[1]}.{_SITES[found[2]]}" if found and found[2] in _SITES else ""
    layer = _layer(path)
    part = re.search(r"(resid_post|attn_out|mlp_out)(?:_all)?/", path)
    names = {"resid_post": "hook_resid_post", "attn_out": "attn.hook_z", "mlp_out": "hook_mlp_out"}
    return f"blocks.{layer}.{names[part[1]]}" if layer and part else ""


def _layer(path: str) -> str | None:
    found = re.search(r"layer_(\d+)", path)
    return found[1] if found else None
