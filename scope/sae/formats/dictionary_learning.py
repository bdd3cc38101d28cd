"""dictionary_learning's folder: config.json (the trainer's settings and the buffer's) beside ae.pt, a dictionary of tensors.

ae.pt is read with torch's loader for tensors alone, which runs no code; anything else in it is refused. Most of its classes
subtract the decoder's bias before encoding; that is folded into the encoder here.
"""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scope.errors import DictionaryError
from scope.sae.base import SAE
from scope.sae.formats.arrays import build, need
from scope.sae.formats.files import read_json
from scope.sae.gated import GatedSAE

CONFIG, WEIGHTS = "config.json", "ae.pt"

_KIND = {
    "AutoEncoder": "jumprelu",
    "AutoEncoderNew": "jumprelu",
    "JumpReluAutoEncoder": "jumprelu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batch_topk",
    "MatryoshkaBatchTopKSAE": "batch_topk",
    "GatedAutoEncoder": "gated",
}
_NAMES = {
    "encoder.bias": "b_enc",
    "bias": "b_dec",
    "decoder.bias": "b_dec",
    "decoder_bias": "b_dec",
    "gate_bias": "b_enc",
    "mag_bias": "b_mag",
}
_BESIDE = ("k", "threshold", "group_sizes")  # a TopK has a threshold too, for use in place of its k
_TURNED = {"encoder.weight": "W_enc", "decoder.weight": "W_dec"}


def read(folder: Path) -> SAE:
    """The dictionary in such a folder.

    Raises:
        DictionaryError: a class that is not read, pickled objects, arrays that do not fit, a BatchTopK without a threshold.
    """
    trainer, buffer = _settings(folder)
    name = str(trainer.get("dict_class"))
    if name not in _KIND:
        raise DictionaryError(f"{folder} holds a {name}; {', '.join(_KIND)} can be read.")
    found, where = _tensors(folder / WEIGHTS), str(folder / WEIGHTS)
    arrays = {_NAMES.get(key, key): value for key, value in found.items() if key not in _TURNED}
    arrays |= {ours: found[theirs].T for theirs, ours in _TURNED.items() if theirs in found}
    need(arrays, ("W_enc", "b_enc", "W_dec", "b_dec"), where)
    kind, settings = _KIND[name], {}
    if name in ("AutoEncoder", "AutoEncoderNew"):
        arrays["threshold"] = torch.zeros(arrays["b_enc"].shape)
    if kind == "topk":
        settings = {"k": int(_k(found, trainer, folder, whole=True))}
    if kind == "batch_topk":
        settings = {"k": float(_k(found, trainer, folder))}
        arrays["threshold"] = _threshold(arrays, folder)
        if "group_sizes" in found:
            settings["nested"] = tuple(found["group_sizes"].cumsum(0).tolist()[:-1])
    sae = build(kind, arrays, where, site_of(trainer, buffer), _BESIDE, **settings)
    if name not in ("AutoEncoderNew", "JumpReluAutoEncoder"):
        _fold_b_dec(sae)
    if name == "AutoEncoder":
        sae.unit_decoder()  # as their own loader does: these are trained with decoder rows of any norm
    l0 = trainer.get("k") or trainer.get("target_l0")
    sae.provenance |= {
        "model": {"model": str(trainer.get("lm_name") or "")},
        "site": sae.site,
        "format": "dictionary_learning",
        "source": str(folder),
    }
    declared = _evaluated(folder) or ({"l0": float(l0), "from": CONFIG} if l0 and isinstance(l0, int | float) else None)
    if declared:
        sae.provenance["declared"] = declared
    return sae


def site_of(trainer: dict[str, Any], buffer: dict[str, Any]) -> str:
    """Where it reads, where the config says so plainly: its layer, and the end of a block unless a submodule is named."""
    layer, name = trainer.get("layer"), str(trainer.get("submodule_name") or "")
    if not isinstance(layer, int) or buffer.get("io", "out") != "out":
        return ""
    found = re.fullmatch(r"(resid_post|attn_out|mlp_out)?(?:_layer_\d+)?", name)
    return f"blocks.{layer}.hook_{found[1] or 'resid_post'}" if found else ""


def _settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not (folder / CONFIG).exists():
        raise DictionaryError(f"{folder} holds {WEIGHTS} without {CONFIG}, which alone says what kind of dictionary it is.")
    config = read_json(folder / CONFIG)
    trainer, buffer = config.get("trainer") or {}, config.get("buffer") or {}
    if not isinstance(trainer, dict) or not isinstance(buffer, dict):
        raise DictionaryError(f"{folder / CONFIG} is damaged: its trainer and its buffer must be objects. Fetch it again.")
    return trainer, buffer


def _k(arrays: dict[str, Tensor], trainer: dict[str, Any], folder: Path, whole: bool = False) -> float:
    """As stored with the arrays, else as configured."""
    stored = arrays.get("k")
    k = trainer.get("k") if stored is None else stored.item() if stored.numel() == 1 else None
    if not isinstance(k, int | float) or isinstance(k, bool) or k - k != 0 or (whole and k % 1):
        raise DictionaryError(f"{folder} says k = {k!r}, which is no number of latents. Fetch {CONFIG} and {WEIGHTS} again.")
    return k


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused below
            found = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DictionaryError(f"{file.parent} has no {file.name}. Copy or fetch the whole folder.") from None
    except pickle.UnpicklingError:
        raise DictionaryError(
            f"{file} is a pickle that holds more than tensors, or none at all, and could run code when read. It is refused.\n"
            "  Where you trust it, load it with its own library and save its state_dict()."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DictionaryError(f"{file} is damaged or was cut short ({said}). Copy or fetch it again.") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DictionaryError(f"{file} holds no dictionary of tensors.")
    return found


def _threshold(arrays: dict[str, Tensor], folder: Path) -> Tensor:
    """One per latent. It is stored once, and as -1 until training has set it (P27)."""
    stored = arrays.get("threshold")
    if stored is None or stored.numel() != 1 or stored.item() < 0:
        raise DictionaryError(
            f"{folder} is a BatchTopK whose threshold was never set: {'none' if stored is None else stored.item():}.\n"
            "  Without it a token's latents would depend on its neighbours. Train it past threshold_start_step."
        )
    return torch.full(arrays["b_enc"].shape, stored.item())


@torch.no_grad()
def _fold_b_dec(sae: SAE) -> None:
    shift = sae.b_dec @ sae.W_enc
    sae.b_enc.sub_(shift)
    if isinstance(sae, GatedSAE):
        sae.b_mag.sub_(shift * sae.r_mag.exp())


def _evaluated(folder: Path) -> dict[str, Any] | None:
    """What eval_results.json says, if it is there: an L0, and the share of variance explained."""
    file = folder / "eval_results.json"
    if not file.exists():
        return None
    found = read_json(file)
    declared: dict[str, Any] = {"from": file.name}
    if isinstance(found.get("l0"), int | float):
        declared["l0"] = float(found["l0"])
    if isinstance(found.get("frac_variance_explained"), int | float):
        declared["fvu"] = 1.0 - float(found["frac_variance_explained"])
    return declared if len(declared) > 1 else None
