"""SAELens' folder: cfg.json beside sae_weights.safetensors. It is also the form in which dictionaries are written here.

What is written says `apply_b_dec_to_input: false` and the SAELens version: without that version SAELens takes older
defaults and subtracts b_dec before encoding.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scope.errors import DictionaryError
from scope.sae.base import SAE
from scope.sae.formats.arrays import jumprelu_from
from scope.sae.jumprelu import JumpReLUSAE

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.54.12"
"""The SAELens whose layout this is."""


def write(sae: SAE, folder: Path) -> None:
    """Write both files aside, then into place."""
    arrays = {name: p.detach().to("cpu", torch.float32).contiguous() for name, p in sae.named_parameters()}
    aside = folder / (WEIGHTS + ".tmp")
    try:
        save_file(arrays, aside)
    except (SafetensorError, OSError) as error:
        aside.unlink(missing_ok=True)
        raise as_os_error(error) from None
    into_place(aside, folder / WEIGHTS)
    write_json(folder / CONFIG, config_of(sae))


def config_of(sae: SAE) -> dict[str, Any]:
    model, recording = sae.provenance.get("model") or {}, sae.provenance.get("recording") or {}
    return {
        "architecture": sae.kind,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if sae.site.endswith("attn.hook_z") else "none",
        "metadata": {
            "sae_lens_version": VERSION,
            "model_name": model.get("model", ""),
            "hook_name": sae.site,
            "context_size": recording.get("context"),
            "prepend_bos": True,
        },
    }


def read(folder: Path) -> JumpReLUSAE:
    """The dictionary in a SAELens folder, as x @ W_enc + b_enc whatever its own convention was.

    Raises:
        DictionaryError: files missing or damaged, or a form that cannot be turned into this one without loss.
    """
    config = read_json(folder / CONFIG)
    try:
        arrays = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise DictionaryError(f"{folder} holds {CONFIG} but no {WEIGHTS}. Copy or fetch the whole folder.") from None
    except (SafetensorError, OSError) as error:
        raise DictionaryError(f"{folder / WEIGHTS} is damaged ({error}). Copy or fetch it again.") from None
    metadata = config.get("metadata") or {}
    architecture = config.get("architecture")
    if architecture == "standard":  # a ReLU is a JumpReLU whose thresholds are 0
        arrays["threshold"] = torch.zeros_like(arrays["b_enc"])
    elif architecture != "jumprelu":
        raise DictionaryError(
            f"{folder} holds a dictionary of architecture {architecture!r}; jumprelu and standard can be read.\n"
            "  Read as one of these, it would fire on other tokens than it was trained to."
        )
    if "log_threshold" in arrays:
        arrays["threshold"] = arrays.pop("log_threshold").exp()
    normalize = config.get("normalize_activations", "none")
    if normalize not in ("none", None):
        raise DictionaryError(
            f"{folder} wants its activations normalised ({normalize}), by a number that is not in the folder.\n"
            "  Fold it into the weights in SAELens (ActivationScaler, or fold_activation_norm_scaling_factor) and save again."
        )
    if config.get("apply_finetuning_scaling_factor") or "finetuning_scaling_factor" in arrays:
        raise DictionaryError(f"{folder} has a fine-tuning factor on its latents, which is not read. Fold it into W_dec first.")
    sae = jumprelu_from(arrays, str(folder), metadata.get("hook_name") or config.get("hook_name") or "")
    if subtracts_b_dec(config):
        with torch.no_grad():
            sae.b_enc.sub_(sae.b_dec @ sae.W_enc)
    sae.provenance = {
        "model": {"model": metadata.get("model_name") or config.get("model_name") or ""},
        "site": sae.site,
        "format": "sae_lens",
        "source": str(folder),
    }
    return sae


def subtracts_b_dec(config: dict) -> bool:
    """Whether b_dec is taken from x before encoding; SAELens before 6.0 did so unless told otherwise."""
    version = str((config.get("metadata") or {}).get("sae_lens_version") or "0")
    old = not version.split(".")[0].isdigit() or int(version.split(".")[0]) < 6
    return bool(config.get("apply_b_dec_to_input", old))


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file, or a DictionaryError that names it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DictionaryError(f"{file} cannot be read as JSON ({error}).") from None
    if not isinstance(found, dict):
        raise DictionaryError(f"{file} holds no JSON object.")
    return found


def write_json(file: Path, content: dict[str, Any]) -> None:
    aside = file.with_name(file.name + ".tmp")
    aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    into_place(aside, file)


def as_os_error(error: Exception) -> Exception:
    """safetensors wraps what the system said ("No space left on device (os error 28)"); give it back with its number."""
    if isinstance(error, OSError):
        return error
    said = str(error)
    if "os error " in said:
        return OSError(int(said.rsplit("os error ", 1)[1].split(")")[0]), said)
    return error


def into_place(aside: Path, file: Path) -> None:
    """Rename once the bytes are on the disk, so that a crash leaves the old file or the new one."""
    with open(aside, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(aside, file)
