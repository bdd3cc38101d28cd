"""Gemma Scope 2 (Gemma 3): config.json beside params.safetensors with lower-case names.

    resid_post/layer_12_width_16k_l0_medium        in google/gemma-scope-2-{270m,1b,4b,12b,27b}-{pt,it}

config.json names what is read, and for a transcoder what is predicted, as modules of transformers; without it the place in
the release does. A transcoder's affine map
is stored [d_in d_out]. Cross-layer transcoders have one decoder per layer and are refused: added up, they predict no one site.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from scope.errors import DictionaryError
from scope.sae.base import SAE
from scope.sae.formats.arrays import build, renamed
from scope.sae.formats.files import read_config, read_safetensors

CONFIG, WEIGHTS = "config.json", "params.safetensors"
L0S = {"small": (10.0, 20.0), "medium": (30.0, 60.0), "big": (90.0, 150.0)}
_SKIP = "affine_skip_connection"
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", _SKIP: "W_skip"}
_SITES = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_attention_layernorm.output": "hook_attn_out",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
_PARTS = {"resid_post": "hook_resid_post", "attn_out": "attn.hook_z", "mlp_out": "hook_mlp_out"}
_FOLDER = r"layer_(?P<layer>\d+)_width_\w+?_l0_(?P<l0>small|medium|big)(?:_affine)?"
_RELEASE = re.compile(
    r"(?:.*/)?(?:models--google--)?gemma-scope-2-(?:270m|1b|4b|12b|27b)-(?:pt|it)(?:/snapshots/\w+)?/"
    rf"(?P<part>resid_post|attn_out|mlp_out|transcoder)(?:_all)?/{_FOLDER}"
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """config.json: modules of transformers that are read and predicted."""

    architecture: str | None = None
    model_name: str | None = None
    hf_hook_point_in: str | None = None
    hf_hook_point_out: str | None = None

    def sites(self) -> tuple[str, str | None]:
        """(what is read, what a transcoder predicts); empty where it is no site of ours, None of an SAE."""
        predicts = self.hf_hook_point_out not in (None, "", self.hf_hook_point_in)
        return site_of(self.hf_hook_point_in), site_of(self.hf_hook_point_out) if predicts else None


def read(folder: Path, named: str | None = None) -> SAE:
    """The dictionary in such a folder; its sites by config.json, or by its place in the release (`named`) where there is none.

    Raises:
        DictionaryError: damaged files, an unknown architecture, a cross-layer transcoder.
    """
    config = read_config(folder / CONFIG, Config) if (folder / CONFIG).exists() else Config()
    refuse_other_architecture(config, folder)
    stored = read_safetensors(folder / WEIGHTS)
    if "w_dec" in stored and stored["w_dec"].dim() == 3:
        raise DictionaryError(
            f"{folder} is a cross-layer transcoder: its decoder has {stored['w_dec'].shape[1]} layers, one site each.\n"
            "  Give a dictionary or a transcoder of one layer."
        )
    arrays = renamed(stored, _NAMES, folder / WEIGHTS)
    paths = [named] if named else [str(folder.absolute()), str(folder.resolve())]
    site, out = config.sites() if config.hf_hook_point_in else sites_by_release(paths)
    if "W_skip" in arrays:
        out = out or ""
        if arrays["W_skip"].dim() != 2:
            raise DictionaryError(f"{_SKIP} in {folder} has shape {tuple(stored[_SKIP].shape)}; it must be a matrix.")
        arrays["W_skip"] = arrays["W_skip"].T
    if out is not None:
        sae = build("transcoder", arrays, str(folder), site, site_out=out)
        sae.provenance["reads"] = config.hf_hook_point_in or "the MLP's input, after its norm's gain"
    else:
        sae = build("jumprelu", arrays, str(folder), site)
    source, model = named or str(folder), config.model_name or ""
    sae.provenance |= {"model": {"model": model}, "site": sae.site, "format": "gemma_scope_2", "source": source}
    l0 = re.fullmatch(_FOLDER, paths[0].rstrip("/").rsplit("/", 1)[-1])
    if l0:
        sae.provenance["declared"] = {"l0": list(L0S[l0["l0"]]), "from": "the folder's name"}
    return sae


def refuse_other_architecture(config: Config, where: Path) -> None:
    if config.architecture not in (None, "jump_relu", "jumprelu"):
        raise DictionaryError(f"{where} says architecture {config.architecture!r}; Gemma Scope's is jump_relu.")


def site_of(hook: str | None) -> str:
    """Our site for a module of transformers ("model.layers.12.output").

    Empty for the MLP's input after its norm's gain, which is no site: ours lies before the gain.
    """
    found = re.fullmatch(r"(?:.*\.)?layers\.(\d+)\.(.+)", hook or "")
    return f"blocks.{found[1]}.{_SITES[found[2]]}" if found and found[2] in _SITES else ""


def sites_by_release(paths: list[str]) -> tuple[str, str | None]:
    """(site, what a transcoder predicts) by the release's layout, relative to its root; nothing elsewhere."""
    found = next((match for path in paths if (match := _RELEASE.fullmatch(path.rstrip("/")))), None)
    if not found:
        return "", None
    if found["part"] == "transcoder":
        return "", f"blocks.{found['layer']}.hook_mlp_out"
    return f"blocks.{found['layer']}.{_PARTS[found['part']]}", None
