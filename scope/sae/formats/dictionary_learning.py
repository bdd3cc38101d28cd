"""dictionary_learning's folder: config.json (the trainer's settings and the buffer's) beside ae.pt, a dictionary of tensors.

ae.pt is read with torch's loader for tensors alone, which runs no code; anything else in it is refused. Most of its classes
subtract the decoder's bias before encoding; that is folded into the encoder here.
"""

import pickle
import re
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scope.errors import DictionaryError
from scope.sae.base import SAE
from scope.sae.formats.arrays import build, need, renamed, subtract_b_dec
from scope.sae.formats.files import read_config, refuse_irregular, refuse_too_large

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


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The trainer's settings in config.json."""

    dict_class: str | None = None
    layer: int | None = None
    submodule_name: str | None = None
    lm_name: str | None = None
    k: int | float | None = None
    target_l0: float | None = None


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """The settings of what fed the trainer."""

    io: str = "out"


@dataclass(frozen=True, kw_only=True)
class Config:
    """config.json."""

    trainer: Trainer | None = None
    buffer: Buffer | None = None


@dataclass(frozen=True, kw_only=True)
class Results:
    """eval_results.json."""

    l0: float | None = None
    frac_variance_explained: float | None = None


def read(folder: Path) -> SAE:
    """The dictionary in such a folder.

    Raises:
        DictionaryError: a class that is not read, pickled objects, arrays that do not fit, a BatchTopK without a threshold.
    """
    if not (folder / CONFIG).exists():
        raise DictionaryError(f"{folder} holds {WEIGHTS} without {CONFIG}, which alone says what kind of dictionary it is.")
    config = read_config(folder / CONFIG, Config)
    trainer, buffer = config.trainer or Trainer(), config.buffer or Buffer()
    name = str(trainer.dict_class)
    if name not in _KIND:
        raise DictionaryError(f"{folder} holds a {name}; {', '.join(_KIND)} can be read.")
    found, where = _tensors(folder / WEIGHTS), str(folder / WEIGHTS)
    arrays = renamed(found, _NAMES | _TURNED, where)
    arrays |= {ours: found[theirs].T for theirs, ours in _TURNED.items() if theirs in found and found[theirs].dim() == 2}
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
            settings["nested"] = _nested(found["group_sizes"], len(arrays["b_enc"]), where)
    sae = build(kind, arrays, where, site_of(trainer, buffer), _BESIDE, **settings)
    if name not in ("AutoEncoderNew", "JumpReluAutoEncoder"):
        subtract_b_dec(sae)
    if name == "AutoEncoder":
        sae.unit_decoder()  # as their own loader does: these are trained with decoder rows of any norm
    l0 = trainer.k or trainer.target_l0
    sae.provenance |= {
        "model": {"model": trainer.lm_name or ""},
        "site": sae.site,
        "format": "dictionary_learning",
        "source": str(folder),
    }
    declared = _evaluated(folder) or ({"l0": float(l0), "from": CONFIG} if l0 else None)
    if declared:
        sae.provenance["declared"] = declared
    return sae


def site_of(trainer: Trainer, buffer: Buffer) -> str:
    """Where it reads, where the config says so plainly: its layer, and the end of a block unless a submodule is named."""
    if trainer.layer is None or trainer.layer < 0 or buffer.io != "out":
        return ""
    found = re.fullmatch(r"(resid_post|attn_out|mlp_out)?(?:_layer_(\d+))?", trainer.submodule_name or "")
    if found and found[2] and int(found[2]) != trainer.layer:
        raise DictionaryError(f"{CONFIG} says layer {trainer.layer} and submodule {trainer.submodule_name!r}. Fetch it again.")
    return f"blocks.{trainer.layer}.hook_{found[1] or 'resid_post'}" if found else ""


def _nested(sizes: Tensor, d_sae: int, where: str) -> tuple[int, ...]:
    """The widths of a Matryoshka's groups, added up, without the last, which is all."""
    if sizes.dim() != 1 or sizes.is_floating_point() or int(sizes.sum()) != d_sae:
        raise DictionaryError(f"group_sizes in {where} are {sizes.tolist()}; they must add up to the {d_sae} latents.")
    return tuple(sizes.cumsum(0).tolist()[:-1])


def _k(arrays: dict[str, Tensor], trainer: Trainer, folder: Path, whole: bool = False) -> float:
    """As stored with the arrays, else as configured."""
    stored = arrays.get("k")
    k = trainer.k if stored is None else stored.item() if stored.numel() == 1 else None
    if not isinstance(k, int | float) or isinstance(k, bool) or k - k != 0 or (whole and k % 1):
        raise DictionaryError(f"{folder} says k = {k!r}, which is no number of latents. Fetch {CONFIG} and {WEIGHTS} again.")
    return k


def _tensors(file: Path) -> dict[str, Tensor]:
    refuse_irregular(file)
    _refuse_damaged_zip(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused below
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DictionaryError(
            f"{file} is a pickle that holds more than tensors, or none at all, and could run code when read. It is refused.\n"
            "  Where you trust it, load it with its own library and save its state_dict()."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DictionaryError(f"{file} is damaged or was cut short ({said}). Copy or fetch it again.") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DictionaryError(f"{file} holds no dictionary of tensors.")
    if not all(isinstance(name, str) for name in found):
        raise DictionaryError(f"{file} holds tensors without names.")
    for name, tensor in found.items():
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not dense or tensor.numel() * tensor.element_size() > file.stat().st_size:
            raise DictionaryError(
                f"{name} in {file} says it has shape {tuple(tensor.shape)}, and the file does not hold so many numbers. "
                "Fetch it again."
            )
    return found


def _refuse_damaged_zip(file: Path) -> None:
    """torch does not look at the checksums of its own files.

    Raises:
        DictionaryError: one is wrong, or what is packed is far larger than the file.
    """
    if not zipfile.is_zipfile(file):
        return  # older, without checksums
    try:
        with zipfile.ZipFile(file) as archive:
            refuse_too_large(file, sum(info.file_size for info in archive.infolist()))
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        damaged = str(error)
    if damaged:
        raise DictionaryError(f"{file} is damaged: it fails its checksum ({damaged}). Copy or fetch it again.")


def _threshold(arrays: dict[str, Tensor], folder: Path) -> Tensor:
    """One per latent. It is stored once, and as -1 until training has set it (P27)."""
    stored = arrays.get("threshold")
    if stored is None or stored.numel() != 1 or stored.item() < 0:
        raise DictionaryError(
            f"{folder} is a BatchTopK whose threshold was never set: {'none' if stored is None else stored.item():}.\n"
            "  Without it a token's latents would depend on its neighbours. Train it past threshold_start_step."
        )
    return torch.full(arrays["b_enc"].shape, stored.item())


def _evaluated(folder: Path) -> dict[str, Any] | None:
    """What eval_results.json says, if it is there: an L0, and the share of variance explained."""
    file = folder / "eval_results.json"
    if not file.exists():
        return None
    results = read_config(file, Results)
    declared: dict[str, Any] = {"l0": results.l0} if results.l0 is not None else {}
    if results.frac_variance_explained is not None:
        declared["fvu"] = 1.0 - results.frac_variance_explained
    return declared | {"from": file.name} if declared else None
